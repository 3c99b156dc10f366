package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// retireBatch bounds the KMS grants that one transaction marks; ours.
	retireBatch = 100
	// retireAtATime is how many RetireGrant calls are at KMS at a time. At its
	// 50 calls a second (KMS Developer Guide, Request quotas) more would only be
	// throttled.
	retireAtATime = 8
	// retryFirst and retryLast bound the wait before a KMS grant that could not
	// be settled is tried again; in between it is as old as it is.
	retryFirst, retryLast = 5 * time.Second, 15 * time.Minute
)

// RetireEpochs retires every KMS grant of a domain that is in a range and may exist
// at KMS with a known id. It returns how many it retired; an intent without an
// answer is left to ResolveIntents.
func (b *Broker) RetireEpochs(ctx context.Context, domain DomainUID, which KMSGrantRange) (int, error) {
	var chosen []KMSGrant
	err := b.store.View(ctx, func(tx Tx) (err error) {
		chosen, err = tx.RecordedKMSGrants(ctx, domain, which)
		return err
	})
	if err != nil {
		return 0, err
	}
	return len(chosen), b.retireKMSGrants(ctx, System, chosen)
}

// retireKMSGrants retires grants at KMS, batch by batch: the will is committed
// first, then KMS is asked, then the outcome is committed. Asking twice does no
// harm. It goes on after a refusal, but not while KMS throttles or is silent,
// and returns what went wrong; Sweep goes on with what is left.
func (b *Broker) retireKMSGrants(ctx context.Context, caller Caller, grants []KMSGrant) error {
	var failed failures
	for batch := range slices.Chunk(grants, retireBatch) {
		var marked []KMSGrant
		err := b.store.Update(ctx, func(tx Tx) (err error) {
			marked, err = markRetiring(ctx, tx, caller, batch, b.patience())
			return err
		})
		if err == nil {
			err = b.retireMarked(ctx, caller, marked)
		}
		failed.add(err)
		if err != nil && (ClassOf(err) == "" || ClassOf(err).Transient()) {
			break
		}
	}
	return failed.err()
}

// markRetiring commits, with tx, to retiring those of the grants that are
// recorded at KMS, and gives them. Until patience is over no sweep takes them
// up: somebody is at it.
func markRetiring(ctx context.Context, tx Tx, caller Caller, grants []KMSGrant, patience time.Duration) ([]KMSGrant, error) {
	var marked []KMSGrant
	for _, g := range grants {
		now, err := tx.KMSGrantByName(ctx, g.Name)
		if err != nil {
			return nil, err
		}
		if now.State != KMSGrantLive && now.State != KMSGrantRetiring {
			continue
		}
		fresh := now.State == KMSGrantLive
		if fresh {
			now.State, now.IntendTime = KMSGrantRetiring, tx.Now()
		}
		now.NextTry = tx.Now().Add(patience)
		if err := tx.UpdateKMSGrant(ctx, now); err != nil {
			return nil, err
		}
		if fresh {
			if err := tx.Audit(ctx, kmsGrantEvent(caller, "kms.RetireGrant", AuditIntended, now)); err != nil {
				return nil, err
			}
		}
		marked = append(marked, now)
	}
	return marked, nil
}

// A retireAnswer is what became of one RetireGrant.
type retireAnswer struct {
	requestID string
	err       error
}

// errNotAsked stands for an answer to what KMS was not asked any more.
var errNotAsked = errors.New("KMS was not asked")

// retireMarked asks KMS for what was marked and records the outcomes.
func (b *Broker) retireMarked(ctx context.Context, caller Caller, marked []KMSGrant) error {
	if len(marked) == 0 {
		return nil
	}
	b.cfg.At("retire.marked")
	answers := b.retireAtKMS(ctx, marked)
	b.cfg.At("retire.asked")
	var failed failures
	for _, a := range answers {
		if !errors.Is(a.err, errNotAsked) {
			failed.add(a.err)
		}
	}
	failed.add(ctx.Err())
	record := context.WithoutCancel(ctx)
	failed.add(b.store.Update(record, func(tx Tx) error {
		for i, g := range marked {
			if err := recordRetire(record, tx, caller, g, answers[i]); err != nil {
				return err
			}
		}
		return nil
	}))
	return failed.err()
}

// retireAtKMS asks for some at a time. Once KMS throttles, or is silent again
// and again, the rest is not asked for.
func (b *Broker) retireAtKMS(ctx context.Context, grants []KMSGrant) []retireAnswer {
	answers := make([]retireAnswer, len(grants))
	var next, silent atomic.Int64
	var throttled atomic.Bool
	var wg sync.WaitGroup
	for range min(retireAtATime, len(grants)) {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(grants)); i = next.Add(1) - 1 {
				if throttled.Load() || silent.Load() >= retireAtATime || ctx.Err() != nil {
					answers[i].err = errNotAsked
					continue
				}
				id, err := b.registrar.RetireGrant(ctx, grants[i].KMSKey, grants[i].KMSGrantID)
				answers[i] = retireAnswer{id, err}
				switch ClassOf(err) {
				case KMSThrottled:
					throttled.Store(true)
				case KMSUnavailable:
					silent.Add(1)
				}
			}
		})
	}
	wg.Wait()
	return answers
}

// recordRetire stores one outcome. What was not retired is tried again, after
// those that wait already, and the later the longer it has been tried: so one
// key that refuses keeps no other grant waiting.
func recordRetire(ctx context.Context, tx Tx, caller Caller, g KMSGrant, a retireAnswer) error {
	now, err := tx.KMSGrantByName(ctx, g.Name)
	if err != nil || now.State != KMSGrantRetiring || now.KMSGrantID != g.KMSGrantID {
		return err
	}
	switch {
	case errors.Is(a.err, errNotAsked):
		now.NextTry = tx.Now()
	case a.err != nil:
		now.NextTry = nextTry(tx.Now(), now)
	default:
		now.State, now.EndTime = KMSGrantRetired, tx.Now()
		event := kmsGrantEvent(caller, "kms.RetireGrant", AuditDone, now)
		event.KMSRequestID = a.requestID
		if err := tx.Audit(ctx, event); err != nil {
			return err
		}
	}
	return tx.UpdateKMSGrant(ctx, now)
}

func nextTry(now time.Time, g KMSGrant) time.Time {
	return now.Add(min(max(now.Sub(g.IntendTime), retryFirst), retryLast))
}

// failures collects what went wrong in a run that goes on: one error, and how many
// there were. It is the first, but a key's owner's refusal (LostAccess) only where
// there is nothing else: whoever gets one knows that all else was done.
type failures struct {
	mu  sync.Mutex
	one error
	n   int
}

func (f *failures) add(err error) {
	if err == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n++
	if f.one == nil || ClassOf(f.one).LostAccess() && !ClassOf(err).LostAccess() {
		f.one = err
	}
}

func (f *failures) err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.n > 1 {
		return fmt.Errorf("%w (one of %d failures)", f.one, f.n)
	}
	return f.one
}

// atATime does something with each item, so many at a time, and goes on over what
// fails.
func atATime[T any](n int, items []T, do func(T) error) error {
	var failed failures
	var wg sync.WaitGroup
	slots := make(chan struct{}, n)
	for _, item := range items {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			failed.add(do(item))
		})
	}
	wg.Wait()
	return failed.err()
}
