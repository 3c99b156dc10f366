package main

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keybroker/keybroker/internal/rotation"
)

// standingTimeout bounds what a reader of metrics waits for the database; ours.
const standingTimeout = 2 * time.Second

// standing collects what stands open in the database, when metrics are read. It is
// the same on every replica. If the database does not answer, these figures are
// left out and the others are not.
type standing struct {
	read                  func(context.Context) (rotation.Standing, error)
	jobs, grants, kms, up *prometheus.Desc
}

// watchStanding shows what stands open.
func (m *metrics) watchStanding(read func(context.Context) (rotation.Standing, error)) {
	m.registry.MustRegister(newStanding(read))
}

func newStanding(read func(context.Context) (rotation.Standing, error)) *standing {
	const same = " The same on every replica: take the max. At most 10,000."
	return &standing{read: read,
		jobs: prometheus.NewDesc("keybroker_open_jobs",
			"Re-encryption jobs that have not ended, by kind, state and, if BLOCKED, reason."+same, []string{"kind", "state", "reason"}, nil),
		grants: prometheus.NewDesc("keybroker_overdue_grants",
			"Grants that should have ended by now."+same, nil, nil),
		kms: prometheus.NewDesc("keybroker_open_kms_grants",
			"KMS grants that KMS has not answered for, by state: INTENDED (asked for) or RETIRING."+same, []string{"state"}, nil),
		up: prometheus.NewDesc("keybroker_standing_up",
			"1 if the figures of what stands open could be read from the database.", nil, nil),
	}
}

// Describe implements prometheus.Collector.
func (s *standing) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{s.jobs, s.grants, s.kms, s.up} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (s *standing) Collect(to chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), standingTimeout)
	defer cancel()
	gauge := func(d *prometheus.Desc, value int64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(value), labels...)
	}
	now, err := s.read(ctx)
	if err != nil {
		gauge(s.up, 0)
		return
	}
	gauge(s.up, 1)
	for _, j := range now.Jobs {
		gauge(s.jobs, j.Jobs, string(j.Kind), string(j.State), string(j.Reason))
	}
	gauge(s.grants, now.OverdueGrants)
	gauge(s.kms, now.OpenIntents, "INTENDED")
	gauge(s.kms, now.Retiring, "RETIRING")
}
