package main

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
)

// A stage is a part of a CreateDataKey call that a slow one may have waited in.
type stage int

const (
	stageTurn   stage = iota // late for its turn: its caller was still at the last one, or not woken
	stageRead                // the reading transaction
	stageKMS                 // the call of KMS, with what the pacer makes it wait, less stageAnswer
	stageAnswer              // from KMS's request to its answer, by the transport
	stageBegin               // until the storing transaction has begun
	stageStore               // its statements
	stageCommit              // its commit
	stages
)

func (s stage) String() string {
	return [...]string{"turn", "read", "KMS call", "KMS answer", "begin", "store", "commit"}[s]
}

// spent is how long one call was in each stage. One goroutine at a time writes.
type spent [stages]time.Duration

type spentKey struct{}

// spend adds the time since start to the call's stage, if the call is one that is
// measured.
func spend(ctx context.Context, s stage, start time.Time) {
	if of, ok := ctx.Value(spentKey{}).(*spent); ok {
		of[s] += time.Since(start)
	}
}

func (c spent) total() (t time.Duration) {
	for _, d := range c {
		t += d
	}
	return t
}

// slowest gives the hundredth of calls that took longest, the fastest of them first.
func slowest(calls []spent) []spent {
	sorted := slices.SortedFunc(slices.Values(calls), func(a, b spent) int { return cmp.Compare(a.total(), b.total()) })
	return sorted[len(sorted)*99/100:]
}

// p99 is the 99th percentile in milliseconds.
func p99(calls []spent) float64 { return totals(slowest(calls))[0] }

func totals(calls []spent) []float64 {
	var all []float64
	for _, c := range calls {
		all = append(all, c.total().Seconds()*1000)
	}
	return all
}

// stagesOf gives the mean milliseconds of calls in each stage.
func stagesOf(calls []spent) raw {
	out := raw{}
	for s := range stages {
		var all []float64
		for _, c := range calls {
			all = append(all, c[s].Seconds()*1000)
		}
		out[s.String()+", ms"] = []float64{mean(all)}
	}
	return out
}

// stagedStore measures the store's part.
type stagedStore struct{ broker.Store }

func (s stagedStore) View(ctx context.Context, fn func(broker.Tx) error) error {
	defer spend(ctx, stageRead, time.Now())
	return s.Store.View(ctx, fn)
}

func (s stagedStore) Update(ctx context.Context, fn func(broker.Tx) error) error {
	at := time.Now()
	err := s.Store.Update(ctx, func(tx broker.Tx) error {
		spend(ctx, stageBegin, at)
		at = time.Now()
		defer func() {
			spend(ctx, stageStore, at)
			at = time.Now()
		}()
		return fn(tx)
	})
	spend(ctx, stageCommit, at)
	return err
}

// stagedWorker measures KMS's part.
type stagedWorker struct{ broker.Worker }

func (w stagedWorker) GenerateDataKeyWithoutPlaintext(ctx context.Context, in broker.GenerateDataKey) (broker.WrappedKey, error) {
	of, _ := ctx.Value(spentKey{}).(*spent)
	if of == nil {
		return w.Worker.GenerateDataKeyWithoutPlaintext(ctx, in)
	}
	start, before := time.Now(), of[stageAnswer]
	out, err := w.Worker.GenerateDataKeyWithoutPlaintext(ctx, in)
	of[stageKMS] += time.Since(start) - (of[stageAnswer] - before)
	return out, err
}

// stagedTransport measures what of it is KMS and the way there.
type stagedTransport struct{ http.RoundTripper }

func (t stagedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	defer spend(r.Context(), stageAnswer, time.Now())
	return t.RoundTripper.RoundTrip(r)
}
