package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
)

const partWork = "work"

// crashLease is short, so that a killed worker's successor need not wait long.
const crashLease = time.Second

// crashes kills the process of a job, again and again, and counts the calls that
// are made twice for it: against a KMS that answers after 8 ms, with the engine's
// own batches.
func (b *bench) crashes(ctx context.Context, engine string) (err error) {
	rows := b.size.crashRows
	w, at, err := b.loaded(ctx, engine, "crashes", b.kms.Slow, setting{pool: slowPool()}, rows)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	before, err := b.kms.stats(ctx)
	if err != nil {
		return err
	}
	job, err := w.beginChange(ctx, int64(rows))
	if err != nil {
		return err
	}
	kills := 0
	for view := job; view.Open(); {
		if view, err = b.workFor(ctx, w, at, job, rows*(kills+1)/(b.size.kills+1), kills < b.size.kills); err != nil {
			return err
		}
		if view.Open() {
			kills++
		}
	}
	after, err := b.kms.stats(ctx)
	if err != nil {
		return err
	}
	view, err := w.engine.GetJob(ctx, caller(), tenant, job.ID)
	if err != nil {
		return err
	}
	if view.State != rotation.Succeeded || view.Progress.Done != int64(rows) {
		return fmt.Errorf("the job is %s with %d of %d rows moved", view.State, view.Progress.Done, rows)
	}
	calls := float64(after.since(before)["ReEncrypt"] - view.VerifiedRows)
	again := (calls - float64(rows)) / float64(max(1, kills))
	b.say("crashes, %s: %.0f calls for %d rows, %d kills", engine, calls, rows, kills)
	b.report.add(metric{Name: fmt.Sprintf("ReEncrypt calls per row, %d kills in %s rows", b.size.kills, thousands(rows)), Engine: engine,
		Value: calls / float64(rows), Unit: "calls", Raw: raw{"calls": {calls}, "rows": {float64(rows)}, "kills": {float64(kills)}}})
	b.report.add(metric{Name: "ReEncrypt calls per row, 20 kills in 1,000,000 rows, by calls made again per kill", Engine: engine,
		Value: 1 + 20*again/1e6, Target: atMost(1.01), Unit: "calls", Raw: raw{"again, calls/kill": {again}}})
	return nil
}

// workFor has a process work on the job until it ends or, if kill is set, at
// least some rows are moved, and gives the job as it is then.
func (b *bench) workFor(ctx context.Context, w *world, at place, job rotation.JobView, rows int, kill bool) (view rotation.JobView, err error) {
	command, err := startSelf(ctx, partWork, at.engine, at.at, b.kms.Slow, string(job.ID))
	if err != nil {
		return view, err
	}
	if err := command.Start(); err != nil {
		return view, err
	}
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	for {
		select {
		case err := <-ended:
			if err == nil {
				view, err = w.engine.GetJob(ctx, caller(), tenant, job.ID)
			}
			return view, err
		case <-look.C:
		}
		if view, err = w.engine.GetJob(ctx, caller(), tenant, job.ID); err != nil {
			return view, errors.Join(err, command.Process.Kill())
		}
		if kill && view.Open() && view.Progress.Done >= int64(rows) {
			err := command.Process.Kill()
			<-ended
			return view, err
		}
	}
}

// workUntilKilled is that process.
func workUntilKilled(ctx context.Context, args []string, _ io.Writer) (err error) {
	if len(args) != 4 {
		return errors.New("want the engine, its database, the KMS and the job")
	}
	w, err := openWorld(ctx, place{args[0], args[1]}, args[2], setting{pool: slowPool(), lease: crashLease})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	job, err := w.engine.GetJob(ctx, caller(), tenant, broker.JobID(args[3]))
	if err != nil {
		return err
	}
	_, err = w.work(ctx, job)
	return err
}
