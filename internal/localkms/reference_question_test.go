package localkms

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

// question makes up what a caller asks, notes it for the reference, and returns
// the answer of the code.
func (w *world) question(t *testing.T, c *refCase, r *request) bool {
	t.Helper()
	c.service, c.owner, c.resource, c.policy = "kms", homeAccount, w.key.arn, w.keyPolicy
	switch n := w.rnd.IntN(100); {
	case n < 55:
		return w.useKey(t, c, r)
	case n < 63:
		return w.changeKey(c, r)
	case n < 73:
		return w.useNoKey(t, c, r)
	case n < 80:
		return w.makeAlias(c, r)
	case n < 90:
		return w.retire(c, r)
	}
	return w.assumeRole(c, r)
}

// knowKey adds what a request knows of the key it is about.
func (w *world) knowKey(c *refCase) resolved {
	key := w.key
	maps.Copy(c.context, map[string][]string{
		"kms:keyspec": {"SYMMETRIC_DEFAULT"}, "kms:customermasterkeyspec": {"SYMMETRIC_DEFAULT"},
		"kms:keyusage": {"ENCRYPT_DECRYPT"}, "kms:customermasterkeyusage": {"ENCRYPT_DECRYPT"}, "kms:keyorigin": {"AWS_KMS"},
		"kms:multiregion": {"false"}, "kms:resourcealiases": {"alias/key"}, "aws:resourcetag/team": {"red"}, "aws:resourceaccount": {homeAccount},
	})
	if w.chance(20) {
		key.requestAlias = "alias/key"
		c.context["kms:requestalias"] = []string{"alias/key"}
	}
	return key
}

// knowPairs adds an encryption context to the condition keys of a request.
func knowPairs(c *refCase, pairs map[string]string) {
	for name, value := range pairs {
		at := "kms:encryptioncontext:" + strings.ToLower(name)
		c.context[at] = append(c.context[at], value)
	}
	if len(pairs) > 0 {
		c.context["kms:encryptioncontextkeys"] = slices.Sorted(maps.Keys(pairs))
	}
}

func knowGrant(c *refCase, g *refGrant) {
	c.context["kms:grantoperations"] = g.operations
	c.context["kms:granteeprincipal"] = []string{g.grantee}
	if g.retiring != "" {
		c.context["kms:retiringprincipal"] = []string{g.retiring}
	}
	switch {
	case len(g.equals) > 0:
		c.context["kms:grantconstrainttype"] = []string{"EncryptionContextEquals"}
		knowPairs(c, g.equals)
	case len(g.subset) > 0:
		c.context["kms:grantconstrainttype"] = []string{"EncryptionContextSubset"}
		knowPairs(c, g.subset)
	}
}

func (w *world) useKey(t *testing.T, c *refCase, r *request) bool {
	t.Helper()
	c.kind = refKeyUse
	c.operation = w.pick("Encrypt", "Encrypt", "Decrypt", "Decrypt", "ReEncryptFrom", "DescribeKey", "CreateGrant", "ListGrants", "RevokeGrant")
	key := w.knowKey(c)
	a := access{operation: c.operation}
	switch c.operation {
	case "ReEncryptFrom", "Encrypt", "Decrypt":
		c.pairs = w.pairs(3)
		a.takesContext, a.context = true, c.pairs
		knowPairs(c, c.pairs)
		c.context["kms:encryptionalgorithm"] = []string{"SYMMETRIC_DEFAULT"}
		if c.operation == "ReEncryptFrom" {
			same := w.chance(50)
			a.sameKey = &same
			c.context["kms:reencryptonsamekey"] = []string{map[bool]string{true: "true", false: "false"}[same]}
		}
	case "CreateGrant":
		a.grant = w.grant("new")
		child := refGrantOf(a.grant, w.now)
		c.child = &child
		knowGrant(c, &child)
	}
	for _, g := range w.grants {
		c.grants = append(c.grants, refGrantOf(g, w.now))
		if c.operation != "ListGrants" && c.operation != "RevokeGrant" && w.chance(30) {
			token, err := w.kms.state.mintToken(w.key.ref, g.ID)
			if err != nil {
				t.Fatal(err)
			}
			a.tokens, c.tokens = append(a.tokens, token), append(c.tokens, g.ID)
		}
	}
	return w.kms.authorize(r, key, a) == nil
}

func (w *world) changeKey(c *refCase, r *request) bool {
	c.kind, c.operation = refOwnerOnly, w.pick("DisableKey", "TagResource")
	key := w.knowKey(c)
	if c.operation == "DisableKey" {
		c.context["kms:trailingdayswithoutkeyusage"] = []string{"0"}
		return w.kms.authorizeOwner(r, key, c.operation) == nil
	}
	c.context["aws:requesttag/team"], c.context["aws:tagkeys"] = []string{"red"}, []string{"team"}
	team, red := "team", "red"
	return w.kms.authorizeOwner(r, key, c.operation, tagAttributes([]tagInput{{&team, &red}})...) == nil
}

func (w *world) useNoKey(t *testing.T, c *refCase, r *request) bool {
	t.Helper()
	c.kind, c.operation, c.resource, c.policy = refAccount, w.pick("ListKeys", "CreateKey"), "*", nil
	c.context["aws:resourceaccount"] = []string{c.account}
	if c.operation == "ListKeys" {
		return w.kms.authorizeAccount(r, c.operation, "*") == nil
	}
	maps.Copy(c.context, map[string][]string{
		"kms:keyspec": {"HMAC_256"}, "kms:customermasterkeyspec": {"HMAC_256"}, "kms:keyusage": {"GENERATE_VERIFY_MAC"},
		"kms:customermasterkeyusage": {"GENERATE_VERIFY_MAC"}, "kms:keyorigin": {"AWS_KMS"}, "kms:multiregion": {"false"},
	})
	kind, err := newKind("HMAC_256", "GENERATE_VERIFY_MAC")
	if err != nil {
		t.Fatal(err)
	}
	return w.kms.authorizeAccount(r, c.operation, "*", new(createKeyInput).attributes(kind)...) == nil
}

func (w *world) makeAlias(c *refCase, r *request) bool {
	c.kind, c.operation = refAlias, "CreateAlias"
	key := w.knowKey(c)
	c.context["(key)"] = []string{key.arn}
	c.resource = "arn:aws:kms:" + r.region + ":" + c.account + ":alias/ann"
	onAlias, onKey := w.kms.authorizeAlias(r, "alias/ann", "CreateAlias"), w.kms.authorizeOwner(r, key, "CreateAlias")
	return onAlias == nil && onKey == nil
}

func (w *world) retire(c *refCase, r *request) bool {
	c.kind, c.operation = refRetire, "RetireGrant"
	key := w.knowKey(c)
	g := w.grant("old")
	ended := refGrantOf(g, w.now)
	c.ended = &ended
	knowGrant(c, &ended)
	return w.kms.authorizeRetirement(r, key, g) == nil
}

func (w *world) assumeRole(c *refCase, r *request) bool {
	account, name := w.pick(homeAccount, foreignAccount), w.pick("one", "two")
	role := worldRole(account)
	c.kind, c.service, c.operation, c.resource, c.owner, c.policy = refAssume, "sts", "AssumeRole", role, account, w.trust[role]
	c.context["aws:resourceaccount"], c.context["sts:rolesessionname"] = []string{account}, []string{name}
	in := &assumeRoleInput{roleArn: &role, sessionName: &name}
	if w.chance(50) {
		id := w.pick("tenant-1", "tenant-2")
		in.externalID, c.context["sts:externalid"] = &id, []string{id}
	}
	_, err := w.kms.authorizeRole(r, in)
	return err == nil
}
