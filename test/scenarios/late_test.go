package scenarios_test

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/test/harness"
)

// workFor lets the job go on for d, and calls each after every step.
func workFor(t *testing.T, b *harness.Bench, d time.Duration, each func()) {
	t.Helper()
	for end := b.Clock.Now().Add(d); ; {
		moved := must[bool](t)(b.Step(t.Context()))
		each()
		switch left := end.Sub(b.Clock.Now()); {
		case moved:
		case left <= 0:
			return
		default:
			b.Clock.Advance(min(left, time.Minute))
		}
	}
}

// A service has KMS make a data key under the old key when the domain has just
// switched, and stores it as late as it may: grant_visibility and max_store_delay
// after its right to make one has ended. It is taken, and can be read.
func TestLateStore(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	d, old, err := b.Onboard(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	createKeys(t, b, "acme", 4)
	grant := serviceGrant(t, b, "acme", "Decrypt", "GenerateDataKey")
	next := must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))
	job := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", next))
	workUntil(t, b, job, func(v rotation.JobView) bool { return v.Phase == rotation.Reencrypting })

	bound := broker.Context{"n": "late"}.With(d.Reserved)
	made, err := b.Service.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: aws.String(string(old)), KeySpec: "AES_256", EncryptionContext: bound})
	if err != nil {
		t.Fatal(err)
	}
	must[bool](t)(b.Step(ctx)) // which ends the right
	if _, err := b.Service.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: aws.String(string(old)), KeySpec: "AES_256", EncryptionContext: bound}); err == nil {
		t.Fatal("the service can still make data keys under the old key")
	}
	workFor(t, b, windows().GrantVisibility+windows().MaxStoreDelay-time.Second, func() {})

	results := must[[]broker.ImportResult](t)(b.Broker.ImportDataKeys(ctx, harness.Caller, broker.ImportDataKeys{Domain: "acme",
		Items: []broker.ImportItem{{ID: "late", Ciphertext: made.CiphertextBlob, SourceKey: old, SourceContext: bound}}}))
	if results[0].Err != nil {
		t.Fatalf("what the service made in time is lost: %v", results[0].Err)
	}
	if v := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID)); v.State != rotation.Succeeded {
		t.Errorf("the job ended %s in %s: %s", v.State, v.Phase, v.FailMessage)
	}
	late := must[broker.DataKeyView](t)(b.Broker.GetDataKey(ctx, harness.Caller, "acme", "late"))
	if got := unwrap(t, b, late, grant.Tokens); late.KMSKey != next || !bytes.Equal(got, made.Plaintext) {
		t.Errorf("it is under %s, and what it was: %t", late.KMSKey, bytes.Equal(got, made.Plaintext))
	}
}

// A service reads a wrapped key right before it is moved, and unwraps it as late
// as it may, max_read_delay after. Once the job has succeeded nobody can.
func TestLateRead(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	_, old, err := b.Onboard(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	createKeys(t, b, "acme", 3)
	grant := serviceGrant(t, b, "acme", "Decrypt")
	job := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))))
	var read broker.DataKeyView
	workUntil(t, b, job, func(rotation.JobView) bool {
		now := must[broker.DataKeyView](t)(b.Broker.GetDataKey(ctx, harness.Caller, "acme", "k0000"))
		if now.KMSKey == old {
			read = now
		}
		return now.KMSKey != old
	})
	plaintext := unwrap(t, b, read, grant.Tokens)
	workFor(t, b, windows().MaxReadDelay-time.Second, func() {
		if got := unwrap(t, b, read, grant.Tokens); !bytes.Equal(got, plaintext) {
			t.Fatal("I9: it is not what it was")
		}
	})
	if v := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID)); v.State != rotation.Succeeded || v.Progress.Done != 3 {
		t.Fatalf("the job ended %s in %s, %d rows: %s", v.State, v.Phase, v.Progress.Done, v.FailMessage)
	}
	if _, err := b.Service.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: read.Ciphertext, EncryptionContext: read.EncryptionContext}); err == nil {
		t.Error("I3: a service can still use the old key")
	}
}

// The old key is disabled. Its owner enables it, and tells nobody: the loops of
// the engine find out, and the job goes on.
func TestBlockedJobLooksAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		b := newBench(t, harness.Config{Bubble: true})
		_, old, err := b.Onboard(ctx, "acme")
		if err != nil {
			t.Fatal(err)
		}
		createKeys(t, b, "acme", 6)
		next := must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))
		job := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", next))
		workUntil(t, b, job, func(v rotation.JobView) bool { return v.Phase == rotation.Reencrypting })
		if _, err := b.Customer.DisableKey(ctx, &kms.DisableKeyInput{KeyId: aws.String(string(old))}); err != nil {
			t.Fatal(err)
		}
		go func() { _ = b.Engine.Run(ctx) }() // it ends with the context
		within := func(d time.Duration, wanted rotation.State) {
			t.Helper()
			time.Sleep(d)
			if v := must[rotation.JobView](t)(b.Engine.GetJob(ctx, harness.Caller, "acme", job.ID)); v.State != wanted {
				t.Fatalf("after %s the job is %s in %s, want %s: %+v", d, v.State, v.Phase, wanted, v.Block)
			}
		}
		within(10*time.Minute, rotation.Blocked)
		if _, err := b.Customer.EnableKey(ctx, &kms.EnableKeyInput{KeyId: aws.String(string(old))}); err != nil {
			t.Fatal(err)
		}
		// A probe a minute, then max_read_delay and grant_visibility.
		within(time.Hour, rotation.Succeeded)
	})
}

// The key of a domain that nobody uses is disabled and enabled again: the loops of
// the engine find out within two minutes, with nobody's call.
func TestRefusedKeyIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		b := newBench(t, harness.Config{Bubble: true})
		_, key, err := b.Onboard(ctx, "acme")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Customer.DisableKey(ctx, &kms.DisableKeyInput{KeyId: aws.String(string(key))}); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Broker.CreateDataKey(ctx, harness.Caller, broker.NewDataKey{Domain: "acme"}); broker.ReasonOf(err) != broker.ReasonKeyDisabled {
			t.Fatalf("a data key under a disabled key: %v", err)
		}
		go func() { _ = b.Engine.Run(ctx) }() // it ends with the context
		within := func(d time.Duration, wanted broker.DomainState) {
			t.Helper()
			time.Sleep(d)
			if d, _, err := b.Broker.GetDomain(ctx, harness.Caller, "acme"); err != nil || d.State != wanted {
				t.Fatalf("the domain is %s, %v; want %s", d.State, err, wanted)
			}
		}
		within(10*time.Minute, broker.DomainKeyInaccessible)
		if _, err := b.Customer.EnableKey(ctx, &kms.EnableKeyInput{KeyId: aws.String(string(key))}); err != nil {
			t.Fatal(err)
		}
		within(2*time.Minute, broker.DomainActive)
	})
}
