package scenarios_test

import (
	"errors"
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/test/harness"
)

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
