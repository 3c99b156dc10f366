package scenarios_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/test/harness"
)

func windows() broker.Windows {
	return broker.Windows{GrantVisibility: 5 * time.Minute, MaxStoreDelay: time.Hour, MaxReadDelay: 15 * time.Minute}
}

func newBench(t *testing.T, cfg harness.Config) *harness.Bench {
	t.Helper()
	cfg.Dir = t.TempDir()
	if cfg.Windows == (broker.Windows{}) {
		cfg.Windows = windows()
	}
	b, err := harness.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func must[T any](t *testing.T) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func createKeys(t *testing.T, b *harness.Bench, id broker.DomainID, n int) {
	t.Helper()
	for i := range n {
		_, err := b.Broker.CreateDataKey(t.Context(), harness.Caller, broker.NewDataKey{
			Domain: id, ID: broker.DataKeyID(fmt.Sprintf("k%04d", i)), Context: broker.Context{"n": fmt.Sprint(i)}})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestKeyChange(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{GrantDelay: time.Second})
	d, old, err := b.Onboard(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	if d.State != broker.DomainActive || d.KMSKey != old {
		t.Fatalf("after onboarding: %+v", d)
	}
	createKeys(t, b, "acme", 50)
	next := must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))
	job := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", next))
	view := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID))
	if view.State != rotation.Succeeded || view.Progress.Done != 50 {
		t.Fatalf("job ended %s in %s after %d rows: %s", view.State, view.Phase, view.Progress.Done, view.FailMessage)
	}
	report := must[rotation.Report](t)(b.Engine.RetirementReport(ctx, harness.Caller, "acme", job.ID))
	if len(report.Keys) != 1 || !report.Keys[0].Safe {
		t.Errorf("report: %s", report.Canonical)
	}
	if names := must[[]string](t)(b.GrantsAt(ctx, old, d)); len(names) != 0 {
		t.Errorf("grants left on the old key: %v", names)
	}
}
