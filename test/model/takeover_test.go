package model_test

import (
	"fmt"
	"time"

	"pgregory.net/rapid"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/test/harness"
)

// takeOver stops a replica in the middle of a step for longer than its lease, and
// lets the other one work. If that took the lease over, the first one writes
// nothing of the job and its rows any more (I11).
func (m *machine) takeOver(t *rapid.T) {
	first, second := m.bench.Replicas[0], m.bench.Replicas[1]
	ref, step := m.aStep(t, first)
	h := &hold{after: rapid.IntRange(0, 3).Draw(t, "after"), before: rapid.Bool().Draw(t, "done")}
	steps := rapid.IntRange(1, 20).Draw(t, "steps")
	var taken string
	var then *state
	m.during(h, true, step, func() {
		held := m.leases(t, ref, first)
		m.bench.Clock.Advance(time.Minute)
		for range steps {
			m.stepWith(t, second)
		}
		now := m.leases(t, ref, nil)
		for what, seq := range held {
			if now[what] != seq {
				taken = what
			}
		}
		then = m.look(t)
	})
	if taken == "" {
		return
	}
	m.tally.met("lease taken over")
	tn := m.tenantOf(ref.Domain)
	if is, was := written(m.look(t).of(tn), ref.ID), written(then.of(tn), ref.ID); is != was {
		t.Fatalf("I11: the lease of %s was taken over, and its former holder wrote:\nwas %s\nis  %s", taken, was, is)
	}
}

// aStep draws a job that is at work, and one of the two kinds of steps.
func (m *machine) aStep(t *rapid.T, r *harness.Replica) (rotation.JobRef, func()) {
	jobs, err := m.bench.OpenJobs(m.ctx)
	fatal(t, err)
	if len(jobs) == 0 {
		panic(nothing("no job is open"))
	}
	ref := rapid.SampledFrom(jobs).Draw(t, "job").Ref()
	if rapid.Bool().Draw(t, "of the job itself") {
		return ref, func() {
			_, err := r.Engine.StepJob(m.ctx, ref)
			m.passing(t, "step", err)
		}
	}
	return ref, func() {
		_, err := r.Engine.StepShard(m.ctx)
		m.passing(t, "step", err)
	}
}

// leases gives the fences of a job and its shards: of one holder, or all.
func (m *machine) leases(t *rapid.T, ref rotation.JobRef, holder *harness.Replica) map[string]int64 {
	seqs := map[string]int64{}
	add := func(what string, l rotation.Lease) {
		if holder == nil || l.Owner == holder.Owner && !l.Until.IsZero() {
			seqs[what] = l.Seq
		}
	}
	fatal(t, m.bench.Store.Rotation().View(m.ctx, func(tx rotation.Tx) error {
		j, err := tx.Job(m.ctx, ref)
		if err != nil {
			return err
		}
		add(fmt.Sprintf("job %s", ref.ID), j.Lease)
		shards, err := tx.Shards(m.ctx, ref)
		for _, s := range shards {
			add(fmt.Sprintf("shard %d of %s", s.Index, ref.ID), s.Lease)
		}
		return err
	}))
	return seqs
}

// written is what a job and its workers write.
func written(d *domainState, id broker.JobID) string {
	j, _ := d.job(id)
	rows := map[broker.DataKeyID]int64{}
	for _, k := range d.rows {
		rows[k.ID] = k.Version
	}
	return fmt.Sprintf("version %d, %s, %s, %+v, rows %v", j.Version, j.Phase, j.State, j.Progress, rows)
}
