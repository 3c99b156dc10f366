package scenarios_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/test/harness"
)

// TestUnreadableSampleIsNotForgotten (I6): rows that VERIFYING's sample found
// unreadable are looked at again when the job is resumed, however the next sample
// is drawn.
func TestUnreadableSampleIsNotForgotten(t *testing.T) {
	const rows = 200 // of which a sample has 20
	ctx := t.Context()
	b := newBench(t, harness.Config{BatchRows: rows})
	d, _, err := b.Onboard(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	createKeys(t, b, "acme", rows)
	job := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))))
	workUntil(t, b, job, func(v rotation.JobView) bool { return v.Phase == rotation.Draining })
	whole := map[broker.DataKeyID]broker.Secret{}
	for i := range rows {
		id := broker.DataKeyID(fmt.Sprintf("k%04d", i))
		whole[id] = spoil(t, b, d, id)
	}
	found := unreadable(t, b, job)
	for id, blob := range whole {
		if !slices.Contains(found, id) {
			mend(t, b, d, id, blob)
		}
	}
	resume := func() {
		t.Helper()
		if _, err := b.Engine.ResumeJob(ctx, harness.Caller, rotation.JobAct{Domain: "acme", Job: job.ID}); err != nil {
			t.Fatal(err)
		}
	}
	resume()
	if again := unreadable(t, b, job); !slices.Equal(again, found) {
		t.Errorf("the second run failed over %s, want %s", again, found)
	}
	for _, id := range found {
		mend(t, b, d, id, whole[id])
	}
	resume()
	if view := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID)); view.State != rotation.Succeeded {
		t.Errorf("with every row mended: %s, %s", view.State, view.FailMessage)
	}
}

// unreadable works a job to its failure and gives the rows that are recorded.
func unreadable(t *testing.T, b *harness.Bench, job rotation.JobView) (ids []broker.DataKeyID) {
	t.Helper()
	view := must[rotation.JobView](t)(b.Finish(t.Context(), "acme", job.ID))
	var failures []rotation.Failure
	view2(t, b, func(tx rotation.Tx) (err error) {
		failures, err = tx.Failures(t.Context(), view.Ref(), "", 100)
		return err
	})
	if view.State != rotation.Failed || view.FailReason != broker.ReasonRowsFailed || len(failures) == 0 {
		t.Fatalf("the job is %s for %s, with failures %+v", view.State, view.FailReason, failures)
	}
	for _, f := range failures {
		ids = append(ids, f.DataKey)
	}
	return ids
}
