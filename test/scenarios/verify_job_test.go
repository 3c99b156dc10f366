package scenarios_test

import (
	"errors"
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/test/harness"
)

// A VERIFY job is in VERIFYING once its rows are counted and shared out. Until it has ended its total is
// what it is to read, and its end lies ahead; so it is for one that is taken up again,
// which reads every row once more.
func TestVerifyJobShowsItsProgress(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{Shards: 1, BatchRows: 5})
	d, _, err := b.Onboard(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	createKeys(t, b, "acme", 12)
	spoil(t, b, d, "k0011")
	job := must[rotation.JobView](t)(b.Engine.CreateJob(ctx, harness.Caller, rotation.NewJob{Domain: "acme", Kind: rotation.KindVerify}))
	look := func(what string, total, done int64, estimated bool) rotation.JobView {
		t.Helper()
		v := must[rotation.JobView](t)(b.Engine.GetJob(ctx, harness.Caller, "acme", job.ID))
		if v.TotalRows != total || v.Progress.Done != done || v.Estimated != estimated {
			t.Errorf("%s: %d of %d rows, estimated: %v; want %d of %d, %v", what, v.Progress.Done, v.TotalRows, v.Estimated, done, total, estimated)
		}
		return v
	}
	// The call has counted nothing: it would take long in a large domain.
	if v := look("at the beginning", 0, 0, true); v.Phase != rotation.Preparing || must[bool](t)(b.Engine.StepShard(ctx)) {
		t.Errorf("rows are read in %s, before they are shared out", v.Phase)
	}
	must[bool](t)(b.Engine.StepJob(ctx, job.Ref()))
	look("counted", 12, 0, true)
	b.Clock.Advance(10 * time.Second)
	must[bool](t)(b.Engine.StepShard(ctx))
	if v := look("after a batch", 12, 5, true); !v.FinishTime.After(b.Clock.Now()) {
		t.Errorf("it is to end at %v, and it is %v with 7 rows to go", v.FinishTime, b.Clock.Now())
	}
	if v := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID)); v.State != rotation.Failed {
		t.Fatalf("verify over a damaged row: %s", v.State)
	}
	look("failed", 12, 11, false)

	must[rotation.JobView](t)(b.Engine.ResumeJob(ctx, harness.Caller, rotation.JobAct{Domain: "acme", Job: job.ID}))
	must[bool](t)(b.Engine.StepShard(ctx))
	look("resumed, after a batch", 11+12, 11+5, true)
}

// A replica that dies in the middle of a VERIFY job costs the calls that were not
// committed: whoever takes its shard over goes on where it was.
func TestVerifyJobIsTakenOver(t *testing.T) {
	const rows, batch = 30, 5
	ctx := t.Context()
	batches := 0
	b := newBench(t, harness.Config{Shards: 1, BatchRows: batch, At: func(r *harness.Replica, point string) {
		if point == "batch.reencrypted" {
			if batches++; batches == 4 {
				r.Kill()
			}
		}
	}})
	if _, _, err := b.Onboard(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	createKeys(t, b, "acme", rows)
	job := must[rotation.JobView](t)(b.Engine.CreateJob(ctx, harness.Caller, rotation.NewJob{Domain: "acme", Kind: rotation.KindVerify}))
	must[bool](t)(b.Engine.StepJob(ctx, job.Ref()))
	batches = 0
	b.Calls()
	for range 4 {
		if _, err := b.Engine.StepShard(ctx); err != nil && !errors.Is(err, harness.ErrDead) {
			t.Fatal(err)
		}
	}
	b.Clock.Advance(time.Minute) // beyond the lease
	heir := b.Replicas[1].Engine
	for worked := true; worked; {
		worked = must[bool](t)(heir.StepShard(ctx))
	}
	must[bool](t)(heir.StepJob(ctx, job.Ref()))
	v := must[rotation.JobView](t)(heir.GetJob(ctx, harness.Caller, "acme", job.ID))
	if v.State != rotation.Succeeded || v.Progress.Done != rows {
		t.Errorf("verify ended %s, with %d rows read, want %s and %d", v.State, v.Progress.Done, rotation.Succeeded, rows)
	}
	calls := 0
	for _, c := range b.Calls() {
		if c.Operation == "ReEncrypt" {
			calls++
		}
	}
	if calls != rows+batch {
		t.Errorf("%d calls for %d rows and a death with a batch of %d at KMS", calls, rows, batch)
	}
}
