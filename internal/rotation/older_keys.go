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
func (e *Engine) askedAgain(ctx context.Context, tx Tx, j Job) (bool, error) {
	inventories, err := e.inventoriesOn(ctx, tx, j, func(k broker.DomainKey) bool { return k.State == broker.KeyClosed })
	return len(unsettled(inventories)) > 0, err
}

// reopenIfAsked undoes closeEpochs where a word was taken back: the older keys may
// be read from again, and the job waits for words, and for readers, as it did
// before. What was retired there meanwhile stays so, until somebody asks for it:
// RenewGrant makes a service's grant again, ResumeReencryptionJob with a reason the
// broker's own. Whatever phase the job is in, and whatever holds it up there, the
// older keys are healthy, and needed.
func (e *Engine) reopenIfAsked(ctx context.Context, j Job) (_ Job, again bool, err error) {
	err = e.store.View(ctx, func(tx Tx) (err error) {
		again, err = e.askedAgain(ctx, tx, j)
		return err
	})
	if err == nil && again {
		j, err = e.turnOlder(ctx, j, broker.KeyClosed, broker.KeySuperseded, func(Tx) error { return nil })
	}
	return j, again, err
}

// reopenAtOnce is reopenIfAsked for a domain, without its job's lease: a job that is
// paused or has failed takes no step.
func (e *Engine) reopenAtOnce(ctx context.Context, d broker.DomainUID) error {
	asked := func(tx Tx) (j Job, again bool, err error) {
		jobs, err := tx.UnfinishedJobs(ctx, d)
		if err != nil {
			return j, false, err
		}
		// At most one change is past its switch.
		i := slices.IndexFunc(jobs, func(j Job) bool { return j.Kind == KindKeyChange && j.Phase != Preparing })
		if i < 0 {
			return j, false, nil
		}
		again, err = e.askedAgain(ctx, tx, jobs[i])
		return jobs[i], again, err
	}
	var again bool
	err := e.store.View(ctx, func(tx Tx) (err error) { // outside the lock, which stops the domain's writers
		_, again, err = asked(tx)
		return err
	})
	if err != nil || !again {
		return err
	}
	return e.store.Update(ctx, func(tx Tx) error {
		if err := tx.LockDomain(ctx, d, broker.Exclusive); err != nil {
			return err
		}
		j, again, err := asked(tx)
		if err == nil && again {
			_, err = e.turnOlderIn(ctx, tx, j, broker.KeyClosed, broker.KeySuperseded)
		}
		return err
	})
}

// turnOlder closes the job's older keys, or opens them again, under the exclusive
// lock and if may lets it.
func (e *Engine) turnOlder(ctx context.Context, j Job, from, to broker.KeyState, may func(Tx) error) (Job, error) {
	turned := j
	err := e.store.Update(ctx, func(tx Tx) error {
		if err := tx.LockDomain(ctx, j.Domain, broker.Exclusive); err != nil {
			return err
		}
		err := may(tx)
		if err == nil {
			turned, err = e.turnOlderIn(ctx, tx, j, from, to)
		}
		return err
	})
	return turned, err
}

// turnOlderIn is turnOlder in a transaction that has the lock. The job notes when
// the keys were closed; that they are open again holds up nothing else that it does.
func (e *Engine) turnOlderIn(ctx context.Context, tx Tx, j Job, from, to broker.KeyState) (Job, error) {
	d, err := tx.DomainByUID(ctx, j.Domain)
	if err != nil {
		return j, err
	}
	if err := markOlder(ctx, tx, j, from, to); err != nil {
		return j, err
	}
	action := "reencryptionJobs.reopenOlderKeys"
	j.CloseTime = time.Time{}
	if to == broker.KeyClosed {
		action = "reencryptionJobs.closeOlderKeys"
		j.State, j.Block, j.CloseTime = keepState(j), Block{}, tx.Now()
	}
	if err := tx.UpdateJob(ctx, j); err != nil {
		return j, err
	}
	if err := tx.Audit(ctx, e.event(broker.System.Subject, action, d, j, broker.AuditDone, nil)); err != nil {
		return j, err
	}
	return tx.Job(ctx, j.Ref())
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
