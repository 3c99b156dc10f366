package localkms

import "slices"

// authorize decides whether the caller may do a thing to a key: an explicit deny
// in any policy refuses; else policies, or a grant, may allow it.
func (k *KMS) authorize(r *request, key resolved, a access) error {
	granted, err := k.tokenGrants(a.tokens)
	if err != nil {
		return err
	}
	q := k.newQuery(r, &key, &a)
	v, o := q.decide(key.policy)
	if v.allowed || (!v.explicit && k.grantAllows(q, o, granted)) {
		return nil
	}
	return errDenied(r.caller.arn, a.operation, key.arn, v.why("kms:"+a.operation))
}

// authorizeOwner is authorize for operations that AWS does not allow across
// accounts, whatever policies say.
func (k *KMS) authorizeOwner(r *request, key resolved, operation string, also ...attribute) error {
	if r.caller.account != key.ref.Account {
		return errDenied(r.caller.arn, operation, key.arn, verdict{kind: keyPolicy}.why("kms:"+operation))
	}
	return k.authorize(r, key, access{operation: operation, also: also})
}

// authorizeAccount decides about an operation that uses no key: identity policies
// alone do. resource is "*", or the ARN of an alias.
func (k *KMS) authorizeAccount(r *request, operation, resource string, also ...attribute) error {
	q := &query{
		kms: k, r: r, action: "kms:" + fold(operation), resource: resource, owner: r.caller.account,
		access: &access{operation: operation, also: also},
	}
	if v := q.decideAlone(); !v.allowed {
		return errDenied(r.caller.arn, operation, resource, v.why("kms:"+operation))
	}
	return nil
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

// grantAllows looks for a live grant that allows what is asked, to the caller by
// any of its names. A grant that is still within the delay counts only when the
// request brought one of its tokens.
func (k *KMS) grantAllows(q *query, o *opinions, tokenGrants []string) bool {
	grantees, r, a := q.grantees(o), q.r, q.access
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
	for _, grantee := range grantees {
		for g := range q.key.grants.candidates(grantee, a) {
			if g.permits(a) && seen(g) {
				return true
			}
		}
	}
	for _, g := range r.plan.lingering(q.key.grants, r.now) {
		if slices.Contains(grantees, g.Grantee) && g.permits(a) && seen(g) {
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
	if a.grant != nil {
		return g.permitsChild(a.grant)
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
