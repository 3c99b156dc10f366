package localkms

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// Decision is a decision about a request, with its reasons. Of the request's
// encryption context it has the names of the keys, and no value of anything that
// the request brought.
type Decision struct {
	Time      time.Time `json:"time"`
	RequestID string    `json:"request_id"`
	Principal string    `json:"principal"` // ARN of the caller
	Action    string    `json:"action"`    // with its service: kms:Decrypt
	Resource  string    `json:"resource"`  // an ARN, or * for actions on no resource
	Allowed   bool      `json:"allowed"`

	// Reason is the statement or grant that decided, or whose silence did.
	Reason string `json:"reason"`

	// Nearest says of the statements and grants that came nearest to allowing a
	// refused request why they did not: the nearest first, ten at most.
	Nearest []string `json:"nearest,omitempty"`

	// ContextKeys are the keys of the encryption context; of a CreateGrant those of
	// the constraint.
	ContextKeys []string `json:"context_keys,omitempty"`
}

// String returns the decision in lines, the first of which says it all.
func (d Decision) String() string {
	var b strings.Builder
	verdict := "DENIED"
	if d.Allowed {
		verdict = "allowed"
	}
	fmt.Fprintf(&b, "%s %s %s %s on %s: %s", d.Time.UTC().Format(time.RFC3339), verdict, d.Principal, d.Action, d.Resource, d.Reason)
	for _, near := range d.Nearest {
		b.WriteString("\n  " + near)
	}
	return b.String()
}

const (
	keptDenials = 128  // that Denials returns at most
	mostNearest = 10   // reasons in one decision
	mostScanned = 1000 // grants that are looked at for reasons
)

// denials are the newest refusals.
type denials struct {
	mu   sync.Mutex
	ring []Decision // up to keptDenials; the oldest at next once it is full
	next int
}

func (d *denials) add(decision Decision) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.ring) < keptDenials {
		d.ring = append(d.ring, decision)
		return
	}
	d.ring[d.next] = decision
	d.next = (d.next + 1) % keptDenials
}

// Denials returns the newest decisions that refused something, oldest first, 128 at
// most.
func (k *KMS) Denials() []Decision {
	k.denials.mu.Lock()
	defer k.denials.mu.Unlock()
	return slices.Concat(k.denials.ring[k.denials.next:], k.denials.ring[:k.denials.next])
}

// conclusion is what there is to know about a decision once it is made.
type conclusion struct {
	verdict
	opinions *opinions
	resource *policy // of the key or role; nil where there is none
	grant    *grant  // that allows
	also     string  // the reason, where it is none of these
}

// explain tells of a decision: of refusals who asks for Denials, of all
// Config.Explain.
func (k *KMS) explain(q *query, c conclusion) {
	if c.allowed && k.tell == nil {
		return
	}
	d := Decision{
		Time: q.r.now, RequestID: q.r.call.RequestID, Principal: q.r.caller.arn,
		Action: q.actionName(), Resource: q.resource, Allowed: c.allowed,
		Reason:      c.reason(q),
		ContextKeys: slices.Sorted(maps.Keys(q.contextPairs())),
	}
	if !c.allowed {
		d.Nearest = k.nearest(q, c)
		k.denials.add(d)
	}
	if k.tell != nil {
		k.tell(d)
	}
}

// actionName is the action as policies spell it.
func (q *query) actionName() string {
	service, _, _ := strings.Cut(q.action, ":")
	return service + ":" + q.access.operation
}

func (c conclusion) reason(q *query) string {
	switch {
	case c.also != "":
		return c.also
	case c.grant != nil:
		return "grant " + c.grant.ID + " to " + c.grant.Grantee
	case c.explicit:
		return c.by.String() + " denies it"
	case c.by != nil:
		return c.by.String()
	case c.allowed:
		return "the root of an account may what the account may"
	}
	return c.why(q.actionName())
}

// String names a statement.
func (c *clause) String() string {
	name := map[policyKind]string{keyPolicy: "key policy", trustPolicy: "trust policy", identityPolicy: "identity policy", sessionPolicy: "session policy"}[c.policy.kind]
	if c.policy.name != "" {
		name += " " + c.policy.name
	}
	return name + ", statement " + c.statement.label
}

// near is a statement or grant that did not allow something, and how far it came.
type near struct {
	stage int // the higher, the nearer
	text  string
}

// nearest says why policies and grants did not allow what was refused.
func (k *KMS) nearest(q *query, c conclusion) []string {
	var found []near
	policies := slices.Clone(q.r.caller.policies)
	if c.resource != nil {
		policies = append(policies, c.resource)
	}
	if s := q.r.caller.session; s != nil && s.policy != nil {
		policies = append(policies, s.policy)
	}
	for _, p := range policies {
		for i := range p.statements {
			if n, ok := q.nearStatement(&clause{p, &p.statements[i]}); ok {
				found = append(found, n)
			}
		}
	}
	if q.key != nil && c.opinions != nil && !c.explicit {
		found = append(found, k.nearGrants(q, c.opinions)...)
	}
	slices.SortStableFunc(found, func(a, b near) int { return cmp.Compare(b.stage, a.stage) })
	var texts []string
	for _, n := range found[:min(len(found), mostNearest)] {
		texts = append(texts, n.text)
	}
	return texts
}

// nearStatement says why a statement did not allow; those that deny have nothing to
// say.
func (q *query) nearStatement(c *clause) (near, bool) {
	if c.statement.deny {
		return near{}, false
	}
	named, missed, condition := c.statement.applies(q)
	text := map[miss]string{
		missPrincipal: "names other principals",
		missAction:    "is about other actions",
		missResource:  "is about other resources",
	}[missed]
	switch {
	case missed == missCondition:
		text = "condition " + condition.name + ": no value of the request meets it"
		if len(q.values(condition.key)) == 0 {
			text = "condition " + condition.name + ": the request does not have the key"
		}
	case missed == applies && (c.policy.kind == identityPolicy || c.policy.kind == sessionPolicy):
		text = "allows it, which is not enough"
	case missed == applies && named == namedAccount:
		text = "leaves it to the identity policies of account " + q.r.caller.account
	case missed == applies:
		text = "allows it, which is not enough without the caller's own policies"
	}
	return near{int(missed), c.String() + ": " + text}, true
}

// nearGrants says why the grants to the caller did not allow.
func (k *KMS) nearGrants(q *query, o *opinions) []near {
	live := q.grantees(o)
	caller := q.r.caller
	k.mu.RLock()
	defer k.mu.RUnlock()
	var found []near
	for _, name := range slices.Compact([]string{caller.arn, caller.principal, caller.root()}) {
		list := q.key.grants.byGrantee[name]
		for _, g := range list[:min(len(list), mostScanned)] {
			n := near{int(missAction), "does not allow the operation"}
			switch {
			case !g.allows(q.access.operation):
			case !g.permits(q.access):
				n = near{int(missCondition), g.constraintMiss(q.access)}
			case !slices.Contains(live, name):
				n = near{int(applies), "is to " + name + ", and the caller's own policies do not allow it"}
			case !k.visible(g, q.r):
				n = near{int(applies), "is not visible yet; its token would make it so"}
			}
			n.text = "grant " + g.ID + ": " + n.text
			found = append(found, n)
		}
	}
	return found
}

// constraintMiss names the first key of a constraint that a request does not meet.
func (g *grant) constraintMiss(a *access) string {
	if a.grant != nil {
		return "lets its grantee make grants of no more than its own operations and constraint"
	}
	pairs := g.Constraint.pairs()
	for _, name := range slices.Sorted(maps.Keys(pairs)) {
		if !includes(a.context, map[string]string{name: pairs[name]}) {
			return "constraint " + g.Constraint.kind() + " " + name + ": the request has not that pair"
		}
	}
	return "constraint " + g.Constraint.kind() + ": the request has other pairs too"
}
