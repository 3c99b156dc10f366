package main

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/pacer"
	"github.com/keybroker/keybroker/internal/rotation"
)

// metrics are the broker's own. Labels have few values each: no tenant, no key
// and no account is among them.
type metrics struct {
	registry     *prometheus.Registry
	kmsCalls     *prometheus.CounterVec
	kmsSeconds   *prometheus.HistogramVec
	batchRows    *prometheus.CounterVec
	batchSeconds prometheus.Histogram
	jobStates    *prometheus.CounterVec
	leasesLost   prometheus.Counter
	taskRuns     *prometheus.CounterVec
	taskSuccess  *prometheus.GaugeVec
}

func newMetrics(registry *prometheus.Registry, b build, dev bool) *metrics {
	m := &metrics{
		registry: registry,
		kmsCalls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "keybroker_kms_calls_total",
			Help: "Attempts at KMS, by operation and by what the answer means (OK, THROTTLED, DENIED, ...).",
		}, []string{"operation", "class"}),
		kmsSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "keybroker_kms_call_seconds",
			Help:    "Duration of attempts at KMS, without the wait for the pacer.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, 1, 5},
		}, []string{"operation"}),
		batchRows: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "keybroker_batch_rows_total",
			Help: "Rows in committed batches of re-encryption jobs, each counted once, by outcome (moved, relabelled, verified, failed, conflict).",
		}, []string{"outcome"}),
		batchSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "keybroker_batch_seconds",
			Help:    "Duration of committed batches.",
			Buckets: []float64{.05, .1, .25, .5, 1, 2, 5, 10},
		}),
		jobStates: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "keybroker_job_transitions_total",
			Help: "Entries of re-encryption jobs into a phase and state.",
		}, []string{"phase", "state"}),
		leasesLost: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "keybroker_leases_lost_total",
			Help: "Leases of jobs, shards and periodic tasks that this replica could not renew, since another has them; now and then one that it had just given back.",
		}),
		taskRuns: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "keybroker_periodic_runs_total",
			Help: "Runs of periodic tasks by this replica, by outcome: ok, refused (a key's owner refused something, all else was done), failed.",
		}, []string{"task", "outcome"}),
		taskSuccess: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "keybroker_periodic_last_success_timestamp_seconds",
			Help: "When this replica last ran a periodic task that did not fail, Unix time. One replica runs each: take the max over all.",
		}, []string{"task"}),
	}
	devMode := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "keybroker_dev_mode", Help: "1 if nobody is authenticated (serve --dev): never so in production."})
	if dev {
		devMode.Set(1)
	}
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "keybroker_build_info", Help: "Always 1; the labels say what was built.",
		ConstLabels: prometheus.Labels{"version": b.version, "revision": b.revision, "go": b.goVersion}})
	info.Set(1)
	registry.MustRegister(m.kmsCalls, m.kmsSeconds, m.batchRows, m.batchSeconds, m.jobStates, m.leasesLost, m.taskRuns, m.taskSuccess, devMode, info)
	return m
}

// kms is awskms's observer.
func (m *metrics) kms(operation string, class broker.KMSClass, took time.Duration) {
	if class == "" {
		class = "OK"
	}
	m.kmsCalls.WithLabelValues(operation, string(class)).Inc()
	m.kmsSeconds.WithLabelValues(operation).Observe(took.Seconds())
}

var _ rotation.Observer = (*metrics)(nil)

// Batch implements rotation.Observer.
func (m *metrics) Batch(rows rotation.BatchRows, took time.Duration) {
	m.batchRows.WithLabelValues("moved").Add(float64(rows.Moved))
	m.batchRows.WithLabelValues("relabelled").Add(float64(rows.Relabelled))
	m.batchRows.WithLabelValues("verified").Add(float64(rows.Verified))
	m.batchRows.WithLabelValues("failed").Add(float64(rows.Failed))
	m.batchRows.WithLabelValues("conflict").Add(float64(rows.Conflicts))
	m.batchSeconds.Observe(took.Seconds())
}

// JobState implements rotation.Observer.
func (m *metrics) JobState(p rotation.Phase, s rotation.State) {
	m.jobStates.WithLabelValues(string(p), string(s)).Inc()
}

// LeaseLost implements rotation.Observer.
func (m *metrics) LeaseLost() { m.leasesLost.Inc() }

// Periodic implements rotation.Observer.
func (m *metrics) Periodic(task string, err error) {
	outcome := "ok"
	switch {
	case broker.ClassOf(err).LostAccess():
		outcome = "refused"
	case err != nil:
		outcome = "failed"
	}
	m.taskRuns.WithLabelValues(task, outcome).Inc()
	if outcome != "failed" {
		m.taskSuccess.WithLabelValues(task).SetToCurrentTime()
	}
}

// watchPacer shows the pacer's budgets whenever metrics are read.
func (m *metrics) watchPacer(p *pacer.Pacer) { m.registry.MustRegister(newBudgets(p)) }

// budgets collects the state of each budget of KMS requests. Its account is the
// broker's own, and one for each quota, so it is no label.
type budgets struct {
	pacer *pacer.Pacer
	shown []shownBudget
}

// A shownBudget is one figure of a budget.
type shownBudget struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(pacer.State) float64
}

func newBudgets(p *pacer.Pacer) *budgets {
	figure := func(name, help string, kind prometheus.ValueType, value func(pacer.State) float64) shownBudget {
		return shownBudget{prometheus.NewDesc("keybroker_pacer_"+name, help, []string{"region", "quota"}, nil), kind, value}
	}
	return &budgets{pacer: p, shown: []shownBudget{
		figure("rate", "Calls a second to KMS beyond which background calls wait.", prometheus.GaugeValue,
			func(s pacer.State) float64 { return s.Rate }),
		figure("ceiling", "What the quota allows this replica, in calls a second; +Inf where no quota is known.", prometheus.GaugeValue,
			func(s pacer.State) float64 { return s.Ceiling }),
		figure("foreground_in_flight", "Foreground calls in flight at KMS.", prometheus.GaugeValue,
			func(s pacer.State) float64 { return float64(s.Foreground) }),
		figure("background_in_flight", "Background calls in flight at KMS.", prometheus.GaugeValue,
			func(s pacer.State) float64 { return float64(s.Background) }),
		figure("background_waiting", "Background calls that wait to be admitted.", prometheus.GaugeValue,
			func(s pacer.State) float64 { return float64(s.Waiting) }),
		figure("background_calls_total", "Background calls admitted to KMS.", prometheus.CounterValue,
			func(s pacer.State) float64 { return float64(s.BackgroundCalls) }),
		figure("answers_total", "Calls that KMS answered, of both classes.", prometheus.CounterValue,
			func(s pacer.State) float64 { return float64(s.Calls) }),
		figure("throttled_total", "Calls that KMS throttled, of both classes.", prometheus.CounterValue,
			func(s pacer.State) float64 { return float64(s.Throttled) }),
	}}
}

// Describe implements prometheus.Collector.
func (b *budgets) Describe(to chan<- *prometheus.Desc) {
	for _, f := range b.shown {
		to <- f.desc
	}
}

// Collect implements prometheus.Collector.
func (b *budgets) Collect(to chan<- prometheus.Metric) {
	for _, s := range b.pacer.States() {
		for _, f := range b.shown {
			to <- prometheus.MustNewConstMetric(f.desc, f.kind, f.value(s), s.Budget.Region, s.Budget.Quota)
		}
	}
}
