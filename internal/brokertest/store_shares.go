package brokertest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
)

// testShares: jobs of any priorities, more or fewer than the workers, share them
// by their parts, none goes without, and no worker changes its job for nothing.
func testShares(t *testing.T, b *storeBench) {
	const high, normal = rotation.High, rotation.Normal
	for _, c := range []struct {
		workers int
		jobs    []rotation.Priority
		// settled: the parts come out even, so every worker stays where it is.
		settled bool
	}{
		{workers: 1, jobs: []rotation.Priority{normal}, settled: true},
		{workers: 1, jobs: []rotation.Priority{normal, normal, normal}},
		{workers: 1, jobs: []rotation.Priority{high, normal}},
		{workers: 1, jobs: []rotation.Priority{high, high, normal}},
		{workers: 1, jobs: []rotation.Priority{normal, normal, normal, normal, high, normal, normal, normal, normal}},
		{workers: 2, jobs: []rotation.Priority{high, normal}},
		{workers: 2, jobs: []rotation.Priority{normal, normal, normal, normal, normal}},
		{workers: 4, jobs: []rotation.Priority{normal, high}, settled: true},
		{workers: 4, jobs: []rotation.Priority{high, high, high, high, normal}},
		{workers: 5, jobs: []rotation.Priority{high, normal}, settled: true},
		{workers: 7, jobs: []rotation.Priority{normal, normal, normal}, settled: true},
	} {
		t.Run(fmt.Sprint(c.workers, " for ", c.jobs), func(t *testing.T) {
			s := newSharing(b, t.Name(), c.jobs)
			s.t = t
			defer s.stop()
			s.run(c.workers, 30) // what the beginning was like is no matter
			clear(s.turns)
			s.changes = 0
			const turns = 60
			s.run(c.workers, turns)
			s.check(c.workers*turns, c.settled)
		})
	}
}

// testFreshJob: a job whose shards were just cut has waited for nobody yet, so one
// of HIGH keeps its workers until the other has waited its turns.
func testFreshJob(t *testing.T, b *storeBench) {
	first := b.runningJob("first", 4, rotation.High)
	s := &sharing{storeBench: b, t: t, jobs: []rotation.Job{first}, turns: map[broker.DomainUID]int{}}
	defer s.stop()
	s.run(2, 1)
	fresh := newJob(b.domain("fresh").UID, "job-1", b.clock.Now())
	fresh.Phase = rotation.Reencrypting
	s.jobs = append(s.jobs, fresh)
	b.update(func(ctx context.Context, tx rotation.Tx) error {
		return errors.Join(tx.InsertJob(ctx, fresh), tx.InsertShards(ctx, []rotation.Shard{
			{Domain: fresh.Domain, Job: fresh.ID, Index: 0, Pace: rotation.Pace{Time: tx.Now()}}}))
	})
	if b.wanted(first) {
		t.Error("a worker of the HIGH job is wanted by one that has waited for no time")
	}
	b.clock.Advance(4 * rotation.Turn)
	if !b.wanted(first) {
		t.Error("after four turns no worker of the HIGH job is wanted by one that waits")
	}
}

// A sharing is jobs whose workers do as the engine's do: they commit, ask once in
// a turn whether they are wanted elsewhere, and claim anew if they are.
type sharing struct {
	*storeBench
	t       *testing.T
	jobs    []rotation.Job
	held    []*rotation.Shard // by worker
	turns   map[broker.DomainUID]int
	changes int // how often a worker let its shard go
}

func newSharing(b *storeBench, name string, priorities []rotation.Priority) *sharing {
	s := &sharing{storeBench: b, turns: map[broker.DomainUID]int{}}
	for i, p := range priorities {
		s.jobs = append(s.jobs, b.runningJob(broker.DomainID(fmt.Sprint(name, i)), 16, p))
		b.clock.Advance(time.Second)
	}
	return s
}

// run lets the workers work for some turns.
func (s *sharing) run(workers, turns int) {
	s.t.Helper()
	s.held = append(s.held, make([]*rotation.Shard, workers-len(s.held))...)
	for range turns {
		s.update(func(ctx context.Context, tx rotation.Tx) error {
			for i, shard := range s.held {
				if shard != nil {
					continue
				}
				got, _, err := tx.ClaimShard(ctx, fmt.Sprint("worker-", i), shardTTL)
				if err != nil {
					return err
				}
				s.held[i] = &got
			}
			return nil
		})
		s.clock.Advance(rotation.Turn)
		for i := range s.held {
			s.turn(i)
		}
	}
}

// turn ends one of a worker.
func (s *sharing) turn(worker int) {
	shard := s.held[worker]
	ref := rotation.JobRef{Domain: shard.Domain, ID: shard.Job}
	s.turns[shard.Domain]++
	s.update(func(ctx context.Context, tx rotation.Tx) error {
		shard.Pace.Time = tx.Now()
		if _, _, err := tx.CommitShard(ctx, *shard, shardTTL); err != nil {
			return err
		}
		wanted, err := tx.ShardWanted(ctx, ref)
		if err != nil || !wanted {
			return err
		}
		s.changes++
		s.held[worker] = nil
		_, _, err = tx.CommitShard(ctx, *shard, 0)
		return err
	})
}

// check compares with the parts: a job has at least half of what is its own.
func (s *sharing) check(all int, settled bool) {
	s.t.Helper()
	part := map[rotation.Priority]int{rotation.High: 4, rotation.Normal: 1}
	parts := 0
	for _, j := range s.jobs {
		parts += part[j.Priority]
	}
	for i, j := range s.jobs {
		fair := float64(all) * float64(part[j.Priority]) / float64(parts)
		if got := float64(s.turns[j.Domain]); got < fair/2 || got > 2*fair {
			s.t.Errorf("job %d, %s, had %v of %d turns; by its part it is %.0f", i, j.Priority, got, all, fair)
		}
	}
	if settled && s.changes > 0 {
		s.t.Errorf("%d workers let a shard go, want none", s.changes)
	}
}

// stop ends the jobs, so that they want no worker any more.
func (s *sharing) stop() {
	for _, j := range s.jobs {
		s.update(func(ctx context.Context, tx rotation.Tx) error {
			now, err := tx.Job(ctx, refOf(j))
			now.State = rotation.Cancelled
			return errors.Join(err, tx.UpdateJob(ctx, now))
		})
	}
}
