package scenarios_test

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/test/harness"
)

// unwrap decrypts a data key at KMS in the service's role.
func unwrap(t *testing.T, b *harness.Bench, v broker.DataKeyView, tokens []broker.Secret) []byte {
	t.Helper()
	in := &kms.DecryptInput{CiphertextBlob: v.Ciphertext, EncryptionContext: v.EncryptionContext}
	for _, s := range tokens {
		in.GrantTokens = append(in.GrantTokens, string(s))
	}
	out, err := b.Service.Decrypt(t.Context(), in)
	if err != nil {
		t.Fatalf("service cannot unwrap %s under %s: %v", v.ID, v.KMSKey, err)
	}
	return out.Plaintext
}

func serviceGrant(t *testing.T, b *harness.Bench, id broker.DomainID, operations ...string) broker.GrantView {
	t.Helper()
	return must[broker.GrantView](t)(b.Broker.CreateGrant(t.Context(), harness.Caller, broker.NewGrant{Domain: id,
		Grantee: harness.ServiceRole, Operations: operations, TTL: 24 * time.Hour}))
}

// KMS hides grants for 300 s ("usually less than five minutes", KMS Developer
// Guide, Grants). A service decrypts in a loop through a key change, with the
// tokens of the one CreateGrant that it ever made: no call is denied.
func TestServiceDecryptsThroughSlowGrants(t *testing.T) {
	const hidden = 300 * time.Second
	ctx := t.Context()
	w := windows()
	w.GrantVisibility = hidden + time.Second
	b := newBench(t, harness.Config{GrantDelay: hidden, Windows: w})
	if _, _, err := b.Onboard(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	createKeys(t, b, "acme", 12)
	grant := serviceGrant(t, b, "acme", "Decrypt")
	plain := map[broker.DataKeyID][]byte{}
	decrypts := 0
	decryptAll := func() {
		for _, v := range must[[]broker.DataKeyView](t)(b.Broker.ListDataKeys(ctx, harness.Caller, "acme", broker.DataKeyCursor{}, 100)) {
			got := unwrap(t, b, v, grant.Tokens)
			if want := plain[v.ID]; want != nil && !bytes.Equal(got, want) {
				t.Fatalf("I9: %s changed", v.ID)
			}
			plain[v.ID] = got
			decrypts++
		}
	}
	decryptAll()
	next := must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))
	job := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", next))
	for {
		moved := must[bool](t)(b.Step(ctx))
		decryptAll()
		view := must[rotation.JobView](t)(b.Engine.GetJob(ctx, harness.Caller, "acme", job.ID))
		if !view.Open() {
			if view.State != rotation.Succeeded {
				t.Fatalf("job ended %s: %s", view.State, view.FailMessage)
			}
			break
		}
		if !moved {
			b.Clock.Advance(10 * time.Second)
		}
	}
	if decrypts < 12*20 {
		t.Errorf("only %d decrypts: the loop did not run beside the change", decrypts)
	}
}

// Two domains share one key, and one of them changes: the report must not call
// the key safe, and the other's grants must not be touched.
func TestTwoDomainsOnOneKey(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	var domains []broker.Domain
	for _, id := range []broker.DomainID{"left", "right"} {
		domains = append(domains, must[broker.Domain](t)(b.NewDomain(ctx, id)))
	}
	shared := must[broker.KeyARN](t)(b.NewKey(ctx, "left", "right"))
	for _, d := range domains {
		job := must[rotation.JobView](t)(b.ChangeKey(ctx, d.ID, shared))
		if view := must[rotation.JobView](t)(b.Finish(ctx, d.ID, job.ID)); view.State != rotation.Succeeded {
			t.Fatalf("%s: %s", d.ID, view.FailMessage)
		}
		createKeys(t, b, d.ID, 5)
		serviceGrant(t, b, d.ID, "Decrypt", "GenerateDataKey")
	}
	before := must[[]string](t)(b.GrantsAt(ctx, shared, domains[1]))

	next := must[broker.KeyARN](t)(b.NewKey(ctx, "left"))
	job := must[rotation.JobView](t)(b.ChangeKey(ctx, "left", next))
	if view := must[rotation.JobView](t)(b.Finish(ctx, "left", job.ID)); view.State != rotation.Succeeded {
		t.Fatalf("change: %s", view.FailMessage)
	}
	report := must[rotation.Report](t)(b.Engine.RetirementReport(ctx, harness.Caller, "left", job.ID))
	if len(report.Keys) != 1 || report.Keys[0].Safe {
		t.Fatalf("the report calls a key safe that another domain uses: %s", report.Canonical)
	}
	kinds := map[rotation.BlockerKind]string{}
	for _, blocker := range report.Keys[0].Blockers {
		kinds[blocker.Kind] = blocker.Resource
	}
	for _, kind := range []rotation.BlockerKind{rotation.BlockRows, rotation.BlockGrants, rotation.BlockDomain} {
		if kinds[kind] != "domains/right" {
			t.Errorf("no blocker %s of domains/right in %v", kind, kinds)
		}
	}
	after := must[[]string](t)(b.GrantsAt(ctx, shared, domains[1]))
	if fmt.Sprint(before) != fmt.Sprint(after) || len(after) == 0 {
		t.Errorf("the other domain's grants changed from %v to %v", before, after)
	}
	if left := must[[]string](t)(b.GrantsAt(ctx, shared, domains[0])); len(left) != 0 {
		t.Errorf("the changed domain still has %v on the shared key", left)
	}
}

// A key disabled in the middle blocks the job on its side; enabled again, the
// job goes on by itself.
func TestDisabledKeyBlocksAndHeals(t *testing.T) {
	for _, side := range []rotation.Side{rotation.From, rotation.To} {
		t.Run(string(side), func(t *testing.T) {
			ctx := t.Context()
			b := newBench(t, harness.Config{})
			_, old, err := b.Onboard(ctx, "acme")
			if err != nil {
				t.Fatal(err)
			}
			createKeys(t, b, "acme", 20)
			next := must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))
			job := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", next))
			workUntil(t, b, job, func(v rotation.JobView) bool { return v.Progress.Done > 0 })
			key := aws.String(string(old))
			if side == rotation.To {
				key = aws.String(string(next))
			}
			if _, err := b.Customer.DisableKey(ctx, &kms.DisableKeyInput{KeyId: key}); err != nil {
				t.Fatal(err)
			}
			blocked := workUntil(t, b, job, func(v rotation.JobView) bool { return v.State == rotation.Blocked })
			if blocked.Block.Side != side || blocked.Block.Reason != broker.ReasonKeyDisabled {
				t.Errorf("blocked by %+v, want %s on side %s", blocked.Block, broker.ReasonKeyDisabled, side)
			}
			b.Calls()
			b.Clock.Advance(time.Second) // well before the next probe
			must[bool](t)(b.Step(ctx))
			if _, err := b.Customer.EnableKey(ctx, &kms.EnableKeyInput{KeyId: key}); err != nil {
				t.Fatal(err)
			}
			view := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID))
			if view.State != rotation.Succeeded || view.Progress.Done != 20 {
				t.Errorf("after the key came back: %s in %s, %d rows", view.State, view.Phase, view.Progress.Done)
			}
		})
	}
}

// workUntil steps the job, and time, until it looks as wanted.
func workUntil(t *testing.T, b *harness.Bench, job rotation.JobView, wanted func(rotation.JobView) bool) rotation.JobView {
	t.Helper()
	var view rotation.JobView
	for range 500 {
		view = must[rotation.JobView](t)(b.Engine.GetJob(t.Context(), harness.Caller, job.DomainID, job.ID))
		if wanted(view) {
			return view
		}
		if !must[bool](t)(b.Step(t.Context())) {
			b.Clock.Advance(20 * time.Second)
		}
	}
	t.Fatalf("the job never came to look as wanted: it is %s in %s, block %+v", view.State, view.Phase, view.Block)
	return view
}

// I6: at no moment before the job has succeeded does the report call the old key
// safe; right after, it does.
func TestReportIsNeverEarly(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{GrantDelay: time.Second})
	if _, _, err := b.Onboard(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	createKeys(t, b, "acme", 12)
	serviceGrant(t, b, "acme", "Decrypt", "GenerateDataKey")
	job := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))))
	for range 500 {
		moved := must[bool](t)(b.Step(ctx))
		view := must[rotation.JobView](t)(b.Engine.GetJob(ctx, harness.Caller, "acme", job.ID))
		report := must[rotation.Report](t)(b.Engine.RetirementReport(ctx, harness.Caller, "acme", job.ID))
		if safe := report.Keys[0].Safe; safe != (view.State == rotation.Succeeded) {
			t.Fatalf("I6: the report of a job in %s %s calls the key safe: %t", view.Phase, view.State, safe)
		}
		if !view.Open() {
			return
		}
		if !moved {
			b.Clock.Advance(20 * time.Second)
		}
	}
	t.Fatal("the job never ended")
}
