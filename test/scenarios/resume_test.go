package scenarios_test

import (
	"testing"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/test/harness"
)

// A failed job that is resumed keeps to the terms on which it began: a job that is
// no key change runs alone, and on the present key; a key change ends those.
func TestResumeKeepsJobsApart(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	d, _, err := b.Onboard(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	createKeys(t, b, "acme", 8)
	spoil(t, b, d, "k0003")
	act := func(id broker.JobID) rotation.JobAct { return rotation.JobAct{Domain: "acme", Job: id, Reason: "test"} }
	verify := func() rotation.JobView {
		return must[rotation.JobView](t)(b.Engine.CreateJob(ctx, harness.Caller, rotation.NewJob{Domain: "acme", Kind: rotation.KindVerify}))
	}
	state := func(id broker.JobID) rotation.State {
		return must[rotation.JobView](t)(b.Engine.GetJob(ctx, harness.Caller, "acme", id)).State
	}
	failed := must[rotation.JobView](t)(b.Finish(ctx, "acme", verify().ID))
	if failed.State != rotation.Failed {
		t.Fatalf("verify over a damaged row: %s", failed.State)
	}

	change := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))))
	if _, err := b.Engine.ResumeJob(ctx, harness.Caller, act(failed.ID)); broker.ReasonOf(err) != broker.ReasonKeyChangeInProgress {
		t.Errorf("verify resumed beside a key change: %v, want %s", err, broker.ReasonKeyChangeInProgress)
	}
	if v := must[rotation.JobView](t)(b.Finish(ctx, "acme", change.ID)); v.State != rotation.Failed {
		t.Fatalf("change over a damaged row: %s", v.State)
	}
	if _, err := b.Engine.ResumeJob(ctx, harness.Caller, act(failed.ID)); broker.ReasonOf(err) != broker.ReasonJobEnded {
		t.Errorf("verify of a replaced key resumed: %v, want %s", err, broker.ReasonJobEnded)
	}

	other := verify()
	must[rotation.JobView](t)(b.Engine.ResumeJob(ctx, harness.Caller, act(change.ID)))
	if got := state(other.ID); got != rotation.Superseded {
		t.Errorf("verify beside a key change that was resumed: %s, want %s", got, rotation.Superseded)
	}
	if got := state(change.ID); got != rotation.Running {
		t.Errorf("the resumed change: %s, want %s", got, rotation.Running)
	}
}
