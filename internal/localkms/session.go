package localkms

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"strings"
	"sync"
	"time"
)

// sessions makes temporary credentials, and knows its own again. It keeps no list:
// a session token holds what a session is, under a MAC, and the secret access key
// follows from the access key id. So credentials survive a restart, as long as the
// directory does.
type sessions struct {
	secret []byte
	roles  map[string]*role // by ARN; never changes

	mu    sync.RWMutex
	known map[string]credential // by token; see maxSessions
}

// maxSessions bounds the tokens that are kept read. One more, and all are
// forgotten: a token is read in microseconds.
const maxSessions = 1024

// sessionClaim is what a token says.
type sessionClaim struct {
	AccessKeyID string    `json:"accessKeyId"`
	Role        string    `json:"role"` // ARN
	Name        string    `json:"name"`
	Policy      string    `json:"policy,omitempty"`
	Issued      time.Time `json:"issued"`
	Expires     time.Time `json:"expires"`
}

// temporary is what STS hands out.
type temporary struct {
	accessKeyID, secret, token string
	identity                   *identity
}

func newSessions(secret []byte, roles map[string]*role) *sessions {
	return &sessions{secret: macOf(secret, "localkms session secret 1"), roles: roles, known: map[string]credential{}}
}

// macOf derives something for one purpose, which nothing else yields.
func macOf(secret []byte, purpose string) []byte {
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(purpose))
	return mac.Sum(nil)
}

// issue begins a session of a role, with a policy unless that is empty.
func (s *sessions) issue(role *role, name, document string, now, expires time.Time) (temporary, error) {
	claim := sessionClaim{"ASIA" + rand.Text()[:16], role.arn, name, document, now.UTC().Truncate(time.Second), expires.UTC()}
	text, err := json.Marshal(claim)
	if err != nil {
		return temporary{}, err
	}
	found, err := s.open(claim)
	if err != nil {
		return temporary{}, err
	}
	token := base64.StdEncoding.EncodeToString(append(text, macOf(s.secret, "token "+string(text))...))
	return temporary{claim.AccessKeyID, found.secret, token, found.identity}, nil
}

// read returns who is behind a token and its access key id, whether or not the
// session is over. It is false for what this KMS did not issue, and for the
// sessions of a role that is gone.
func (s *sessions) read(accessKeyID, token string) (credential, bool) {
	s.mu.RLock()
	found, ok := s.known[token]
	s.mu.RUnlock()
	if !ok {
		var err error
		if found, err = s.parse(token); err != nil {
			return credential{}, false
		}
		s.mu.Lock()
		if len(s.known) >= maxSessions {
			clear(s.known)
		}
		s.known[token] = found
		s.mu.Unlock()
	}
	return found, found.identity.session.accessKeyID == accessKeyID
}

func (s *sessions) parse(token string) (credential, error) {
	signed, err := base64.StdEncoding.DecodeString(token)
	split := len(signed) - sha256.Size
	if err != nil || split <= 0 || !hmac.Equal(macOf(s.secret, "token "+string(signed[:split])), signed[split:]) {
		return credential{}, errUnknownToken()
	}
	var claim sessionClaim
	if err := json.Unmarshal(signed[:split], &claim); err != nil {
		return credential{}, err
	}
	return s.open(claim)
}

// open makes the caller that a claim is about.
func (s *sessions) open(claim sessionClaim) (credential, error) {
	of, ok := s.roles[claim.Role]
	if !ok {
		return credential{}, errUnknownToken()
	}
	i := *of.identity
	i.arn = "arn:aws:sts::" + i.account + ":assumed-role/" + of.name + "/" + claim.Name
	i.userID += ":" + claim.Name
	i.session = &session{accessKeyID: claim.AccessKeyID, issued: claim.Issued, expires: claim.Expires}
	if claim.Policy != "" {
		var err error
		if i.session.policy, err = parsePolicy(sessionPolicy, "", claim.Policy); err != nil {
			return credential{}, err
		}
	}
	secret := base64.StdEncoding.EncodeToString(macOf(s.secret, "secret access key of "+claim.AccessKeyID))
	return credential{&i, strings.TrimRight(secret, "=")[:40]}, nil
}

func errUnknownToken() error {
	return fault(codeUnrecognizedClient, "The security token included in the request is invalid.")
}

func errExpiredToken() error {
	return fault(codeExpiredToken, "The security token included in the request is expired")
}
