package brokertest

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/google/go-cmp/cmp"

	"github.com/keybroker/keybroker/internal/broker"
)

func describesKeys(t *kmsTest) {
	key := t.newKey()
	got, err := t.Registrar.DescribeKey(t.Context(), string(key))
	t.must(err)
	if got.CurrentKeyMaterialID == "" {
		t.Error("the key's present material has no id")
	}
	want := broker.KeyMetadata{
		ARN: key, KeySpec: "SYMMETRIC_DEFAULT", KeyUsage: "ENCRYPT_DECRYPT", KeyState: "Enabled",
		CurrentKeyMaterialID: got.CurrentKeyMaterialID,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	_, err = t.Registrar.DescribeKey(t.Context(), unknownKey(key))
	t.want(err, "DescribeKey", broker.KMSNotFound)
}

func describesDisabledKeys(t *kmsTest) {
	key := t.newKey()
	t.Customer.SetEnabled(t.T, key, false)
	got, err := t.Registrar.DescribeKey(t.Context(), string(key))
	t.must(err)
	if got.KeyState != "Disabled" {
		t.Errorf("state of a disabled key: got %s", got.KeyState)
	}
}

// unknownKey is a key that surely does not exist, beside one that does.
func unknownKey(beside broker.KeyARN) string {
	prefix, _, _ := strings.Cut(string(beside), ":key/")
	return prefix + ":key/00000000-0000-4000-8000-000000000000"
}

func createsGrants(t *kmsTest) {
	key := t.newKey()
	subset := t.grant(key)
	if subset.ID == "" || len(subset.Token) == 0 || subset.RequestID == "" {
		t.Errorf("incomplete answer: id %q, %d bytes of token, request %q", subset.ID, len(subset.Token), subset.RequestID)
	}
	exact := t.newGrant(key, "exact/1")
	exact.Constraint = broker.Constraint{Equals: t.pairs("one")}
	equals := t.create(exact)
	if equals.ID == subset.ID {
		t.Error("two grants have one id")
	}
	bad := t.newGrant(key, "bad/1")
	bad.Operations = []string{"NoSuchOperation"}
	_, err := t.Registrar.CreateGrant(t.Context(), bad)
	t.want(err, "CreateGrant", broker.KMSInvalidRequest)

	t.Faults.Plan("CreateGrant", Fault{Code: "InvalidArnException", Message: "ARN does not refer to a valid principal: " + t.WorkerRole})
	_, err = t.Registrar.CreateGrant(t.Context(), t.newGrant(key, "unknown/1"))
	t.want(err, "CreateGrant", broker.KMSInvalidPrincipal)
	t.Faults.Plan("CreateGrant", Fault{Code: "InvalidArnException", Message: "ARN does not refer to a valid principal: " + t.RegistrarRole})
	_, err = t.Registrar.CreateGrant(t.Context(), t.newGrant(key, "unknown/2"))
	t.want(err, "CreateGrant", broker.KMSInvalidRequest)

	missing := t.newGrant(broker.KeyARN(unknownKey(key)), "missing/1")
	_, err = t.Registrar.CreateGrant(t.Context(), missing)
	t.want(err, "CreateGrant", broker.KMSNotFound)

	sent := t.Faults.Attempts("CreateGrant")
	nameless := t.newGrant(key, "")
	nameless.Name = ""
	_, err = t.Registrar.CreateGrant(t.Context(), nameless)
	t.want(err, "CreateGrant", broker.KMSInvalidRequest)
	if t.Faults.Attempts("CreateGrant") != sent {
		t.Error("a grant without a Name, which no repetition would find, was asked for")
	}
}

func triesGrants(t *kmsTest) {
	key := t.newKey()
	g := t.newGrant(key, "dry/1")
	g.DryRun = true
	got, err := t.Registrar.CreateGrant(t.Context(), g)
	t.must(err)
	if got.ID != "" || got.Token != nil {
		t.Error("a dry run gave a grant")
	}
	g.Constraint = broker.Constraint{Subset: t.stranger()}
	_, err = t.Registrar.CreateGrant(t.Context(), g)
	if failure := t.failure(err, "CreateGrant", broker.KMSDenied); failure.Key != key {
		t.Errorf("the denial names key %q, want %q", failure.Key, key)
	}
	t.ShowGrants(t.T)
	if grants := t.own(t.Registrar.ListGrants(t.Context(), key, "")); len(grants) != 0 {
		t.Errorf("dry runs left %d grants", len(grants))
	}
}

func repeatsGrants(t *kmsTest) {
	key := t.newKey()
	first, second := t.grant(key), t.grant(key)
	if first.ID != second.ID {
		t.Error("the same Name and parameters made two grants")
	}
	if bytes.Equal(first.Token, second.Token) {
		t.Error("a repetition gave the same token")
	}
	for _, token := range []broker.Secret{first.Token, second.Token} {
		_, err := t.Worker.GenerateDataKeyWithoutPlaintext(t.Context(), broker.GenerateDataKey{
			Key: key, KeySpec: broker.DefaultKeySpec, Context: t.pairs("one"), Tokens: []broker.Secret{token},
		})
		t.must(err)
	}
	other := t.newGrant(key, "worker/1")
	other.Operations = other.Operations[:1]
	if t.create(other).ID == first.ID {
		t.Error("a Name with other parameters gave the first grant")
	}
}

func usesTokensBeforeGrantsShow(t *kmsTest) {
	from, to := t.newKey(), t.newKey()
	tokens := []broker.Secret{t.grant(from).Token, t.grant(to).Token}
	pairs := t.pairs("one")
	generate := broker.GenerateDataKey{Key: from, KeySpec: broker.DefaultKeySpec, Context: pairs}
	if t.HidesGrants {
		_, err := t.Worker.GenerateDataKeyWithoutPlaintext(t.Context(), generate)
		t.want(err, "GenerateDataKeyWithoutPlaintext", broker.KMSDenied)
		if grants := t.own(t.Registrar.ListGrants(t.Context(), from, "")); len(grants) != 0 {
			t.Error("a hidden grant is listed")
		}
	}
	generate.Tokens = tokens
	wrapped, err := t.Worker.GenerateDataKeyWithoutPlaintext(t.Context(), generate)
	t.must(err)
	move := broker.ReEncrypt{
		Ciphertext: wrapped.Ciphertext, SourceKey: from, SourceContext: pairs, DestinationKey: to, DestinationContext: pairs,
		Tokens: tokens,
	}
	t.must(t.reEncrypt(move))
	move.DryRun = true
	t.must(t.reEncrypt(move))

	t.ShowGrants(t.T)
	move.DryRun, move.Tokens = false, nil
	t.must(t.reEncrypt(move))

	move.Tokens = []broker.Secret{broker.Secret("no token of KMS's")}
	t.want(t.reEncrypt(move), "ReEncrypt", broker.KMSInvalidToken)
}

func listsGrants(t *kmsTest) {
	const many = 101 // more than a page of KMS, 100
	key := t.newKey()
	want := map[broker.ListedGrant]bool{}
	var one broker.ListedGrant
	for i := range many {
		g := t.newGrant(key, fmt.Sprintf("list/%d", i))
		one = broker.ListedGrant{ID: t.create(g).ID, Name: g.Name, Grantee: g.Grantee}
		want[one] = true
	}
	t.ShowGrants(t.T)
	before := t.Faults.Attempts("ListGrants")
	t.compareGrants(want, t.own(t.Registrar.ListGrants(t.Context(), key, "")))
	if pages := t.Faults.Attempts("ListGrants") - before; pages < 2 {
		t.Errorf("read %d page", pages)
	}
	grants, err := t.Registrar.ListGrants(t.Context(), key, one.ID)
	t.must(err)
	if diff := cmp.Diff([]broker.ListedGrant{one}, grants); diff != "" {
		t.Errorf("by id (-want +got)\n%s", diff)
	}
	grants, err = t.Registrar.ListGrants(t.Context(), key, strings.Repeat("0", 64))
	t.must(err)
	if len(grants) != 0 {
		t.Errorf("an unknown id lists %d grants", len(grants))
	}
	_, err = t.Registrar.ListGrants(t.Context(), broker.KeyARN(unknownKey(key)), "")
	t.want(err, "ListGrants", broker.KMSNotFound)
}

func (t *kmsTest) compareGrants(want map[broker.ListedGrant]bool, listed []broker.ListedGrant) {
	t.Helper()
	got := map[broker.ListedGrant]bool{}
	for _, g := range listed {
		got[g] = true
	}
	if diff := cmp.Diff(want, got); diff != "" || len(listed) != len(want) {
		t.Errorf("%d grants listed, want %d (-want +got)\n%s", len(listed), len(want), diff)
	}
}

// listsRetirableGrants: whoever is to retire a grant finds it, whatever else it
// may retire.
func listsRetirableGrants(t *kmsTest) {
	const many = 51 // on each of two keys: more than a page of KMS, 100
	key, other := t.newKey(), t.newKey()
	want := map[broker.ListedGrant]bool{}
	for i := range many {
		g := t.newGrant(key, fmt.Sprintf("retirable/%d", i))
		want[broker.ListedGrant{ID: t.create(g).ID, Name: g.Name, Grantee: g.Grantee}] = true
		t.create(t.newGrant(other, fmt.Sprintf("retirable/%d", i)))
	}
	t.ShowGrants(t.T)
	before := t.Faults.Attempts("ListRetirableGrants")
	t.compareGrants(want, t.own(t.Registrar.ListRetirableGrants(t.Context(), key, t.RegistrarRole)))
	if pages := t.Faults.Attempts("ListRetirableGrants") - before; pages < 2 {
		t.Errorf("read %d page", pages)
	}
	grants, err := t.Registrar.ListRetirableGrants(t.Context(), broker.KeyARN(unknownKey(key)), t.RegistrarRole)
	t.must(err)
	if len(grants) != 0 {
		t.Errorf("a key that is not there lists %d grants", len(grants))
	}
	if grants = t.own(t.Registrar.ListRetirableGrants(t.Context(), key, t.WorkerRole)); len(grants) != 0 {
		t.Errorf("%d grants are the worker's to retire", len(grants))
	}
}

// listsWhereListingIsDenied: the key's owner has no say in what can be retired.
func listsWhereListingIsDenied(t *kmsTest) {
	key := t.Customer.NewKey(t.T, KMSPolicy{
		Owner: t.Customer.Account(), Registrar: t.RegistrarRole, Worker: t.WorkerRole, Pinned: t.reserved, Unlisted: true,
	}.Document())
	g := t.newGrant(key, "unlisted/1")
	want := map[broker.ListedGrant]bool{{ID: t.create(g).ID, Name: g.Name, Grantee: g.Grantee}: true}
	t.ShowGrants(t.T)
	_, err := t.Registrar.ListGrants(t.Context(), key, "")
	t.want(err, "ListGrants", broker.KMSDenied)
	t.compareGrants(want, t.own(t.Registrar.ListRetirableGrants(t.Context(), key, t.RegistrarRole)))
	if grants := t.own(t.Registrar.ListRetirableGrants(t.Context(), t.newKey(), t.RegistrarRole)); len(grants) != 0 {
		t.Errorf("a key without grants lists %d", len(grants))
	}
	_, err = t.Registrar.ListRetirableGrants(t.Context(), key, "arn:aws:iam::"+t.Customer.Account()+":role/somebody")
	t.want(err, "ListRetirableGrants", broker.KMSDenied)
}

func reachesGrantLimit(t *kmsTest) {
	key := t.newKey()
	for i := range t.GrantsPerKey {
		t.create(t.newGrant(key, fmt.Sprintf("limit/%d", i)))
	}
	before := t.Faults.Attempts("CreateGrant")
	_, err := t.Registrar.CreateGrant(t.Context(), t.newGrant(key, "limit/last"))
	t.want(err, "CreateGrant", broker.KMSLimitExceeded)
	if tries := t.Faults.Attempts("CreateGrant") - before; tries != 1 {
		t.Errorf("a permanent refusal was asked for %d times", tries)
	}
}

func retiresGrants(t *kmsTest) {
	key := t.newKey()
	g := t.grant(key)
	t.ShowGrants(t.T)
	t.generate(key, t.pairs("one"))
	id, err := t.Registrar.RetireGrant(t.Context(), key, g.ID)
	t.must(err)
	if id == "" {
		t.Error("no request id")
	}
	t.ShowGrants(t.T)
	_, err = t.Worker.GenerateDataKeyWithoutPlaintext(t.Context(), broker.GenerateDataKey{
		Key: key, KeySpec: broker.DefaultKeySpec, Context: t.pairs("one"),
	})
	t.want(err, "GenerateDataKeyWithoutPlaintext", broker.KMSDenied)
	for _, gone := range []string{g.ID, strings.Repeat("0", 64)} {
		if _, err := t.Registrar.RetireGrant(t.Context(), key, gone); err != nil {
			t.Errorf("retire what is gone: %v", err)
		}
	}
	if again := t.grant(key); again.ID == g.ID {
		t.Error("a retired grant came back under its id")
	}
}
