package localkms

import "slices"

// The evaluation of policies, as docs/localkms-authorization.md has it rule by
// rule. The names P1 and so on are those of its table.

// naming is how a statement names a caller, from the weakest to the strongest.
type naming int8

const (
	notNamed     naming = iota
	namedAccount        // by its account, which may then pass the permission on (P3)
	namedRole           // a session, by its role (P5)
	namedItself         // by its own ARN, or as everyone (P4, P6, P7)
)

// name tells how a statement names a caller. The root of an account is named by
// the account.
func (p *principals) name(caller *identity) naming {
	switch {
	case p.everyone, slices.Contains(p.arns, caller.arn):
		return namedItself
	case caller.session != nil && slices.Contains(p.arns, caller.principal):
		return namedRole
	case slices.Contains(p.accounts, caller.account):
		return namedAccount
	}
	return notNamed
}

// miss is the first reason why a statement does not apply, in the order in which
// they are looked at. The further, the nearer the statement came.
type miss int8

const (
	missPrincipal miss = iota
	missAction
	missResource
	missCondition
	applies
)

// applies looks at one statement. Of a missed condition it returns which.
func (s *statement) applies(q *query) (naming, miss, *condition) {
	named := s.principals.name(q.r.caller)
	switch {
	case named == notNamed:
		return notNamed, missPrincipal, nil
	case s.listsAction(q) == s.notActions:
		return named, missAction, nil
	case s.listsResource(q) == s.notResources:
		return named, missResource, nil
	}
	for i := range s.conditions {
		if !s.conditions[i].met(q) {
			return named, missCondition, &s.conditions[i]
		}
	}
	return named, applies, nil
}

func (s *statement) listsAction(q *query) bool {
	for _, action := range s.actions {
		if wildcard(action, q.action) {
			return true
		}
	}
	return false
}

func (s *statement) listsResource(q *query) bool {
	for i := range s.resources {
		if s.resources[i].like(q, q.resource) {
			return true
		}
	}
	return false
}

// opinion is what policies of one kind say: a statement that denies, or else the
// one that allows and names the caller most strongly.
type opinion struct {
	denies *clause
	allows *clause
	named  naming
}

// clause is a statement of a policy.
type clause struct {
	policy    *policy
	statement *statement
}

// opine asks policies of one kind. A statement that denies ends the search.
func opine(policies []*policy, q *query) opinion {
	var o opinion
	for _, p := range policies {
		for i := range p.statements {
			s := &p.statements[i]
			if !s.deny && o.named == namedItself {
				continue // nothing can be stronger
			}
			named, missed, _ := s.applies(q)
			switch {
			case missed != applies:
			case s.deny:
				return opinion{denies: &clause{p, s}}
			case named > o.named:
				o.allows, o.named = &clause{p, s}, named
			}
		}
	}
	return o
}

// verdict is the answer to a query: whether policies allow it, and which statement
// or whose silence decided.
type verdict struct {
	allowed  bool
	explicit bool       // a statement denies
	kind     policyKind // of the policy that decided, or that would have had to
	by       *clause    // nil where nothing said anything
}

// opinions are what all policies say about a query.
type opinions struct{ resource, identity, session opinion }

// ownOpinions asks the policies that a caller brings along.
func (q *query) ownOpinions() *opinions {
	o := &opinions{identity: opine(q.r.caller.policies, q)}
	if s := q.r.caller.session; s != nil && s.policy != nil {
		o.session = opine([]*policy{s.policy}, q)
	}
	return o
}

// denial returns the explicit deny among opinions, if there is one (P1). resource
// is the kind of the resource's policy.
func (o *opinions) denial(resource policyKind) (v verdict, denied bool) {
	for _, d := range []struct {
		kind policyKind
		by   *clause
	}{{resource, o.resource.denies}, {identityPolicy, o.identity.denies}, {sessionPolicy, o.session.denies}} {
		if d.by != nil {
			return verdict{explicit: true, kind: d.kind, by: d.by}, true
		}
	}
	return verdict{}, false
}

// identityAllows reports whether the caller's own account lets it: root may do
// whatever its account may (P8), anyone else what an identity policy allows.
func (q *query) identityAllows(o *opinions) bool {
	return q.r.caller.isRoot() || o.identity.allows != nil
}

// sessionAllows reports whether the session policy, where there is one, lets the
// caller (P9).
func (q *query) sessionAllows(o *opinions) bool {
	s := q.r.caller.session
	return s == nil || s.policy == nil || o.session.allows != nil
}

// ownVerdict is that of a query which no policy of a resource has to allow, or
// which one has already allowed the caller's account (P3, P10, P11).
func (q *query) ownVerdict(o *opinions) verdict {
	switch {
	case !q.identityAllows(o):
		return verdict{kind: identityPolicy}
	case !q.sessionAllows(o):
		return verdict{kind: sessionPolicy}
	}
	return verdict{allowed: true, kind: identityPolicy, by: o.identity.allows}
}

// decide judges a query by the policy of a resource and those of the caller.
func (q *query) decide(resource *policy) (verdict, *opinions) {
	o := q.ownOpinions()
	o.resource = opine([]*policy{resource}, q)
	if v, denied := o.denial(resource.kind); denied { // P1
		return v, o
	}
	home := q.r.caller.account == q.owner
	switch named := o.resource.named; {
	case named == notNamed: // P2
		return verdict{kind: resource.kind}, o
	case home && named == namedRole && !q.sessionAllows(o): // P5, P9
		return verdict{kind: sessionPolicy}, o
	case home && named >= namedRole: // P4 to P7
		return verdict{allowed: true, kind: resource.kind, by: o.resource.allows}, o
	}
	return q.ownVerdict(o), o // P3, P10
}

// decideAlone judges a query on no resource that has a policy (P11).
func (q *query) decideAlone() (verdict, *opinions) {
	o := q.ownOpinions()
	if v, denied := o.denial(""); denied {
		return v, o
	}
	return q.ownVerdict(o), o
}

// grantees are the names under which grants mean the caller: its own ARN; as a
// session that of its role, within the session policy (G5); and that of its
// account, which passes on what its policies let it (G6).
func (q *query) grantees(o *opinions) []string {
	caller := q.r.caller
	names := append(make([]string, 0, 3), caller.arn)
	if caller.session != nil && q.sessionAllows(o) {
		names = append(names, caller.principal)
	}
	if !caller.isRoot() && q.ownVerdict(o).allowed {
		names = append(names, caller.root())
	}
	return names
}

// why words a refusal as AWS does (IAM User Guide, "Troubleshoot access denied
// error messages").
func (v verdict) why(action string) string {
	switch {
	case v.explicit && v.kind == trustPolicy:
		return "with an explicit deny in the role trust policy"
	case v.explicit && v.kind == identityPolicy:
		return "with an explicit deny in an identity-based policy"
	case v.explicit:
		return "with an explicit deny in a " + string(v.kind) + " policy"
	}
	return "because no " + string(v.kind) + " policy allows the " + action + " action"
}
