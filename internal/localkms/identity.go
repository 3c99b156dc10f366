package localkms

import (
	"crypto/sha256"
	"encoding/base32"
	"net/http"
	"regexp"
	"strings"
	"time"
)

// identity is a caller: an IAM principal, with the policies that are attached to
// it. It is never altered.
type identity struct {
	arn       string // as AWS shows it; of a session that of the session
	principal string // aws:PrincipalArn; of a session the ARN of its role
	account   string // 12 digits
	kind      principalKind
	userID    string // aws:userid
	userName  string // aws:username; users only
	policies  []*policy
	session   *session // nil for a permanent access key
}

// principalKind is the value of aws:PrincipalType.
type principalKind string

const (
	rootPrincipal principalKind = "Account"
	userPrincipal principalKind = "User"
	rolePrincipal principalKind = "AssumedRole"
)

// session is what a caller with temporary credentials has beside its role.
type session struct {
	accessKeyID     string
	policy          *policy // nil when none was passed
	issued, expires time.Time
}

func (i *identity) root() string { return rootARN(i.account) }

func (i *identity) isRoot() bool { return i.kind == rootPrincipal }

func rootARN(account string) string { return "arn:aws:iam::" + account + ":root" }

// The principals that a policy or grant may name (IAM User Guide, "IAM
// identifiers"); group 1 or 2 is the account.
var principalPattern = regexp.MustCompile(
	`^arn:aws:(?:iam::([0-9]{12}):(?:root|(?:user|role)/[\w+=,.@/-]+)|sts::([0-9]{12}):(?:assumed-role/[\w+=,.@-]+/[\w+=,.@-]+|federated-user/[\w+=,.@-]+))$`)

var accountPattern = regexp.MustCompile(`^[0-9]{12}$`)

// principalAccount returns the account of a principal's ARN, or "" when it is
// not the ARN of an IAM principal.
func principalAccount(arn string) string {
	m := principalPattern.FindStringSubmatch(arn)
	if m == nil {
		return ""
	}
	return m[1] + m[2]
}

// newIdentity returns the principal with an ARN, as AWS would name it elsewhere.
func newIdentity(arn string, policies ...*policy) *identity {
	account := principalAccount(arn)
	i := &identity{arn: arn, principal: arn, account: account, policies: policies}
	_, resource, _ := strings.Cut(arn, account+":")
	switch name := resource[strings.LastIndexByte(resource, '/')+1:]; {
	case resource == "root":
		i.kind, i.userID = rootPrincipal, account
	case strings.HasPrefix(resource, "user/"):
		i.kind, i.userID, i.userName = userPrincipal, uniqueID("AIDA", arn), name
	default:
		i.kind, i.userID = rolePrincipal, uniqueID("AROA", arn)
	}
	return i
}

// uniqueID returns what AWS makes up for a principal (IAM User Guide, "IAM
// identifiers", Unique identifiers). Here it follows from the ARN.
func uniqueID(prefix, arn string) string {
	sum := sha256.Sum256([]byte(arn))
	return prefix + base32.StdEncoding.EncodeToString(sum[:])[:17]
}

// credential is what an access key id stands for.
type credential struct {
	identity *identity
	secret   string
}

// authenticate finds out who calls, and in which region. service is kms or sts.
func (k *KMS) authenticate(r *request, hr *http.Request, body []byte, service string) error {
	signedAt := hr.Header.Get("X-Amz-Date")
	s, err := parseSignature(hr.Header.Get("Authorization"), signedAt)
	if err != nil {
		return err
	}
	if err := s.checkScope(service, signedAt); err != nil {
		return err
	}
	if err := checkTime(signedAt, r.now, k.skew(service)); err != nil {
		return err
	}
	found, err := k.credential(r, s.keyID, hr.Header.Get("X-Amz-Security-Token"))
	if err != nil {
		return err
	}
	if !k.verifier.matches(&s, found.secret, hr, body, signedAt) {
		return fault(codeInvalidSignature, "The request signature we calculated does not match the signature you provided. "+
			"Check your AWS Secret Access Key and signing method. Consult the service documentation for details.")
	}
	r.caller, r.region = found.identity, s.region
	r.call.Principal = r.caller.arn
	return nil
}

// credential looks an access key up. A token goes with a temporary one, and with no
// other.
func (k *KMS) credential(r *request, id, token string) (credential, error) {
	if token == "" {
		if found, ok := k.credentials[id]; ok {
			return found, nil
		}
		return credential{}, errUnknownToken()
	}
	found, ok := k.sessions.read(id, token)
	if !ok {
		return credential{}, errUnknownToken()
	}
	if !r.now.Before(found.identity.session.expires) {
		return credential{}, errExpiredToken()
	}
	return found, nil
}

func (k *KMS) skew(service string) time.Duration {
	switch {
	case k.clockSkew != 0:
		return k.clockSkew
	case service == stsService:
		return stsClockSkew
	}
	return kmsClockSkew
}
