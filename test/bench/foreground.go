package main

import (
	"context"
	"errors"
	"os"
	"slices"
	"strconv"
	"strings"
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
	var alone, beside, share, busy []float64
	for round := range b.size.besideRounds {
		p, err := w.latencies(ctx, "alone-"+strconv.Itoa(round), b.size.besideTime)
		if err != nil {
			return err
		}
		alone = append(alone, p)
		before := busyTime()
		if p, err = w.latenciesBesideJob(ctx, "beside-"+strconv.Itoa(round), b.size.besideTime); err != nil {
			return err
		}
		beside, share, busy = append(beside, p), append(share, p/alone[round]), append(busy, busyTime().since(before))
		b.say("foreground, %s: p99 %.1f ms alone, %.1f ms beside a job, machine %.0f %% busy", engine, alone[round], beside[round], 100*busy[round])
	}
	b.report.add(metric{Name: "p99 of CreateDataKey beside a job ÷ without, KMS answers after 8ms", Engine: engine, Value: median(share),
		Target: atMost(1.2), Unit: "ratio", Raw: raw{"alone, ms": alone, "beside, ms": beside, "ratio": share, "machine busy beside, share": busy}})
	return nil
}

// latenciesBesideJob measures while the rows of a key change move, and sees the
// change through.
func (w *world) latenciesBesideJob(ctx context.Context, prefix string, d time.Duration) (p99 float64, err error) {
	job, err := w.beginChange(ctx, 0)
	if err != nil {
		return 0, err
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
		return 0, errors.Join(err, errors.New("the job ended before a row moved"))
	}
	p99, err = w.latencies(ctx, prefix, d)
	return p99, errors.Join(err, <-worked)
}

// latencies calls CreateDataKey at a steady pace for a while and gives the 99th
// percentile in milliseconds. A call that is late for its turn counts from its
// turn: who waits in line waits too.
func (w *world) latencies(ctx context.Context, prefix string, d time.Duration) (p99 float64, err error) {
	var mu sync.Mutex
	var all []float64
	n := max(1, int(d/besideEvery))
	start := time.Now()
	err = inParallel(besideCallers, besideCallers, func(who int) error {
		for i := range n {
			turn := start.Add(time.Duration(i)*besideEvery + time.Duration(who)*besideEvery/besideCallers)
			time.Sleep(time.Until(turn))
			_, err := w.broker.CreateDataKey(ctx, caller(), broker.NewDataKey{Domain: tenant,
				Context: broker.Context{"object": prefix + strconv.Itoa(who*n+i)}})
			if err != nil {
				return err
			}
			mu.Lock()
			all = append(all, time.Since(turn).Seconds()*1000)
			mu.Unlock()
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	slices.Sort(all)
	return all[len(all)*99/100], nil
}

// A busyness is what the machine's processors have done since its start, in ticks;
// zero where only Linux would tell.
type busyness struct{ idle, all float64 }

func busyTime() (b busyness) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return b
	}
	line, _, _ := strings.Cut(string(text), "\n")
	for i, field := range strings.Fields(line)[1:] {
		ticks, _ := strconv.ParseFloat(field, 64)
		if b.all += ticks; i == 3 || i == 4 { // idle, and waiting for the disk (proc(5))
			b.idle += ticks
		}
	}
	return b
}

func (b busyness) since(before busyness) float64 {
	if b.all == before.all {
		return 0
	}
	return 1 - (b.idle-before.idle)/(b.all-before.all)
}
