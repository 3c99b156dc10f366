package broker

import (
	"context"
	"errors"
	"time"
)

// sweepBatch bounds one sweep; what is left comes with the next.
const sweepBatch = 200

// settling is how old an intent must be before a listing may close it: its call
// has ended by then, and KMS shows what it made.
func (b *Broker) settling() time.Duration {
	return b.cfg.KMSCallTimeout + b.cfg.Windows.GrantVisibility
}

// Sweep ends grants whose time has come, and settles KMS grants that a crash
// left without an answer. It is called periodically by one replica at a time;
// each step may be repeated.
func (b *Broker) Sweep(ctx context.Context) error {
	var due []Grant
	var stale []KMSGrant
	err := b.store.View(ctx, func(tx Tx) (err error) {
		if due, err = tx.DueGrants(ctx, sweepBatch); err != nil {
			return err
		}
		stale, err = tx.StaleKMSGrants(ctx, tx.Now().Add(-b.settling()), sweepBatch)
		return err
	})
	if err != nil {
		return err
	}
	var failures error
	for _, g := range due {
		failures = errors.Join(failures, b.endGrant(ctx, System, g.Domain, g.UID, GrantExpired, Request{}))
	}
	for _, k := range stale {
		if k.State == KMSGrantRetiring {
			failures = errors.Join(failures, b.retireKMSGrants(ctx, System, []KMSGrant{k}))
			continue
		}
		failures = errors.Join(failures, b.resolveIntent(ctx, k))
	}
	return failures
}
