package rotation

import (
	"context"
	"slices"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
)

// askedBy gives the services whose word a job needs before it retires its older
// keys: those that were on one which is not retired yet.
func (e *Engine) askedBy(ctx context.Context, tx Tx, j Job) ([]SelfInventory, error) {
	d, err := tx.DomainByUID(ctx, j.Domain)
	if err != nil {
		return nil, err
	}
	keys, err := tx.DomainKeys(ctx, j.Domain)
	if err != nil {
		return nil, err
	}
	return e.selfInventories(ctx, tx, d, keys, replacedUnretired(keys, j.TargetEpoch))
}

// needWords blocks a job while a service's word is not given.
func needWords(inventories []SelfInventory) error {
	open := unsettled(inventories)
	if len(open) == 0 {
		return nil
	}
	return blockOn(From, broker.ReasonSelfInventory,
		"%s may have wrapped keys under an older key: each service ends a pass of ReencryptStream by complete, or an operator calls OverrideSelfInventory", named(open))
}

// askedAgain says whether a word about an older epoch that is closed was taken back
// after: this job may have closed it, or one that this job has superseded.
func (e *Engine) askedAgain(ctx context.Context, j Job) (again bool, err error) {
	err = e.store.View(ctx, func(tx Tx) error {
		d, err := tx.DomainByUID(ctx, j.Domain)
		if err != nil {
			return err
		}
		keys, err := tx.DomainKeys(ctx, j.Domain)
		if err != nil {
			return err
		}
		closed := slices.DeleteFunc(replaced(keys, j.TargetEpoch), func(k broker.DomainKey) bool { return k.State != broker.KeyClosed })
		inventories, err := e.selfInventories(ctx, tx, d, keys, closed)
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
	reopened := j
	err := e.store.Update(ctx, func(tx Tx) error {
		if err := tx.LockDomain(ctx, j.Domain, broker.Exclusive); err != nil {
			return err
		}
		d, err := tx.DomainByUID(ctx, j.Domain)
		if err != nil {
			return err
		}
		keys, err := tx.DomainKeys(ctx, j.Domain)
		if err != nil {
			return err
		}
		for _, k := range keys {
			if k.Epoch < j.TargetEpoch && k.State == broker.KeyClosed {
				k.State = broker.KeySuperseded
				if err := tx.UpdateDomainKey(ctx, k); err != nil {
					return err
				}
			}
		}
		next := j
		next.State, next.Block, next.CloseTime = keepState(j), Block{}, time.Time{}
		if err := tx.UpdateJob(ctx, next); err != nil {
			return err
		}
		if err := tx.Audit(ctx, e.event(broker.System.Subject, "reencryptionJobs.reopenOlderKeys", d, next, broker.AuditDone, nil)); err != nil {
			return err
		}
		reopened, err = tx.Job(ctx, j.Ref())
		return err
	})
	return reopened, err
}
