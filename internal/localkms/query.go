package localkms

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	contextKeyPrefix  = "kms:encryptioncontext:"
	requestTagPrefix  = "aws:requesttag/"
	resourceTagPrefix = "aws:resourcetag/"
)

// access is what a request wants to do to one key, with all that a policy
// condition or a grant constraint may ask about it.
type access struct {
	operation    string            // without "kms:"; ReEncrypt is ReEncryptFrom and ReEncryptTo
	takesContext bool              // the operation has an EncryptionContext parameter
	context      map[string]string // of this side, for ReEncrypt
	algorithm    *string           // of this side, for ReEncrypt; nil is that of symmetric keys
	tokens       []string          // the request's GrantTokens
	grant        *grant            // CreateGrant: what is asked for; RetireGrant: what is to end
	sameKey      *bool             // ReEncrypt: source and destination are one key
	also         []attribute       // what else conditions may test
}

// attribute is a condition key that few operations have, and its values in a
// request. A parameter that a request leaves out has none.
type attribute struct {
	key    string // folded
	values []string
}

// attributeOf notes a parameter of a request under a condition key.
func attributeOf(key string, values ...string) attribute { return attribute{fold(key), values} }

// query is what policies are asked: may this caller do this, to this, now?
type query struct {
	kms      *KMS
	r        *request
	action   string // with its service, folded: kms:decrypt
	resource string // an ARN, or "*" for actions on no resource
	owner    string // account of the resource
	key      *resolved
	access   *access
}

// newQuery asks for an access to a key.
func (k *KMS) newQuery(r *request, key *resolved, a *access) *query {
	return &query{
		kms: k, r: r, action: "kms:" + fold(a.operation), resource: key.arn, owner: key.ref.Account, key: key, access: a,
	}
}

// values returns what the request has under a condition key, whose name is folded.
// Nothing means that the request does not have it. A key that this package does
// not know is one that AWS would not have either, of a caller without organization,
// tags, MFA and VPC, who calls for himself.
func (q *query) values(name string) []string {
	if contextKey, ok := strings.CutPrefix(name, contextKeyPrefix); ok {
		return q.contextValues(contextKey)
	}
	for i := range q.access.also {
		if q.access.also[i].key == name {
			return q.access.also[i].values
		}
	}
	switch name {
	case "kms:encryptioncontextkeys":
		return slices.Sorted(maps.Keys(q.contextPairs()))
	case "kms:encryptionalgorithm", "kms:macalgorithm":
		return q.algorithm(name)
	case "kms:grantconstrainttype", "kms:grantoperations", "kms:granteeprincipal", "kms:retiringprincipal":
		return q.grantValues(name)
	case "kms:reencryptonsamekey":
		if q.access.sameKey == nil {
			return nil
		}
		return one(strconv.FormatBool(*q.access.sameKey))
	case "kms:calleraccount", "aws:principalaccount":
		return one(q.r.caller.account)
	case "aws:principalarn", "aws:principaltype", "aws:principalisawsservice", "aws:userid", "aws:username", "aws:tokenissuetime":
		return q.r.caller.values(name)
	}
	if q.key != nil {
		if values := q.keyValues(name); values != nil {
			return values
		}
	}
	return q.requestValues(name)
}

// values returns what AWS knows of a caller (IAM User Guide, "AWS global condition
// context keys", Properties of the principal, of a role session).
func (i *identity) values(name string) []string {
	switch name {
	case "aws:principalarn":
		return one(i.principal)
	case "aws:principaltype":
		return one(string(i.kind))
	case "aws:principalisawsservice":
		return one("false")
	case "aws:userid":
		return one(i.userID)
	case "aws:username":
		return one(i.userName)
	case "aws:tokenissuetime":
		if i.session != nil {
			return one(i.session.issued.UTC().Format(time.RFC3339))
		}
	}
	return nil
}

// requestValues returns what AWS knows of any request (IAM User Guide, "AWS global
// condition context keys", Properties of the network, of the request).
func (q *query) requestValues(name string) []string {
	switch name {
	case "aws:currenttime":
		return one(q.r.now.UTC().Format(time.RFC3339))
	case "aws:epochtime":
		return one(strconv.FormatInt(q.r.now.Unix(), 10))
	case "aws:multifactorauthpresent":
		if q.r.caller.session != nil {
			return one("false")
		}
	case "aws:requestedregion":
		return one(q.r.region)
	case "aws:resourceaccount":
		return one(q.owner)
	case "aws:securetransport":
		return one(strconv.FormatBool(q.r.secure))
	case "aws:sourceip":
		return one(q.r.sourceIP)
	case "aws:useragent":
		return one(q.r.userAgent)
	case "aws:viaawsservice":
		return one("false")
	}
	return nil
}

// keyValues returns properties of the key that is used (AWS KMS Developer Guide,
// "AWS KMS condition keys", Conditions for KMS keys used in API operations).
func (q *query) keyValues(name string) []string {
	switch name {
	case "kms:keyspec", "kms:customermasterkeyspec":
		return one(q.key.spec)
	case "kms:keyusage", "kms:customermasterkeyusage":
		return one(q.key.usage)
	case "kms:keyorigin":
		return one(originKMS)
	case "kms:multiregion":
		return one("false")
	case "kms:trailingdayswithoutkeyusage":
		if operation := q.access.operation; operation == "DisableKey" || operation == "ScheduleKeyDeletion" {
			return one(strconv.Itoa(q.key.unusedDays(q.r.now, q.kms.state.tracking)))
		}
	case "kms:requestalias":
		return one(q.key.requestAlias)
	case "kms:resourcealiases":
		return q.kms.aliasNames(q.key.ref)
	}
	if tagKey, ok := strings.CutPrefix(name, resourceTagPrefix); ok {
		for _, t := range q.key.tags {
			if fold(t.TagKey) == tagKey {
				return []string{t.TagValue}
			}
		}
	}
	return nil
}

// algorithm is the one that an operation works with. One that encrypts or decrypts
// has one also when it names none.
func (q *query) algorithm(name string) []string {
	switch {
	case q.access.takesContext != (name == "kms:encryptionalgorithm"):
		return nil
	case q.access.algorithm != nil:
		return one(*q.access.algorithm)
	case q.access.takesContext:
		return one(symmetricSpec)
	}
	return nil
}

// grantValues returns the condition values of a CreateGrant or RetireGrant.
func (q *query) grantValues(name string) []string {
	g := q.access.grant
	if g == nil {
		return nil
	}
	switch name {
	case "kms:grantconstrainttype":
		return one(g.Constraint.kind())
	case "kms:grantoperations":
		return g.Operations
	case "kms:granteeprincipal":
		return one(g.Grantee)
	default:
		return one(g.Retiring)
	}
}

// contextPairs are the pairs that conditions on the encryption context test: for
// CreateGrant and RetireGrant those of the grant's constraint (AWS KMS Developer
// Guide, "AWS KMS condition keys", kms:EncryptionContext:context-key).
func (q *query) contextPairs() map[string]string {
	if g := q.access.grant; g != nil {
		return g.Constraint.pairs()
	}
	return q.access.context
}

func (q *query) contextValues(folded string) []string {
	var values []string
	for name, value := range q.contextPairs() {
		if fold(name) == folded {
			values = append(values, value)
		}
	}
	return values
}

// one is a condition value that is absent when empty.
func one(value string) []string {
	if value == "" {
		return nil
	}
	return []string{value}
}
