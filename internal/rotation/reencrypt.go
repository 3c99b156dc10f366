package rotation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/pacer"
)

// reencrypting is the job's part of phase 3; the rows are the shard workers'.
// It retires the older keys' wrap grants first, so that nothing new is made
// under them, finds out whether a block is over, and sees when all shards are
// done.
func (e *Engine) reencrypting(ctx context.Context, j Job) (Job, error) {
	p, err := e.readPlan(ctx, j)
	if err != nil {
		return j, err
	}
	if j.State == Blocked {
		if err := e.dryRun(ctx, p, j, nil); err != nil {
			return j, err
		}
		_, err := e.grantLeftOut(ctx, p, 0)
		return j, err // without an error settle makes it RUNNING
	}
	if _, err := e.grantLeftOut(ctx, p, e.cfg.Probe); err != nil {
		return j, err
	}
	j, retired, err := e.retireWrapGrants(ctx, j)
	class := broker.ClassOf(err)
	refused := class != "" && !class.Transient()
	if retired || err != nil && !refused {
		return j, err
	}
	var progress Progress
	err = e.store.View(ctx, func(tx Tx) (err error) {
		progress, err = tx.Progress(ctx, j.Ref())
		return err
	})
	switch {
	case err != nil:
	case progress.FinishedShards == progress.Shards:
		j.Phase = Draining
	case refused: // no reason to leave rows where they are
		err = waitUntil(p.now.Add(e.cfg.Probe), "KMS does not let the broker retire wrap grants on the older keys; the rows move meanwhile, and DRAINING waits for it")
	}
	return j, err
}

// grantLeftOut asks again for what grants were given without, since an older key
// could not be used then: rows may be under it, and it may be back. What is
// refused again and again is asked for less and less often: each time pause
// longer after. next is when the first of them is due again, as far as nothing was
// asked for now; zero for none.
func (e *Engine) grantLeftOut(ctx context.Context, p plan, pause time.Duration) (next time.Time, err error) {
	made, err := e.attempted(ctx, p)
	if err != nil {
		return next, err
	}
	for _, k := range broker.LeftOut(p.grants, p.keys, made) {
		due := k.EndTime.Add(pause * time.Duration(k.Attempt))
		if p.now.Before(due) {
			if next.IsZero() || due.Before(next) {
				next = due
			}
			continue
		}
		_, err := e.broker.EnsureGrantOn(ctx, broker.System, k.Domain, k.Grant, k.Epoch)
		if class := broker.ClassOf(err); err != nil && (class == "" || class.Transient()) {
			return next, err
		}
		next = p.now // what became of it, the next step sees
	}
	return next, nil
}

// besideLeftOut runs a phase after REENCRYPTING. Rows are under no older key any
// more, but services may read what they read before, and keep wrapped keys of their
// own: so what grants were given without is asked for on. A phase that waits is
// woken for that.
func (e *Engine) besideLeftOut(ctx context.Context, j Job, phase func(context.Context, Job) (Job, error)) (Job, error) {
	p, err := e.readPlan(ctx, j)
	if err != nil {
		return j, err
	}
	next, err := e.grantLeftOut(ctx, p, e.cfg.Probe)
	if err != nil {
		return j, err
	}
	j, err = phase(ctx, j)
	var h *hold
	if errors.As(err, &h) && h.State == Running && !next.IsZero() && next.Before(h.Until) {
		h.Until = next
	}
	return j, err
}

// attempted gives what has been tried for each live grant that an older key refused
// something once.
func (e *Engine) attempted(ctx context.Context, p plan) (made []broker.KMSGrant, err error) {
	err = e.store.View(ctx, func(tx Tx) error {
		made = nil
		read := map[broker.GrantUID]bool{}
		for _, key := range p.keys {
			if key.State != broker.KeySuperseded {
				continue
			}
			failed, err := tx.FailedOn(ctx, p.domain.UID, key.Epoch)
			if err != nil {
				return err
			}
			for _, g := range failed {
				if read[g] {
					continue
				}
				read[g] = true
				tried, err := tx.KMSGrants(ctx, p.domain.UID, g)
				if err != nil {
					return err
				}
				made = append(made, tried...)
			}
		}
		return nil
	})
	return made, err
}

// retireWrapGrants ends the wrap grants of the older keys; retired says that
// there were some.
func (e *Engine) retireWrapGrants(ctx context.Context, j Job) (_ Job, retired bool, err error) {
	n, err := e.broker.RetireEpochs(ctx, j.Domain, broker.KMSGrantRange{Kind: broker.Wrap, Below: j.TargetEpoch})
	if err != nil || n == 0 {
		return j, false, err
	}
	j, err = e.countRetired(ctx, j, n)
	return j, true, err
}

// StepShard claims one shard, works one batch of it and lets it go. It reports
// whether there was a shard to claim.
func (e *Engine) StepShard(ctx context.Context) (worked bool, err error) {
	return e.claimAndWork(ctx, 1)
}

// claimAndWork claims a shard and works on it for at most batches batches (0 is
// no limit), until it is finished, its job stops, its lease is lost, or a job
// that has fewer workers waits for one.
func (e *Engine) claimAndWork(ctx context.Context, batches int) (worked bool, err error) {
	var s Shard
	var j Job
	var now time.Time
	err = e.store.Update(ctx, func(tx Tx) error {
		now = tx.Now()
		s, j, err = tx.ClaimShard(ctx, e.cfg.Owner, e.cfg.LeaseTTL)
		return err
	})
	if errors.Is(err, broker.ErrNotFound) || errors.Is(err, broker.ErrConflict) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	w := &shardWork{engine: e, shard: s, job: j, flow: flowOf(j), asked: now}
	ctx = pacer.WithFlow(ctx, w.flow)
	stop := e.keepAlive(ctx, e.cfg.LeaseTTL, func(ctx context.Context) error {
		return e.store.Update(ctx, func(tx Tx) error { return tx.RenewShard(ctx, s, e.cfg.LeaseTTL) })
	})
	defer stop()
	if w.plan, err = e.readPlan(ctx, j); err != nil {
		return true, err
	}
	for goOn := true; goOn && err == nil; {
		goOn, err = w.sweep(ctx, batches)
	}
	if errors.Is(err, broker.ErrConflict) {
		return true, nil // the lease is another's now, or the job has ended
	}
	return true, err
}

// A rowOutcome is exactly one of: a move, a row that KMS can read (of a VERIFY
// job), a failure, a refusal that blocks the job, or none of them (left for later).
type rowOutcome struct {
	move     *Move
	verified bool
	relabel  bool
	source   broker.KeyARN
	oldID    string // the source's key material id
	failure  *Failure
	lost     error
	lostOn   broker.KeyARN
}

// settled says that nothing is left to do about the row.
func (o *rowOutcome) settled() bool { return o.move != nil || o.verified || o.failure != nil }

// moveRow moves one row. Failures that pass are tried again while the batch has
// time. Poison is what KMS says of the blob alone: that it is not under the key, or
// that it is damaged. Every other refusal says nothing of the row, which may be
// good, so it blocks the job.
func (w *shardWork) moveRow(ctx, timed context.Context, row *broker.DataKey) rowOutcome {
	if row.Epoch > w.job.TargetEpoch {
		return rowOutcome{} // a switch has ended this job meanwhile
	}
	key, ok := broker.KeyOfEpoch(w.plan.keys, row.Epoch)
	if !ok {
		return rowOutcome{failure: w.failure(row, "", fmt.Errorf("the domain never had epoch %d", row.Epoch))}
	}
	// A row without a key material was imported unproven: KMS must read it once.
	if w.job.Kind == KindKeyChange && key.KMSKey == w.job.TargetKey && row.KeyMaterialID != "" {
		return rowOutcome{relabel: true, source: key.KMSKey, oldID: row.KeyMaterialID, move: &Move{ID: row.ID, UID: row.UID,
			Version: row.Version, FromEpoch: row.Epoch, Ciphertext: row.Ciphertext, KeyMaterialID: row.KeyMaterialID, KMSRequestID: row.KMSRequestID}}
	}
	source := key.KMSKey
	for backoff := 50 * time.Millisecond; ; backoff *= 2 {
		made, err := w.reencrypt(ctx, row, source)
		if w.job.Kind == KindKeyChange && broker.ClassOf(err) == broker.KMSIncorrectKey {
			if made, source, err = w.tryOtherKeys(ctx, row, key.KMSKey); err == nil {
				w.engine.cfg.Logger.WarnContext(ctx, "row was under another key than recorded", "job", w.job.ID, "data_key", row.ID)
			}
		}
		switch class := broker.ClassOf(err); {
		case err == nil && w.job.Kind == KindVerify:
			return rowOutcome{verified: true}
		case err == nil:
			return rowOutcome{source: source, oldID: made.SourceKeyMaterialID, move: &Move{ID: row.ID, UID: row.UID, Version: row.Version,
				FromEpoch: row.Epoch, Ciphertext: made.Ciphertext, KeyMaterialID: made.DestinationKeyMaterialID, KMSRequestID: made.RequestID}}
		case class.Transient():
			wait := time.Duration(float64(backoff) * (0.5 + w.engine.cfg.Rand()))
			if w.engine.cfg.Sleep(timed, wait) != nil {
				return rowOutcome{}
			}
		case class == broker.KMSIncorrectKey || class == broker.KMSInvalidCiphertext:
			return rowOutcome{failure: w.failure(row, class, err)}
		default:
			return rowOutcome{lost: fmt.Errorf("%s: %w", broker.DataKeyName(w.plan.domain.ID, row.ID), err), lostOn: source}
		}
	}
}

// reencrypt is the one call of the engine: from source to the present key. What a
// VERIFY job makes so is dropped. The adapter has compared the keys in the answer.
func (w *shardWork) reencrypt(ctx context.Context, row *broker.DataKey, source broker.KeyARN) (broker.ReEncrypted, error) {
	full := contextOf(*row, w.plan.domain)
	return w.engine.worker.ReEncrypt(ctx, broker.ReEncrypt{Ciphertext: row.Ciphertext, SourceKey: source,
		SourceContext: full, DestinationKey: w.job.TargetKey, DestinationContext: full})
}

// tryOtherKeys asks the domain's other keys, the target among them, for a row that
// is not under the key recorded for it. A key that cannot be asked may be the right
// one: if no other is, its refusal counts, and source is that key. Those that are
// closed are left out: their refusal would be the broker's own doing, and the block
// would have no end.
func (w *shardWork) tryOtherKeys(ctx context.Context, row *broker.DataKey, recorded broker.KeyARN) (made broker.ReEncrypted, source broker.KeyARN, err error) {
	source = recorded
	err = &broker.KMSError{Class: broker.KMSIncorrectKey, Code: "IncorrectKeyException", Operation: "ReEncrypt", Key: recorded}
	tried := []broker.KeyARN{recorded}
	for _, k := range w.plan.keys {
		if !k.Readable() || slices.Contains(tried, k.KMSKey) {
			continue
		}
		tried = append(tried, k.KMSKey)
		made, otherErr := w.reencrypt(ctx, row, k.KMSKey)
		switch class := broker.ClassOf(otherErr); {
		case class == broker.KMSIncorrectKey:
		case class.Transient() || class.LostAccess():
			if !broker.ClassOf(err).Transient() {
				source, err = k.KMSKey, otherErr
			}
		default:
			return made, k.KMSKey, otherErr
		}
	}
	return broker.ReEncrypted{}, source, err
}

func (w *shardWork) failure(row *broker.DataKey, class broker.KMSClass, err error) *Failure {
	f := newFailure(w.job, *row, class, err)
	return &f
}

// newFailure is the record of a row, as it is, that KMS cannot read; it lacks its
// time.
func newFailure(j Job, row broker.DataKey, class broker.KMSClass, err error) Failure {
	return Failure{Domain: row.Domain, Job: j.ID, DataKey: row.ID, UID: row.UID, Version: row.Version, Class: class, Message: err.Error()}
}

// diagnose finds the side on which access was lost: the key that KMS's message
// names, or else the first that a dry run fails on.
func (w *shardWork) diagnose(ctx context.Context, source broker.KeyARN, lost error) error {
	var k *broker.KMSError
	if errors.As(lost, &k) && k.Key == w.job.TargetKey {
		return blockOnKMS(To, w.job.TargetKey, lost)
	}
	if errors.As(lost, &k) && k.Key == source {
		return blockOnKMS(From, source, lost)
	}
	if err := w.engine.dryRunReEncrypt(ctx, w.plan, w.job.TargetKey, w.job.TargetKey, nil); broker.ClassOf(err).LostAccess() {
		return blockOnKMS(To, w.job.TargetKey, err)
	}
	return blockOnKMS(From, source, lost)
}
