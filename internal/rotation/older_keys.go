package rotation

import (
	"context"
	"slices"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
)

// inventoriesOn gives the services that were on those of a job's older keys that
// about is true of, with the word of each about them.
func (e *Engine) inventoriesOn(ctx context.Context, tx Tx, j Job, about func(broker.DomainKey) bool) ([]SelfInventory, error) {
	d, err := tx.DomainByUID(ctx, j.Domain)
	if err != nil {
		return nil, err
	}
	keys, err := tx.DomainKeys(ctx, j.Domain)
	if err != nil {
		return nil, err
	}
	older := slices.DeleteFunc(replaced(keys, j.TargetEpoch), func(k broker.DomainKey) bool { return !about(k) })
	return e.selfInventories(ctx, tx, d, keys, older)
}

// needWords gives the services whose word a job needs before it retires its older
// keys: those that were on one which is not retired yet. It blocks the job while
// one is not given.
func (e *Engine) needWords(ctx context.Context, tx Tx, j Job) ([]SelfInventory, error) {
	inventories, err := e.inventoriesOn(ctx, tx, j, broker.DomainKey.Unretired)
	open := unsettled(inventories)
	if err != nil || len(open) == 0 {
		return inventories, err
	}
	return nil, blockOn(From, broker.ReasonSelfInventory,
		"%s may have wrapped keys under an older key: each service ends a pass of ReencryptStream by complete, or an operator calls OverrideSelfInventory", named(open))
}

// askedAgain says whether a word about an older epoch that is closed was taken back
// after: this job may have closed it, or one that this job has superseded.
func (e *Engine) askedAgain(ctx context.Context, j Job) (again bool, err error) {
	err = e.store.View(ctx, func(tx Tx) error {
		inventories, err := e.inventoriesOn(ctx, tx, j, func(k broker.DomainKey) bool { return k.State == broker.KeyClosed })
		again = len(unsettled(inventories)) > 0
		return err
	})
	return again, err
}

// reopenEpochs undoes closeEpochs: the older keys may be read from again, and the
// job waits for words, and for readers, as it did before. What was retired there
// meanwhile stays so, until somebody asks for it: RenewGrant makes a service's
// grant again, ResumeReencryptionJob with a reason the broker's own.
func (e *Engine) reopenEpochs(ctx context.Context, j Job) (Job, error) {
	return e.turnOlder(ctx, j, broker.KeyClosed, broker.KeySuperseded, "reencryptionJobs.reopenOlderKeys", func(Tx) error { return nil })
}

// turnOlder closes the job's older keys, or opens them again, under the exclusive
// lock and if may lets it, and notes in the job when they were closed.
func (e *Engine) turnOlder(ctx context.Context, j Job, from, to broker.KeyState, action string, may func(Tx) error) (Job, error) {
	turned := j
	err := e.store.Update(ctx, func(tx Tx) error {
		if err := tx.LockDomain(ctx, j.Domain, broker.Exclusive); err != nil {
			return err
		}
		if err := may(tx); err != nil {
			return err
		}
		d, err := tx.DomainByUID(ctx, j.Domain)
		if err != nil {
			return err
		}
		if err := markOlder(ctx, tx, j, from, to); err != nil {
			return err
		}
		next := j
		next.State, next.Block, next.CloseTime = keepState(j), Block{}, time.Time{}
		if to == broker.KeyClosed {
			next.CloseTime = tx.Now()
		}
		if err := tx.UpdateJob(ctx, next); err != nil {
			return err
		}
		if err := tx.Audit(ctx, e.event(broker.System.Subject, action, d, next, broker.AuditDone, nil)); err != nil {
			return err
		}
		turned, err = tx.Job(ctx, j.Ref())
		return err
	})
	return turned, err
}

// markOlder stores another state for those of the job's older keys that are in from.
func markOlder(ctx context.Context, tx Tx, j Job, from, to broker.KeyState) error {
	keys, err := tx.DomainKeys(ctx, j.Domain)
	if err != nil {
		return err
	}
	for _, k := range keys {
		if k.Epoch >= j.TargetEpoch || k.State != from {
			continue
		}
		k.State = to
		if to == broker.KeyRetired {
			k.RetireTime = tx.Now()
		}
		if err := tx.UpdateDomainKey(ctx, k); err != nil {
			return err
		}
	}
	return nil
}
