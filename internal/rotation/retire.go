package rotation

import (
	"context"
	"errors"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
)

// retire is phase 6. Services that keep their own wrapped keys must have said
// that none is left; readers get max_read_delay to let go of what they read;
// then the older epochs are closed under the exclusive lock, their KMS grants
// retired by id, and KMS itself must show, one visibility window later, that
// none of them is left. "Older" is always by epoch, never by ARN: after A to B
// and back to A the present key's own listing is read too. A service that takes
// its word back meanwhile has the older epochs opened again (reopenIfAsked).
func (e *Engine) retire(ctx context.Context, j Job) (Job, error) {
	if j.CloseTime.IsZero() {
		return e.closeEpochs(ctx, j)
	}
	older := broker.KMSGrantRange{Below: j.TargetEpoch}
	open, err := e.broker.ResolveIntents(ctx, j.Domain, older)
	if err != nil {
		return j, blockedFrom(namedBy(err), err)
	}
	retired, err := e.broker.RetireEpochs(ctx, j.Domain, older)
	if err != nil {
		return j, blockedFrom(namedBy(err), err)
	}
	if retired > 0 {
		e.cfg.At("retire.retired")
		return e.countRetired(ctx, j, retired)
	}
	if open > 0 {
		return j, waitUntil(time.Time{}, "grants on the older keys that KMS has not answered for must show, or prove absent, first")
	}
	now, ended, err := e.lastEnded(ctx, j)
	if err != nil {
		return j, err
	}
	if until := ended.Add(e.broker.Windows().GrantVisibility); !ended.IsZero() && now.Before(until) {
		return j, waitUntil(until, "KMS may take grant_visibility to forget the retired grants everywhere")
	}
	return e.proveRetired(ctx, j, now)
}

// lastEnded gives when the last KMS grant on an older epoch that is not retired
// ended, by whoever's doing, zero if there never was one.
func (e *Engine) lastEnded(ctx context.Context, j Job) (now, ended time.Time, err error) {
	err = e.store.View(ctx, func(tx Tx) error {
		keys, err := tx.DomainKeys(ctx, j.Domain)
		if err != nil {
			return err
		}
		now, ended = tx.Now(), j.RetireTime
		for _, k := range keys {
			if k.Epoch >= j.TargetEpoch || !k.Unretired() {
				continue
			}
			end, err := tx.LastKMSGrantEnd(ctx, j.Domain, k.Epoch)
			if err != nil {
				return err
			}
			ended = latest(ended, end)
		}
		return nil
	})
	return now, ended, err
}

// blockedFrom: a refusal about the older keys blocks the job on their side. key is
// the one that was asked about: namedBy tells it where it was one of several.
func blockedFrom(key broker.KeyARN, err error) error {
	if broker.ClassOf(err).LostAccess() {
		return blockOnKMS(From, key, err)
	}
	return err
}

// countRetired stores on the job how many grants were retired, and the time of
// the last RetireGrant: no listing before one visibility window later counts.
func (e *Engine) countRetired(ctx context.Context, j Job, n int) (Job, error) {
	stored := j
	err := e.store.Update(ctx, func(tx Tx) error {
		next := j
		next.GrantsRetired += int64(n)
		next.RetireTime = tx.Now()
		if err := tx.UpdateJob(ctx, next); err != nil {
			return err
		}
		var err error
		stored, err = tx.Job(ctx, next.Ref())
		return err
	})
	return stored, err
}

// mayClose holds a job whose older keys somebody may still need: a service on its
// way here with what it made under one, if a wrap grant came to light after
// DRAINING; one that keeps its own wrapped keys, until its word is given for each
// grant; a reader, for max_read_delay after the last key was moved, which for
// those services is when they said so.
func (e *Engine) mayClose(ctx context.Context, tx Tx, j Job) error {
	until, err := e.drained(ctx, tx, j.Domain, j.TargetEpoch)
	if err != nil {
		return err
	}
	if tx.Now().Before(until) {
		return waitUntil(until, drainMessage)
	}
	inventories, err := e.needWords(ctx, tx, j)
	if err != nil {
		return err
	}
	moved := j.LastMoveTime
	for _, s := range inventories {
		moved = latest(moved, s.Settled.Time)
	}
	if until := moved.Add(e.broker.Windows().MaxReadDelay); !moved.IsZero() && tx.Now().Before(until) {
		return waitUntil(until, "services may still use wrapped keys that they read before (max_read_delay)")
	}
	return nil
}

// closeEpochs forbids every new intent and import under the older keys. The
// exclusive lock makes it exact: a writer that comes after it reads the closed
// state, and one that came before has stored under the present key; a grant that
// comes after it is on no older key, and one that came before is asked about. So
// what holds the job is looked at twice: outside the lock, which must not stop
// the domain's writers again and again, and under it.
func (e *Engine) closeEpochs(ctx context.Context, j Job) (Job, error) {
	if err := e.store.View(ctx, func(tx Tx) error { return e.mayClose(ctx, tx, j) }); err != nil {
		return j, err
	}
	return e.turnOlder(ctx, j, broker.KeySuperseded, broker.KeyClosed,
		func(tx Tx) error { return e.mayClose(ctx, tx, j) })
}

// proveRetired lists the grants of every older key at KMS, in the second way where
// its owner denies the first. What it shows of an older epoch of this domain,
// recorded or not, is retired, and the wait begins again; when it shows none, the
// job has succeeded.
func (e *Engine) proveRetired(ctx context.Context, j Job, now time.Time) (Job, error) {
	p, err := e.readPlan(ctx, j)
	if err != nil {
		return j, err
	}
	left := map[broker.KeyARN][]broker.ListedGrant{}
	for _, arn := range olderKeys(p, j) {
		listed, err := e.broker.ListKMSGrants(ctx, arn)
		if broker.ClassOf(err) == broker.KMSNotFound {
			continue // the key is gone, and its grants with it
		}
		if err != nil {
			return j, blockedFrom(arn, err)
		}
		found, err := e.leftovers(ctx, j, arn, listed)
		if err != nil {
			return j, err
		}
		if len(found) > 0 {
			left[arn] = found
		}
	}
	if len(left) > 0 {
		return e.retireLeftovers(ctx, p.domain, j, left)
	}
	e.cfg.At("retire.listed")
	return e.succeed(ctx, j, now)
}

// retireLeftovers retires grants that only KMS's listings know of. No row of
// theirs says when they ended: the job says it, before the first is retired, for
// a crash in between, and after the last.
func (e *Engine) retireLeftovers(ctx context.Context, d broker.Domain, j Job, left map[broker.KeyARN][]broker.ListedGrant) (Job, error) {
	j, err := e.countRetired(ctx, j, 0)
	if err != nil {
		return j, err
	}
	retired := 0
	for arn, listed := range left {
		for _, l := range listed {
			if err := e.retireLeftover(ctx, d, j, arn, l); err != nil {
				return j, blockedFrom(arn, err)
			}
			retired++
		}
	}
	return e.countRetired(ctx, j, retired)
}

// retireLeftover retires a grant that only KMS's listing knows of, with the two
// audit events of every act at KMS.
func (e *Engine) retireLeftover(ctx context.Context, d broker.Domain, j Job, key broker.KeyARN, l broker.ListedGrant) error {
	audit := func(outcome broker.AuditOutcome, requestID string) error {
		return e.store.Update(ctx, func(tx Tx) error {
			event := e.event(broker.System.Subject, "kms.RetireGrant", d, j, outcome,
				map[string]string{"kms_key": string(key), "kms_grant_id": l.ID, "name": l.Name})
			event.KMSRequestID = requestID
			return tx.Audit(ctx, event)
		})
	}
	if err := audit(broker.AuditIntended, ""); err != nil {
		return err
	}
	requestID, err := e.registrar.RetireGrant(ctx, key, l.ID)
	if err != nil {
		return err
	}
	return audit(broker.AuditDone, requestID)
}

// olderKeys are the ARNs of every epoch below the target that is not retired.
func olderKeys(p plan, j Job) []broker.KeyARN {
	seen := map[broker.KeyARN]bool{}
	var arns []broker.KeyARN
	for _, k := range p.keys {
		if k.Epoch < j.TargetEpoch && k.Unretired() && !seen[k.KMSKey] {
			seen[k.KMSKey] = true
			arns = append(arns, k.KMSKey)
		}
	}
	return arns
}

// leftovers gives those of the grants which KMS lists on a key that are this
// domain's, for an epoch below the target. They are known by their Names, which KMS
// never changes: the row of a Name says whose it is. What is live there of all
// domains is read at once, and what KMS shows besides is little.
func (e *Engine) leftovers(ctx context.Context, j Job, key broker.KeyARN, listed []broker.ListedGrant) (left []broker.ListedGrant, err error) {
	err = e.store.View(ctx, func(tx Tx) error {
		left = nil
		open, err := tx.KMSGrantsOnKey(ctx, key)
		if err != nil {
			return err
		}
		rows := make(map[string]broker.KMSGrant, len(open))
		for _, k := range open {
			rows[k.Name] = k
		}
		for _, l := range listed {
			is, err := e.leftover(ctx, tx, j, rows, l.Name)
			if err != nil {
				return err
			}
			if is {
				left = append(left, l)
			}
		}
		return nil
	})
	return left, err
}

// leftover reports whether a Name that KMS lists is this domain's, for an epoch
// below the target. One of ours without a row says by itself for which grant and
// epoch it is.
func (e *Engine) leftover(ctx context.Context, tx Tx, j Job, open map[string]broker.KMSGrant, name string) (bool, error) {
	row, known := open[name]
	parts, ours := e.broker.ParseKMSGrantName(name)
	if !known && ours {
		var err error
		if row, err = tx.KMSGrantByName(ctx, name); err != nil && !errors.Is(err, broker.ErrNotFound) {
			return false, err
		}
		known = err == nil
	}
	if known {
		return row.Domain == j.Domain && row.Epoch < j.TargetEpoch, nil
	}
	if !ours || parts.Epoch >= j.TargetEpoch {
		return false, nil
	}
	_, err := tx.GrantByUID(ctx, j.Domain, parts.Grant)
	if errors.Is(err, broker.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// succeed is the end: the older epochs are retired in the transaction that
// records the listing, unless a word was taken back before. The exclusive lock
// makes that exact: a service that finds out later is heard by the report alone.
func (e *Engine) succeed(ctx context.Context, j Job, listed time.Time) (Job, error) {
	err := e.store.Update(ctx, func(tx Tx) error {
		if err := tx.LockDomain(ctx, j.Domain, broker.Exclusive); err != nil {
			return err
		}
		if _, err := e.needWords(ctx, tx, j); err != nil {
			return err
		}
		if err := markOlder(ctx, tx, j, broker.KeyClosed, broker.KeyRetired); err != nil {
			return err
		}
		next := j
		next.State, next.Block, next.WaitMessage, next.WaitUntil = Succeeded, Block{}, "", time.Time{}
		next.ListTime, next.EndTime = listed, tx.Now()
		if err := tx.UpdateJob(ctx, next); err != nil {
			return err
		}
		d, err := tx.DomainByUID(ctx, j.Domain)
		if err != nil {
			return err
		}
		if err := tx.Audit(ctx, e.event(broker.System.Subject, "reencryptionJobs.succeed", d, next, broker.AuditDone, nil)); err != nil {
			return err
		}
		j, err = tx.Job(ctx, j.Ref())
		return err
	})
	return j, err
}
