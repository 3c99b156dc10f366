package rotation

import (
	"context"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
)

const drainMessage = "services may still hold data keys that they made under the older keys (grant_visibility + max_store_delay)"

// drain is phase 4: it waits until no service can still hold a data key that it
// generated at KMS under an older key. The clock of an older key starts when
// its last service wrap grant ended, in this job or before; the broker's own do
// not count, since its stores are fenced by the domain lock.
func (e *Engine) drain(ctx context.Context, j Job) (Job, error) {
	open, err := e.broker.ResolveIntents(ctx, j.Domain, broker.KMSGrantRange{Kind: broker.Wrap, Below: j.TargetEpoch})
	if err != nil {
		return j, blockedFrom(namedBy(err), err)
	}
	j, retired, err := e.retireWrapGrants(ctx, j)
	if retired || err != nil {
		return j, blockedFrom(namedBy(err), err)
	}
	if open > 0 {
		return j, waitUntil(time.Time{}, "grants on the older keys that KMS has not answered for must show, or prove absent, first")
	}
	var now, until time.Time
	err = e.store.View(ctx, func(tx Tx) (err error) {
		now = tx.Now()
		until, err = e.drained(ctx, tx, j.Domain, j.TargetEpoch)
		return err
	})
	if err != nil {
		return j, err
	}
	if now.Before(until) {
		return j, waitUntil(until, drainMessage)
	}
	j.Phase, j.Verify = Verifying, Verification{}
	return j, nil
}

// drained gives the end of the longest clock of a domain's keys below an epoch,
// zero if none ever ran. It grows while a wrap grant may exist.
func (e *Engine) drained(ctx context.Context, tx Tx, d broker.DomainUID, target broker.Epoch) (until time.Time, err error) {
	keys, err := tx.DomainKeys(ctx, d)
	if err != nil {
		return until, err
	}
	for _, k := range keys {
		if k.Epoch >= target || !k.Unretired() {
			continue
		}
		end, err := tx.LastServiceWrap(ctx, d, k.Epoch)
		if err != nil {
			return until, err
		}
		if !end.IsZero() {
			until = latest(until, drainClock(end, e.broker.Windows()))
		}
	}
	return until, nil
}
