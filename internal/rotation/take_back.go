package rotation

import (
	"context"
	"errors"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
)

// takeBack begins the undoing of a change before its switch, in the caller's
// transaction: from its commit on no grant is wanted on the new key, and the
// domain is free for another change. The job itself ends, as final, once what
// was made on the new key is retired. d is read again for the caller.
func (e *Engine) takeBack(ctx context.Context, tx Tx, caller broker.Caller, d *broker.Domain, j Job, final State, reason string) (Job, error) {
	keys, err := tx.DomainKeys(ctx, d.UID)
	if err != nil {
		return Job{}, err
	}
	if k, ok := broker.KeyOfEpoch(keys, j.TargetEpoch); ok {
		k.State = broker.KeyAbandoned
		if err := tx.UpdateDomainKey(ctx, k); err != nil {
			return Job{}, err
		}
	}
	if d.KeyChange.Job == j.ID {
		d.KeyChange = broker.KeyChange{}
		if err := tx.UpdateDomain(ctx, *d); err != nil {
			return Job{}, err
		}
		if *d, err = tx.DomainByUID(ctx, d.UID); err != nil {
			return Job{}, err
		}
	}
	j.State, j.Undo, j.Block, j.WaitMessage, j.WaitUntil = Running, final, Block{}, "", time.Time{}
	if err := tx.UpdateJob(ctx, j); err != nil {
		return Job{}, err
	}
	if err := tx.Audit(ctx, e.event(caller.Subject, "reencryptionJobs.takeBack", *d, j, broker.AuditIntended, map[string]string{
		"final_state": string(final), "reason": reason})); err != nil {
		return Job{}, err
	}
	return tx.Job(ctx, j.Ref())
}

// undoOnFailure takes a change back whose preparation has failed.
func (e *Engine) undoOnFailure(ctx context.Context, j Job, cause error) (Job, error) {
	var h *hold
	if !errors.As(cause, &h) || h.State != Failed {
		return j, cause
	}
	err := e.store.Update(ctx, func(tx Tx) error {
		if err := tx.LockDomain(ctx, j.Domain, broker.Exclusive); err != nil {
			return err
		}
		d, err := tx.DomainByUID(ctx, j.Domain)
		if err != nil {
			return err
		}
		failed := j
		failed.FailReason, failed.FailMessage = h.Reason, h.Message
		failed, err = e.takeBack(ctx, tx, broker.System, &d, failed, Failed, h.Message)
		if err == nil {
			j = failed
		}
		return err
	})
	return j, err
}

// undo retires what was made on the new key, then lets the job end as Undo says.
func (e *Engine) undo(ctx context.Context, j Job) (Job, error) {
	ours := broker.KMSGrantRange{From: j.TargetEpoch, Below: j.TargetEpoch + 1}
	open, err := e.broker.ResolveIntents(ctx, j.Domain, ours)
	if err == nil {
		_, err = e.broker.RetireEpochs(ctx, j.Domain, ours)
	}
	if err != nil {
		return j, blockOnKMS(To, j.TargetKey, err)
	}
	e.cfg.At("undo.retired")
	if open > 0 {
		return j, waitUntil(time.Time{}, "grants that KMS has not answered for must show, or prove absent, first")
	}
	return j, &hold{State: j.Undo, Reason: j.FailReason, Message: j.FailMessage}
}
