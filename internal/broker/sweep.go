package broker

import (
	"context"
	"errors"
	"time"
)

const (
	// expireBatch bounds the grants that one transaction ends; ours.
	expireBatch = 100
	// sweepBatch and sweepRounds bound what one sweep asks of KMS: at 50
	// RetireGrant calls a second, 100 s of work. What is left comes with the next.
	sweepBatch, sweepRounds = 200, 25
)

// settling is how old an intent must be before a listing may close it: its call
// has ended by then, and KMS shows what it made.
func (b *Broker) settling() time.Duration {
	return b.cfg.KMSCallTimeout + b.cfg.Windows.GrantVisibility
}

// Sweep ends grants whose time has come, and settles KMS grants that a crash, a
// refusal or a lost answer left open. It is called periodically; each step may
// be repeated, and replicas that sweep at the same time take up different KMS
// grants.
//
// A grant ends in the database first, whatever KMS says. What it has at KMS is
// retired after, in the order of next tries: one that KMS refuses goes to the
// end, so none keeps the others waiting.
func (b *Broker) Sweep(ctx context.Context) error {
	var failed failures
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
	for ctx.Err() == nil {
		ended := 0
		err := b.store.Update(ctx, func(tx Tx) error {
			due, err := tx.DueGrants(ctx, expireBatch)
			if err != nil {
				return err
			}
			ended = len(due)
			for _, g := range due {
				if err := b.expire(ctx, tx, g); err != nil {
					return err
				}
			}
			return nil
		})
		if errors.Is(err, ErrConflict) {
			return b.expireEach(ctx)
		}
		if err != nil || ended < expireBatch {
			return err
		}
	}
	return ctx.Err()
}

// expireEach ends due grants one by one, so that those which somebody renews at
// this moment do not keep the others.
func (b *Broker) expireEach(ctx context.Context) error {
	var due []Grant
	err := b.store.View(ctx, func(tx Tx) (err error) {
		due, err = tx.DueGrants(ctx, expireBatch)
		return err
	})
	if err != nil {
		return err
	}
	var failed failures
	for _, g := range due {
		err := b.store.Update(ctx, func(tx Tx) error { return b.expire(ctx, tx, g) })
		if !errors.Is(err, ErrConflict) { // renewed or ended meanwhile
			failed.add(err)
		}
	}
	return failed.err()
}

// expire ends a grant that was found due, unless it has changed since. What it
// has at KMS is left to settleStale, at once.
func (b *Broker) expire(ctx context.Context, tx Tx, g Grant) error {
	if err := tx.LockDomain(ctx, g.Domain, Shared); err != nil {
		return err
	}
	d, err := tx.DomainByUID(ctx, g.Domain)
	if err != nil {
		return err
	}
	marked, err := b.endGrantIn(ctx, tx, System, d, g, ending{state: GrantExpired, action: "grants.end"}, Request{})
	if err != nil {
		return err
	}
	for _, k := range marked {
		k.NextTry = g.ExpireTime // before whatever is tried again
		if err := tx.UpdateKMSGrant(ctx, k); err != nil {
			return err
		}
	}
	return nil
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
