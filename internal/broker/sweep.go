package broker

import (
	"context"
	"errors"
	"time"
)

const (
	// endBatch bounds the grants that one transaction ends, and forgetBatch the
	// requests that one forgets; ours.
	endBatch, forgetBatch = 100, 1000
	// sweepBatch and sweepRounds bound what one sweep asks of KMS: at 50
	// RetireGrant calls a second, 100 s of work. What is left comes with the next.
	sweepBatch, sweepRounds = 200, 25
)

// settling is how old an intent must be before a listing may close it: its call
// has ended by then, and KMS shows what it made.
func (b *Broker) settling() time.Duration {
	return b.cfg.KMSCallTimeout + b.cfg.Windows.GrantVisibility
}

// Sweep ends grants whose time has come or that nobody finished, settles KMS
// grants that a crash, a refusal or a lost answer left open, and forgets old
// requests. It is called periodically; each step may be repeated, and replicas
// that sweep at the same time take up different rows.
//
// A grant ends in the database first, whatever KMS says. What it has at KMS is
// retired after, in the order of next tries: one that KMS refuses goes to the
// end, so none keeps the others waiting.
func (b *Broker) Sweep(ctx context.Context) error {
	var failed failures
	failed.add(b.endUnmade(ctx))
	failed.add(b.forgetRequests(ctx))
	for range sweepRounds {
		failed.add(b.expireDue(ctx)) // also those whose time came during the last round
		more, err := b.settleStale(ctx)
		failed.add(err)
		if !more || ctx.Err() != nil {
			break
		}
	}
	return failed.err()
}

// expireDue ends every grant whose time has come.
func (b *Broker) expireDue(ctx context.Context) error {
	return b.endFound(ctx, GrantExpired, func(tx Tx) ([]Grant, error) { return tx.DueGrants(ctx, endBatch) })
}

// endUnmade gives up every grant that was begun when requests are forgotten and
// not finished since: nobody can go on with it any more.
func (b *Broker) endUnmade(ctx context.Context) error {
	return b.endFound(ctx, GrantFailed, func(tx Tx) ([]Grant, error) {
		return tx.UnmadeGrants(ctx, tx.Now().Add(-requestMemory), endBatch)
	})
}

// endFound ends grants, batch by batch, until find finds no more.
func (b *Broker) endFound(ctx context.Context, state GrantState, find func(Tx) ([]Grant, error)) error {
	for ctx.Err() == nil {
		ended := 0
		err := b.store.Update(ctx, func(tx Tx) error {
			found, err := find(tx)
			if err != nil {
				return err
			}
			ended = len(found)
			for _, g := range found {
				if err := b.sweepGrant(ctx, tx, g, state); err != nil {
					return err
				}
			}
			return nil
		})
		if errors.Is(err, ErrConflict) {
			return b.endEach(ctx, state, find)
		}
		if err != nil || ended < endBatch {
			return err
		}
	}
	return ctx.Err()
}

// endEach ends grants one by one, so that those which somebody renews at this
// moment do not keep the others.
func (b *Broker) endEach(ctx context.Context, state GrantState, find func(Tx) ([]Grant, error)) error {
	var found []Grant
	err := b.store.View(ctx, func(tx Tx) (err error) {
		found, err = find(tx)
		return err
	})
	if err != nil {
		return err
	}
	var failed failures
	for _, g := range found {
		err := b.store.Update(ctx, func(tx Tx) error { return b.sweepGrant(ctx, tx, g, state) })
		if !errors.Is(err, ErrConflict) { // renewed or ended meanwhile
			failed.add(err)
		}
	}
	return failed.err()
}

// sweepGrant ends a grant that was found, unless it has changed since. What it has
// at KMS is left to settleStale, at once.
func (b *Broker) sweepGrant(ctx context.Context, tx Tx, g Grant, state GrantState) error {
	if err := tx.LockDomain(ctx, g.Domain, Shared); err != nil {
		return err
	}
	d, err := tx.DomainByUID(ctx, g.Domain)
	if err != nil {
		return err
	}
	marked, err := b.endGrantIn(ctx, tx, System, d, g, ending{state: state, action: "grants.end"}, Request{})
	if err != nil {
		return err
	}
	first := tx.Now()
	if g.ExpireTime.Before(first) {
		first = g.ExpireTime
	}
	for _, k := range marked {
		k.NextTry = first // before whatever is tried again
		if err := tx.UpdateKMSGrant(ctx, k); err != nil {
			return err
		}
	}
	return nil
}

// forgetRequests removes records that no repeat can use any more.
func (b *Broker) forgetRequests(ctx context.Context) error {
	for ctx.Err() == nil {
		forgotten := 0
		err := b.store.Update(ctx, func(tx Tx) (err error) {
			forgotten, err = tx.ForgetRequests(ctx, tx.Now().Add(-requestMemory), forgetBatch)
			return err
		})
		if err != nil || forgotten < forgetBatch {
			return err
		}
	}
	return ctx.Err()
}

// settleStale retires some of what is to be retired and resolves some of the
// intents that have settled. It says whether there may be more, unless KMS
// throttles or is silent.
func (b *Broker) settleStale(ctx context.Context) (more bool, err error) {
	retiring, intended, err := b.claimStale(ctx)
	if err != nil {
		return false, err
	}
	var failed failures
	err = b.retireMarked(ctx, System, retiring)
	failed.add(err)
	if !ClassOf(err).Transient() {
		_, err = b.resolveIntents(ctx, intended)
		failed.add(err)
	}
	return len(retiring)+len(intended) > 0 && !ClassOf(err).Transient(), failed.err()
}

// claimStale takes up open KMS grants that are due, and puts their next try off,
// so that no other sweep takes them up too.
func (b *Broker) claimStale(ctx context.Context) (retiring, intended []KMSGrant, err error) {
	err = b.store.Update(ctx, func(tx Tx) error {
		retiring, intended = nil, nil
		stale, err := tx.StaleKMSGrants(ctx, sweepBatch)
		if err != nil {
			return err
		}
		for _, k := range stale {
			k.NextTry = tx.Now().Add(b.patience())
			if k.State == KMSGrantRetiring {
				retiring = append(retiring, k)
			} else {
				k.NextTry = nextTry(tx.Now(), k)
				intended = append(intended, k)
			}
			if err := tx.UpdateKMSGrant(ctx, k); err != nil {
				return err
			}
		}
		return nil
	})
	return retiring, intended, err
}
