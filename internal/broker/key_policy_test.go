package broker_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/google/go-cmp/cmp"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/test/harness"
)

// A policyText is a document as it reads on the wire.
type policyText struct {
	Version   string
	ID        string `json:"Id"`
	Statement []json.RawMessage
}

func readPolicy(t testing.TB, text string) policyText {
	t.Helper()
	var p policyText
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return p
}

func (p policyText) sids(t testing.TB) []string {
	t.Helper()
	var sids []string
	for _, raw := range p.Statement {
		var s struct{ Sid string }
		if err := json.Unmarshal(raw, &s); err != nil {
			t.Fatal(err)
		}
		sids = append(sids, s.Sid)
	}
	return sids
}

// policyOf asks for a policy of the domain that newHeard knows, UID2345.
func policyOf(t testing.TB, in broker.KeyPolicyRequest) (broker.KeyPolicy, error) {
	t.Helper()
	b, _, _ := newHeard(t)
	in.Domain = "acme"
	return b.GenerateKeyPolicy(context.Background(), harness.Caller, in)
}

func mustPolicy(t testing.TB, in broker.KeyPolicyRequest) policyText {
	t.Helper()
	p, err := policyOf(t, in)
	if err != nil {
		t.Fatal(err)
	}
	return readPolicy(t, p.Document)
}

func TestKeyPolicyForANewKey(t *testing.T) {
	p, err := policyOf(t, broker.KeyPolicyRequest{KeyAccount: "111122223333"})
	if err != nil {
		t.Fatal(err)
	}
	doc := readPolicy(t, p.Document)
	want := []string{"EnableIAMUserPermissions", "KeybrokerDescribeKey", "KeybrokerListGrants", "KeybrokerUID2345CreateGrant"}
	if diff := cmp.Diff(want, doc.sids(t)); diff != "" {
		t.Error(diff)
	}
	if doc.Version != "2012-10-17" || p.Version != "1" {
		t.Errorf("document of version %q, statements of version %q", doc.Version, p.Version)
	}
	var alone []string
	for _, s := range doc.Statement[1:] {
		alone = append(alone, string(s))
	}
	if diff := cmp.Diff(alone, p.Statements); diff != "" {
		t.Errorf("the statements alone are others: %s", diff)
	}
}

const customers = `{"Sid":"Mine","Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:root"},"Action":"kms:*","Resource":"*"}`

// The customer's statements survive byte for byte, in their order, wherever
// ours stood between them.
func TestKeyPolicyKeepsTheCustomersStatements(t *testing.T) {
	odd := `{"Resource":"*","Action":["kms:Decrypt"],"Principal":{"AWS":["arn:aws:iam::111122223333:role/<&> \u2028é"]},"Effect":"Deny","Condition":{"NumericLessThan":{"kms:X":1e2}}}`
	stale := `{"Sid":"KeybrokerUID2345CreateGrant","Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*"}`
	shared := `{"Sid":"KeybrokerDescribeKey","Effect":"Deny","Principal":"*","Action":"kms:*","Resource":"*"}`
	other := `{"Sid":"KeybrokerUID9999CreateGrant","Effect":"Allow","Principal":"*","Action":"kms:CreateGrant","Resource":"*"}`
	for name, test := range map[string]struct {
		existing string
		kept     []string
		id       string
		version  string
	}{
		"a list":         {`{"Version":"2012-10-17","Statement":[` + customers + `,` + odd + `]}`, []string{customers, odd}, "", "2012-10-17"},
		"one object":     {`{"Version":"2012-10-17","Statement":` + customers + `}`, []string{customers}, "", "2012-10-17"},
		"an Id":          {`{"Id":"key-default-1","Version":"2008-10-17","Statement":` + customers + `}`, []string{customers}, "key-default-1", "2008-10-17"},
		"no Version":     {`{"Statement":[` + customers + `]}`, []string{customers}, "", "2008-10-17"},
		"ours, between":  {`{"Statement":[` + customers + `,` + stale + `,` + shared + `,` + odd + `]}`, []string{customers, odd}, "", "2008-10-17"},
		"another domain": {`{"Statement":[` + other + `,` + customers + `]}`, []string{other, customers}, "", "2008-10-17"},
		"white space":    {" {\n \"Statement\" : [ \n" + customers + "\t,\n" + odd + " ] } \n", []string{customers, odd}, "", "2008-10-17"},
	} {
		t.Run(name, func(t *testing.T) {
			doc := mustPolicy(t, broker.KeyPolicyRequest{Existing: test.existing})
			if len(doc.Statement) != len(test.kept)+3 {
				t.Fatalf("got the statements %q", doc.sids(t))
			}
			for i, want := range test.kept {
				if string(doc.Statement[i]) != want {
					t.Errorf("statement %d became\n%s\nand was\n%s", i, doc.Statement[i], want)
				}
			}
			if doc.ID != test.id || doc.Version != test.version {
				t.Errorf("Id %q, Version %q", doc.ID, doc.Version)
			}
			again, err := policyOf(t, broker.KeyPolicyRequest{Existing: mustText(t, doc)})
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(readPolicy(t, again.Document).sids(t), doc.sids(t)) {
				t.Error("a second merge changed the document")
			}
		})
	}
}

func mustText(t testing.TB, v any) string {
	t.Helper()
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestKeyPolicyRefusals(t *testing.T) {
	const account = "111122223333"
	doc := func(statement string) broker.KeyPolicyRequest {
		return broker.KeyPolicyRequest{Existing: `{"Version":"2012-10-17","Statement":` + statement + `}`}
	}
	existing := func(text string) broker.KeyPolicyRequest { return broker.KeyPolicyRequest{Existing: text} }
	importing := func(c broker.Context) broker.KeyPolicyRequest {
		return broker.KeyPolicyRequest{KeyAccount: account, Profile: broker.PolicyImportSource, ImportContext: c}
	}
	for name, test := range map[string]struct {
		in   broker.KeyPolicyRequest
		want broker.Reason
	}{
		"neither":             {broker.KeyPolicyRequest{}, broker.ReasonFieldInvalid},
		"both":                {broker.KeyPolicyRequest{KeyAccount: account, Existing: "{}"}, broker.ReasonFieldInvalid},
		"no account":          {broker.KeyPolicyRequest{KeyAccount: "11112222333"}, broker.ReasonFieldInvalid},
		"an ARN":              {broker.KeyPolicyRequest{KeyAccount: harness.CustomerRoot}, broker.ReasonFieldInvalid},
		"context, no profile": {broker.KeyPolicyRequest{KeyAccount: account, ImportContext: broker.Context{"a": "b"}}, broker.ReasonFieldInvalid},

		"no JSON":             {existing("policy"), broker.ReasonPolicyDocumentInvalid},
		"null":                {existing("null"), broker.ReasonPolicyDocumentInvalid},
		"a list at the top":   {existing("[]"), broker.ReasonPolicyDocumentInvalid},
		"empty object":        {existing("{}"), broker.ReasonPolicyDocumentInvalid},
		"cut off":             {existing(`{"Statement":[` + customers), broker.ReasonPolicyDocumentInvalid},
		"two documents":       {existing(`{"Statement":[]}{"Statement":[]}`), broker.ReasonPolicyDocumentInvalid},
		"a brace too many":    {existing(`{"Statement":[` + customers + `]}}`), broker.ReasonPolicyDocumentInvalid},
		"a bracket too many":  {existing(`{"Statement":[` + customers + `]}]`), broker.ReasonPolicyDocumentInvalid},
		"an unknown member":   {existing(`{"Statement":[` + customers + `],"Statements":[]}`), broker.ReasonPolicyDocumentInvalid},
		"two Statements":      {existing(`{"Statement":[` + customers + `],"Statement":[]}`), broker.ReasonPolicyDocumentInvalid},
		"a folded Statement":  {existing(`{"Statement":[` + customers + `],"statement":[]}`), broker.ReasonPolicyDocumentInvalid},
		"an escaped second":   {existing(`{"Statement":[` + customers + `],"Statemen\u0074":[]}`), broker.ReasonPolicyDocumentInvalid},
		"Version a number":    {existing(`{"Version":2012,"Statement":[]}`), broker.ReasonPolicyDocumentInvalid},
		"Id an object":        {existing(`{"Id":{},"Statement":[]}`), broker.ReasonPolicyDocumentInvalid},
		"Statement null":      {doc("null"), broker.ReasonPolicyDocumentInvalid},
		"Statement a string":  {doc(`"Allow"`), broker.ReasonPolicyDocumentInvalid},
		"Statement a number":  {doc("1"), broker.ReasonPolicyDocumentInvalid},
		"a list of strings":   {doc(`["Allow"]`), broker.ReasonPolicyDocumentInvalid},
		"a list of lists":     {doc(`[[` + customers + `]]`), broker.ReasonPolicyDocumentInvalid},
		"a list with null":    {doc(`[null]`), broker.ReasonPolicyDocumentInvalid},
		"two Sids":            {doc(`{"Sid":"Mine","Effect":"Deny","Sid":"KeybrokerDescribeKey"}`), broker.ReasonPolicyDocumentInvalid},
		"a folded Sid":        {doc(`{"Sid":"Mine","sid":"KeybrokerDescribeKey"}`), broker.ReasonPolicyDocumentInvalid},
		"over 32 KiB to read": {existing(`{"Statement":[]` + strings.Repeat(" ", 32768) + `}`), broker.ReasonPolicyDocumentInvalid},
		"over 32 KiB to give": {doc(`[{"Sid":"` + strings.Repeat("x", 32000) + `"}]`), broker.ReasonPolicyTooLarge},

		"import without a condition": {importing(nil), broker.ReasonFieldInvalid},
		"import with our pair":       {importing(broker.Context{"keybroker:domain": "UID2345"}), broker.ReasonContextKeyReserved},
		"import, reserved, folded":   {importing(broker.Context{"KEYBROKER:x": "y"}), broker.ReasonContextKeyReserved},
		"import, a wide key":         {importing(broker.Context{"ключ": "y"}), broker.ReasonContextKeyInvalid},
		"import, fold duplicates":    {importing(broker.Context{"A": "x", "a": "y"}), broker.ReasonContextDuplicateKey},
		"import, control character":  {importing(broker.Context{"a": "\n"}), broker.ReasonContextValueInvalid},
		"import, policy variable":    {importing(broker.Context{"a": "${kms:EncryptionContext:a}"}), broker.ReasonContextValueInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := policyOf(t, test.in)
			wantReason(t, err, test.want)
		})
	}
}

func TestTwoDomainsOnOneKey(t *testing.T) {
	b := newBench(t)
	var doc string
	for i, id := range []broker.DomainID{"one", "two", "one"} {
		if i < 2 {
			if _, err := b.NewDomain(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		in := broker.KeyPolicyRequest{Domain: id, Existing: doc}
		if doc == "" {
			in.KeyAccount = harness.CustomerAccount
		}
		p, err := b.Broker.GenerateKeyPolicy(t.Context(), harness.Caller, in)
		if err != nil {
			t.Fatal(err)
		}
		doc = p.Document
	}
	sids := readPolicy(t, doc).sids(t)
	slices.Sort(sids)
	want := []string{"EnableIAMUserPermissions", "KeybrokerDescribeKey", "KeybrokerListGrants",
		"Keybroker" + string(b.domain("one").UID) + "CreateGrant", "Keybroker" + string(b.domain("two").UID) + "CreateGrant"}
	slices.Sort(want)
	if diff := cmp.Diff(want, sids); diff != "" {
		t.Error(diff)
	}
}

// IMPORT_SOURCE adds one statement to what is there, bound to the legacy
// context; STANDARD takes it away again, and no other domain's.
func TestImportSourceComesAndGoes(t *testing.T) {
	other := `{"Sid":"KeybrokerUID9999ImportSource","Effect":"Allow","Principal":"*","Action":"kms:ReEncryptFrom","Resource":"*"}`
	standard, err := policyOf(t, broker.KeyPolicyRequest{Existing: `{"Statement":[` + customers + `,` + other + `]}`})
	if err != nil {
		t.Fatal(err)
	}
	with, err := policyOf(t, broker.KeyPolicyRequest{Existing: standard.Document, Profile: broker.PolicyImportSource, ImportContext: broker.Context{"tenant": "acme"}})
	if err != nil {
		t.Fatal(err)
	}
	doc := readPolicy(t, with.Document)
	last := string(doc.Statement[len(doc.Statement)-1])
	want := fmt.Sprintf(`{"Sid":"KeybrokerUID2345ImportSource","Effect":"Allow","Principal":{"AWS":%q},"Action":"kms:ReEncryptFrom","Resource":"*",`+
		`"Condition":{"StringEquals":{"kms:EncryptionContext:tenant":"acme"}}}`, harness.WorkerRole)
	if last != want || len(doc.Statement) != 6 {
		t.Errorf("got %d statements, the last is\n%s, want\n%s", len(doc.Statement), last, want)
	}
	without, err := policyOf(t, broker.KeyPolicyRequest{Existing: with.Document})
	if err != nil {
		t.Fatal(err)
	}
	if without.Document != standard.Document {
		t.Errorf("STANDARD left\n%s\nwant\n%s", without.Document, standard.Document)
	}
}

// T2: on a key with the rendered policy the registrar makes grants for exactly
// this domain, to known grantees, for known operations; and uses no key itself.
func TestKeyPolicyPins(t *testing.T) {
	ctx := t.Context()
	b := newBench(t)
	d, err := b.NewDomain(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	key, err := b.NewKey(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	registrar := clientOf(b, "AKIAREGISTRAR", "registrar")
	legal := func() *kms.CreateGrantInput {
		return &kms.CreateGrantInput{KeyId: aws.String(string(key)), GranteePrincipal: aws.String(harness.ServiceRole),
			RetiringPrincipal: aws.String(harness.RegistrarRole), Operations: []types.GrantOperation{"Decrypt", "DescribeKey"},
			Constraints: &types.GrantConstraints{EncryptionContextSubset: map[string]string{d.Reserved.Key: d.Reserved.Value, "tenant": "acme"}}}
	}
	for name, test := range map[string]struct {
		change func(*kms.CreateGrantInput)
		denied bool
	}{
		"as the broker does it": {func(*kms.CreateGrantInput) {}, false},
		"to the worker":         {func(in *kms.CreateGrantInput) { in.GranteePrincipal = aws.String(harness.WorkerRole) }, false},
		"equals": {func(in *kms.CreateGrantInput) {
			in.Constraints = &types.GrantConstraints{EncryptionContextEquals: in.Constraints.EncryptionContextSubset}
		}, false},
		"random value": {func(in *kms.CreateGrantInput) {
			in.Constraints.EncryptionContextSubset[d.Reserved.Key] = "RANDOM"
		}, true},
		"value folded": {func(in *kms.CreateGrantInput) {
			in.Constraints.EncryptionContextSubset[d.Reserved.Key] = strings.ToLower(d.Reserved.Value)
		}, true},
		"no reserved pair": {func(in *kms.CreateGrantInput) { delete(in.Constraints.EncryptionContextSubset, d.Reserved.Key) }, true},
		"no constraint":    {func(in *kms.CreateGrantInput) { in.Constraints = nil }, true},
		"to another account": {func(in *kms.CreateGrantInput) {
			in.GranteePrincipal = aws.String("arn:aws:iam::333344445555:role/orders")
		}, true},
		"to a user": {func(in *kms.CreateGrantInput) {
			in.GranteePrincipal = aws.String("arn:aws:iam::222233334444:user/orders")
		}, true},
		"to the registrar":       {func(in *kms.CreateGrantInput) { in.GranteePrincipal = aws.String(harness.RegistrarRole) }, true},
		"retired by another":     {func(in *kms.CreateGrantInput) { in.RetiringPrincipal = aws.String(harness.ServiceRole) }, true},
		"retired by nobody":      {func(in *kms.CreateGrantInput) { in.RetiringPrincipal = nil }, true},
		"CreateGrant handed on":  {func(in *kms.CreateGrantInput) { in.Operations = append(in.Operations, "CreateGrant") }, true},
		"RetireGrant handed on":  {func(in *kms.CreateGrantInput) { in.Operations = []types.GrantOperation{"RetireGrant"} }, true},
		"one operation too many": {func(in *kms.CreateGrantInput) { in.Operations = append(in.Operations, "RetireGrant") }, true},
	} {
		t.Run(name, func(t *testing.T) {
			in := legal()
			test.change(in)
			_, err := registrar.CreateGrant(t.Context(), in)
			if denied := err != nil && strings.Contains(err.Error(), "AccessDenied"); denied != test.denied || (err != nil) != test.denied {
				t.Errorf("denied: %t, want %t (%v)", denied, test.denied, err)
			}
		})
	}
	pair := map[string]string{d.Reserved.Key: d.Reserved.Value}
	for name, use := range map[string]func(*kms.Client) error{
		"GenerateDataKey": func(c *kms.Client) error {
			_, err := c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: aws.String(string(key)), KeySpec: "AES_256", EncryptionContext: pair})
			return err
		},
		"PutKeyPolicy": func(c *kms.Client) error {
			_, err := c.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: aws.String(string(key)), Policy: aws.String("{}")})
			return err
		},
	} {
		if err := use(registrar); err == nil {
			t.Errorf("the registrar may %s", name)
		}
	}
}
