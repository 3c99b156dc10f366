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
			Help: "Rows in committed batches of re-encryption jobs, by outcome.",
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
	registry.MustRegister(m.kmsCalls, m.kmsSeconds, m.batchRows, m.batchSeconds, m.jobStates, devMode, info)
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
func (m *metrics) Batch(moved, relabelled, failed, conflicts int, took time.Duration) {
	m.batchRows.WithLabelValues("moved").Add(float64(moved))
	m.batchRows.WithLabelValues("relabelled").Add(float64(relabelled))
	m.batchRows.WithLabelValues("failed").Add(float64(failed))
	m.batchRows.WithLabelValues("conflict").Add(float64(conflicts))
	m.batchSeconds.Observe(took.Seconds())
}

// JobState implements rotation.Observer.
func (m *metrics) JobState(p rotation.Phase, s rotation.State) {
	m.jobStates.WithLabelValues(string(p), string(s)).Inc()
}

// watchPacer shows the pacer's state whenever metrics are read.
func (m *metrics) watchPacer(p *pacer.Pacer) {
	gauge := func(name, help string, value func(pacer.Snapshot) float64) {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help},
			func() float64 { return value(p.Snapshot()) }))
	}
	gauge("keybroker_pacer_limit", "Background calls that may be in flight at KMS.",
		func(s pacer.Snapshot) float64 { return s.Limit })
	gauge("keybroker_pacer_foreground_in_flight", "Foreground calls in flight at KMS.",
		func(s pacer.Snapshot) float64 { return float64(s.Foreground) })
	gauge("keybroker_pacer_background_in_flight", "Background calls in flight at KMS.",
		func(s pacer.Snapshot) float64 { return float64(s.Background) })
	gauge("keybroker_pacer_background_waiting", "Background calls that wait to be admitted.",
		func(s pacer.Snapshot) float64 { return float64(s.Waiting) })
	m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "keybroker_pacer_throttled_total", Help: "Calls that KMS throttled."},
		func() float64 { return float64(p.Snapshot().Throttled) }))
}
