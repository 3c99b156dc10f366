package localkms

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// The random worlds in which both evaluators are asked: two accounts, each with a
// root, a user and a role in two sessions; a key of the first account with a policy,
// grants, tags and an alias; all policies random, from a small language, so that
// they meet.

const (
	homeAccount    = "111122223333"
	foreignAccount = "444455556666"
)

type world struct {
	rnd *rand.Rand
	now time.Time

	kms     *KMS
	key     resolved
	callers []refCase // with who they are, and nothing asked yet
	real    []*identity

	keyPolicy *refDoc
	trust     map[string]*refDoc // by role
	grants    []*grant
}

func (w *world) pick(list ...string) string { return list[w.rnd.IntN(len(list))] }

func (w *world) chance(percent int) bool { return w.rnd.IntN(100) < percent }

// some picks up to most of a list, at least one.
func (w *world) some(most int, list ...string) []string {
	n := 1 + w.rnd.IntN(most)
	var found []string
	for range n {
		if s := w.pick(list...); !slices.Contains(found, s) {
			found = append(found, s)
		}
	}
	return found
}

func worldUser(account string) string { return "arn:aws:iam::" + account + ":user/ann" }
func worldRole(account string) string { return "arn:aws:iam::" + account + ":role/app" }
func worldSession(account, name string) string {
	return "arn:aws:sts::" + account + ":assumed-role/app/" + name
}

func (w *world) principals() []string {
	var all []string
	for _, account := range []string{homeAccount, foreignAccount} {
		all = append(all, account, rootARN(account), worldUser(account), worldRole(account), worldSession(account, "one"), worldSession(account, "two"))
	}
	return all
}

var worldOperations = []string{
	"Encrypt", "Decrypt", "DescribeKey", "CreateGrant", "ReEncryptFrom", "ListGrants", "RevokeGrant", "RetireGrant", "DisableKey",
	"TagResource", "ListKeys", "CreateKey", "CreateAlias",
}

func (w *world) actions(service string) []string {
	if service == "sts" {
		return w.some(1, "sts:AssumeRole", "STS:assume*", "sts:*", "*", "sts:TagSession")
	}
	list := []string{"kms:*", "*", "kms:*Grant", "KMS:encrypt", "kms:Re*", "kms:D?????e*", "kms:Create*"}
	for _, operation := range worldOperations {
		list = append(list, "kms:"+operation)
	}
	return w.some(4, list...)
}

// condition returns an operator, a key, and values for it.
func (w *world) condition() (operator, key string, values any) {
	optional := w.pick("", "", "", "IfExists")
	not := w.pick("", "", "Not")
	set := ""
	several := func(list ...string) any {
		if found := w.some(2, list...); len(found) > 1 || w.chance(50) {
			return found
		}
		return list[0]
	}
	text := func() string {
		return w.pick("String"+not+"Equals", "String"+not+"EqualsIgnoreCase", "String"+not+"Like") + optional
	}
	switch w.rnd.IntN(12) {
	case 0, 1, 2:
		return text(), "kms:EncryptionContext:" + w.pick("tenant", "Tenant", "env"), several("a", "A", "b", "?", "${aws:username}", "${kms:EncryptionContext:env, 'b'}", "${*}", "${kms:EncryptionContext:env}*", "a*")
	case 3:
		set = w.pick("ForAllValues:", "ForAnyValue:", "ForAnyValue:")
		return set + text(), w.pick("kms:EncryptionContextKeys", "kms:GrantOperations", "aws:TagKeys", "kms:ResourceAliases"), several("tenant", "env", "Decrypt", "Encrypt", "team", "alias/*", "alias/key")
	case 4:
		return "Null", w.pick("kms:EncryptionContextKeys", "aws:PrincipalTag/x", "kms:ViaService", "aws:TokenIssueTime", "sts:ExternalId", "kms:GranteePrincipal", "aws:TagKeys"), w.pick("true", "false")
	case 5:
		return w.pick("Arn"+not+"Equals", "Arn"+not+"Like") + optional, w.pick("aws:PrincipalArn", "kms:GranteePrincipal", "kms:RetiringPrincipal", "aws:SourceArn"),
			several(worldUser(homeAccount), worldRole(foreignAccount), "arn:aws:iam::*:role/*", "arn:aws:*::"+homeAccount+":*", rootARN(homeAccount), "arn:aws:iam::"+foreignAccount+":user/${aws:username}", "${aws:PrincipalArn}")
	case 6:
		return w.pick("Numeric"+not+"Equals", "NumericLessThan", "NumericGreaterThanEquals", "NumericLessThanEquals", "NumericGreaterThan") + optional,
			w.pick("kms:EncryptionContext:level", "aws:EpochTime", "kms:TrailingDaysWithoutKeyUsage"), w.pick("7", "1800000000", "0")
	case 7:
		return w.pick("Date"+not+"Equals", "DateLessThan", "DateGreaterThanEquals", "DateLessThanEquals", "DateGreaterThan") + optional,
			w.pick("aws:CurrentTime", "aws:TokenIssueTime", "aws:EpochTime"), w.pick("2027-01-15T08:00:00Z", "2027-01-15T09:00:00+01:00", "1800000000", "1800000001")
	case 8:
		return w.pick("IpAddress", "NotIpAddress") + optional, "aws:SourceIp", several("192.0.2.0/24", "198.51.100.7", "192.0.2.9")
	case 9:
		return "Bool" + optional, w.pick("kms:ReEncryptOnSameKey", "aws:SecureTransport", "aws:ViaAWSService", "kms:MultiRegion", "aws:PrincipalIsAWSService"), w.pick("true", "false", "TRUE")
	case 10:
		return text(), w.pick("kms:GrantConstraintType", "kms:KeySpec", "kms:EncryptionAlgorithm", "kms:RequestAlias", "aws:ResourceTag/Team", "aws:RequestTag/team", "sts:ExternalId", "sts:RoleSessionName"),
			several("SYMMETRIC_DEFAULT", "EncryptionContextSubset", "alias/key", "red", "tenant-1", "one")
	}
	return text(), w.pick("kms:CallerAccount", "aws:PrincipalType", "aws:username", "AWS:PrincipalAccount", "aws:RequestedRegion", "aws:ResourceAccount", "aws:UserAgent"),
		several(homeAccount, foreignAccount, "User", "Account", "AssumedRole", "ann", "us-*", "${aws:PrincipalAccount}", "us-west-2")
}

// statement returns a random statement of a kind of policy.
func (w *world) statement(kind policyKind, keyARN string) map[string]any {
	s := map[string]any{"Effect": "Allow"}
	if w.chance(20) {
		s["Effect"] = "Deny"
	}
	service := "kms"
	if kind == trustPolicy || (kind != keyPolicy && w.chance(15)) {
		service = "sts"
	}
	s[w.pick("Action", "Action", "Action", "Action", "NotAction")] = w.actions(service)
	if kind == keyPolicy || kind == trustPolicy {
		s["Principal"] = map[string]any{"AWS": w.some(3, w.principals()...)}
		if w.chance(15) {
			s["Principal"] = "*"
		}
	}
	if kind != trustPolicy {
		s[w.pick("Resource", "Resource", "Resource", "Resource", "NotResource")] = w.pick("*", "*", "*", keyARN, "arn:aws:kms:*:"+homeAccount+":key/*",
			"arn:aws:kms:*:*:alias/*", "arn:aws:iam::*:role/*", "arn:aws:kms:us-west-2:*:*/${aws:username}*", "arn:aws:kms:*:${aws:PrincipalAccount}:key/*")
	}
	if w.chance(50) {
		block := map[string]map[string]any{}
		for range 1 + w.rnd.IntN(2) {
			operator, key, values := w.condition()
			if strings.HasPrefix(operator, "ForAllValues:") && strings.HasPrefix(key, "kms:EncryptionContext:") {
				continue
			}
			if block[operator] == nil {
				block[operator] = map[string]any{}
			}
			block[operator][key] = values
		}
		s["Condition"] = block
	}
	return s
}

func (w *world) document(t *testing.T, kind policyKind, keyARN string, most int) string {
	t.Helper()
	doc := map[string]any{"Version": w.pick("2012-10-17", "2012-10-17", "2012-10-17", "2008-10-17")}
	var statements []any
	for range 1 + w.rnd.IntN(most) {
		statements = append(statements, w.statement(kind, keyARN))
	}
	doc["Statement"] = statements
	text, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// newWorld makes a world, once for each evaluator.
func newWorld(t *testing.T, rnd *rand.Rand) *world {
	t.Helper()
	w := &world{rnd: rnd, now: time.Unix(1_800_000_000, 0), trust: map[string]*refDoc{}}
	ref := keyRef{homeAccount, "us-west-2", newUUID()}
	var accounts []Account
	texts := map[string][]string{} // identity policies by principal
	for _, id := range []string{homeAccount, foreignAccount} {
		policies := func(arn string) map[string]PolicyDocument {
			all := map[string]PolicyDocument{}
			for i := range w.rnd.IntN(3) {
				text := w.document(t, identityPolicy, ref.arn(), 3)
				all[fmt.Sprint(i)] = PolicyDocument(text)
				texts[arn] = append(texts[arn], text)
			}
			return all
		}
		trust := w.document(t, trustPolicy, ref.arn(), 2)
		w.trust[worldRole(id)] = refParse(trust)
		accounts = append(accounts, Account{
			ID:             id,
			RootAccessKeys: []AccessKey{{"root" + id, "s"}},
			Users:          []User{{Name: "ann", AccessKeys: []AccessKey{{"ann" + id, "s"}}, Policies: policies(worldUser(id))}},
			Roles:          []Role{{Name: "app", TrustPolicy: PolicyDocument(trust), Policies: policies(worldRole(id))}},
		})
	}
	var err error
	if w.kms, err = New(Config{Accounts: accounts, Now: func() time.Time { return w.now }, GrantDelay: time.Minute}); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{homeAccount, foreignAccount} {
		w.addCaller(refCase{account: id, root: true}, w.kms.credentials["root"+id].identity)
		w.addCaller(refCase{account: id, user: worldUser(id), identity: refParseAll(texts[worldUser(id)])}, w.kms.credentials["ann"+id].identity)
		for _, name := range []string{"one", "two"} {
			c := refCase{account: id, role: worldRole(id), session: worldSession(id, name), identity: refParseAll(texts[worldRole(id)])}
			text := ""
			if w.chance(40) {
				text = w.document(t, sessionPolicy, ref.arn(), 3)
				c.restricted = refParse(text)
			}
			made, err := w.kms.sessions.issue(w.kms.sessions.roles[worldRole(id)], name, text, w.now, w.now.Add(time.Hour))
			if err != nil {
				t.Fatal(err)
			}
			w.addCaller(c, made.identity)
		}
	}
	w.addKey(t, ref)
	return w
}

func refParseAll(texts []string) []refDoc {
	var all []refDoc
	for _, text := range texts {
		all = append(all, *refParse(text))
	}
	return all
}

func (w *world) addCaller(c refCase, i *identity) {
	w.callers, w.real = append(w.callers, c), append(w.real, i)
}

func (w *world) addKey(t *testing.T, ref keyRef) {
	t.Helper()
	text := w.document(t, keyPolicy, ref.arn(), 4)
	w.keyPolicy = refParse(text)
	events := []*event{
		{Key: &keyEvent{
			Ref: ref, Created: w.now, Enabled: true, Policy: text, Tags: []tag{{"team", "red"}},
			Materials: []materialEvent{{ID: randomHex(materialSize), Raw: newTokenSecret()}},
		}},
		{Alias: &aliasEvent{Ref: aliasRef{ref.Account, ref.Region, "alias/key"}, Target: ref, Created: w.now}},
	}
	for i := range w.rnd.IntN(6) {
		g := w.grant(fmt.Sprint("g", i))
		g.Seq = uint64(i + 1)
		w.grants = append(w.grants, g)
		events = append(events, &event{Grant: &grantEvent{ref, g}})
	}
	for _, e := range events {
		if err := w.kms.state.apply(e); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if w.key, err = w.kms.state.get(ref); err != nil {
		t.Fatal(err)
	}
}

func (w *world) pairs(most int) map[string]string {
	m := map[string]string{}
	for range w.rnd.IntN(most + 1) {
		m[w.pick("tenant", "Tenant", "env", "level")] = w.pick("a", "b", "ann", "7", "*")
	}
	return m
}

// grant returns a random grant. Principals of grants are ARNs.
func (w *world) grant(id string) *grant {
	arns := slices.DeleteFunc(w.principals(), func(p string) bool { return !strings.HasPrefix(p, "arn:") })
	g := &grant{
		ID: id, Grantee: w.pick(arns...), Issuer: w.pick(homeAccount, homeAccount, foreignAccount), Created: w.now,
		Operations: w.some(4, "Encrypt", "Decrypt", "DescribeKey", "CreateGrant", "ReEncryptFrom", "RetireGrant"),
	}
	if w.chance(60) {
		g.Created = w.now.Add(-time.Hour)
	}
	if w.chance(60) {
		g.Retiring = w.pick(arns...)
	}
	switch w.rnd.IntN(3) {
	case 0:
		g.Constraint.Subset = w.pairs(2)
	case 1:
		g.Constraint.Equals = w.pairs(2)
	}
	return g
}

func refGrantOf(g *grant, now time.Time) refGrant {
	return refGrant{
		id: g.ID, grantee: g.Grantee, retiring: g.Retiring, issuer: g.Issuer, operations: g.Operations,
		subset: g.Constraint.Subset, equals: g.Constraint.Equals, visible: now.Sub(g.Created) >= time.Minute,
	}
}

// ask puts one random question to both evaluators.
func (w *world) ask(t *testing.T, ref *reference) {
	t.Helper()
	n := w.rnd.IntN(len(w.callers))
	c, caller := w.callers[n], w.real[n]
	r := &request{caller: caller, region: w.pick("us-west-2", "us-west-2", "us-east-1"), now: w.now}
	r.sourceIP, r.userAgent = w.pick("192.0.2.9", "203.0.113.5", ""), w.pick("", "aws-cli")
	c.context = w.requestContext(&c, r)
	got := w.question(t, &c, r)
	if want := ref.allowed(&c); got != want {
		t.Fatalf("%s:%s by %s on %s with %q: the code says %v, the rules %v\nkey policy %s\ngrants %+v\nidentity %+v\nsession %+v\ntrust %+v",
			c.service, c.operation, caller.arn, c.resource, c.context, got, want, w.key.policy.text, c.grants, c.identity, c.restricted, c.policy)
	}
}

// requestContext is what a request has before it is known what it asks for.
func (w *world) requestContext(c *refCase, r *request) map[string][]string {
	context := map[string][]string{
		"kms:calleraccount": {c.account}, "aws:principalaccount": {c.account}, "aws:principalisawsservice": {"false"},
		"aws:viaawsservice": {"false"}, "aws:securetransport": {"false"}, "aws:requestedregion": {r.region},
		"aws:currenttime": {"2027-01-15T08:00:00Z"}, "aws:epochtime": {"1800000000"},
	}
	switch {
	case c.root:
		context["aws:principalarn"], context["aws:principaltype"] = []string{rootARN(c.account)}, []string{"Account"}
	case c.user != "":
		context["aws:principalarn"], context["aws:principaltype"], context["aws:username"] = []string{c.user}, []string{"User"}, []string{"ann"}
	default:
		context["aws:principalarn"], context["aws:principaltype"] = []string{c.role}, []string{"AssumedRole"}
		context["aws:tokenissuetime"] = []string{"2027-01-15T08:00:00Z"}
	}
	if r.sourceIP != "" {
		context["aws:sourceip"] = []string{r.sourceIP}
	}
	if r.userAgent != "" {
		context["aws:useragent"] = []string{r.userAgent}
	}
	return context
}

// TestReference compares the two evaluators on random cases, and requires that
// every rule of the table was needed. Under -short it asks a tenth.
func TestReference(t *testing.T) {
	worlds, cases := 1000, 100
	if testing.Short() {
		worlds = 100
	}
	ref := &reference{hits: map[string]int{}}
	start := time.Now()
	for seed := range uint64(worlds) {
		w := newWorld(t, rand.New(rand.NewPCG(seed, 2)))
		for range cases {
			w.ask(t, ref)
		}
	}
	t.Logf("%d cases, %.0f a second", worlds*cases, float64(worlds*cases)/time.Since(start).Seconds())
	for _, rule := range refRules() {
		if ref.hits[rule] == 0 {
			t.Errorf("rule %s was never needed", rule)
		}
	}
	t.Log("hits: ", ref.hits)
	document, err := os.ReadFile("../../docs/localkms-authorization.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	for _, row := range regexp.MustCompile(`(?m)^\| ([A-Z][0-9]+) \|`).FindAllStringSubmatch(string(document), -1) {
		documented = append(documented, row[1])
	}
	if !slices.Equal(documented, refRules()) || len(ref.hits) != len(documented) {
		t.Errorf("the document has the rules %v, this %v, and %d were needed", documented, refRules(), len(ref.hits))
	}
}
