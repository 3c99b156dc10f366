package main

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
)

const (
	// besideQuota is the budget of a job beside foreground calls: it keeps a small
	// machine under half busy, so that what is measured is waiting for the job, not
	// for a core.
	besideQuota = 600
	// besideCallers make a call each besideEvery.
	besideCallers = 4
	besideEvery   = 40 * time.Millisecond
)

// foregroundBesideJob sets the 99th percentile of CreateDataKey beside a job to
// that without one, in turns, against a KMS that answers after 8 ms.
func (b *bench) foregroundBesideJob(ctx context.Context, engine string) (err error) {
	w, _, err := b.loaded(ctx, engine, "beside", b.kms.Slow, setting{pool: slowPool(), quota: besideQuota}, b.size.besideRows)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	if _, err := w.latencies(ctx, "warm-up", b.size.besideTime/5); err != nil {
		return err
	}
	var alone, beside, share, busy, queue, queueBeside []float64
	var calls, callsBeside []spent
	for round := range b.size.besideRounds {
		before := machineNow()
		p, err := w.latencies(ctx, "alone-"+strconv.Itoa(round), b.size.besideTime)
		if err != nil {
			return err
		}
		after := machineNow()
		alone, queue, calls = append(alone, p99(p)), append(queue, after.queue(before)), append(calls, p...)
		if p, err = w.latenciesBesideJob(ctx, "beside-"+strconv.Itoa(round), b.size.besideTime); err != nil {
			return err
		}
		now := machineNow()
		beside, queueBeside, callsBeside = append(beside, p99(p)), append(queueBeside, now.queue(after)), append(callsBeside, p...)
		share, busy = append(share, beside[round]/alone[round]), append(busy, now.busy(after))
		b.say("foreground, %s: p99 %.1f ms alone, %.1f ms beside a job, machine %.0f %% busy", engine, alone[round], beside[round], 100*busy[round])
	}
	b.report.add(metric{Name: "p99 of CreateDataKey beside a job ÷ without, KMS answers after 8ms", Engine: engine, Value: median(share),
		Target: atMost(1.2), Unit: "ratio", Raw: raw{"alone, ms": alone, "beside, ms": beside, "ratio": share,
			"machine busy beside, share": busy, "a processor waited for alone, share": queue, "beside, share": queueBeside}})
	b.report.add(metric{Name: "where the slowest hundredth of these calls were, alone", Engine: engine, Value: mean(totals(slowest(calls))), Unit: "ms", Raw: stagesOf(slowest(calls))})
	b.report.add(metric{Name: "where the slowest hundredth of these calls were, beside the job", Engine: engine, Value: mean(totals(slowest(callsBeside))), Unit: "ms", Raw: stagesOf(slowest(callsBeside))})
	return nil
}

// latenciesBesideJob measures while the rows of a key change move, and sees the
// change through.
func (w *world) latenciesBesideJob(ctx context.Context, prefix string, d time.Duration) (calls []spent, err error) {
	job, err := w.beginChange(ctx, 0)
	if err != nil {
		return nil, err
	}
	worked := make(chan error, 1)
	moving := w.watch.moving
	go func() {
		_, err := w.work(ctx, job)
		worked <- err
	}()
	select {
	case <-moving:
	case err := <-worked:
		return nil, errors.Join(err, errors.New("the job ended before a row moved"))
	}
	calls, err = w.latencies(ctx, prefix, d)
	return calls, errors.Join(err, <-worked)
}

// latencies calls CreateDataKey at a steady pace for a while. A call that is late
// for its turn counts from its turn: who waits in line waits too.
func (w *world) latencies(ctx context.Context, prefix string, d time.Duration) (calls []spent, err error) {
	var mu sync.Mutex
	n := max(1, int(d/besideEvery))
	start := time.Now()
	err = inParallel(besideCallers, besideCallers, func(who int) error {
		for i := range n {
			turn := start.Add(time.Duration(i)*besideEvery + time.Duration(who)*besideEvery/besideCallers)
			time.Sleep(time.Until(turn))
			var of spent
			of[stageTurn] = time.Since(turn)
			_, err := w.broker.CreateDataKey(context.WithValue(ctx, spentKey{}, &of), caller(), broker.NewDataKey{Domain: tenant,
				Context: broker.Context{"object": prefix + strconv.Itoa(who*n+i)}})
			if err != nil {
				return err
			}
			mu.Lock()
			calls = append(calls, of)
			mu.Unlock()
		}
		return nil
	})
	return calls, err
}
