package scenarios_test

import (
	"strings"
	"testing"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/test/harness"
)

// KMS does not let the broker retire a grant: nobody may wait for that without a
// word. The rows move meanwhile, and the job blocks where it needs the end of the
// old wrap grants.
func TestRetiringIsRefused(t *testing.T) {
	for code, want := range map[string]rotation.Block{
		"AccessDeniedException":         {Reason: broker.ReasonKeyAccessDenied, Side: rotation.From},
		"UnsupportedOperationException": {Reason: broker.ReasonKMSRefused},
	} {
		t.Run(code, func(t *testing.T) {
			ctx := t.Context()
			deny := &refusal{operation: "RetireGrant", code: code}
			b := newBench(t, harness.Config{Transport: deny.over})
			if _, _, err := b.Onboard(ctx, "acme"); err != nil {
				t.Fatal(err)
			}
			createKeys(t, b, "acme", 10)
			job := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))))
			v := workUntil(t, b, job, func(v rotation.JobView) bool { return v.State != rotation.Running })
			if v.State != rotation.Blocked || v.Block.Reason != want.Reason || v.Block.Side != want.Side {
				t.Fatalf("job %s in %s, blocked by %+v, want %+v", v.State, v.Phase, v.Block, want)
			}
			if v.Phase != rotation.Draining || v.Progress.Done != 10 {
				t.Errorf("blocked in %s with %d rows moved, want all of them", v.Phase, v.Progress.Done)
			}
			deny.operation = ""
			if v := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID)); v.State != rotation.Succeeded || v.Progress.Done != 10 {
				t.Errorf("after the refusals: %s in %s, %d rows", v.State, v.Phase, v.Progress.Done)
			}
		})
	}
}

// With two older keys, the one that refuses is the one that the block names, in
// whatever the job asks of it last.
func TestBlockNamesTheKeyThatRefuses(t *testing.T) {
	for _, operation := range []string{"RetireGrant", "ListRetirableGrants"} {
		t.Run(operation, func(t *testing.T) {
			ctx := t.Context()
			deny := &refusal{code: "AccessDeniedException"}
			b := newBench(t, harness.Config{Transport: deny.over})
			_, first, err := b.Onboard(ctx, "acme")
			if err != nil {
				t.Fatal(err)
			}
			createKeys(t, b, "acme", 4)
			serviceGrant(t, b, "acme", "GenerateDataKey") // so that the first change drains
			second := must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))
			change := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", second))
			workUntil(t, b, change, func(v rotation.JobView) bool { return v.Phase == rotation.Draining })
			change = must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))))
			workUntil(t, b, change, func(v rotation.JobView) bool { return v.Phase == rotation.Retiring })
			deny.operation = operation
			if operation == "RetireGrant" {
				deny.naming = string(first)
				deny.message = "User: " + harness.RegistrarRole + " is not authorized to perform: kms:RetireGrant on resource: " + string(first)
			} else {
				takeStatementsOut(t, b, first)
			}

			v := workUntil(t, b, change, func(v rotation.JobView) bool { return v.State != rotation.Running })
			if v.State != rotation.Blocked || v.Block.Side != rotation.From || v.Block.Reason != broker.ReasonKeyAccessDenied {
				t.Fatalf("job %s in %s, blocked by %+v", v.State, v.Phase, v.Block)
			}
			if !strings.Contains(v.Block.Message, string(first)) || strings.Contains(v.Block.Message, string(second)) {
				t.Errorf("%s refuses, and the block says %q", first, v.Block.Message)
			}
		})
	}
}

// The same of a change that is taken back: its end needs the new key.
func TestUndoIsRefused(t *testing.T) {
	ctx := t.Context()
	deny := &refusal{code: "AccessDeniedException"}
	b := newBench(t, harness.Config{Transport: deny.over})
	d, old, err := b.Onboard(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	serviceGrant(t, b, "acme", "Decrypt")
	next := must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))
	job := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", next))
	workUntil(t, b, job, func(v rotation.JobView) bool { return !v.PrepareTime.IsZero() })
	deny.operation = "RetireGrant"
	must[rotation.JobView](t)(b.Engine.CancelJob(ctx, harness.Caller, rotation.JobAct{Domain: "acme", Job: job.ID}))
	v := workUntil(t, b, job, func(v rotation.JobView) bool { return v.State != rotation.Running })
	if v.State != rotation.Blocked || v.Block.Side != rotation.To || v.Block.Reason != broker.ReasonKeyAccessDenied {
		t.Fatalf("job %s, blocked by %+v", v.State, v.Block)
	}
	deny.operation = ""
	if v := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID)); v.State != rotation.Cancelled {
		t.Errorf("after the refusals: %s", v.State)
	}
	unchanged(t, b, d, old, next)
}

// Rows that were given up stay under a key that cannot be used any more. No job
// waits for them, and no change fails for them.
func TestGivenUpRowsHoldNobody(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	d, old, err := b.Onboard(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	createKeys(t, b, "acme", 8)
	whole := spoil(t, b, d, "k0004")
	spoil(t, b, d, "k0003")
	second := must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))
	job := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", second))
	if v := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID)); v.State != rotation.Failed {
		t.Fatalf("job ended %s", v.State)
	}
	must[int](t)(b.Engine.AcknowledgeFailures(ctx, harness.Caller, rotation.Acknowledge{Domain: "acme", Job: job.ID,
		DataKeys: []broker.DataKeyID{"k0003"}, Reason: "nobody needs it"}))
	mend(t, b, d, "k0004", whole)
	disable(t, b, old)
	plan := must[rotation.KeyChangePlan](t)(b.Engine.PlanKeyChange(ctx, harness.Caller, "acme", string(must[broker.KeyARN](t)(b.NewKey(ctx, "acme")))))
	for _, s := range plan.Sources {
		if want := map[broker.KeyARN]int64{old: 1, second: 6}[s.Key]; s.Rows != want {
			t.Errorf("the plan counts %d rows under %s, want %d: one was given up", s.Rows, s.Key, want)
		}
	}
	must[rotation.JobView](t)(b.Engine.ResumeJob(ctx, harness.Caller, rotation.JobAct{Domain: "acme", Job: job.ID}))
	v := workUntil(t, b, job, func(v rotation.JobView) bool { return v.State != rotation.Running })
	if v.State != rotation.Blocked || v.Block.Side != rotation.From || v.Block.Reason != broker.ReasonKeyDisabled {
		t.Fatalf("with a row under a disabled key: %s in %s, blocked by %+v", v.State, v.Phase, v.Block)
	}
	if err := b.Broker.DeleteDataKey(ctx, harness.Caller, broker.Request{}, "acme", "k0004", ""); err != nil {
		t.Fatal(err)
	}
	other := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))))
	v = workUntil(t, b, other, func(v rotation.JobView) bool { return v.Phase != rotation.Preparing || !v.Open() })
	if !v.Open() {
		t.Fatalf("a change with nothing left under the disabled key: %s: %s", v.State, v.FailMessage)
	}
	if v := must[rotation.JobView](t)(b.Finish(ctx, "acme", other.ID)); v.State != rotation.Succeeded {
		t.Errorf("%s in %s, blocked by %+v", v.State, v.Phase, v.Block)
	}
}
