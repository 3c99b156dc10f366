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
	c := conclusion{verdict: v, opinions: o, resource: key.policy}
	if !v.allowed && !v.explicit {
		c.grant = k.grantAllowing(q, o, granted)
		c.allowed = c.grant != nil
	}
	return k.conclude(q, c)
}

// conclude tells of a decision, and makes the refusal of what is not allowed.
func (k *KMS) conclude(q *query, c conclusion) error {
	k.explain(q, c)
	if c.allowed {
		return nil
	}
	return errDenied(q.r.caller.arn, q.access.operation, q.resource, c.why(q.actionName()))
}

// authorizeOwner is authorize for operations that AWS does not allow across
// accounts, whatever policies say.
func (k *KMS) authorizeOwner(r *request, key resolved, operation string, also ...attribute) error {
	a := access{operation: operation, also: also}
	if r.caller.account != key.ref.Account {
		return k.conclude(k.newQuery(r, &key, &a), conclusion{
			verdict: verdict{kind: keyPolicy}, also: "no policy allows the operation to another account than the key's",
		})
	}
	return k.authorize(r, key, a)
}

// authorizeAccount decides about an operation that uses no key: identity policies
// alone do. resource is "*", or the ARN of an alias.
func (k *KMS) authorizeAccount(r *request, operation, resource string, also ...attribute) error {
	q := k.accountQuery(r, operation, resource, also)
	v, o := q.decideAlone()
	return k.conclude(q, conclusion{verdict: v, opinions: o})
}

func (k *KMS) accountQuery(r *request, operation, resource string, also []attribute) *query {
	return &query{
		kms: k, r: r, action: "kms:" + fold(operation), resource: resource, owner: r.caller.account,
		access: &access{operation: operation, also: also},
	}
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

// grantAllowing looks for a live grant that allows what is asked, to the caller by
// any of its names. A grant that is still within the delay counts only when the
// request brought one of its tokens.
func (k *KMS) grantAllowing(q *query, o *opinions, tokenGrants []string) *grant {
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
				return g
			}
		}
	}
	for _, g := range r.plan.lingering(q.key.grants, r.now) {
		if slices.Contains(grantees, g.Grantee) && g.permits(a) && seen(g) {
			r.injected(injectedRetired)
			return g
		}
	}
	if hidden {
		r.injected(injectedHidden)
	}
	return nil
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
