package rotation

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/pacer"
)

// jobsAtATime bounds how many jobs of each priority one replica steps at the same
// time; ours. Their rows are bounded by Config.Workers.
const jobsAtATime = 8

// dueJobsPage is how many jobs one look takes up; ours. It is small, since what it
// saw grows old while jobs wait for a place.
const dueJobsPage = 4 * jobsAtATime

// Run works until ctx is done: jobs, shards and periodic tasks. When it returns,
// nothing of it runs any more. A failure is logged and tried again: what the
// engine does is idempotent, and the database says where to go on.
func (e *Engine) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { e.Heartbeat(ctx) })
	wg.Go(func() { e.runJobs(ctx) })
	for range e.cfg.Workers {
		wg.Go(func() { e.runShards(ctx) })
	}
	wg.Go(func() { e.Periodic(ctx, "broker.sweep", e.cfg.Sweep, e.broker.Sweep) })
	wg.Go(func() { e.Periodic(ctx, "broker.orphans", e.cfg.Sweep, e.broker.SweepOrphans) })
	wg.Go(func() { e.Periodic(ctx, "broker.keys", e.cfg.Probe, e.broker.ProbeKeys) })
	wg.Go(func() { e.Periodic(ctx, "rotation.deleted", e.cfg.Sweep, e.sweepDeleted) })
	wg.Wait()
	return ctx.Err()
}

// runJobs steps every job that is due, each in a goroutine of its own, so that a
// long step of one holds up no other. Each priority has places of its own: jobs of
// one never wait for those of another.
func (e *Engine) runJobs(ctx context.Context) {
	s := stepper{engine: e, busy: map[JobRef]bool{}}
	var lines sync.WaitGroup
	for _, p := range []Priority{High, Normal} {
		lines.Go(func() { s.run(ctx, p) })
	}
	lines.Wait()
	s.steps.Wait()
}

// A stepper steps a bounded number of jobs at a time.
type stepper struct {
	engine *Engine
	steps  sync.WaitGroup
	mu     sync.Mutex
	busy   map[JobRef]bool // jobs whose step is under way
}

// run steps the jobs of a priority, round after round.
func (s *stepper) run(ctx context.Context, p Priority) {
	places := make(chan struct{}, jobsAtATime) // holds one for each step under way
	for ctx.Err() == nil {
		wake := s.engine.work.wait()
		if err := s.round(ctx, p, places); err != nil {
			s.engine.logFailure(ctx, "due jobs not read", err, "priority", p)
		}
		s.engine.idle(ctx, wake)
	}
}

// round goes from the oldest job to the youngest, and waits where all places are
// taken: each job that is due has its turn, of one step, before any has the next.
func (s *stepper) round(ctx context.Context, p Priority, places chan struct{}) error {
	var last Job
	for {
		jobs, err := s.engine.dueJobs(ctx, p, last)
		if err != nil {
			return err
		}
		for _, j := range jobs {
			if s.enter(j.Ref()) && !s.begin(ctx, j.Ref(), places) {
				return nil
			}
		}
		if len(jobs) < dueJobsPage {
			return nil
		}
		last = jobs[len(jobs)-1]
	}
}

// enter is false for a job whose step is under way.
func (s *stepper) enter(j JobRef) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy[j] {
		return false
	}
	s.busy[j] = true
	return true
}

// begin waits for a place and steps the job there; false when ctx ended first.
func (s *stepper) begin(ctx context.Context, j JobRef, places chan struct{}) bool {
	select {
	case places <- struct{}{}:
	case <-ctx.Done():
		return false
	}
	s.steps.Go(func() {
		moved, err := s.engine.StepJob(ctx, j)
		if err != nil {
			s.engine.logFailure(ctx, "job step failed", err, "job", j.ID)
		}
		s.mu.Lock()
		delete(s.busy, j)
		s.mu.Unlock()
		<-places
		if moved {
			s.engine.work.notify() // its next step may be due at once
		}
	})
	return true
}

func (e *Engine) dueJobs(ctx context.Context, p Priority, after Job) (jobs []Job, err error) {
	err = e.store.View(ctx, func(tx Tx) error {
		jobs, err = tx.DueJobs(ctx, p, e.cfg.Owner, after, dueJobsPage)
		return err
	})
	return jobs, err
}

func (e *Engine) runShards(ctx context.Context) {
	for ctx.Err() == nil {
		wake := e.work.wait()
		worked, err := e.claimAndWork(ctx, 0)
		if err != nil {
			e.logFailure(ctx, "shard work failed", err)
		}
		if !worked || err != nil {
			e.idle(ctx, wake)
		}
	}
}

// flowOf is under which name a job's calls are paced: its domain's, so that
// every tenant has an equal part of the budget, however many rows and jobs, but
// for a job of High priority.
func flowOf(j Job) *pacer.Flow { return pacer.NewFlow(string(j.Domain), j.Priority.part()) }

// Periodic runs fn every so often, on one replica at a time, until ctx is done: also
// where fn takes longer than that. After a crash another replica begins it anew.
// Its calls to KMS are bulk work.
func (e *Engine) Periodic(ctx context.Context, name string, every time.Duration, fn func(context.Context) error) {
	for e.cfg.Sleep(ctx, every) == nil {
		var mine bool
		err := e.store.Update(ctx, func(tx Tx) (err error) {
			mine, err = tx.TakePeriodic(ctx, name, e.cfg.Owner, every)
			return err
		})
		if err == nil && mine {
			err = e.runPeriodic(ctx, name, every, fn)
			e.cfg.Observe.Periodic(name, err)
		}
		switch {
		case broker.ClassOf(err).LostAccess():
			e.cfg.Logger.WarnContext(ctx, "periodic task done, but for what keys' owners refuse", "task", name, "error", err)
		case err != nil:
			e.logFailure(ctx, "periodic task failed", err, "task", name)
		}
	}
}

// runPeriodic runs a task that was taken, and keeps it for as long as it takes. One
// that another replica has taken meanwhile, since this one slept, is called off.
func (e *Engine) runPeriodic(ctx context.Context, name string, every time.Duration, fn func(context.Context) error) error {
	ctx, cancel := context.WithCancel(pacer.WithFlow(ctx, pacer.NewFlow(name, 1)))
	defer cancel()
	stop := e.keepAlive(ctx, every, func(ctx context.Context) error {
		err := e.store.Update(ctx, func(tx Tx) error { return tx.RenewPeriodic(ctx, name, e.cfg.Owner) })
		if errors.Is(err, broker.ErrConflict) {
			e.cfg.Observe.LeaseLost() // keepAlive, which ends with the task, tells no more
			cancel()
		}
		return err
	})
	defer stop()
	return fn(ctx)
}

// idle waits until somebody says that there is work, or for a poll.
func (e *Engine) idle(ctx context.Context, wake <-chan struct{}) {
	t := time.NewTimer(e.cfg.Poll)
	defer t.Stop()
	select {
	case <-wake:
	case <-t.C:
	case <-ctx.Done():
	}
}

func (e *Engine) logFailure(ctx context.Context, message string, err error, args ...any) {
	if ctx.Err() == nil {
		e.cfg.Logger.ErrorContext(ctx, message, append(args, "error", err)...)
	}
}

// OpenJob gives the domain's newest key change that is not final, nor being
// taken back; "" if there is none.
func (e *Engine) OpenJob(ctx context.Context, d broker.DomainUID) (id broker.JobID, err error) {
	err = e.store.View(ctx, func(tx Tx) error {
		jobs, err := tx.UnfinishedJobs(ctx, d)
		for _, j := range jobs {
			if j.Kind == KindKeyChange && j.Open() && j.Undo == "" {
				id = j.ID // the newest
			}
		}
		return err
	})
	return id, err
}
