package scenarios_test

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keybroker/keybroker/client"
	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/localkms"
	"github.com/keybroker/keybroker/internal/pacer"
	"github.com/keybroker/keybroker/internal/rotation"
	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
	"github.com/keybroker/keybroker/test/harness"
)

// What is wrong with a wrapped key is said of that key alone: those around it are
// moved, and the stream goes on.
func TestForeignAndPoisonItems(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	k := newKeeper(t, b, "acme", 1)
	other, otherKey, err := b.Onboard(ctx, "other")
	if err != nil {
		t.Fatal(err)
	}
	encrypt := func(key broker.KeyARN, pairs map[string]string) []byte {
		t.Helper()
		out, err := b.Customer.Encrypt(ctx, &kms.EncryptInput{KeyId: aws.String(string(key)), Plaintext: bytes.Repeat([]byte{1}, 32), EncryptionContext: pairs})
		if err != nil {
			t.Fatal(err)
		}
		return out.CiphertextBlob
	}
	old := k.domain.KMSKey
	own := map[string]string{"a": "b", k.domain.Reserved.Key: k.domain.Reserved.Value}
	good := client.WrappedKey{CiphertextBlob: encrypt(old, own), EncryptionContext: own}
	damaged := bytes.Clone(good.CiphertextBlob)
	damaged[len(damaged)-1] ^= 1
	theirs := map[string]string{other.Reserved.Key: other.Reserved.Value}

	type expected struct {
		key    client.WrappedKey
		reason broker.Reason // "" for one that is moved
	}
	cases := map[string]expected{
		"good":                             {good, ""},
		"less the reserved pair":           {client.WrappedKey{CiphertextBlob: good.CiphertextBlob, EncryptionContext: map[string]string{"a": "b"}}, ""},
		"with its key":                     {client.WrappedKey{CiphertextBlob: good.CiphertextBlob, EncryptionContext: own, KMSKey: string(old)}, ""},
		"empty":                            {client.WrappedKey{EncryptionContext: own}, broker.ReasonFieldInvalid},
		"too large":                        {client.WrappedKey{CiphertextBlob: make([]byte, 6145), EncryptionContext: own}, broker.ReasonFieldInvalid},
		"garbage":                          {client.WrappedKey{CiphertextBlob: []byte("garbage"), EncryptionContext: own}, broker.ReasonCiphertextInvalid},
		"damaged":                          {client.WrappedKey{CiphertextBlob: damaged, EncryptionContext: own}, broker.ReasonCiphertextInvalid},
		"another context":                  {client.WrappedKey{CiphertextBlob: good.CiphertextBlob, EncryptionContext: map[string]string{"a": "c"}}, broker.ReasonCiphertextInvalid},
		"not made by a grant of ours":      {client.WrappedKey{CiphertextBlob: encrypt(old, map[string]string{"a": "b"}), EncryptionContext: map[string]string{"a": "b"}}, broker.ReasonCiphertextInvalid},
		"of another domain":                {client.WrappedKey{CiphertextBlob: encrypt(otherKey, theirs), EncryptionContext: theirs}, broker.ReasonContextKeyReserved},
		"of another domain, in disguise":   {client.WrappedKey{CiphertextBlob: encrypt(otherKey, theirs)}, broker.ReasonCiphertextWrongKey},
		"under another domain's key":       {client.WrappedKey{CiphertextBlob: encrypt(otherKey, own), EncryptionContext: own}, broker.ReasonCiphertextWrongKey},
		"with another domain's key":        {client.WrappedKey{CiphertextBlob: encrypt(otherKey, own), EncryptionContext: own, KMSKey: string(otherKey)}, broker.ReasonCiphertextWrongKey},
		"with the wrong key of its own":    {client.WrappedKey{CiphertextBlob: good.CiphertextBlob, EncryptionContext: own, KMSKey: "the present one"}, broker.ReasonCiphertextWrongKey},
		"with no key at all":               {client.WrappedKey{CiphertextBlob: good.CiphertextBlob, EncryptionContext: own, KMSKey: "nonsense"}, broker.ReasonCiphertextWrongKey},
		"a reserved pair of nobody's":      {client.WrappedKey{CiphertextBlob: good.CiphertextBlob, EncryptionContext: map[string]string{"keybroker:domain": "x"}}, broker.ReasonContextKeyReserved},
		"a reserved pair in capitals":      {client.WrappedKey{CiphertextBlob: good.CiphertextBlob, EncryptionContext: map[string]string{"KEYBROKER:DOMAIN": k.domain.Reserved.Value}}, broker.ReasonContextKeyReserved},
		"pairs that differ in case":        {client.WrappedKey{CiphertextBlob: good.CiphertextBlob, EncryptionContext: map[string]string{"a": "b", "A": "b"}}, broker.ReasonContextDuplicateKey},
		"a context key with a space":       {client.WrappedKey{CiphertextBlob: good.CiphertextBlob, EncryptionContext: map[string]string{"a b": ""}}, broker.ReasonContextKeyInvalid},
		"a context value beyond Latin-1":   {client.WrappedKey{CiphertextBlob: good.CiphertextBlob, EncryptionContext: map[string]string{"a": "漢"}}, broker.ReasonContextValueInvalid},
		"a context value that is too long": {client.WrappedKey{CiphertextBlob: good.CiphertextBlob, EncryptionContext: map[string]string{"a": strings.Repeat("x", 385)}}, broker.ReasonContextTooLarge},
	}
	job, next := k.change()
	workUntil(t, b, job, waitsForServices)
	k.keys = map[string]client.WrappedKey{}
	for id, c := range cases {
		c.key.ID = id
		if c.key.KMSKey == "the present one" {
			c.key.KMSKey = string(next)
		}
		k.keys[id] = c.key
	}
	pass := k.pass(true)
	answered := map[string]client.KeyReceipt{}
	pass.Store = func(_ context.Context, receipts []client.KeyReceipt) error {
		for _, r := range receipts {
			answered[r.Sent.ID] = r
		}
		return nil
	}
	pass.GiveUp = func(r client.KeyReceipt) bool { return r.Sent.ID != "garbage" }
	result, err := client.Reencrypt(ctx, pass)
	if !strings.Contains(fmt.Sprint(err), client.ErrNotMoved.Error()) || result.Moved != 3 || result.Failed != int64(len(cases)-3) || result.Failed-result.GivenUp != 1 {
		t.Errorf("%+v, %v", result, err)
	}
	for id, c := range cases {
		r := answered[id]
		if c.reason == "" {
			if r.Err != nil || r.Now.KMSKey != string(next) {
				t.Errorf("%s: %v, under %s", id, r.Err, r.Now.KMSKey)
			}
			continue
		}
		if code := status.Code(r.Err); code != codes.InvalidArgument || !strings.HasPrefix(r.Err.Error(), string(c.reason)+":") {
			t.Errorf("%s: %v, want %s", id, r.Err, c.reason)
		}
	}
	for _, c := range b.Calls() { // I4
		if c.Operation == "ReEncrypt" && !c.DryRun && (c.EncryptionContext[reservedKey] != k.domain.Reserved.Value || c.SourceEncryptionContext[reservedKey] != k.domain.Reserved.Value) {
			t.Errorf("a ReEncrypt from %s has not the domain's reserved pair on both sides", c.SourceKeyARN)
		}
	}
	// Nothing was attested; with all of them given up it is, and the report tells.
	pass.GiveUp = func(client.KeyReceipt) bool { return true }
	if result, err = client.Reencrypt(ctx, pass); err != nil || result.GivenUp != int64(len(cases)-3) {
		t.Fatalf("%+v, %v", result, err)
	}
	report := must[rotation.Report](t)(b.Engine.RetirementReport(ctx, harness.Caller, "acme", job.ID))
	if word := report.Keys[0].Inventories[0].Settled; word == nil || word.GivenUp != result.GivenUp || word.Items != 3 {
		t.Errorf("report: %s", report.Canonical)
	}
}

const reservedKey = broker.DefaultReservedKey

// Keys whose own KMS key is not told are found under any key that is not retired,
// and keys under the present one stay as they are, also after a way back.
func TestItemsUnderEveryKey(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	k := newKeeper(t, b, "acme", 4)
	first := k.domain.KMSKey
	byEpoch := []map[string]client.WrappedKey{maps.Clone(k.keys)}
	job, second := k.change()
	workUntil(t, b, job, switched)
	k.generate("second-1")
	k.generate("second-2")
	byEpoch = append(byEpoch, map[string]client.WrappedKey{"second-1": k.keys["second-1"], "second-2": k.keys["second-2"]})
	job = must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", first)) // and back
	workUntil(t, b, job, waitsForServices)
	for id, key := range k.keys {
		key.KMSKey = ""
		k.keys[id] = key
	}
	b.Calls()
	result, err := client.Reencrypt(ctx, k.pass(true))
	if err != nil || result.Unchanged != 4 || result.Moved != 2 || len(result.OlderKMSKeys) != 1 || result.OlderKMSKeys[0] != string(second) {
		t.Fatalf("%+v, %v", result, err)
	}
	// The older key is tried first: one call for its two, two for the others.
	if n := reencrypts(b); n != 2+2*4 {
		t.Errorf("%d ReEncrypt calls, want 10", n)
	}
	for id, key := range byEpoch[0] {
		if !bytes.Equal(k.keys[id].CiphertextBlob, key.CiphertextBlob) {
			t.Errorf("%s was under the present key, and was changed", id)
		}
	}
	k.opens(first)
	if v := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID)); v.State != rotation.Succeeded {
		t.Fatalf("%s: %s", v.State, v.FailMessage)
	}
	k.opens(first)
}

// An attestation whose answer was lost is sent again with the same token: it
// counts once, and stays what it was.
func TestAttestationSentTwice(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	k := newKeeper(t, b, "acme", 3)
	job, _ := k.change()
	workUntil(t, b, job, waitsForServices)
	view := must[rotation.PassView](t)(b.Engine.OpenPass(ctx, harness.Caller, rotation.OpenPass{Domain: "acme", Owner: rotation.PassOwner{Grant: k.grant.ID}}))
	var items []rotation.PassItem
	for _, key := range k.keys {
		items = append(items, rotation.PassItem{ID: key.ID, Ciphertext: key.CiphertextBlob, Context: key.EncryptionContext})
	}
	pass := view.With(must[[]rotation.Receipt](t)(b.Engine.ReencryptItems(ctx, harness.Caller, view.Pass, items)))
	settled := must[[]rotation.SelfInventory](t)(b.Engine.Attest(ctx, harness.Caller, pass, 0))
	b.Clock.Advance(time.Minute)
	again := must[[]rotation.SelfInventory](t)(b.Engine.Attest(ctx, harness.Caller, pass, 0))
	if *again[0].Settled != *settled[0].Settled || again[0].Settled.Items != 3 {
		t.Errorf("attested %+v, and then %+v", settled[0].Settled, again[0].Settled)
	}
	if v := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID)); v.State != rotation.Succeeded {
		t.Fatalf("%s: %s", v.State, v.FailMessage)
	}
	// Also once the job has ended: the client must come to an end as well.
	late := must[[]rotation.SelfInventory](t)(b.Engine.Attest(ctx, harness.Caller, pass, 0))
	if *late[0].Settled != *settled[0].Settled {
		t.Errorf("attested %+v, and at the end %+v", settled[0].Settled, late[0].Settled)
	}
}

// Two domains on one key: the report of the one that left it names the services
// of the other that have not spoken. Neither domain can be deleted over them.
func TestOtherDomainsServices(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	k := newKeeper(t, b, "left", 2)
	must[broker.Domain](t)(b.NewDomain(ctx, "right"))
	shared := must[broker.KeyARN](t)(b.NewKey(ctx, "left", "right"))
	job := must[rotation.JobView](t)(b.ChangeKey(ctx, "right", shared))
	if v := must[rotation.JobView](t)(b.Finish(ctx, "right", job.ID)); v.State != rotation.Succeeded {
		t.Fatal(v.FailMessage)
	}
	next := must[broker.KeyARN](t)(b.NewKey(ctx, "left", "right"))
	// left's service comes to the shared key, and its change away from it waits.
	job = must[rotation.JobView](t)(b.ChangeKey(ctx, "left", shared))
	workUntil(t, b, job, waitsForServices)
	if _, err := client.Reencrypt(ctx, k.pass(true)); err != nil {
		t.Fatal(err)
	}
	if v := must[rotation.JobView](t)(b.Finish(ctx, "left", job.ID)); v.State != rotation.Succeeded {
		t.Fatal(v.FailMessage)
	}
	waiting := must[rotation.JobView](t)(b.ChangeKey(ctx, "left", next))
	workUntil(t, b, waiting, waitsForServices)
	job = must[rotation.JobView](t)(b.ChangeKey(ctx, "right", next))
	if v := must[rotation.JobView](t)(b.Finish(ctx, "right", job.ID)); v.State != rotation.Succeeded {
		t.Fatal(v.FailMessage)
	}
	report := must[rotation.Report](t)(b.Engine.RetirementReport(ctx, harness.Caller, "right", job.ID))
	if report.Keys[0].Safe || blockersOf(report)[rotation.BlockSelfInventory] != 1 || len(report.Keys[0].Inventories) != 0 {
		t.Errorf("the report of the domain that shares the key: %s", report.Canonical)
	}
	del := rotation.DeleteDomain{Domain: "left"}
	if err := b.Engine.DeleteDomain(ctx, harness.Caller, del); broker.ReasonOf(err) != broker.ReasonDomainNotEmpty {
		t.Errorf("deleted over what its service keeps: %v", err)
	}
	plan := must[rotation.KeyChangePlan](t)(b.Engine.PlanKeyChange(ctx, harness.Caller, "left", string(shared)))
	if plan.SelfGrants != 1 {
		t.Errorf("the plan counts %d grants of INVENTORY_SELF", plan.SelfGrants)
	}
	del.CryptoShred, del.Reason = true, "the tenant has left"
	if err := b.Engine.DeleteDomain(ctx, harness.Caller, del); err != nil {
		t.Error(err)
	}
	report = must[rotation.Report](t)(b.Engine.RetirementReport(ctx, harness.Caller, "right", job.ID))
	if !report.Keys[0].Safe {
		t.Errorf("after the other domain was shredded: %s", report.Canonical)
	}
}

// KMS fails to answer now and then: the stream asks again, as the jobs do. When it
// stays silent, the items say so, and can be sent again.
func TestItemsUnderFaults(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	k := newKeeper(t, b, "acme", 5)
	late := k.keys["key-0000"]
	late.ID = "late"
	job, next := k.change()
	workUntil(t, b, job, waitsForServices)
	silent := func(rate float64) {
		t.Helper()
		faults := localkms.Faults{Errors: []localkms.ErrorFault{{Operation: "ReEncrypt", Code: "DependencyTimeoutException", Rate: rate}}}
		if err := b.KMS.SetFaults(faults); err != nil {
			t.Fatal(err)
		}
	}
	silent(1)
	pass := k.pass(false)
	pass.Store = func(ctx context.Context, receipts []client.KeyReceipt) error {
		for _, r := range receipts {
			if status.Code(r.Err) != codes.Unavailable || !strings.HasPrefix(r.Err.Error(), "KMS_UNAVAILABLE:") {
				t.Errorf("%s: %v", r.Sent.ID, r.Err)
			}
		}
		return k.store(ctx, receipts)
	}
	if result, err := client.Reencrypt(ctx, pass); err != nil || result.Failed != 5 {
		t.Fatalf("while KMS is silent: %+v, %v", result, err)
	}
	silent(0.6)
	if result, err := client.Reencrypt(ctx, k.pass(true)); err != nil || result.Moved != 5 {
		t.Fatalf("while KMS answers now and then: %+v, %v", result, err)
	}
	silent(0)
	k.opens(next)
	// An older key that is disabled: its items say so, and the others are moved.
	if _, err := b.Customer.DisableKey(ctx, &kms.DisableKeyInput{KeyId: aws.String(string(k.domain.KMSKey))}); err != nil {
		t.Fatal(err)
	}
	k.keys["late"] = late
	pass.Store = func(_ context.Context, receipts []client.KeyReceipt) error {
		for _, r := range receipts {
			if disabled := r.Err != nil && strings.HasPrefix(r.Err.Error(), "KEY_DISABLED:"); disabled != (r.Sent.ID == "late") {
				t.Errorf("%s: %v", r.Sent.ID, r.Err)
			}
		}
		return nil
	}
	if result, err := client.Reencrypt(ctx, pass); err != nil || result.Unchanged != 5 || result.Failed != 1 {
		t.Errorf("%+v, %v", result, err)
	}
}

// When its replica goes away, a client goes on with another one.
func TestPassOverAnotherReplica(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	k := newKeeper(t, b, "acme", 320)
	job, next := k.change()
	workUntil(t, b, job, waitsForServices)
	conn, server, err := b.Serve(nil)
	if err != nil {
		t.Fatal(err)
	}
	replicas := &failover{first: keybrokerv1.NewDataKeyServiceClient(conn), then: k.api}
	pass := k.pass(true)
	pass.Broker = replicas
	pass.Store = func(ctx context.Context, receipts []client.KeyReceipt) error {
		server.Drain()
		return k.store(ctx, receipts)
	}
	result, err := client.Reencrypt(ctx, pass)
	if err != nil || !result.Attested || result.Moved != 320 || replicas.streams < 2 {
		t.Fatalf("%+v over %d streams, %v", result, replicas.streams, err)
	}
	k.opens(next)
	report := must[rotation.Report](t)(b.Engine.RetirementReport(ctx, harness.Caller, "acme", job.ID))
	if word := report.Keys[0].Inventories[0].Settled; word == nil || word.Items != 320 {
		t.Errorf("report: %s", report.Canonical)
	}
}

// A failover opens its first stream with one replica, and all others with another.
type failover struct {
	first, then client.ReencryptStreamer
	streams     int
}

func (f *failover) ReencryptStream(ctx context.Context, options ...grpc.CallOption) (grpc.BidiStreamingClient[keybrokerv1.ReencryptStreamRequest, keybrokerv1.ReencryptStreamResponse], error) {
	f.streams++
	if f.streams == 1 {
		return f.first.ReencryptStream(ctx, options...)
	}
	return f.then.ReencryptStream(ctx, options...)
}

// The calls of a pass are paced with those of jobs: they are a flow's.
func TestPassIsPaced(t *testing.T) {
	ctx := t.Context()
	var calls, unpaced atomic.Int32
	b := newBench(t, harness.Config{Transport: func(road http.RoundTripper) http.RoundTripper {
		return roundTrip(func(r *http.Request) (*http.Response, error) {
			if r.Header.Get("X-Amz-Target") == "TrentService.ReEncrypt" {
				calls.Add(1)
				if pacer.FlowOf(r.Context()) == nil {
					unpaced.Add(1)
				}
			}
			return road.RoundTrip(r)
		})
	}})
	k := newKeeper(t, b, "acme", 3)
	job, _ := k.change()
	workUntil(t, b, job, waitsForServices)
	calls.Store(0)
	if _, err := client.Reencrypt(ctx, k.pass(false)); err != nil {
		t.Fatal(err)
	}
	if calls.Load() != 3 || unpaced.Load() != 0 {
		t.Errorf("%d of %d calls are in no line of the pacer's; want 0 of 3", unpaced.Load(), calls.Load())
	}
}
