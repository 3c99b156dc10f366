package rotation

import (
	"context"
	"errors"

	"github.com/keybroker/keybroker/internal/broker"
)

// ChangeKey is a ChangeKey call.
type ChangeKey struct {
	Request broker.Request
	Domain  broker.DomainID
	// KMSKey is a key ARN or alias ARN; it is resolved while PREPARING.
	KMSKey string
	Etag   string // the domain's; needed for every key but the first
	Reason string
}

// ChangeKey accepts a change: phase 0 of the protocol, one transaction. The
// domain's epoch does not move yet; the job does the rest.
func (e *Engine) ChangeKey(ctx context.Context, caller broker.Caller, in ChangeKey) (JobView, error) {
	if err := broker.ValidateKeyChange(in.KMSKey, in.Reason); err != nil {
		return JobView{}, err
	}
	var view JobView
	err := e.store.Update(ctx, func(tx Tx) error {
		d, err := tx.Domain(ctx, in.Domain)
		if err != nil {
			return notFound(err, broker.ReasonDomainNotFound, in.Domain.Name())
		}
		name, err := broker.Begin(ctx, tx, caller, in.Request)
		if err != nil {
			return err
		}
		if name != "" {
			_, id, err := broker.ParseJobName("name", name)
			if err != nil {
				return err
			}
			view, err = readJob(ctx, tx, in.Domain, id)
			return err
		}
		if err := tx.LockDomain(ctx, d.UID, broker.Shared); err != nil {
			return err
		}
		if d, err = tx.DomainByUID(ctx, d.UID); err != nil {
			return err
		}
		j, err := e.accept(ctx, tx, caller, d, in)
		if err != nil {
			return err
		}
		if err := broker.Finish(ctx, tx, caller, in.Request, broker.JobName(d.ID, j.ID)); err != nil {
			return err
		}
		view, err = readJob(ctx, tx, d.ID, j.ID)
		return err
	})
	if err != nil {
		return JobView{}, err
	}
	e.nudge()
	return view, nil
}

// accept decides what the call means: the open or failed job for the same key,
// or a new job.
func (e *Engine) accept(ctx context.Context, tx Tx, caller broker.Caller, d broker.Domain, in ChangeKey) (Job, error) {
	last, err := tx.LastJob(ctx, d.UID)
	if err != nil && !errors.Is(err, broker.ErrNotFound) {
		return Job{}, err
	}
	known := err == nil
	if known && sameKey(last, in.KMSKey) {
		switch {
		case last.Open():
			return last, nil
		case last.State == Failed && last.Phase != Preparing:
			return e.resume(ctx, tx, caller, d, last, in)
		case last.State == Succeeded:
			return Job{}, keyUnchanged(d)
		}
	}
	if known && last.Open() {
		return Job{}, &broker.Error{Kind: broker.ErrPrecondition, Reason: broker.ReasonKeyChangeInProgress,
			Resource: broker.JobName(d.ID, last.ID), Detail: "a key change of this domain is under way: wait until its job has ended"}
	}
	if in.KMSKey == string(d.KMSKey) {
		return Job{}, keyUnchanged(d)
	}
	if d.Epoch > 0 && in.Etag == "" {
		return Job{}, &broker.Error{Kind: broker.ErrInvalid, Reason: broker.ReasonEtagRequired, Resource: d.ID.Name(), Detail: "the request is invalid",
			Violations: []broker.Violation{{Field: "etag", Description: "must be that of the domain, which has a key already: read the domain and repeat the call with its etag"}}}
	}
	if d.Epoch > 0 && in.Etag != d.Etag() {
		return Job{}, &broker.Error{Kind: broker.ErrConflict, Reason: broker.ReasonEtagMismatch, Resource: d.ID.Name(),
			Detail: "the etag is not the domain's present one: read the domain again and repeat the call with its etag"}
	}
	return e.open(ctx, tx, caller, d, in)
}

func keyUnchanged(d broker.Domain) error {
	return &broker.Error{Kind: broker.ErrPrecondition, Reason: broker.ReasonKeyUnchanged, Resource: d.ID.Name(),
		Detail: "the domain has this key already: there is nothing to change"}
}

func sameKey(j Job, given string) bool { return given == j.TargetGiven || given == string(j.TargetKey) }

// open stores the new job, in PREPARING, and tells the domain's writers of it.
// The target's ARN is known once DescribeKey has resolved it.
func (e *Engine) open(ctx context.Context, tx Tx, caller broker.Caller, d broker.Domain, in ChangeKey) (Job, error) {
	j := Job{
		Domain: d.UID, ID: broker.JobID(e.cfg.NewID()), Kind: KindKeyChange, Phase: Preparing, State: Running,
		SourceEpoch: d.Epoch, SourceKey: d.KMSKey, TargetEpoch: d.LastEpoch + 1, TargetGiven: in.KMSKey,
		Reason: in.Reason, Caller: caller.Subject, Version: 1, CreateTime: tx.Now(), UpdateTime: tx.Now(),
	}
	if err := tx.InsertJob(ctx, j); err != nil {
		return Job{}, err
	}
	d.LastEpoch = j.TargetEpoch
	d.KeyChange = broker.KeyChange{Job: j.ID, TargetEpoch: j.TargetEpoch}
	if err := tx.UpdateDomain(ctx, d); err != nil {
		return Job{}, err
	}
	return j, tx.Audit(ctx, e.event(caller.Subject, "domains.changeKey", d, j, broker.AuditIntended, map[string]string{
		"kms_key": in.KMSKey, "reason": in.Reason}))
}

// resume takes a failed job up again where it stands: its poison rows are tried
// anew.
func (e *Engine) resume(ctx context.Context, tx Tx, caller broker.Caller, d broker.Domain, j Job, in ChangeKey) (Job, error) {
	if err := tx.DeleteFailures(ctx, j.Ref()); err != nil {
		return Job{}, err
	}
	if err := e.insertShards(ctx, tx, j, nil); err != nil {
		return Job{}, err
	}
	j.Phase, j.State, j.FailReason, j.FailMessage = Reencrypting, Running, "", ""
	if err := tx.UpdateJob(ctx, j); err != nil {
		return Job{}, err
	}
	return j, tx.Audit(ctx, e.event(caller.Subject, "reencryptionJobs.resume", d, j, broker.AuditDone, map[string]string{"reason": in.Reason}))
}

func (e *Engine) event(caller, action string, d broker.Domain, j Job, outcome broker.AuditOutcome, detail map[string]string) broker.AuditEvent {
	return broker.AuditEvent{Caller: caller, Action: action, Domain: d.UID, Resource: broker.JobName(d.ID, j.ID), Outcome: outcome, Detail: detail}
}

// nudge wakes the runner, and everybody who watches.
func (e *Engine) nudge() {
	e.work.notify()
	e.changed.notify()
}
