package broker_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/test/harness"
)

var (
	wrapOps   = []string{"Encrypt", "GenerateDataKey", "GenerateDataKeyWithoutPlaintext", "GenerateDataKeyPair", "GenerateDataKeyPairWithoutPlaintext", "ReEncryptTo"}
	unwrapOps = []string{"Decrypt", "ReEncryptFrom"}
)

// newGrant is a CreateGrant call of the service "orders", for both kinds.
func newGrant(requestID string) broker.NewGrant {
	in := broker.NewGrant{Domain: "acme", ID: "orders", Grantee: harness.ServiceRole, Operations: []string{"GenerateDataKey", "Decrypt"},
		Constraint: broker.Constraint{Subset: broker.Context{"tenant": "acme"}}, TTL: time.Hour}
	if requestID != "" {
		in.Request = request("CreateGrant", requestID, "body")
	}
	return in
}

func (b *bench) createGrant(in broker.NewGrant) (broker.GrantView, error) {
	return b.Broker.CreateGrant(b.t.Context(), harness.Caller, in)
}

func (b *bench) mustGrant(in broker.NewGrant) broker.GrantView {
	b.t.Helper()
	g, err := b.createGrant(in)
	if err != nil {
		b.t.Fatal(err)
	}
	return g
}

// grantee does with a key what the service "orders" would do, with tokens.
func (b *bench) useKey(key broker.KeyARN, c map[string]string, tokens []broker.Secret) error {
	texts := make([]string, len(tokens))
	for i, token := range tokens {
		texts[i] = string(token)
	}
	out, err := b.Service.GenerateDataKey(b.t.Context(), &kms.GenerateDataKeyInput{KeyId: aws.String(string(key)), KeySpec: "AES_256", EncryptionContext: c, GrantTokens: texts})
	if err != nil {
		return err
	}
	_, err = b.Service.Decrypt(b.t.Context(), &kms.DecryptInput{CiphertextBlob: out.CiphertextBlob, EncryptionContext: c, GrantTokens: texts})
	return err
}

func TestCreateGrant(t *testing.T) {
	b := newActive(t)
	d := b.domain("acme")
	in := newGrant("r1")
	g := b.mustGrant(in)
	if !slices.Equal(in.Operations, newGrant("").Operations) {
		t.Errorf("the caller's operations became %q", in.Operations)
	}
	if g.State != broker.GrantActive || len(g.Tokens) != 2 || !slices.Equal(g.KMSKeys, []broker.KeyARN{d.KMSKey}) {
		t.Fatalf("%s with %d tokens on %q", g.State, len(g.Tokens), g.KMSKeys)
	}
	full := map[string]string{d.Reserved.Key: d.Reserved.Value, "tenant": "acme"}
	var names []string
	for _, k := range b.serviceGrants(d.KMSKey) {
		names = append(names, aws.ToString(k.Name))
		if diff := cmp.Diff(full, k.Constraints.EncryptionContextSubset); diff != "" {
			t.Errorf("constraint of %s: %s", aws.ToString(k.Name), diff)
		}
		if aws.ToString(k.RetiringPrincipal) != harness.RegistrarRole {
			t.Errorf("%s retires %s", aws.ToString(k.RetiringPrincipal), aws.ToString(k.Name))
		}
	}
	want := []string{"kb/test/" + string(g.UID) + "/wrap/1/1", "kb/test/" + string(g.UID) + "/unwrap/1/1"}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Error(diff)
	}
	if err := b.useKey(d.KMSKey, full, g.Tokens); err != nil {
		t.Errorf("the service cannot use its grant: %v", err)
	}
	for name, other := range map[string]map[string]string{
		"no context":    nil,
		"no pair":       {"tenant": "acme"},
		"other tenant":  {d.Reserved.Key: d.Reserved.Value, "tenant": "other"},
		"other domain":  {d.Reserved.Key: "OTHER", "tenant": "acme"},
		"only the pair": {d.Reserved.Key: d.Reserved.Value},
	} {
		if err := b.useKey(d.KMSKey, other, g.Tokens); err == nil {
			t.Errorf("the service may use the key with %s", name)
		}
	}
}

// T9: the tokens are in the answer and nowhere else.
func TestTokensAreStoredNowhere(t *testing.T) {
	b := newActive(t)
	g := b.mustGrant(newGrant("r1"))
	for _, token := range g.Tokens {
		if len(token) < 16 || b.onDisk(token) {
			t.Errorf("a token of %d bytes is in the database's files", len(token))
		}
	}
	if !b.onDisk([]byte(g.UID)) {
		t.Error("the search does not find what is there")
	}
	read, err := b.Broker.GetGrant(t.Context(), harness.Caller, "acme", "orders")
	if err != nil || len(read.Tokens) != 0 {
		t.Errorf("GetGrant answers with %d tokens, %v", len(read.Tokens), err)
	}
	g.Tokens = nil
	if diff := cmp.Diff(g, read, cmpopts.EquateEmpty()); diff != "" {
		t.Error(diff)
	}
}

// T5: for any legal request, what KMS is asked for is no more than was asked
// for, each operation is in the grant of its kind, and the reserved pair is in
// the constraint.
func TestKMSGrantsAreNoBroader(t *testing.T) {
	b := newActive(t)
	d := b.domain("acme")
	rapid.Check(t, func(t *rapid.T) {
		all := slices.Concat(wrapOps, unwrapOps, []string{"DescribeKey"})
		ops := rapid.SliceOfNDistinct(rapid.SampledFrom(all), 1, len(all), rapid.ID[string]).Draw(t, "operations")
		pairs := broker.Context(rapid.MapOfN(rapid.StringMatching(`[a-z]{1,8}`), rapid.StringMatching(`[a-z]{0,8}`), 0, 7).Draw(t, "context"))
		in := broker.NewGrant{Domain: "acme", Grantee: harness.ServiceRole, Operations: ops, TTL: time.Hour, Constraint: broker.Constraint{Subset: pairs}}
		equals := rapid.Bool().Draw(t, "equals") && len(pairs) > 0
		if equals {
			in.Constraint = broker.Constraint{Equals: pairs}
		}
		b.Calls()
		if _, err := b.createGrant(in); err != nil {
			t.Fatal(err)
		}
		var asked []string
		for _, c := range b.Calls() {
			if c.Operation != "CreateGrant" {
				continue
			}
			kind := unwrapOps
			if strings.Contains(c.GrantName, "/wrap/") {
				kind = wrapOps
			}
			for _, op := range c.GrantOperations {
				if !slices.Contains(ops, op) || (op != "DescribeKey" && !slices.Contains(kind, op)) {
					t.Fatalf("%s has %s; asked for were %q", c.GrantName, op, ops)
				}
			}
			asked = append(asked, c.GrantOperations...)
			got, other := c.Constraint.Subset, c.Constraint.Equals
			if equals {
				got, other = other, got
			}
			if want := map[string]string(pairs.With(d.Reserved)); !cmp.Equal(got, want) || len(other) != 0 {
				t.Fatalf("constraint %+v, want %q", c.Constraint, want)
			}
		}
		for _, op := range ops {
			if !slices.Contains(asked, op) {
				t.Fatalf("%s was asked for, and KMS was not asked for it", op)
			}
		}
	})
}

func TestCreateGrantRefusals(t *testing.T) {
	b := newActive(t)
	if _, err := b.NewDomain(t.Context(), "pending"); err != nil {
		t.Fatal(err)
	}
	pair := b.domain("acme").Reserved
	for name, test := range map[string]struct {
		change func(*broker.NewGrant)
		want   broker.Reason
	}{
		"no operation":     {func(g *broker.NewGrant) { g.Operations = nil }, broker.ReasonOperationNotAllowed},
		"CreateGrant":      {func(g *broker.NewGrant) { g.Operations = []string{"Decrypt", "CreateGrant"} }, broker.ReasonOperationNotAllowed},
		"RetireGrant":      {func(g *broker.NewGrant) { g.Operations = []string{"RetireGrant"} }, broker.ReasonOperationNotAllowed},
		"Sign":             {func(g *broker.NewGrant) { g.Operations = []string{"Sign"} }, broker.ReasonOperationNotAllowed},
		"kms:Decrypt":      {func(g *broker.NewGrant) { g.Operations = []string{"kms:Decrypt"} }, broker.ReasonOperationNotAllowed},
		"decrypt":          {func(g *broker.NewGrant) { g.Operations = []string{"decrypt"} }, broker.ReasonOperationNotAllowed},
		"both constraints": {func(g *broker.NewGrant) { g.Constraint.Equals = broker.Context{"a": "b"} }, broker.ReasonConstraintInvalid},
		"reserved, subset": {func(g *broker.NewGrant) { g.Constraint.Subset = broker.Context{pair.Key: pair.Value} }, broker.ReasonContextKeyReserved},
		"reserved, equals": {func(g *broker.NewGrant) {
			g.Constraint = broker.Constraint{Equals: broker.Context{"KEYBROKER:DOMAIN": "x"}}
		}, broker.ReasonContextKeyReserved},
		"fold duplicates":     {func(g *broker.NewGrant) { g.Constraint.Subset = broker.Context{"a": "x", "A": "y"} }, broker.ReasonContextDuplicateKey},
		"no TTL":              {func(g *broker.NewGrant) { g.TTL = 0 }, broker.ReasonFieldInvalid},
		"negative TTL":        {func(g *broker.NewGrant) { g.TTL = -time.Hour }, broker.ReasonFieldInvalid},
		"for ever":            {func(g *broker.NewGrant) { g.TTL = 367 * 24 * time.Hour }, broker.ReasonFieldInvalid},
		"bad id":              {func(g *broker.NewGrant) { g.ID = "../orders" }, broker.ReasonFieldInvalid},
		"unknown domain":      {func(g *broker.NewGrant) { g.Domain = "nobody" }, broker.ReasonDomainNotFound},
		"domain without key":  {func(g *broker.NewGrant) { g.Domain = "pending" }, broker.ReasonDomainPendingKey},
		"the worker's own id": {func(g *broker.NewGrant) { g.ID = "keybroker-worker" }, broker.ReasonGrantAlreadyExists},
	} {
		t.Run(name, func(t *testing.T) {
			b.Calls()
			in := newGrant("")
			test.change(&in)
			_, err := b.createGrant(in)
			wantReason(t, err, test.want)
			if calls := b.Calls(); len(calls) > 0 {
				t.Errorf("KMS was called: %+v", calls)
			}
		})
	}
	if _, err := b.Broker.GetGrant(t.Context(), harness.Caller, "acme", "keybroker-worker"); broker.ReasonOf(err) != broker.ReasonGrantNotFound {
		t.Errorf("the worker's grant is shown: %v", err)
	}
}

// A grant that KMS refuses leaves nothing there, is FAILED, and stays so for a
// repeat (T6).
func TestGrantRefusedByKMS(t *testing.T) {
	for code, want := range map[string]broker.Reason{
		"AccessDeniedException":    broker.ReasonKeyAccessDenied,
		"DisabledException":        broker.ReasonKeyDisabled,
		"KMSInvalidStateException": broker.ReasonKeyStateInvalid,
		"NotFoundException":        broker.ReasonKeyNotFound,
		"LimitExceededException":   broker.ReasonGrantLimitExceeded,
		"InvalidArnException":      broker.ReasonGranteeNotAllowed, // a role that does not exist
	} {
		t.Run(code, func(t *testing.T) {
			b := newActive(t)
			key := b.domain("acme").KMSKey
			b.road.fail("CreateGrant", code)
			_, err := b.createGrant(newGrant("r1"))
			wantReason(t, err, want)
			if r := resourceOf(err); r != "domains/acme/grants/orders" {
				t.Errorf("the error is about %q", r)
			}
			b.road.open()
			_, err = b.createGrant(newGrant("r1"))
			wantReason(t, err, broker.ReasonGrantEnded)
			if left := b.serviceGrants(key); len(left) != 0 {
				t.Errorf("%d grants are left at KMS", len(left))
			}
			if diff := cmp.Diff([]string{"1 unwrap 1 FAILED", "1 wrap 1 FAILED"}, b.kmsGrantStates()); diff != "" {
				t.Errorf("open intents: %s", diff)
			}
			if states := b.query(`select state from domain_grant where grant_id = 'orders'`); !slices.Equal(states, []string{"FAILED"}) {
				t.Errorf("the grant is %s", states)
			}
		})
	}
}

// The second of two KMS grants is refused: the first is retired.
func TestHalfAGrantIsRetired(t *testing.T) {
	b := newActive(t)
	key := b.domain("acme").KMSKey
	b.road.after("CreateGrant", func() { b.road.fail("CreateGrant", "LimitExceededException") })
	_, err := b.createGrant(newGrant("r1"))
	wantReason(t, err, broker.ReasonGrantLimitExceeded)
	b.road.open()
	if left := b.serviceGrants(key); len(left) != 0 {
		t.Errorf("%d grants are left at KMS", len(left))
	}
	if diff := cmp.Diff([]string{"1 unwrap 1 FAILED", "1 wrap 1 RETIRED"}, b.kmsGrantStates()); diff != "" {
		t.Error(diff)
	}
}
