package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/keybroker/keybroker/internal/rotation"
)

// A figure is what a number of calls or rows took of this process.
type figure struct {
	N       int64
	Seconds float64
	CPU     float64 // microseconds of processor time for one
}

func (f figure) rate() float64 { return float64(f.N) / f.Seconds }

// measure runs fn, which does n things.
func measure(n int, fn func() error) (figure, error) {
	cpu, start := cpuTime(), time.Now()
	err := fn()
	return figure{N: int64(n), Seconds: time.Since(start).Seconds(), CPU: micros(cpuTime()-cpu) / float64(n)}, err
}

// inParallel calls fn for 0 to n-1 from some goroutines, until one fails.
func inParallel(workers, n int, fn func(i int) error) error {
	var next atomic.Int64
	var wg sync.WaitGroup
	var once sync.Once
	var failure error
	for range min(workers, n) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				if err := fn(i); err != nil {
					once.Do(func() { failure = err })
					next.Store(int64(n))
				}
			}
		})
	}
	wg.Wait()
	return failure
}

// bareLoop gives every row to the SDK's own ReEncrypt, from the tenant's key to
// itself: the least that a program without a broker would do, and it stores
// nothing. The key is the same on both sides because the worker's grants on the
// next one do not exist yet; localkms does the same work either way.
func (w *world) bareLoop(ctx context.Context) (figure, error) {
	d, rows, err := w.rows(ctx)
	if err != nil {
		return figure{}, err
	}
	inputs := make([]kms.ReEncryptInput, len(rows))
	key := string(d.KMSKey)
	for i, row := range rows {
		full := row.Context.With(d.Reserved)
		inputs[i] = kms.ReEncryptInput{CiphertextBlob: row.Ciphertext, SourceKeyId: &key, SourceEncryptionContext: full,
			DestinationKeyId: &key, DestinationEncryptionContext: full}
	}
	return measure(len(rows), func() error {
		return inParallel(w.pool.total(), len(inputs), func(i int) error {
			_, err := w.bare.ReEncrypt(ctx, &inputs[i])
			return err
		})
	})
}

// A change is one durable key change.
type change struct {
	figure         // of REENCRYPTING alone: from the switch to the last row's commit
	Verified int64 // calls that VERIFYING made
	PeakKiB  int64 // of the process, if it did nothing else; 0 if unknown
}

// changeKey changes the tenant's key to a new one and sees the job through.
func (w *world) changeKey(ctx context.Context, rows int64) (out change, err error) {
	job, err := w.beginChange(ctx, rows)
	if err != nil {
		return out, err
	}
	view, err := w.work(ctx, job)
	if err != nil {
		return out, err
	}
	if view.Progress.Done != rows {
		return out, fmt.Errorf("%d of %d rows were moved", view.Progress.Done, rows)
	}
	out.Verified = view.VerifiedRows
	if rows > 0 {
		out.figure = figure{N: rows, Seconds: view.LastMoveTime.Sub(view.SwitchTime).Seconds(), CPU: w.watch.cpuPerRow()}
	}
	return out, nil
}

// beginChange accepts a change of the tenant's key to a new one.
func (w *world) beginChange(ctx context.Context, rows int64) (job rotation.JobView, err error) {
	key, err := w.newKey(ctx)
	if err != nil {
		return job, err
	}
	d, _, err := w.broker.GetDomain(ctx, caller(), tenant)
	if err != nil {
		return job, err
	}
	w.watch.begin(rows)
	return w.engine.ChangeKey(ctx, caller(), rotation.ChangeKey{Domain: tenant, KMSKey: string(key), Etag: d.Etag(), Reason: "bench"})
}

// work runs the engine until the watched job ends.
func (w *world) work(ctx context.Context, job rotation.JobView) (view rotation.JobView, err error) {
	running, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		_ = w.engine.Run(running) // it ends with the context, and says so
		close(ended)
	}()
	select {
	case <-w.watch.stopped:
	case <-ctx.Done():
	}
	stop()
	<-ended
	if err := ctx.Err(); err != nil {
		return view, err
	}
	if view, err = w.engine.GetJob(ctx, caller(), tenant, job.ID); err == nil && view.State != rotation.Succeeded {
		err = fmt.Errorf("the job is %s in %s: %s%s", view.State, view.Phase, view.Block.Message, view.FailMessage)
	}
	return view, err
}

// watch observes one job at a time: the processor time between the switch and
// the last row, and the end.
type watch struct {
	mu             sync.Mutex
	rows, moved    int64
	switched, last time.Duration // processor time of this process
	// moving is closed at the first batch, stopped at the end.
	moving, stopped chan struct{}
}

var _ rotation.Observer = (*watch)(nil)

func newWatch() *watch { return &watch{moving: make(chan struct{}), stopped: make(chan struct{})} }

func (w *watch) begin(rows int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rows, w.moved, w.switched, w.last = rows, 0, 0, 0
	w.moving, w.stopped = make(chan struct{}), make(chan struct{})
}

// Batch implements rotation.Observer.
func (w *watch) Batch(rows rotation.BatchRows, _ time.Duration) {
	moved := rows.Moved + rows.Relabelled
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.moved == 0 && moved > 0 {
		close(w.moving)
	}
	if w.moved += int64(moved); w.moved >= w.rows {
		w.last = cpuTime()
	}
}

// LeaseLost implements rotation.Observer.
func (w *watch) LeaseLost() {}

// Periodic implements rotation.Observer.
func (w *watch) Periodic(string, error) {}

// JobState implements rotation.Observer.
func (w *watch) JobState(p rotation.Phase, s rotation.State) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p == rotation.Reencrypting && w.switched == 0 {
		w.switched = cpuTime()
	}
	if s != rotation.Running {
		select {
		case <-w.stopped:
		default:
			close(w.stopped)
		}
	}
}

func (w *watch) cpuPerRow() float64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return micros(w.last-w.switched) / float64(w.rows)
}
