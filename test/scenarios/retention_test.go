package scenarios_test

import (
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/test/harness"
)

// TestBackupRetention (I6): a key is safe to retire once no backup of the
// database, of the time when any domain had rows under it, may be restored.
func TestBackupRetention(t *testing.T) {
	const retention = 30 * 24 * time.Hour
	ctx := t.Context()
	b := newBench(t, harness.Config{Windows: broker.Windows{BackupRetention: retention}})
	for _, id := range []broker.DomainID{"left", "right"} {
		must[broker.Domain](t)(b.NewDomain(ctx, id))
	}
	shared := must[broker.KeyARN](t)(b.NewKey(ctx, "left", "right"))
	for _, id := range []broker.DomainID{"left", "right"} {
		changed(t, b, id, shared)
		createKeys(t, b, id, 5)
	}
	jobs := map[broker.DomainID]rotation.JobView{}
	for _, id := range []broker.DomainID{"left", "right"} {
		b.Clock.Advance(retention) // the second one leaves the key much later
		jobs[id] = changed(t, b, id, must[broker.KeyARN](t)(b.NewKey(ctx, id)))
	}
	left := jobs["right"].EndTime
	for id, job := range jobs {
		report := must[rotation.Report](t)(b.Engine.RetirementReport(ctx, harness.Caller, id, job.ID))
		key := report.Keys[0]
		if key.Safe || !key.SafeAfter.Equal(left.Add(retention)) {
			t.Errorf("%s: safe %v, after %v; the last domain left it at %v", id, key.Safe, key.SafeAfter, left)
		}
		if len(key.Blockers) != 1 || key.Blockers[0].Kind != rotation.BlockBackup || !key.Blockers[0].Until.Equal(key.SafeAfter) {
			t.Errorf("%s: blockers %+v", id, key.Blockers)
		}
	}
	b.Clock.Advance(retention)
	for id, job := range jobs {
		report := must[rotation.Report](t)(b.Engine.RetirementReport(ctx, harness.Caller, id, job.ID))
		if !report.Keys[0].Safe {
			t.Errorf("%s: not safe after the retention: %s", id, report.Canonical)
		}
	}
}

// changed brings a domain onto a key.
func changed(t *testing.T, b *harness.Bench, d broker.DomainID, key broker.KeyARN) rotation.JobView {
	t.Helper()
	job := must[rotation.JobView](t)(b.ChangeKey(t.Context(), d, key))
	view := must[rotation.JobView](t)(b.Finish(t.Context(), d, job.ID))
	if view.State != rotation.Succeeded {
		t.Fatalf("%s: %s: %s", d, view.State, view.FailMessage)
	}
	return view
}
