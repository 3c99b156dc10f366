package scenarios_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/keybroker/keybroker/client"
	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
	"github.com/keybroker/keybroker/test/harness"
)

// A keeper is a service that keeps its own wrapped data keys, by a grant of
// INVENTORY_SELF. Its store compares before it swaps.
type keeper struct {
	t      *testing.T
	b      *harness.Bench
	api    keybrokerv1.DataKeyServiceClient
	domain broker.Domain
	grant  broker.GrantView
	tokens []string

	mu    sync.Mutex
	keys  map[string]client.WrappedKey
	plain map[string][]byte
	// final counts the receipts that were stored, by item.
	final map[string]int
}

// newKeeper onboards a domain, and a service in it that makes n wrapped keys.
func newKeeper(t *testing.T, b *harness.Bench, id broker.DomainID, n int) *keeper {
	t.Helper()
	d, _, err := b.Onboard(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	conn, _, err := b.Serve(nil)
	if err != nil {
		t.Fatal(err)
	}
	k := &keeper{t: t, b: b, api: keybrokerv1.NewDataKeyServiceClient(conn), domain: d,
		keys: map[string]client.WrappedKey{}, plain: map[string][]byte{}, final: map[string]int{}}
	k.grant = must[broker.GrantView](t)(b.Broker.CreateGrant(t.Context(), harness.Caller, broker.NewGrant{Domain: id,
		Grantee: harness.ServiceRole, Operations: []string{"Decrypt", "GenerateDataKey"}, Inventory: broker.InventorySelf, TTL: 300 * 24 * time.Hour}))
	for _, token := range k.grant.Tokens {
		k.tokens = append(k.tokens, string(token))
	}
	for i := range n {
		k.generate(fmt.Sprintf("key-%04d", i))
	}
	return k
}

// generate makes a data key at KMS, by the service's own role, under the key
// that the domain has now.
func (k *keeper) generate(id string) {
	k.t.Helper()
	d, _, err := k.b.Broker.GetDomain(k.t.Context(), harness.Caller, k.domain.ID)
	if err != nil {
		k.t.Fatal(err)
	}
	pairs := map[string]string{"record": id, d.Reserved.Key: d.Reserved.Value}
	out, err := k.b.Service.GenerateDataKey(k.t.Context(), &kms.GenerateDataKeyInput{KeyId: aws.String(string(d.KMSKey)),
		KeySpec: types.DataKeySpecAes256, EncryptionContext: pairs, GrantTokens: k.tokens})
	if err != nil {
		k.t.Fatalf("the service cannot generate a data key: %v", err)
	}
	k.keys[id] = client.WrappedKey{ID: id, CiphertextBlob: out.CiphertextBlob, EncryptionContext: pairs, KMSKey: aws.ToString(out.KeyId)}
	k.plain[id] = out.Plaintext
}

// pass is a pass over every key that the service has.
func (k *keeper) pass(attest bool) client.Pass {
	return client.Pass{Broker: k.api, Domain: k.domain.ID.Name(), Grantee: harness.ServiceRole, Keys: k.all, Store: k.store, Attest: attest}
}

func (k *keeper) all(yield func(client.WrappedKey, error) bool) {
	for _, id := range slices.Sorted(maps.Keys(k.keys)) {
		k.mu.Lock()
		key := k.keys[id]
		k.mu.Unlock()
		if !yield(key, nil) {
			return
		}
	}
}

func (k *keeper) store(_ context.Context, receipts []client.KeyReceipt) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, r := range receipts {
		k.final[r.Sent.ID]++
		if r.Err == nil && bytes.Equal(k.keys[r.Sent.ID].CiphertextBlob, r.Sent.CiphertextBlob) {
			k.keys[r.Sent.ID] = r.Now
		}
	}
	return nil
}

// opens checks that every key opens at KMS under exactly this key, by the
// service's own role, to what it always was.
func (k *keeper) opens(under broker.KeyARN) {
	k.t.Helper()
	for id, key := range k.keys {
		out, err := k.b.Service.Decrypt(k.t.Context(), &kms.DecryptInput{CiphertextBlob: key.CiphertextBlob, KeyId: aws.String(string(under)),
			EncryptionContext: key.EncryptionContext, GrantTokens: k.tokens})
		if err != nil {
			k.t.Fatalf("%s does not open under %s: %v", id, under, err)
		}
		if !bytes.Equal(out.Plaintext, k.plain[id]) || key.KMSKey != string(under) {
			k.t.Fatalf("%s is another key now, or is recorded as under %s", id, key.KMSKey)
		}
	}
}

func (k *keeper) change() (rotation.JobView, broker.KeyARN) {
	k.t.Helper()
	next := must[broker.KeyARN](k.t)(k.b.NewKey(k.t.Context(), k.domain.ID))
	return must[rotation.JobView](k.t)(k.b.ChangeKey(k.t.Context(), k.domain.ID, next)), next
}

func switched(v rotation.JobView) bool { return !v.SwitchTime.IsZero() }

func waitsForServices(v rotation.JobView) bool {
	return v.State == rotation.Blocked && v.Block.Reason == broker.ReasonSelfInventory
}

// reencrypts gives the number of ReEncrypt calls that KMS got since it was last
// asked.
func reencrypts(b *harness.Bench) (n int) {
	for _, c := range b.Calls() {
		if c.Operation == "ReEncrypt" && !c.DryRun {
			n++
		}
	}
	return n
}

// The whole story: the service moves its keys while the job works, cannot attest
// before the drain, looks again after it at no cost, attests, and the job ends.
func TestSelfInventory(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{GrantDelay: time.Second})
	k := newKeeper(t, b, "acme", 330) // four messages
	old := k.domain.KMSKey
	job, next := k.change()
	workUntil(t, b, job, switched)
	must[bool](t)(b.Step(ctx)) // the wrap grant on the old key ends

	first, err := client.Reencrypt(ctx, k.pass(true))
	if !errors.Is(err, client.ErrAttestTooEarly) || first.Moved != 330 || first.KMSKey != string(next) || !slices.Equal(first.OlderKMSKeys, []string{string(old)}) {
		t.Fatalf("the first pass: %+v, %v", first, err)
	}
	k.opens(next)
	b.Calls()
	blocked := workUntil(t, b, job, waitsForServices)
	if blocked.Phase != rotation.Retiring || blocked.Block.Side != rotation.From ||
		!strings.Contains(blocked.Block.Message, broker.GrantName("acme", k.grant.ID)) {
		t.Errorf("blocked in %s by %+v", blocked.Phase, blocked.Block)
	}
	if at := b.Clock.Now(); at.Before(first.AttestAfter) {
		t.Errorf("the job waits for the service at %s, before %s", at, first.AttestAfter)
	}
	report := must[rotation.Report](t)(b.Engine.RetirementReport(ctx, harness.Caller, "acme", job.ID))
	if got := blockersOf(report); report.Keys[0].Safe || got[rotation.BlockSelfInventory] != 1 || report.Keys[0].Inventories[0].Settled != nil {
		t.Errorf("the report while the service is asked: %s", report.Canonical)
	}

	b.Calls()
	second, err := client.Reencrypt(ctx, k.pass(true))
	if err != nil || !second.Attested || second.Unchanged != 330 || second.Moved != 0 {
		t.Fatalf("the second pass: %+v, %v", second, err)
	}
	if n := reencrypts(b); n != 0 {
		t.Errorf("%d KMS calls for keys that the broker itself has moved", n)
	}
	done := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID))
	if done.State != rotation.Succeeded {
		t.Fatalf("the job ended %s in %s: %s", done.State, done.Phase, done.FailMessage)
	}
	k.opens(next)
	if names := must[[]string](t)(b.GrantsAt(ctx, old, k.domain)); len(names) != 0 {
		t.Errorf("grants left on the old key: %v", names)
	}
	report = must[rotation.Report](t)(b.Engine.RetirementReport(ctx, harness.Caller, "acme", job.ID))
	word := report.Keys[0].Inventories[0].Settled
	if !report.Keys[0].Safe || word == nil || word.Kind != rotation.Attested || word.Items != 330 || word.Caller != harness.Caller.Subject {
		t.Errorf("the report at the end: %s", report.Canonical)
	}
}

// stored is the time as the database keeps it.
func stored(b *harness.Bench) time.Time { return b.Clock.Now().Truncate(time.Microsecond) }

func blockersOf(r rotation.Report) map[rotation.BlockerKind]int64 {
	counts := map[rotation.BlockerKind]int64{}
	for _, b := range r.Keys[0].Blockers {
		counts[b.Kind] = b.Count
	}
	return counts
}

// The block ends at once when the service attests; nobody has to wait for a probe.
func TestAttestationWakesTheJob(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	k := newKeeper(t, b, "acme", 3)
	job, _ := k.change()
	workUntil(t, b, job, waitsForServices)
	if _, err := client.Reencrypt(ctx, k.pass(true)); err != nil {
		t.Fatal(err)
	}
	must[bool](t)(b.Step(ctx))
	// Readers of the service's store have max_read_delay from its word on.
	v := must[rotation.JobView](t)(b.Engine.GetJob(ctx, harness.Caller, "acme", job.ID))
	if v.State != rotation.Running || !v.WaitUntil.Equal(stored(b).Add(windows().MaxReadDelay)) {
		t.Errorf("after the attestation: %s until %s, block %+v", v.State, v.WaitUntil, v.Block)
	}
}

// A word counts only if the pass began after nothing new could appear under the
// older keys: a pass that began before is refused, also when it ends after.
func TestAttestationBeforeTheDrain(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	k := newKeeper(t, b, "acme", 3)
	job, _ := k.change()
	workUntil(t, b, job, switched)
	owner := rotation.PassOwner{Grant: k.grant.ID}
	early := must[rotation.PassView](t)(b.Engine.OpenPass(ctx, harness.Caller, rotation.OpenPass{Domain: "acme", Owner: owner}))
	refused := func(what string) {
		t.Helper()
		_, err := b.Engine.Attest(ctx, harness.Caller, early.Pass, 0)
		if broker.ReasonOf(err) != broker.ReasonAttestationTooEarly {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused("while the service may wrap under the old key")
	must[bool](t)(b.Step(ctx))
	refused("right after its wrap grant ended")
	view := must[rotation.PassView](t)(b.Engine.OpenPass(ctx, harness.Caller, rotation.OpenPass{Domain: "acme", Owner: owner}))
	if want := stored(b).Add(windows().GrantVisibility + windows().MaxStoreDelay); !view.AttestAfter.Equal(want) {
		t.Errorf("a pass can attest from %s on, want %s", view.AttestAfter, want)
	}
	b.Clock.Advance(view.AttestAfter.Sub(stored(b)) - time.Microsecond)
	last := must[rotation.PassView](t)(b.Engine.OpenPass(ctx, harness.Caller, rotation.OpenPass{Domain: "acme", Owner: owner}))
	b.Clock.Advance(time.Hour)
	early = last
	refused("after the drain, of a pass that began before its end")
	late := must[rotation.PassView](t)(b.Engine.OpenPass(ctx, harness.Caller, rotation.OpenPass{Domain: "acme", Owner: owner}))
	must[[]rotation.SelfInventory](t)(b.Engine.Attest(ctx, harness.Caller, late.Pass, 0))
}

// A grant that has ended does not end the question: what it let the service wrap
// is still there. An operator may answer it, with a reason.
func TestEndedSelfGrantIsAskedAbout(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	k := newKeeper(t, b, "acme", 2)
	in := rotation.OverrideInventory{Domain: "acme", Grant: k.grant.ID, Reason: "the service is no more"}
	if _, err := b.Engine.OverrideSelfInventory(ctx, harness.Caller, in); broker.ReasonOf(err) != broker.ReasonNoOlderKey {
		t.Errorf("overridden before a change: %v", err)
	}
	must[broker.GrantView](t)(b.Broker.RevokeGrant(ctx, harness.Caller, broker.RevokeGrant{Domain: "acme", ID: k.grant.ID}))
	plain := serviceGrant(t, b, "acme", "Decrypt")
	job, _ := k.change()
	workUntil(t, b, job, waitsForServices)
	for range 10 {
		b.Clock.Advance(time.Hour)
		must[bool](t)(b.Step(ctx))
	}
	if v := must[rotation.JobView](t)(b.Engine.GetJob(ctx, harness.Caller, "acme", job.ID)); !waitsForServices(v) {
		t.Fatalf("time alone let the job go on: %s", v.State)
	}
	for what, c := range map[string]struct {
		in     rotation.OverrideInventory
		reason broker.Reason
	}{
		"no reason":          {rotation.OverrideInventory{Domain: "acme", Grant: k.grant.ID}, broker.ReasonFieldInvalid},
		"a long reason":      {rotation.OverrideInventory{Domain: "acme", Grant: k.grant.ID, Reason: strings.Repeat("x", 513)}, broker.ReasonFieldInvalid},
		"a grant of BROKER":  {rotation.OverrideInventory{Domain: "acme", Grant: plain.ID, Reason: "x"}, broker.ReasonGrantNotSelf},
		"no grant":           {rotation.OverrideInventory{Domain: "acme", Grant: "none", Reason: "x"}, broker.ReasonGrantNotFound},
		"the worker's grant": {rotation.OverrideInventory{Domain: "acme", Grant: "keybroker-worker", Reason: "x"}, broker.ReasonGrantNotFound},
		"no domain":          {rotation.OverrideInventory{Domain: "none", Grant: "x", Reason: "x"}, broker.ReasonDomainNotFound},
	} {
		if _, err := b.Engine.OverrideSelfInventory(ctx, harness.Caller, c.in); broker.ReasonOf(err) != c.reason {
			t.Errorf("%s: %v, want %s", what, err, c.reason)
		}
	}
	in.Request = broker.Request{Method: "OverrideSelfInventory", ID: "r1"}
	for range 2 { // a repeat has no second effect
		got := must[rotation.SelfInventory](t)(b.Engine.OverrideSelfInventory(ctx, harness.Caller, in))
		if got.Settled == nil || got.Settled.Kind != rotation.Overridden || got.Settled.Reason != in.Reason {
			t.Fatalf("overridden: %+v", got.Settled)
		}
	}
	if v := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID)); v.State != rotation.Succeeded {
		t.Fatalf("after the override: %s, %s", v.State, v.FailMessage)
	}
	report := must[rotation.Report](t)(b.Engine.RetirementReport(ctx, harness.Caller, "acme", job.ID))
	if got := report.Keys[0]; !got.Safe || got.Inventories[0].Settled.Reason != in.Reason {
		t.Errorf("report: %s", report.Canonical)
	}
}

// A service that finds another key to move after it has attested was wrong: its
// word is taken back, and the job asks again.
func TestAttestationIsTakenBack(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	k := newKeeper(t, b, "acme", 2)
	forgotten := k.keys["key-0001"]
	delete(k.keys, "key-0001")
	job, next := k.change()
	workUntil(t, b, job, waitsForServices)
	if r, err := client.Reencrypt(ctx, k.pass(true)); err != nil || r.Moved != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	must[bool](t)(b.Step(ctx))
	if v := must[rotation.JobView](t)(b.Engine.GetJob(ctx, harness.Caller, "acme", job.ID)); v.State != rotation.Running {
		t.Fatalf("after the attestation: %s %+v", v.State, v.Block)
	}
	k.keys["key-0001"] = forgotten
	if r, err := client.Reencrypt(ctx, k.pass(false)); err != nil || r.Moved != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	b.Clock.Advance(time.Hour)
	workUntil(t, b, job, waitsForServices)
	if r, err := client.Reencrypt(ctx, k.pass(true)); err != nil || r.Unchanged != 2 {
		t.Fatalf("%+v, %v", r, err)
	}
	if v := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID)); v.State != rotation.Succeeded {
		t.Fatalf("%s: %s", v.State, v.FailMessage)
	}
	k.opens(next)
}

// The key changes in the middle of a pass: receipts name the key that they were
// made under, and the pass cannot attest, nor be resumed.
func TestKeyChangesAmidAPass(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	k := newKeeper(t, b, "acme", 150)
	job, second := k.change()
	workUntil(t, b, job, waitsForServices)
	pass := k.pass(true)
	var third broker.KeyARN
	pass.Store = func(ctx context.Context, receipts []client.KeyReceipt) error {
		if third == "" {
			job, third = k.change()
			workUntil(t, b, job, switched)
		}
		return k.store(ctx, receipts)
	}
	r, err := client.Reencrypt(ctx, pass)
	if !errors.Is(err, client.ErrKeyChanged) {
		t.Fatalf("%+v, %v", r, err)
	}
	for id, key := range k.keys {
		under := broker.KeyARN(key.KMSKey)
		if under != second && under != third {
			t.Fatalf("%s is recorded as under %s", id, under)
		}
		out, err := b.Customer.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: key.CiphertextBlob, KeyId: aws.String(key.KMSKey), EncryptionContext: key.EncryptionContext})
		if err != nil || !bytes.Equal(out.Plaintext, k.plain[id]) {
			t.Fatalf("%s does not open under the key of its receipt: %v", id, err)
		}
	}
	workUntil(t, b, job, waitsForServices)
	if r, err := client.Reencrypt(ctx, k.pass(true)); err != nil || r.Moved+r.Unchanged != 150 {
		t.Fatalf("%+v, %v", r, err)
	}
	if v := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID)); v.State != rotation.Succeeded {
		t.Fatalf("%s: %s", v.State, v.FailMessage)
	}
	k.opens(third)
}
