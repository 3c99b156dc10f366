package localkms

import (
	"encoding/json"
	"strings"
)

// A second evaluator of policies and grants, written from the rule table of
// docs/localkms-authorization.md and not from the code: it reads the documents
// itself, keeps the whole request as a map, looks at every grant, and decides by a
// table. It shares nothing with the first but the texts that both are given. Slow
// and plain is all it has to be.

// refCase is one request.
type refCase struct {
	// The caller.
	account    string
	root       bool
	user       string   // ARN of a user
	role       string   // ARN of a role that is acted in
	session    string   // ARN of the session
	identity   []refDoc // identity policies
	restricted *refDoc  // session policy

	// What is asked.
	kind      refKind
	service   string // kms or sts
	operation string
	resource  string // ARN, or *
	owner     string // account of the resource
	policy    *refDoc
	context   map[string][]string // all condition keys of the request, in lower case
	pairs     map[string]string   // encryption context; nil for operations without
	tokens    []string            // ids of grants

	grants []refGrant
	child  *refGrant // CreateGrant: the grant that is asked for
	ended  *refGrant // RetireGrant: the grant that is to end
}

type refKind int

const (
	refKeyUse    refKind = iota // allowed by key policy, identity policies and grants
	refOwnerOnly                // the same, but not across accounts
	refAccount                  // on no key: identity policies alone
	refAlias                    // on an alias, and on its key
	refRetire                   // RetireGrant
	refAssume                   // sts:AssumeRole
)

type refGrant struct {
	id, grantee, retiring, issuer string
	operations                    []string
	subset, equals                map[string]string
	visible                       bool
}

// refDoc is a policy as JSON gives it.
type refDoc struct {
	modern     bool // version of 2012: variables are known
	statements []map[string]any
}

func refParse(text string) *refDoc {
	var doc map[string]any
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		panic(err)
	}
	d := &refDoc{modern: doc["Version"] == "2012-10-17"}
	for _, s := range refList(doc["Statement"]) {
		d.statements = append(d.statements, s.(map[string]any))
	}
	return d
}

func refList(v any) []any {
	if list, ok := v.([]any); ok {
		return list
	}
	if v == nil {
		return nil
	}
	return []any{v}
}

// reference evaluates cases, and counts which rules it needed.
type reference struct{ hits map[string]int }

func (r *reference) hit(rule string, is bool) bool {
	if is {
		r.hits[rule]++
	}
	return is
}

// refRules are the rules of the table, in its order.
func refRules() []string {
	return strings.Fields("P1 P2 P3 P4 P5 P6 P7 P8 P9 P10 P11 P12 P13 S1 S2 S3 S4 S5 S6 S7 S8 S9 " +
		"G1 G2 G3 G4 G5 G6 G7 G8 G9 R1 R2 R3 R4 T1 T2")
}

// facts are what the table of decisions asks about.
type facts struct {
	denied   bool // an explicit deny, anywhere that counts
	home     bool
	foreign  bool
	root     bool
	everyone bool // a statement of the resource's policy allows it to …
	byUser   bool
	byRole   bool
	bySess   bool
	byAcct   bool
	identity bool // an identity policy allows
	limited  bool // there is a session policy, and it does not allow
}

// allowed decides a case.
func (r *reference) allowed(c *refCase) bool {
	f := r.facts(c)
	own := (r.hit("P8", f.root) || f.identity) && !r.hit("P9", f.limited)
	switch c.kind {
	case refAccount:
		return !r.hit("P1", f.denied) && r.hit("P11", own)
	case refAlias:
		onKey := *c
		onKey.kind, onKey.resource = refOwnerOnly, c.context["(key)"][0]
		onAlias := *c
		onAlias.kind, onAlias.policy = refAccount, nil
		onAlias.context = withoutKeyFacts(c.context)
		alias, key := r.allowed(&onAlias), r.allowed(&onKey)
		r.hit("P13", alias != key)
		return alias && key
	case refRetire:
		return r.retires(c, f, own)
	case refAssume:
		if r.hit("T2", f.root) {
			return false
		}
		r.hits["T1"]++
	case refOwnerOnly:
		if r.hit("P12", f.foreign) {
			return false
		}
	}
	for _, rule := range []struct {
		id      string
		when    bool
		allowed bool
	}{
		{"P1", f.denied, false},
		{"P7", f.home && f.everyone, true},
		{"P4", f.home && f.byUser, true},
		{"P6", f.home && f.bySess, true},
		{"P5", f.home && f.byRole && !f.limited, true},
		{"P3", f.home && f.byAcct && own, true},
		{"P10", f.foreign && (f.everyone || f.byUser || f.bySess || f.byRole || f.byAcct) && own, true},
		{"G", c.kind != refAssume && r.granted(c, f, own), true},
		{"P2", true, false},
	} {
		if rule.when {
			if rule.id != "G" {
				r.hits[rule.id]++
			}
			return rule.allowed
		}
	}
	panic("the table has no end")
}

func (r *reference) facts(c *refCase) facts {
	f := facts{home: c.account == c.owner, foreign: c.account != c.owner, root: c.root}
	if c.policy != nil {
		for _, s := range c.policy.statements {
			who := r.names(s, c)
			if who == (facts{}) || !r.applies(s, c, c.policy.modern) {
				continue
			}
			if s["Effect"] == "Deny" {
				f.denied = f.denied || c.kind != refRetire // R1: a key policy does not count
				continue
			}
			f.everyone, f.byUser, f.byRole = f.everyone || who.everyone, f.byUser || who.byUser, f.byRole || who.byRole
			f.bySess, f.byAcct = f.bySess || who.bySess, f.byAcct || who.byAcct
		}
	}
	for i := range c.identity {
		allows, denies := r.says(&c.identity[i], c)
		f.identity, f.denied = f.identity || allows, f.denied || denies
	}
	if c.restricted != nil {
		allows, denies := r.says(c.restricted, c)
		f.limited, f.denied = !allows, f.denied || denies
	}
	return f
}

// names says how a statement names the caller.
func (r *reference) names(s map[string]any, c *refCase) (who facts) {
	if s["Principal"] == "*" {
		return facts{everyone: true}
	}
	principal, _ := s["Principal"].(map[string]any)
	for _, name := range refList(principal["AWS"]) {
		switch name {
		case "*":
			who.everyone = true
		case c.account, "arn:aws:iam::" + c.account + ":root":
			who.byAcct = true
		case c.user:
			who.byUser = c.user != ""
		case c.session:
			who.bySess = c.session != ""
		case c.role:
			who.byRole = c.role != ""
		}
	}
	return who
}

// says whether a policy of the caller allows, and whether it denies.
func (r *reference) says(d *refDoc, c *refCase) (allows, denies bool) {
	for _, s := range d.statements {
		if r.applies(s, c, d.modern) {
			allows, denies = allows || s["Effect"] == "Allow", denies || s["Effect"] == "Deny"
		}
	}
	return allows, denies
}

func (r *reference) applies(s map[string]any, c *refCase, modern bool) bool {
	action := strings.ToLower(c.service + ":" + c.operation)
	matches := func(list any, subject string, fold bool) bool {
		for _, p := range refList(list) {
			text := p.(string)
			if fold {
				text = strings.ToLower(text)
			}
			if pattern, ok := r.pattern(text, c, modern && !fold); ok && pattern.matches(subject) {
				return true
			}
		}
		return false
	}
	acts := matches(s["Action"], action, true) || (s["NotAction"] != nil && !matches(s["NotAction"], action, true))
	if !r.hit("S1", acts) {
		return false
	}
	on := matches(s["Resource"], c.resource, false) || (s["NotResource"] != nil && !matches(s["NotResource"], c.resource, false)) ||
		c.kind == refAssume && s["Resource"] == nil && s["NotResource"] == nil
	if !r.hit("S2", on) {
		return false
	}
	block, _ := s["Condition"].(map[string]any)
	met := 0
	for operator, keys := range block {
		for key, values := range keys.(map[string]any) {
			if !r.met(operator, key, refList(values), c, modern) {
				return false
			}
			met++
		}
	}
	r.hit("S3", met > 1)
	return true
}

// retires decides who may end a grant.
func (r *reference) retires(c *refCase, f facts, own bool) bool {
	if r.hit("R1", f.denied) {
		return false
	}
	means := func(name string) bool {
		switch name {
		case "":
			return false
		case c.user, c.session:
			return true
		case c.role:
			return !f.limited
		case "arn:aws:iam::" + c.account + ":root":
			return own
		}
		return false
	}
	g := c.ended
	return r.hit("R2", means(g.retiring)) ||
		r.hit("R3", refHas(g.operations, "RetireGrant") && means(g.grantee)) ||
		r.hit("R4", (c.account == g.issuer || c.account == c.owner) && own)
}

// granted reports whether a grant allows a use of the key.
func (r *reference) granted(c *refCase, f facts, own bool) bool {
	for _, g := range c.grants {
		var rule string
		switch {
		case g.grantee == c.user && c.user != "", g.grantee == c.session && c.session != "":
			rule = "G1"
		case g.grantee == c.role && c.role != "" && !f.limited:
			rule = "G5"
		case g.grantee == "arn:aws:iam::"+c.account+":root" && own:
			rule = "G6"
		default:
			continue
		}
		if r.hit("G2", !refHas(g.operations, c.operation)) || !r.within(c, &g) {
			continue
		}
		if !g.visible && !r.hit("G7", refHas(c.tokens, g.id)) {
			continue
		}
		r.hits[rule]++
		r.hit("G9", f.foreign)
		return true
	}
	return false
}

// within reports whether a request keeps to the constraint of a grant.
func (r *reference) within(c *refCase, g *refGrant) bool {
	if c.child != nil { // a grant of a grant
		for _, operation := range c.child.operations {
			if r.hit("G8", !refHas(g.operations, operation)) {
				return false
			}
		}
		switch {
		case len(g.equals) > 0:
			return len(c.child.equals) > 0 && refEqual(g.equals, c.child.equals)
		case len(c.child.equals) > 0:
			return refContains(c.child.equals, g.subset)
		}
		return refContains(c.child.subset, g.subset)
	}
	constrained := len(g.equals)+len(g.subset) > 0
	if c.pairs == nil {
		r.hit("G4", constrained)
		return true
	}
	if len(g.equals) > 0 {
		return r.hit("G3", refEqual(g.equals, c.pairs))
	}
	ok := refContains(c.pairs, g.subset)
	r.hit("G3", ok && constrained)
	return ok
}

func refHas(list []string, s string) bool {
	for _, item := range list {
		if item == s {
			return true
		}
	}
	return false
}

// refContains: keys in any case, values exactly.
func refContains(have, want map[string]string) bool {
	for name, value := range want {
		found := false
		for other, v := range have {
			found = found || (strings.EqualFold(name, other) && v == value)
		}
		if !found {
			return false
		}
	}
	return true
}

func refEqual(a, b map[string]string) bool {
	return len(a) == len(b) && refContains(a, b) && refContains(b, a)
}

// withoutKeyFacts drops what a request knows of its key.
func withoutKeyFacts(context map[string][]string) map[string][]string {
	left := map[string][]string{}
	for key, values := range context {
		if !strings.HasPrefix(key, "kms:") && !strings.HasPrefix(key, "aws:resourcetag/") || key == "kms:calleraccount" {
			left[key] = values
		}
	}
	left["aws:resourceaccount"] = context["kms:calleraccount"]
	return left
}
