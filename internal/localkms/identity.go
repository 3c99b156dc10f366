package localkms

import (
	"fmt"
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

func newCallers(principals []Principal) (map[string]*identity, error) {
	callers := make(map[string]*identity, len(principals))
	for _, p := range principals {
		account := principalAccount(p.ARN)
		if account == "" || !strings.HasPrefix(p.ARN, "arn:aws:iam:") {
			return nil, fmt.Errorf("principal %q: want the ARN of an IAM role, user or account root", p.ARN)
		}
		if p.AccessKeyID == "" || strings.ContainsAny(p.AccessKeyID, "/, ") {
			return nil, fmt.Errorf("principal %s: want an access key id without slash, comma or space", p.ARN)
		}
		if other, taken := callers[p.AccessKeyID]; taken {
			return nil, fmt.Errorf("principals %s and %s share an access key id", other.arn, p.ARN)
		}
		callers[p.AccessKeyID] = &identity{arn: p.ARN, account: account}
	}
	return callers, nil
}

// authenticate reads who calls, and in which region, from a SigV4 header:
//
//	AWS4-HMAC-SHA256 Credential=KEYID/20261121/us-east-1/kms/aws4_request, SignedHeaders=..., Signature=...
func (k *KMS) authenticate(r *request, header string) error {
	if header == "" {
		return fault(codeMissingAuthentication, "Missing Authentication Token")
	}
	_, credential, found := strings.Cut(header, "Credential=")
	if !found || !strings.HasPrefix(header, "AWS4-HMAC-SHA256 ") {
		return fault(codeIncompleteSignature, "Authorization header requires 'Credential' parameter.")
	}
	credential, _, _ = strings.Cut(credential, ",")
	scope := strings.Split(strings.TrimSpace(credential), "/")
	if len(scope) != 5 || scope[2] == "" || len(scope[2]) > maxRegion {
		return faultf(codeIncompleteSignature, "Credential must have exactly 5 slash-delimited elements, e.g. "+
			"keyid/date/region/service/term, got '%s'", credential)
	}
	caller, ok := k.callers[scope[0]]
	if !ok {
		return fault(codeUnrecognizedClient, "The security token included in the request is invalid.")
	}
	r.caller, r.region = caller, scope[2]
	r.call.Principal = caller.arn
	return nil
}
