package scenarios_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/test/harness"
)

// The domain has left a key that cannot be used: grants are made and renewed on
// the present key, another change goes on, and once the old key is back, every
// service can unwrap what is still under it before the job moves on.
func TestGrantsWhileTheOldKeyIsDisabled(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	d, old, err := b.Onboard(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	createKeys(t, b, "acme", 20)
	early := serviceGrant(t, b, "acme", "Decrypt", "GenerateDataKey")
	disable(t, b, old)
	leave := func(key broker.KeyARN) rotation.JobView {
		now, _, err := b.Broker.GetDomain(ctx, harness.Caller, "acme")
		if err != nil {
			t.Fatal(err)
		}
		return must[rotation.JobView](t)(b.Engine.ChangeKey(ctx, harness.Caller, rotation.ChangeKey{Domain: "acme", KMSKey: string(key),
			Etag: now.Etag(), AllowInaccessibleSource: true}))
	}
	blocked := func(job rotation.JobView) {
		t.Helper()
		v := workUntil(t, b, job, func(v rotation.JobView) bool { return v.State != rotation.Running })
		if v.State != rotation.Blocked || v.Phase != rotation.Reencrypting || v.Block.Side != rotation.From || v.Block.Reason != broker.ReasonKeyDisabled {
			t.Fatalf("job %s in %s, blocked by %+v", v.State, v.Phase, v.Block)
		}
	}
	second := must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))
	blocked(leave(second))

	late, err := b.Broker.CreateGrant(ctx, harness.Caller, broker.NewGrant{Domain: "acme", Grantee: harness.ReportsRole,
		Operations: []string{"Decrypt", "GenerateDataKey"}, TTL: 24 * time.Hour})
	if err != nil {
		t.Fatalf("CreateGrant: %v", err)
	}
	if !slices.Equal(late.KMSKeys, []broker.KeyARN{second}) || len(late.Tokens) != 2 {
		t.Errorf("the new grant is on %v with %d tokens, want both kinds on %s alone", late.KMSKeys, len(late.Tokens), second)
	}
	renewed, err := b.Broker.RenewGrant(ctx, harness.Caller, broker.RenewGrant{Domain: "acme", ID: early.ID, TTL: 48 * time.Hour})
	if err != nil {
		t.Fatalf("RenewGrant: %v", err)
	}
	if len(renewed.Tokens) != 2 {
		t.Errorf("the renewal has %d tokens, want those of the present key", len(renewed.Tokens))
	}

	job := leave(must[broker.KeyARN](t)(b.NewKey(ctx, "acme")))
	blocked(job)
	enable(t, b, old)
	workUntil(t, b, job, func(v rotation.JobView) bool { return v.State == rotation.Running })
	names := must[[]string](t)(b.GrantsAt(ctx, old, d))
	if !slices.ContainsFunc(names, func(n string) bool { return strings.Contains(n, "/"+string(late.UID)+"/unwrap/") }) {
		t.Errorf("the old key is back with rows under it, and %s may not unwrap there: %v", late.ID, names)
	}
	if v := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID)); v.State != rotation.Succeeded || v.Progress.Done != 20 {
		t.Errorf("with the old key back: %s in %s, %d rows", v.State, v.Phase, v.Progress.Done)
	}
}

// An old key without rows does not hold the job, so what a grant was given without
// there is asked for in later phases too: now and then while the key refuses, and
// soon once it is back, also where the job waits for long.
func TestGrantLeftOutIsMadeWhileDraining(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	d, old, err := b.Onboard(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	serviceGrant(t, b, "acme", "Decrypt", "GenerateDataKey")
	job := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))))
	workUntil(t, b, job, switched)
	disable(t, b, old)
	late := serviceGrant(t, b, "acme", "Decrypt")
	waits := workUntil(t, b, job, func(v rotation.JobView) bool { return v.Phase == rotation.Draining && v.WaitMessage != "" })
	b.Calls()
	asked, begun := 0, b.Clock.Now()
	for b.Clock.Now().Before(begun.Add(30 * time.Minute)) {
		b.Clock.Advance(time.Second)
		must[bool](t)(b.Step(ctx))
	}
	for _, c := range b.Calls() {
		if c.Operation == "CreateGrant" && !c.DryRun {
			asked++
		}
	}
	// The nth refusal is followed by n minutes of rest.
	if asked < 5 || asked > 9 {
		t.Errorf("a key that is disabled was asked %d times in half an hour", asked)
	}
	enable(t, b, old)
	v := workUntil(t, b, job, func(v rotation.JobView) bool {
		names := must[[]string](t)(b.GrantsAt(ctx, old, d))
		return v.Phase != rotation.Draining || slices.ContainsFunc(names, func(n string) bool { return strings.Contains(n, "/"+string(late.UID)+"/unwrap/") })
	})
	if v.Phase != rotation.Draining || !v.WaitUntil.Before(begun.Add(windows().MaxStoreDelay)) {
		t.Errorf("the job is in %s until %s, was until %s: nobody asked again meanwhile", v.Phase, v.WaitUntil, waits.WaitUntil)
	}
	if v := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID)); v.State != rotation.Succeeded {
		t.Errorf("%s in %s", v.State, v.Phase)
	}
}

// A change prepares on a key that is disabled meanwhile: grants are made on the
// present one, and have what they need on the new one before the switch.
func TestGrantsWhileTheNewKeyIsDisabled(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	d, _, err := b.Onboard(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	createKeys(t, b, "acme", 4)
	next := must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))
	job := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", next))
	workUntil(t, b, job, func(v rotation.JobView) bool { return v.TargetKey != "" })
	disable(t, b, next)
	grant, err := b.Broker.CreateGrant(ctx, harness.Caller, broker.NewGrant{Domain: "acme", Grantee: harness.ServiceRole,
		Operations: []string{"Decrypt"}, TTL: 24 * time.Hour})
	if err != nil {
		t.Fatalf("CreateGrant: %v", err)
	}
	if len(grant.Tokens) != 1 {
		t.Errorf("%d tokens, want that of the present key", len(grant.Tokens))
	}
	enable(t, b, next)
	workUntil(t, b, job, func(v rotation.JobView) bool { return v.Phase != rotation.Preparing })
	if names := must[[]string](t)(b.GrantsAt(ctx, next, d)); !slices.ContainsFunc(names, func(n string) bool { return strings.Contains(n, string(grant.UID)) }) {
		t.Errorf("switched without %s on the new key: %v", grant.ID, names)
	}
	if v := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID)); v.State != rotation.Succeeded {
		t.Errorf("%s in %s", v.State, v.Phase)
	}
}

// A grant that the customer took away stays so when its renewal is refused, and
// comes back with one that is not.
func TestRefusedRevival(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	_, old, err := b.Onboard(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	createKeys(t, b, "acme", 4)
	grant := serviceGrant(t, b, "acme", "Decrypt", "GenerateDataKey")
	takeAway(t, b, old, grant)
	if v := must[broker.GrantView](t)(b.Broker.GetGrant(ctx, harness.Caller, "acme", grant.ID)); v.State != broker.GrantRevokedByCustomer {
		t.Fatalf("the grant is %s", v.State)
	}
	disable(t, b, old)
	before := must[broker.GrantView](t)(b.Broker.GetGrant(ctx, harness.Caller, "acme", grant.ID))
	in := broker.RenewGrant{Domain: "acme", ID: grant.ID, TTL: 300 * 24 * time.Hour, Reason: "the customer agrees"}
	if _, err := b.Broker.RenewGrant(ctx, harness.Caller, in); broker.ReasonOf(err) != broker.ReasonKeyDisabled {
		t.Fatalf("renewed on a disabled key: %v", err)
	}
	if v := must[broker.GrantView](t)(b.Broker.GetGrant(ctx, harness.Caller, "acme", grant.ID)); v.State != broker.GrantRevokedByCustomer ||
		!v.ExpireTime.Equal(before.ExpireTime) || v.Etag() != before.Etag() {
		t.Errorf("after the refusal the grant is %s until %s with etag %s, was until %s with %s", v.State, v.ExpireTime, v.Etag(), before.ExpireTime, before.Etag())
	}
	enable(t, b, old)
	if v := must[broker.GrantView](t)(b.Broker.RenewGrant(ctx, harness.Caller, in)); v.State != broker.GrantActive || len(v.Tokens) != 2 ||
		!v.ExpireTime.Equal(stored(b).Add(in.TTL)) {
		t.Errorf("renewed: %s until %s with %d tokens", v.State, v.ExpireTime, len(v.Tokens))
	}
	job := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))))
	if v := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID)); v.State != rotation.Succeeded {
		t.Errorf("%s in %s", v.State, v.Phase)
	}
}

// A change prepares for long, and meanwhile the customer takes away what a service
// has on the new key. The change names the grant and waits; either way out lets it
// go on.
func TestGrantTakenAwayOnTheNewKey(t *testing.T) {
	for _, way := range []string{"renew", "revoke"} {
		t.Run(way, func(t *testing.T) {
			ctx := t.Context()
			b := newBench(t, harness.Config{})
			if _, _, err := b.Onboard(ctx, "acme"); err != nil {
				t.Fatal(err)
			}
			createKeys(t, b, "acme", 4)
			grant := serviceGrant(t, b, "acme", "Decrypt")
			next := must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))
			job := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", next))
			act := rotation.JobAct{Domain: "acme", Job: job.ID}
			workUntil(t, b, job, func(v rotation.JobView) bool { return !v.PrepareTime.IsZero() })
			must[rotation.JobView](t)(b.Engine.PauseJob(ctx, harness.Caller, act))
			takeAway(t, b, next, grant)
			must[rotation.JobView](t)(b.Engine.ResumeJob(ctx, harness.Caller, act))

			v := workUntil(t, b, job, func(v rotation.JobView) bool { return v.State != rotation.Running })
			if v.State != rotation.Blocked || v.Phase != rotation.Preparing || v.Block.Side != rotation.To ||
				v.Block.Reason != broker.ReasonKeyAccessDenied || !strings.Contains(v.Block.Message, broker.GrantName("acme", grant.ID)) {
				t.Fatalf("job %s in %s, blocked by %+v", v.State, v.Phase, v.Block)
			}
			if way == "renew" {
				must[broker.GrantView](t)(b.Broker.RenewGrant(ctx, harness.Caller, broker.RenewGrant{Domain: "acme", ID: grant.ID, TTL: 24 * time.Hour, Reason: "the customer agrees"}))
			} else {
				must[broker.GrantView](t)(b.Broker.RevokeGrant(ctx, harness.Caller, broker.RevokeGrant{Domain: "acme", ID: grant.ID}))
			}
			if v := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID)); v.State != rotation.Succeeded {
				t.Errorf("%s in %s: %+v", v.State, v.Phase, v.Block)
			}
		})
	}
}

// takeAway has the key's owner revoke what a grant has on it, and the broker's
// listings see it.
func takeAway(t *testing.T, b *harness.Bench, key broker.KeyARN, grant broker.GrantView) {
	t.Helper()
	ctx := t.Context()
	listed, err := b.Customer.ListGrants(ctx, &kms.ListGrantsInput{KeyId: aws.String(string(key))})
	if err != nil {
		t.Fatal(err)
	}
	taken := 0
	for _, g := range listed.Grants {
		if !strings.Contains(aws.ToString(g.Name), string(grant.UID)) {
			continue
		}
		if _, err := b.Customer.RevokeGrant(ctx, &kms.RevokeGrantInput{KeyId: g.KeyId, GrantId: g.GrantId}); err != nil {
			t.Fatal(err)
		}
		taken++
	}
	if taken == 0 {
		t.Fatalf("%s has nothing on %s", grant.ID, key)
	}
	for range 3 {
		b.Clock.Advance(b.Broker.Windows().GrantVisibility + time.Minute)
		if err := b.Broker.SweepOrphans(ctx); err != nil {
			t.Fatal(err)
		}
	}
}
