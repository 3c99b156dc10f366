package localkms

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"
)

// identity is a caller: an IAM principal and the account it belongs to.
type identity struct {
	arn     string
	account string // 12 digits
}

func (i *identity) root() string { return rootARN(i.account) }

// matches reports whether a principal named in a grant means this caller: its
// own ARN, or the account it belongs to.
func (i *identity) matches(principal string) bool {
	return principal == i.arn || principal == i.root()
}

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

// credential is what an access key id stands for.
type credential struct {
	identity *identity
	secret   string
}

func newCredentials(principals []Principal) (map[string]credential, error) {
	credentials := make(map[string]credential, len(principals))
	for _, p := range principals {
		account := principalAccount(p.ARN)
		if account == "" || !strings.HasPrefix(p.ARN, "arn:aws:iam:") {
			return nil, fmt.Errorf("principal %q: want the ARN of an IAM role, user or account root", p.ARN)
		}
		if p.AccessKeyID == "" || strings.ContainsAny(p.AccessKeyID, "/, ") {
			return nil, fmt.Errorf("principal %s: want an access key id without slash, comma or space", p.ARN)
		}
		if p.SecretAccessKey == "" {
			return nil, fmt.Errorf("principal %s: want a secret access key", p.ARN)
		}
		if other, taken := credentials[p.AccessKeyID]; taken {
			return nil, fmt.Errorf("principals %s and %s share an access key id", other.identity.arn, p.ARN)
		}
		credentials[p.AccessKeyID] = credential{&identity{arn: p.ARN, account: account}, p.SecretAccessKey}
	}
	return credentials, nil
}

// authenticate finds out who calls, and in which region.
func (k *KMS) authenticate(r *request, hr *http.Request, body []byte) error {
	signedAt := hr.Header.Get("X-Amz-Date")
	s, err := parseSignature(hr.Header.Get("Authorization"), signedAt)
	if err != nil {
		return err
	}
	if err := s.checkScope("kms", signedAt); err != nil {
		return err
	}
	skew := k.clockSkew
	if skew == 0 {
		skew = kmsClockSkew
	}
	if err := checkTime(signedAt, r.now, skew); err != nil {
		return err
	}
	found, ok := k.credentials[s.keyID]
	if !ok || hr.Header.Get("X-Amz-Security-Token") != "" {
		return fault(codeUnrecognizedClient, "The security token included in the request is invalid.")
	}
	if !k.verifier.matches(&s, found.secret, hr, body, signedAt) {
		return fault(codeInvalidSignature, "The request signature we calculated does not match the signature you provided. "+
			"Check your AWS Secret Access Key and signing method. Consult the service documentation for details.")
	}
	r.caller, r.region = found.identity, s.region
	r.call.Principal = r.caller.arn
	return nil
}
