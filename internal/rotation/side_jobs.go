package rotation

import (
	"context"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
)

// materialSettling is how long a data key may be on its way from KMS to the
// store: rows stored within it after a KEY_MATERIAL job began may still be under
// older material, and the job waits it out before it looks for the last time.
const materialSettling = time.Minute

// NewJob is a CreateReencryptionJob call.
type NewJob struct {
	Request broker.Request
	Domain  broker.DomainID
	Kind    Kind // KindKeyMaterial or KindVerify
	Reason  string
	// Priority "" is Normal.
	Priority Priority
}

// CreateJob starts a job about the domain's present key: KEY_MATERIAL moves the
// rows to its newest key material, which KMS's own rotation never does; VERIFY
// gives every row to KMS. Neither touches the epoch or a grant, and both end
// when a ChangeKey is accepted.
func (e *Engine) CreateJob(ctx context.Context, caller broker.Caller, in NewJob) (JobView, error) {
	if in.Kind != KindKeyMaterial && in.Kind != KindVerify {
		return JobView{}, &broker.Error{Kind: broker.ErrInvalid, Reason: broker.ReasonFieldInvalid, Detail: "the request is invalid",
			Violations: []broker.Violation{{Field: "reencryption_job.kind", Description: "must be KIND_KEY_MATERIAL or KIND_VERIFY; a key change begins with ChangeKey"}}}
	}
	if err := checkPriority(in.Priority, "reencryption_job.reason", in.Reason); err != nil {
		return JobView{}, err
	}
	d, view, done, err := e.openForJob(ctx, caller, in)
	if done || err != nil {
		return view, err
	}
	j := Job{Domain: d.UID, ID: broker.JobID(e.cfg.NewID()), Kind: in.Kind, Phase: Preparing, State: Running,
		SourceEpoch: d.Epoch, TargetEpoch: d.Epoch, SourceKey: d.KMSKey, TargetKey: d.KMSKey, TargetGiven: d.KMSKeyGiven,
		Reason: in.Reason, Caller: caller.Subject, Priority: in.Priority.orNormal(), Version: 1}
	if in.Kind == KindKeyMaterial {
		meta, err := e.registrar.DescribeKey(ctx, string(d.KMSKey))
		if err != nil {
			return JobView{}, broker.RefusedByKMS(err, d.ID.Name())
		}
		j.TargetMaterial = meta.CurrentKeyMaterialID
	}
	return e.jobVerb(ctx, caller, in.Request, in.Domain, func(tx Tx, now broker.Domain) (Job, error) {
		return e.startSideJob(ctx, tx, caller, now, j)
	})
}

// openForJob reads the domain that a job is meant for. A request that was done
// before is answered here, before KMS is asked or any row read.
func (e *Engine) openForJob(ctx context.Context, caller broker.Caller, in NewJob) (d broker.Domain, view JobView, done bool, err error) {
	err = e.store.View(ctx, func(tx Tx) (err error) {
		if d, err = tx.Domain(ctx, in.Domain); err != nil {
			return notFound(err, broker.ReasonDomainNotFound, in.Domain.Name())
		}
		view, done, err = e.doneBefore(ctx, tx, caller, in.Request, in.Domain)
		return err
	})
	if err == nil && !done {
		err = broker.NeedKey(d)
	}
	return d, view, done, err
}

func (e *Engine) startSideJob(ctx context.Context, tx Tx, caller broker.Caller, d broker.Domain, j Job) (Job, error) {
	if err := alone(ctx, tx, d); err != nil {
		return Job{}, err
	}
	if d.Epoch != j.TargetEpoch {
		return Job{}, &broker.Error{Kind: broker.ErrConflict, Reason: broker.ReasonKeyChangeInProgress, Resource: d.ID.Name(),
			Detail: "the domain's key changed during the call: repeat it"}
	}
	j.CreateTime, j.UpdateTime, j.SwitchTime = tx.Now(), tx.Now(), tx.Now()
	if err := tx.InsertJob(ctx, j); err != nil {
		return Job{}, err
	}
	// One open shard, which nobody takes before the rows are shared out: with none, the
	// release before this one would take the job for finished.
	if err := e.replaceShards(ctx, tx, j, nil, false); err != nil {
		return Job{}, err
	}
	return j, tx.Audit(ctx, e.event(caller.Subject, "reencryptionJobs.create", d, j, broker.AuditDone, map[string]string{
		"kind": string(j.Kind), "reason": j.Reason, "priority": string(j.Priority)}))
}

// alone refuses a job that is no key change while another job is open.
func alone(ctx context.Context, tx Tx, d broker.Domain) error {
	jobs, err := tx.UnfinishedJobs(ctx, d.UID)
	if err != nil {
		return err
	}
	for _, j := range jobs {
		if j.Open() {
			return &broker.Error{Kind: broker.ErrPrecondition, Reason: broker.ReasonKeyChangeInProgress, Resource: broker.JobName(d.ID, j.ID),
				Detail: "another job of this domain is under way: wait until it has ended"}
		}
	}
	return nil
}

// shareOut is the first step of a job that is no key change: it reads the domain twice
// to count its rows and to cut them into shards, which CreateJob has no time for.
func (e *Engine) shareOut(ctx context.Context, j Job) (Job, error) {
	bounds, rows, err := e.sample(ctx, j)
	if err != nil {
		return j, err
	}
	next := j
	next.Phase, next.EstimatedRows = Reencrypting, rows
	if j.Kind == KindVerify {
		next.Phase = Verifying
	}
	next.State, next.Block, next.WaitMessage, next.WaitUntil = keepState(j), Block{}, "", time.Time{}
	return e.beginSweep(ctx, j, next, bounds, "reencryptionJobs.advance",
		map[string]string{"phase": string(next.Phase), "state": string(next.State)})
}

// sideJob is every step of a job that is no key change: it shares its rows out, waits
// for its shards, and then says how they ended.
func (e *Engine) sideJob(ctx context.Context, j Job) (Job, error) {
	if j.Phase == Preparing {
		return e.shareOut(ctx, j)
	}
	if j.State == Blocked {
		p, err := e.readPlan(ctx, j)
		if err == nil {
			err = e.dryRun(ctx, p, j, nil)
		}
		return j, err // without an error settle makes it RUNNING
	}
	var progress Progress
	var now time.Time
	err := e.store.View(ctx, func(tx Tx) (err error) {
		now = tx.Now()
		progress, err = tx.Progress(ctx, j.Ref())
		return err
	})
	if err != nil || progress.FinishedShards < progress.Shards {
		return j, err
	}
	if j.Kind == KindKeyMaterial {
		if j.Phase == Reencrypting {
			j.Phase = Verifying
			return j, nil
		}
		if settled := j.CreateTime.Add(materialSettling); now.Before(settled) {
			return j, waitUntil(settled, "data keys that were on their way when the job began must be stored first")
		}
		left, err := e.olderMaterialLeft(ctx, j)
		if err != nil {
			return j, err
		}
		if left {
			return e.sweepAgain(ctx, j, 0)
		}
	}
	if progress.Failed > 0 {
		return j, failWith(broker.ReasonRowsFailed, "%d rows cannot be read by KMS; they are listed as the job's failures", progress.Failed)
	}
	j.State, j.VerifiedRows = Succeeded, progress.Done
	return j, nil
}

// olderMaterialLeft looks over the whole domain once more.
func (e *Engine) olderMaterialLeft(ctx context.Context, j Job) (left bool, err error) {
	rest := Shard{Domain: j.Domain, Job: j.ID}
	for {
		var part Shard
		err := e.store.View(ctx, func(tx Tx) (err error) {
			if part, err = tx.Stretch(ctx, rest); err != nil {
				return err
			}
			rows, err := tx.MaterialDataKeys(ctx, part, j.TargetEpoch, j.TargetMaterial, j.CreateTime.Add(materialSettling), 1)
			left = len(rows) > 0
			return err
		})
		if err != nil || left || part.High == rest.High {
			return left, err
		}
		rest.Cursor = part.High
	}
}

// pendingRows gives the next rows of the shard that the job is about.
func (w *shardWork) pendingRows(ctx context.Context, tx Tx, s Shard) ([]broker.DataKey, error) {
	limit := w.engine.cfg.BatchRows
	switch w.job.Kind {
	case KindKeyMaterial:
		return tx.MaterialDataKeys(ctx, s, w.job.TargetEpoch, w.job.TargetMaterial, w.job.CreateTime.Add(materialSettling), limit)
	case KindVerify:
		return tx.ShardDataKeys(ctx, s, limit)
	}
	return tx.PendingDataKeys(ctx, s, w.job.TargetEpoch, limit)
}
