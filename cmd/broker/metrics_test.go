package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
)

// What an operator alerts on is shown under the names that are promised.
func TestMetricsOfTheEngine(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	m := newMetrics(registry, build{}, false)
	var down error
	m.watchStanding(func(context.Context) (rotation.Standing, error) {
		return rotation.Standing{Jobs: []rotation.JobCount{
			{Kind: rotation.KindKeyChange, State: rotation.Blocked, Reason: broker.ReasonKeyDisabled, Jobs: 2},
			{Kind: rotation.KindVerify, State: rotation.Running, Jobs: 1},
		}, OverdueGrants: 3, OpenIntents: 4, Retiring: 5}, down
	})
	m.Batch(rotation.BatchRows{Moved: 7, Relabelled: 2, Verified: 4, Failed: 1, Conflicts: 3}, time.Second)
	m.LeaseLost()
	m.Periodic("broker.sweep", errors.New("no"))
	want := map[string]float64{
		"batch_rows_total{outcome=conflict}": 3, "batch_rows_total{outcome=failed}": 1, "batch_rows_total{outcome=moved}": 7,
		"batch_rows_total{outcome=relabelled}": 2, "batch_rows_total{outcome=verified}": 4, "leases_lost_total{}": 1,
		"open_jobs{kind=KEY_CHANGE,reason=KEY_DISABLED,state=BLOCKED}": 2, "open_jobs{kind=VERIFY,reason=,state=RUNNING}": 1,
		"open_kms_grants{state=INTENDED}": 4, "open_kms_grants{state=RETIRING}": 5, "overdue_grants{}": 3, "standing_up{}": 1,
		"periodic_runs_total{outcome=failed,task=broker.sweep}": 1,
	}
	shown := func() map[string]float64 {
		t.Helper()
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]float64{}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				var labels []string
				for _, l := range m.GetLabel() {
					labels = append(labels, l.GetName()+"="+l.GetValue())
				}
				name := strings.TrimPrefix(f.GetName(), "keybroker_") + "{" + strings.Join(labels, ",") + "}"
				got[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
		return got
	}
	got := shown()
	for name, value := range want {
		if n, ok := got[name]; !ok || n != value {
			t.Errorf("%s is %f, shown: %v; want %f", name, n, ok, value)
		}
	}
	const success = "periodic_last_success_timestamp_seconds{task=broker.sweep}"
	if _, ok := got[success]; ok {
		t.Error("a task that only failed shows a success")
	}
	begun := time.Now()
	m.Periodic("broker.sweep", nil)
	if at := shown()[success]; at < float64(begun.Unix()) {
		t.Errorf("the last success was at %f, want %d or later", at, begun.Unix())
	}
	m.Periodic("broker.orphans", fmt.Errorf("list: %w", &broker.KMSError{Class: broker.KMSDenied}))
	got = shown()
	if n := got["periodic_runs_total{outcome=refused,task=broker.orphans}"]; n != 1 {
		t.Errorf("%f runs with refusals, want 1", n)
	}
	if at := got[strings.Replace(success, "sweep", "orphans", 1)]; at < float64(begun.Unix()) {
		t.Errorf("a run in which a key's owner refused something is no success: the last was at %f", at)
	}
	down = errors.New("the database does not answer")
	got = shown()
	if up, ok := got["standing_up{}"]; !ok || up != 0 || got["batch_rows_total{outcome=moved}"] != 7 {
		t.Errorf("without a database: %v", got)
	}
	if _, ok := got["overdue_grants{}"]; ok {
		t.Error("figures that nobody read are shown")
	}
}
