package rotation

import (
	"context"
	"sync"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/pacer"
)

// jobsAtATime bounds how many jobs one replica advances at the same time; ours.
// Their rows are bounded by Config.Workers.
const jobsAtATime = 8

// openJobsPage bounds how many open jobs one look sees, oldest first; ours.
const openJobsPage = 1000

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
	wg.Go(func() { e.Periodic(ctx, "rotation.deleted", e.cfg.Sweep, e.sweepDeleted) })
	wg.Wait()
	return ctx.Err()
}

// runJobs steps every job that is due, each in a goroutine of its own, so that a
// long step of one holds up no other.
func (e *Engine) runJobs(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	busy := map[JobRef]bool{}
	var mu sync.Mutex
	for ctx.Err() == nil {
		wake := e.work.wait()
		jobs, now, err := e.openJobs(ctx)
		if err != nil {
			e.logFailure(ctx, "open jobs not read", err)
		}
		for _, j := range jobs {
			mu.Lock()
			skip := busy[j.Ref()] || len(busy) >= jobsAtATime || !due(j, now)
			if !skip {
				busy[j.Ref()] = true
			}
			mu.Unlock()
			if skip {
				continue
			}
			wg.Go(func() {
				e.stepUntilIdle(ctx, j.Ref())
				mu.Lock()
				delete(busy, j.Ref())
				mu.Unlock()
			})
		}
		e.idle(ctx, wake)
	}
}

func (e *Engine) openJobs(ctx context.Context) (jobs []Job, now time.Time, err error) {
	err = e.store.View(ctx, func(tx Tx) error {
		now = tx.Now()
		jobs, err = tx.OpenJobs(ctx, openJobsPage)
		return err
	})
	return jobs, now, err
}

func (e *Engine) stepUntilIdle(ctx context.Context, r JobRef) {
	for ctx.Err() == nil {
		moved, err := e.StepJob(ctx, r)
		if err != nil {
			e.logFailure(ctx, "job step failed", err, "job", r.ID)
		}
		if err != nil || !moved {
			return
		}
	}
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

// Periodic runs fn every so often, on one replica at a time, until ctx is done.
// Its calls to KMS are bulk work.
func (e *Engine) Periodic(ctx context.Context, name string, every time.Duration, fn func(context.Context) error) {
	for e.cfg.Sleep(ctx, every) == nil {
		var mine bool
		err := e.store.Update(ctx, func(tx Tx) (err error) {
			mine, err = tx.TakePeriodic(ctx, name, e.cfg.Owner, every)
			return err
		})
		if err == nil && mine {
			err = fn(pacer.WithFlow(ctx, pacer.NewFlow(name, 1)))
		}
		if err != nil {
			e.logFailure(ctx, "periodic task failed", err, "task", name)
		}
	}
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
