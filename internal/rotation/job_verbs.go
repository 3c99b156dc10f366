package rotation

import (
	"context"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
)

// A JobAct is a call that pauses, resumes or cancels a job.
type JobAct struct {
	Request broker.Request
	Domain  broker.DomainID
	Job     broker.JobID
	Etag    string // the job's; "" acts on whatever version is there
	Reason  string
}

// PauseJob stops a job where it is. Its workers stop after the batch at hand;
// the phase, the clocks and every grant stay. A paused job stays paused.
func (e *Engine) PauseJob(ctx context.Context, caller broker.Caller, in JobAct) (JobView, error) {
	return e.act(ctx, caller, "reencryptionJobs.pause", in, func(_ Tx, d broker.Domain, j Job) (Job, error) {
		switch {
		case !j.Open() || j.Undo != "":
			return Job{}, jobEnded(d, j)
		case j.State == Paused:
			return j, nil
		}
		j.State, j.Block, j.WaitMessage, j.WaitUntil = Paused, Block{}, "", time.Time{}
		return j, nil
	})
}

// ResumeJob lets a paused job go on, lets a blocked one look again at once, and
// takes a failed one up again: after its switch with its poison rows, before it
// from the start. A job that is blocked by many poison rows goes on over them.
// With a reason, grants of the broker's own are made again: those that the customer
// took away, of a job that is blocked for want of them, and those that were retired
// before a service took its word back. Neither is ever done unasked.
func (e *Engine) ResumeJob(ctx context.Context, caller broker.Caller, in JobAct) (JobView, error) {
	view, err := e.resumeJob(ctx, caller, in)
	if err != nil || in.Reason == "" || !view.Open() {
		return view, err
	}
	revivable := view.State == Blocked && (view.Block.Reason == broker.ReasonKeyAccessDenied || view.Block.Reason == broker.ReasonSelfInventory)
	if !revivable {
		if revivable, err = e.broker.WorkerRetiredOnOpenKey(ctx, view.Domain); err != nil || !revivable {
			return view, err
		}
	}
	if err := e.broker.ReviveWorkerGrant(ctx, caller, view.Domain, in.Reason); err != nil {
		return JobView{}, err
	}
	e.nudge()
	return view, nil
}

func (e *Engine) resumeJob(ctx context.Context, caller broker.Caller, in JobAct) (JobView, error) {
	return e.act(ctx, caller, "reencryptionJobs.resume", in, func(tx Tx, d broker.Domain, j Job) (Job, error) {
		switch {
		case j.State == Paused:
			j.State = Running
		case j.State == Blocked && j.Block.Reason == broker.ReasonContextOrKeyMismatch:
			j.State, j.Block, j.AcceptMismatch = Running, Block{}, true
		case j.State == Blocked:
			j.Block.NextProbe = tx.Now()
		case j.State == Failed:
			return e.takeUpAgain(ctx, tx, caller, d, j)
		case !j.Open():
			return Job{}, jobEnded(d, j)
		}
		return j, nil
	})
}

// CancelJob takes a key change back that has not switched yet, or ends a job of
// another kind.
func (e *Engine) CancelJob(ctx context.Context, caller broker.Caller, in JobAct) (JobView, error) {
	return e.jobVerb(ctx, caller, in.Request, in.Domain, func(tx Tx, d broker.Domain) (Job, error) {
		j, err := findJob(ctx, tx, d, in)
		if err != nil {
			return Job{}, err
		}
		switch {
		case !j.Open() || j.Undo != "":
			return Job{}, jobEnded(d, j)
		case j.Kind != KindKeyChange:
			return e.end(ctx, tx, caller, d, j, Cancelled)
		case j.Phase == Preparing:
			return e.takeBack(ctx, tx, caller, &d, j, Cancelled, in.Reason)
		}
		return Job{}, &broker.Error{Kind: broker.ErrPrecondition, Reason: broker.ReasonJobNotCancellable, Resource: broker.JobName(d.ID, j.ID),
			Detail: "the domain has switched to the new key, and data may be under it: pause the job, or change the key back with ChangeKey"}
	})
}

// act changes a job in one transaction, with its audit row.
func (e *Engine) act(ctx context.Context, caller broker.Caller, action string, in JobAct, change func(Tx, broker.Domain, Job) (Job, error)) (JobView, error) {
	return e.jobVerb(ctx, caller, in.Request, in.Domain, func(tx Tx, d broker.Domain) (Job, error) {
		before, err := findJob(ctx, tx, d, in)
		if err != nil {
			return Job{}, err
		}
		j, err := change(tx, d, before)
		if err != nil || sameJob(j, before) {
			return j, err
		}
		if err := tx.UpdateJob(ctx, j); err != nil {
			return Job{}, err
		}
		return j, tx.Audit(ctx, e.event(caller.Subject, action, d, j, broker.AuditDone, map[string]string{"reason": in.Reason}))
	})
}

func findJob(ctx context.Context, tx Tx, d broker.Domain, in JobAct) (Job, error) {
	name := broker.JobName(d.ID, in.Job)
	j, err := tx.Job(ctx, JobRef{Domain: d.UID, ID: in.Job})
	if err != nil {
		return Job{}, notFound(err, broker.ReasonJobNotFound, name)
	}
	if in.Etag != "" && in.Etag != j.Etag() {
		return Job{}, &broker.Error{Kind: broker.ErrConflict, Reason: broker.ReasonEtagMismatch, Resource: name,
			Detail: "the etag is not the job's present one: read the job again and repeat the call with its etag"}
	}
	return j, nil
}

func jobEnded(d broker.Domain, j Job) error {
	state := j.State
	if j.Undo != "" {
		state = j.Undo
	}
	return &broker.Error{Kind: broker.ErrPrecondition, Reason: broker.ReasonJobEnded, Resource: broker.JobName(d.ID, j.ID),
		Detail: "the job has ended, or is about to: it is " + string(state)}
}

// end puts a job that has nothing to undo into a final state.
func (e *Engine) end(ctx context.Context, tx Tx, caller broker.Caller, d broker.Domain, j Job, final State) (Job, error) {
	j.State, j.Block, j.WaitMessage, j.WaitUntil, j.EndTime = final, Block{}, "", time.Time{}, tx.Now()
	if err := tx.UpdateJob(ctx, j); err != nil {
		return Job{}, err
	}
	return j, tx.Audit(ctx, e.event(caller.Subject, "reencryptionJobs.end", d, j, broker.AuditDone, map[string]string{"state": string(final)}))
}

// endSideJobs ends the open jobs that are no key changes: they speak of a key
// that is about to be replaced.
func (e *Engine) endSideJobs(ctx context.Context, tx Tx, caller broker.Caller, d broker.Domain, final State) error {
	jobs, err := tx.UnfinishedJobs(ctx, d.UID)
	if err != nil {
		return err
	}
	for _, j := range jobs {
		if j.Kind == KindKeyChange || !j.Open() {
			continue
		}
		if _, err := e.end(ctx, tx, caller, d, j, final); err != nil {
			return err
		}
	}
	return nil
}

// takeUpAgain lets a failed job go on, on the terms on which it began: a key
// change ends the jobs that are none, and those wait until they are alone, and
// are about the present key.
func (e *Engine) takeUpAgain(ctx context.Context, tx Tx, caller broker.Caller, d broker.Domain, j Job) (Job, error) {
	if j.Kind != KindKeyChange {
		if err := alone(ctx, tx, d); err != nil {
			return Job{}, err
		}
		if j.TargetEpoch != d.Epoch {
			return Job{}, &broker.Error{Kind: broker.ErrPrecondition, Reason: broker.ReasonJobEnded, Resource: broker.JobName(d.ID, j.ID),
				Detail: "the job is about a key that was replaced since: create another"}
		}
		return e.tryPoisonAgain(ctx, tx, j)
	}
	if err := e.endSideJobs(ctx, tx, caller, d, Superseded); err != nil {
		return Job{}, err
	}
	if j.Phase == Preparing {
		return e.prepareAgain(ctx, tx, d, j)
	}
	return e.tryPoisonAgain(ctx, tx, j)
}

// resumeFailed is ChangeKey's way to ResumeJob.
func (e *Engine) resumeFailed(ctx context.Context, tx Tx, caller broker.Caller, d broker.Domain, j Job, reason string) (Job, error) {
	j, err := e.takeUpAgain(ctx, tx, caller, d, j)
	if err != nil {
		return Job{}, err
	}
	if err := tx.UpdateJob(ctx, j); err != nil {
		return Job{}, err
	}
	return j, tx.Audit(ctx, e.event(caller.Subject, "reencryptionJobs.resume", d, j, broker.AuditDone, map[string]string{"reason": reason}))
}

// tryPoisonAgain sends a failed job over all its rows once more; failures that
// their owner has acknowledged stay so.
func (e *Engine) tryPoisonAgain(ctx context.Context, tx Tx, j Job) (Job, error) {
	var suspects broker.Epoch // nothing goes over a key change's rows at the target again but VERIFYING's sample
	if j.Kind == KindKeyChange {
		suspects = j.TargetEpoch
	}
	if err := tx.DeleteFailures(ctx, j.Ref(), suspects); err != nil {
		return Job{}, err
	}
	sofar, err := tx.Progress(ctx, j.Ref())
	if err != nil {
		return Job{}, err
	}
	if err := e.replaceShards(ctx, tx, j, nil, true); err != nil {
		return Job{}, err
	}
	j.Phase, j.State, j.FailReason, j.FailMessage, j.EndTime = Reencrypting, Running, "", "", time.Time{}
	if j.Kind == KindVerify {
		j.Phase = Verifying
		j.EstimatedRows += sofar.Done // it reads them all once more
	}
	return j, nil
}

// prepareAgain takes a change up that failed before its switch: as a new try,
// under an epoch of its own.
func (e *Engine) prepareAgain(ctx context.Context, tx Tx, d broker.Domain, j Job) (Job, error) {
	if d.KeyChange.Job != "" || d.Epoch != j.SourceEpoch {
		return Job{}, &broker.Error{Kind: broker.ErrConflict, Reason: broker.ReasonKeyChangeInProgress, Resource: d.ID.Name(),
			Detail: "the domain has gone on to another key change since: call ChangeKey instead"}
	}
	d.LastEpoch++
	d.KeyChange = broker.KeyChange{Job: j.ID, TargetEpoch: d.LastEpoch}
	if err := tx.UpdateDomain(ctx, d); err != nil {
		return Job{}, err
	}
	j.State, j.Undo, j.FailReason, j.FailMessage, j.EndTime = Running, "", "", "", time.Time{}
	j.TargetEpoch, j.TargetKey, j.PrepareTime, j.GrantTime = d.LastEpoch, "", time.Time{}, time.Time{}
	return j, nil
}
