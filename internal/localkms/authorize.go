package localkms

import (
	"maps"
	"slices"
	"strconv"
	"strings"
)

// access is what a request wants to do to one key, with all that a policy
// condition or a grant constraint may ask about it.
type access struct {
	operation    string            // without "kms:"; ReEncrypt is ReEncryptFrom and ReEncryptTo
	takesContext bool              // the operation has an EncryptionContext parameter
	context      map[string]string // of this side, for ReEncrypt
	algorithm    *string           // of this side, for ReEncrypt; nil is that of symmetric keys
	tokens       []string          // the request's GrantTokens
	newGrant     *grant            // CreateGrant: what is asked for
	sameKey      *bool             // ReEncrypt: source and destination are one key
}

// authorize decides whether the caller may do a thing to a key: an explicit deny
// in the key policy refuses; else the policy, or a grant, may allow it.
func (k *KMS) authorize(r *request, key resolved, a access) error {
	granted, err := k.tokenGrants(a.tokens)
	if err != nil {
		return err
	}
	switch key.policy.decide(&query{caller: r.caller, keyARN: key.arn, access: &a}) {
	case denied:
		return errDenied(r.caller.arn, a.operation, key.arn, "with an explicit deny in a resource-based policy")
	case allowed:
		return nil
	}
	if k.grantAllows(r, key.key, &a, granted) {
		return nil
	}
	kind := "identity-based"
	if r.caller.account != key.ref.Account {
		kind = "resource-based"
	}
	return errDenied(r.caller.arn, a.operation, key.arn, "because no "+kind+" policy allows the kms:"+a.operation+" action")
}

// authorizeOwner is authorize for operations that AWS does not allow across
// accounts, whatever the key policy says.
func (k *KMS) authorizeOwner(r *request, key resolved, operation string) error {
	if r.caller.account != key.ref.Account {
		return errDenied(r.caller.arn, operation, key.arn, "because no resource-based policy allows the kms:"+operation+" action")
	}
	return k.authorize(r, key, access{operation: operation})
}

func errDenied(caller, operation, resource, why string) error {
	return faultf(codeAccessDenied, "User: %s is not authorized to perform: kms:%s on resource: %s %s",
		caller, operation, resource, why)
}

// tokenGrants returns the ids of the grants that a request's tokens stand for.
func (k *KMS) tokenGrants(tokens []string) ([]string, error) {
	var ids []string
	for _, token := range tokens {
		claim, err := k.state.readToken(token)
		if err != nil {
			return nil, err
		}
		ids = append(ids, claim.GrantID)
	}
	return ids, nil
}

// grantAllows looks for a live grant to the caller, or to the caller's account,
// that allows what is asked. A grant that is still within the delay counts only
// when the request brought one of its tokens.
func (k *KMS) grantAllows(r *request, key *key, a *access, tokenGrants []string) bool {
	k.mu.RLock()
	defer k.mu.RUnlock()
	hidden := false
	seen := func(g *grant) bool {
		if k.visible(g, r) || slices.Contains(tokenGrants, g.ID) {
			return true
		}
		hidden = hidden || !r.now.Before(g.Created.Add(k.grantDelay))
		return false
	}
	for _, grantee := range []string{r.caller.arn, r.caller.root()} {
		for g := range key.grants.candidates(grantee, a) {
			if g.permits(a) && seen(g) {
				return true
			}
		}
		if r.caller.arn == r.caller.root() {
			break
		}
	}
	for _, g := range r.plan.lingering(key.grants, r.now) {
		if r.caller.matches(g.Grantee) && g.permits(a) && seen(g) {
			r.injected(injectedRetired)
			return true
		}
	}
	if hidden {
		r.injected(injectedHidden)
	}
	return false
}

// visible reports whether a grant has become consistent. The rest of the world
// sees it only then.
func (k *KMS) visible(g *grant, r *request) bool {
	return !r.now.Before(g.Created.Add(r.plan.grantDelay(g.Created, k.grantDelay)))
}

// permits reports whether the grant allows an operation as it is asked for.
func (g *grant) permits(a *access) bool {
	if !g.allows(a.operation) {
		return false
	}
	if a.newGrant != nil {
		return g.permitsChild(a.newGrant)
	}
	return !a.takesContext || g.Constraint.admits(a.context)
}

// permitsChild reports whether a grantee with CreateGrant may make this grant:
// no operation and no context beyond its own.
func (g *grant) permitsChild(child *grant) bool {
	for _, operation := range child.Operations {
		if !g.allows(operation) {
			return false
		}
	}
	return g.Constraint.covers(&child.Constraint)
}

// query is an access by a caller to a key, as policy conditions see it.
type query struct {
	caller *identity
	keyARN string
	access *access
}

const contextKeyPrefix = "kms:encryptioncontext:"

// values returns what the request has under a condition key, whose name is
// folded. Nothing means that the request does not have it. known is false for
// keys this package cannot judge; a condition on one of them is never met.
func (q *query) values(name string) (values []string, known bool) {
	if contextKey, ok := strings.CutPrefix(name, contextKeyPrefix); ok {
		return q.contextValues(contextKey), true
	}
	switch name {
	case "kms:encryptioncontextkeys":
		return slices.Sorted(maps.Keys(q.contextPairs())), true
	case "kms:grantconstrainttype", "kms:grantoperations", "kms:granteeprincipal", "kms:retiringprincipal":
		return q.grantValues(name), true
	case "kms:reencryptonsamekey":
		if q.access.sameKey == nil {
			return nil, true
		}
		return one(strconv.FormatBool(*q.access.sameKey)), true
	case "kms:calleraccount", "aws:principalaccount":
		return one(q.caller.account), true
	case "aws:principalarn":
		return one(q.caller.arn), true
	case "kms:viaservice", "kms:grantisforawsresource", "aws:sourcearn", "aws:sourceaccount":
		// Only requests that come through an AWS service have these.
		return nil, true
	}
	return nil, false
}

// grantValues returns the condition values of a CreateGrant.
func (q *query) grantValues(name string) []string {
	g := q.access.newGrant
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
// CreateGrant those of the grant's constraint (AWS KMS Developer Guide, "AWS KMS
// condition keys", kms:EncryptionContext:context-key).
func (q *query) contextPairs() map[string]string {
	if g := q.access.newGrant; g != nil {
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
