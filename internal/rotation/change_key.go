package rotation

import (
	"context"
	"errors"
	"strings"

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
	// Priority "" is Normal for a new job, and leaves that of an open one.
	Priority Priority
	// AllowInaccessibleSource lets the domain switch although an older key cannot
	// be read: new data is safe at once, and the job waits for the old key.
	AllowInaccessibleSource bool
}

// ChangeKey accepts a change: phase 0 of the protocol, one transaction. The
// domain's epoch does not move yet; the job does the rest. A change that is
// still PREPARING gives way to the new one.
func (e *Engine) ChangeKey(ctx context.Context, caller broker.Caller, in ChangeKey) (JobView, error) {
	if err := broker.ValidateKeyChange(in.KMSKey, in.Reason); err != nil {
		return JobView{}, err
	}
	if err := checkPriority(in.Priority, "reason", in.Reason); err != nil {
		return JobView{}, err
	}
	return e.jobVerb(ctx, caller, in.Request, in.Domain, func(tx Tx, d broker.Domain) (Job, error) {
		return e.accept(ctx, tx, caller, d, in)
	})
}

// jobVerb runs a verb that ends in a job, in one transaction that holds the
// domain alone; a repeated request answers the job that it ended in before.
func (e *Engine) jobVerb(ctx context.Context, caller broker.Caller, r broker.Request, id broker.DomainID, verb func(Tx, broker.Domain) (Job, error)) (JobView, error) {
	var view JobView
	err := e.store.Update(ctx, func(tx Tx) error {
		d, err := tx.Domain(ctx, id)
		if err != nil {
			return notFound(err, broker.ReasonDomainNotFound, id.Name())
		}
		var done bool
		if view, done, err = e.doneBefore(ctx, tx, caller, r, id); done || err != nil {
			return err
		}
		if err := tx.LockDomain(ctx, d.UID, broker.Exclusive); err != nil {
			return err
		}
		if d, err = tx.DomainByUID(ctx, d.UID); err != nil {
			return err
		}
		j, err := verb(tx, d)
		if err != nil {
			return err
		}
		if err := broker.Finish(ctx, tx, caller, r, broker.JobName(d.ID, j.ID)); err != nil {
			return err
		}
		view, err = e.readJob(ctx, tx, d.ID, j.ID)
		return err
	})
	if err != nil {
		return JobView{}, err
	}
	e.nudge()
	return view, nil
}

// doneBefore gives the job that a repeated request ended in.
func (e *Engine) doneBefore(ctx context.Context, tx Tx, caller broker.Caller, r broker.Request, id broker.DomainID) (view JobView, done bool, err error) {
	name, err := broker.Begin(ctx, tx, caller, r)
	if name == "" || err != nil {
		return JobView{}, false, err
	}
	_, job, err := broker.ParseJobName("name", name)
	if err != nil {
		return JobView{}, false, err
	}
	view, err = e.readJob(ctx, tx, id, job)
	return view, true, err
}

// accept decides what the call means: the open or failed job for the same key,
// the end of a change that is taken back, or a new job.
func (e *Engine) accept(ctx context.Context, tx Tx, caller broker.Caller, d broker.Domain, in ChangeKey) (Job, error) {
	last, err := tx.LastKeyChange(ctx, d.UID)
	if err != nil && !errors.Is(err, broker.ErrNotFound) {
		return Job{}, err
	}
	if err == nil && last.Undo == "" && sameKey(last, in.KMSKey) {
		switch {
		case last.Open():
			return e.prioritize(ctx, tx, caller, d, last, in)
		case last.State == Failed && last.Phase != Preparing:
			if last, err = e.resumeFailed(ctx, tx, caller, d, last, in.Reason); err != nil {
				return Job{}, err
			}
			return e.prioritize(ctx, tx, caller, d, last, in)
		}
	}
	preparing, err := preparingJob(ctx, tx, d)
	if err != nil {
		return Job{}, err
	}
	if in.KMSKey == string(d.KMSKey) {
		if preparing == nil {
			return Job{}, &broker.Error{Kind: broker.ErrPrecondition, Reason: broker.ReasonKeyUnchanged, Resource: d.ID.Name(),
				Detail: "the domain has this key already: there is nothing to change"}
		}
		return e.takeBack(ctx, tx, caller, &d, *preparing, Cancelled, in.Reason)
	}
	if err := e.broker.CheckKeyARN(d, in.KMSKey); err != nil {
		return Job{}, err
	}
	if err := checkEtag(d, in.Etag); err != nil {
		return Job{}, err
	}
	if preparing != nil {
		if _, err := e.takeBack(ctx, tx, caller, &d, *preparing, Superseded, in.Reason); err != nil {
			return Job{}, err
		}
	}
	if err := e.endSideJobs(ctx, tx, caller, d, Superseded); err != nil {
		return Job{}, err
	}
	return e.open(ctx, tx, caller, d, in)
}

// sameKey: the key itself, or the alias by which an open job was asked for. What
// an alias points to may have changed since a job ended.
func sameKey(j Job, given string) bool {
	if strings.Contains(given, ":alias/") {
		return j.Open() && given == j.TargetGiven
	}
	return given == j.TargetGiven || given == string(j.TargetKey)
}

func checkEtag(d broker.Domain, etag string) error {
	switch {
	case etag == d.Etag(), etag == "" && d.Epoch == 0:
		return nil
	case etag == "":
		return &broker.Error{Kind: broker.ErrInvalid, Reason: broker.ReasonEtagRequired, Resource: d.ID.Name(),
			Detail: "the request is invalid", Violations: []broker.Violation{{Field: "etag",
				Description: "a change of the key needs the domain's etag: read the domain and send it"}}}
	}
	return &broker.Error{Kind: broker.ErrConflict, Reason: broker.ReasonEtagMismatch, Resource: d.ID.Name(),
		Detail: "the etag is not the domain's present one: read the domain again and repeat the call with its etag"}
}

// preparingJob gives the change that may still be taken back, nil if none.
func preparingJob(ctx context.Context, tx Tx, d broker.Domain) (*Job, error) {
	if d.KeyChange.Job == "" {
		return nil, nil
	}
	j, err := tx.Job(ctx, JobRef{Domain: d.UID, ID: d.KeyChange.Job})
	if err != nil {
		return nil, err
	}
	return &j, nil
}

// open stores the new job, in PREPARING, and tells the domain's writers of it.
// The target's ARN is known once DescribeKey has resolved it.
func (e *Engine) open(ctx context.Context, tx Tx, caller broker.Caller, d broker.Domain, in ChangeKey) (Job, error) {
	j := Job{
		Domain: d.UID, ID: broker.JobID(e.cfg.NewID()), Kind: KindKeyChange, Phase: Preparing, State: Running,
		SourceEpoch: d.Epoch, SourceKey: d.KMSKey, TargetEpoch: d.LastEpoch + 1, TargetGiven: in.KMSKey,
		Reason: in.Reason, Caller: caller.Subject, Priority: in.Priority.orNormal(), AllowInaccessibleSource: in.AllowInaccessibleSource,
		Version: 1, CreateTime: tx.Now(), UpdateTime: tx.Now(),
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
		"kms_key": in.KMSKey, "reason": in.Reason, "priority": string(j.Priority)}))
}

// prioritize gives an open job another priority, if the call asks for one.
func (e *Engine) prioritize(ctx context.Context, tx Tx, caller broker.Caller, d broker.Domain, j Job, in ChangeKey) (Job, error) {
	if in.Priority == "" || in.Priority == j.Priority {
		return j, nil
	}
	j, err := tx.Job(ctx, j.Ref()) // with its present version
	if err != nil {
		return Job{}, err
	}
	j.Priority = in.Priority
	if err := tx.UpdateJob(ctx, j); err != nil {
		return Job{}, err
	}
	return j, tx.Audit(ctx, e.event(caller.Subject, "reencryptionJobs.prioritize", d, j, broker.AuditDone, map[string]string{
		"priority": string(j.Priority), "reason": in.Reason}))
}

// checkPriority: a part that others go without needs a reason.
func checkPriority(p Priority, field, reason string) error {
	if p == High && strings.TrimSpace(reason) == "" {
		return &broker.Error{Kind: broker.ErrInvalid, Reason: broker.ReasonFieldInvalid, Detail: "the request is invalid",
			Violations: []broker.Violation{{Field: field, Description: "must say why the job goes before others, with PRIORITY_HIGH"}}}
	}
	return nil
}

func (e *Engine) event(caller, action string, d broker.Domain, j Job, outcome broker.AuditOutcome, detail map[string]string) broker.AuditEvent {
	return broker.AuditEvent{Caller: caller, Action: action, Domain: d.UID, Resource: broker.JobName(d.ID, j.ID), Outcome: outcome, Detail: detail}
}

// nudge wakes the runner, and everybody who watches.
func (e *Engine) nudge() {
	e.work.notify()
	e.changed.notify()
}
