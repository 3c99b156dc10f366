package rotation

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/pacer"
)

// A hold is how a phase says that it cannot go on now: it waits (Running, with
// a time), is blocked until somebody acts, or has failed. It is an error so
// that every step of a phase can simply return it.
type hold struct {
	State   State
	Reason  broker.Reason
	Side    Side
	Message string
	Until   time.Time
}

func (h *hold) Error() string { return string(h.State) + ": " + h.Message }

func waitUntil(until time.Time, message string) error {
	return &hold{State: Running, Message: message, Until: until}
}

func blockOn(side Side, reason broker.Reason, format string, args ...any) error {
	return &hold{State: Blocked, Reason: reason, Side: side, Message: fmt.Sprintf(format, args...)}
}

func failWith(reason broker.Reason, format string, args ...any) error {
	return &hold{State: Failed, Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// blockOnKMS turns a lasting refusal of KMS into a block on one side; a failure
// that will pass, and one that is not KMS's, is returned as it is.
func blockOnKMS(side Side, key broker.KeyARN, err error) error {
	var reason broker.Reason
	var what string
	switch class := broker.ClassOf(err); class {
	case broker.KMSDenied, broker.KMSInvalidToken:
		reason, what = broker.ReasonKeyAccessDenied, "KMS denies the broker the use of %s: compare its key policy with GenerateKeyPolicy"
	case broker.KMSDisabled:
		reason, what = broker.ReasonKeyDisabled, "%s is disabled: its owner can enable it"
	case broker.KMSInvalidState:
		reason, what = broker.ReasonKeyStateInvalid, "%s is in a state in which it cannot be used (pending deletion or import)"
	case broker.KMSNotFound:
		reason, what = broker.ReasonKeyNotFound, "KMS does not know %s, or hides it from the broker"
	case broker.KMSLimitExceeded:
		reason, what = broker.ReasonGrantLimitExceeded, "%s has as many grants as its quota allows: retire some, or have the quota raised"
	case broker.KMSInvalidPrincipal:
		reason, what = broker.ReasonGranteeNotAllowed, "KMS does not know the role that a grant on %s is for"
	default:
		if class == "" || class.Transient() {
			return err
		}
		return blockOnRefusal(side, err)
	}
	return blockOn(side, reason, what, key)
}

// blockOnRefusal is for an answer of KMS that is no key owner's doing. What KMS
// says beside its code may quote the request, so people get the request's id.
func blockOnRefusal(side Side, err error) error {
	var k *broker.KMSError
	errors.As(err, &k)
	return blockOn(side, broker.ReasonKMSRefused, "%s (request %q): no key's state or policy explains it, so whoever runs the broker has to look", err, k.RequestID)
}

// namedBy gives the key that KMS's message names.
func namedBy(err error) broker.KeyARN {
	var k *broker.KMSError
	if errors.As(err, &k) && k.Key != "" {
		return k.Key
	}
	return "a key of the job"
}

// StepJob takes the job's lease and advances it by one step, unless only a caller
// can set it going. It reports whether the job moved, so that the caller steps
// again at once. Another replica's lease is no error.
func (e *Engine) StepJob(ctx context.Context, r JobRef) (moved bool, err error) {
	var j Job
	err = e.store.Update(ctx, func(tx Tx) error {
		j, err = tx.LeaseJob(ctx, r, e.cfg.Owner, e.cfg.LeaseTTL)
		return err
	})
	if errors.Is(err, broker.ErrConflict) || errors.Is(err, broker.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	ctx = pacer.WithFlow(ctx, flowOf(j))
	stop := e.keepAlive(ctx, e.cfg.LeaseTTL, func(ctx context.Context) error {
		return e.store.Update(ctx, func(tx Tx) error { return tx.RenewJob(ctx, r, j.Lease.Seq, e.cfg.LeaseTTL) })
	})
	defer func() {
		stop()
		release := e.store.Update(context.WithoutCancel(ctx), func(tx Tx) error { return tx.ReleaseJob(ctx, r, j.Lease.Seq) })
		if !errors.Is(release, broker.ErrConflict) {
			err = errors.Join(err, release)
		}
	}()
	if !j.Open() || j.State == Paused || j.Block.Reason == broker.ReasonContextOrKeyMismatch {
		return false, nil
	}
	after, err := e.phase(ctx, j)
	return e.settle(ctx, j, after, err)
}

// phase runs the present phase and gives the job as it shall be stored, or as
// the phase itself has stored it.
func (e *Engine) phase(ctx context.Context, j Job) (Job, error) {
	if j.Kind != KindKeyChange {
		return e.sideJob(ctx, j)
	}
	if j.Phase == Preparing {
		return e.prepare(ctx, j)
	}
	if reopened, again, err := e.reopenIfAsked(ctx, j); again || err != nil {
		return reopened, err
	}
	switch j.Phase {
	case Reencrypting:
		return e.reencrypting(ctx, j)
	case Draining:
		return e.besideLeftOut(ctx, j, e.drain)
	case Verifying:
		return e.besideLeftOut(ctx, j, e.verify)
	case Retiring:
		return e.besideLeftOut(ctx, j, e.retire)
	}
	return j, fmt.Errorf("job %s is in unknown phase %q", j.ID, j.Phase)
}

// settle stores what a phase said. Failures of KMS that pass are waits; a refusal
// that the phase has no word for blocks, so that no job hangs without one.
func (e *Engine) settle(ctx context.Context, before, after Job, cause error) (moved bool, err error) {
	var h *hold
	if errors.Is(cause, broker.ErrConflict) {
		return false, nil // as below
	}
	if cause != nil && !errors.As(cause, &h) {
		switch class := broker.ClassOf(cause); {
		case class == "":
			return false, cause
		case class.Transient():
			h = &hold{State: Running, Message: "KMS throttles or does not answer; trying again"}
		default:
			errors.As(blockOnKMS("", namedBy(cause), cause), &h)
		}
	}
	if h == nil {
		after.State, after.Block, after.WaitMessage, after.WaitUntil = keepState(after), Block{}, "", time.Time{}
	}
	stored := after.Version != before.Version
	further := after.Verify != before.Verify
	changed := after.Phase != before.Phase || after.State != before.State
	err = e.store.Update(ctx, func(tx Tx) error {
		if h != nil {
			e.applyHold(&after, before, h, tx.Now())
			changed = after.Phase != before.Phase || after.State != before.State
		}
		if stored || sameJob(after, before) {
			return nil
		}
		if !after.Open() {
			after.EndTime = tx.Now()
		}
		if err := tx.UpdateJob(ctx, after); err != nil || !changed {
			return err
		}
		d, err := tx.DomainByUID(ctx, after.Domain)
		if err != nil {
			return err
		}
		return tx.Audit(ctx, e.event(broker.System.Subject, "reencryptionJobs.advance", d, after, broker.AuditDone,
			map[string]string{"phase": string(after.Phase), "state": string(after.State)}))
	})
	if errors.Is(err, broker.ErrConflict) {
		return false, nil // another replica, or a user, was faster: look again
	}
	if err != nil {
		return false, err
	}
	if changed || stored {
		e.cfg.Observe.JobState(after.Phase, after.State)
		e.cfg.Logger.InfoContext(ctx, "job advanced", "job", after.ID, "phase", after.Phase, "state", after.State,
			"reason", after.Block.Reason, "fail_reason", after.FailReason)
	}
	if moved = changed || stored || further; moved {
		e.nudge()
	}
	return moved, nil
}

// keepState: a phase that went on without a hold is running, whatever it was
// blocked on before; a final state stays.
func keepState(j Job) State {
	if j.State == Blocked {
		return Running
	}
	return j.State
}

func (e *Engine) applyHold(j *Job, before Job, h *hold, now time.Time) {
	j.Block, j.WaitMessage, j.WaitUntil = Block{}, "", time.Time{}
	j.State = h.State
	switch h.State {
	case Blocked:
		j.Block = Block{Reason: h.Reason, Side: h.Side, Message: h.Message, Since: now}
		if h.Reason != broker.ReasonContextOrKeyMismatch { // only a person ends that
			j.Block.NextProbe = now.Add(e.cfg.Probe)
		}
		if before.State == Blocked && before.Block.Reason == h.Reason {
			j.Block.Since = before.Block.Since
		}
	case Failed, Cancelled, Superseded:
		j.FailReason, j.FailMessage = h.Reason, h.Message
	default:
		j.State = keepState(*j)
		j.WaitMessage, j.WaitUntil = h.Message, h.Until
	}
}

// sameJob compares what a step may change, so that an idle wait writes nothing.
func sameJob(a, b Job) bool {
	a.Lease, b.Lease = Lease{}, Lease{}
	return a == b
}

// keepAlive renews a lease every third of its life until stop is called, or the
// lease is another's or was given back. A renewal that is not answered until the
// next is due is given up for that. The next fenced commit finds a lost lease too, so
// no error is told.
func (e *Engine) keepAlive(ctx context.Context, life time.Duration, renew func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		t := time.NewTicker(life / 3)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
				limited, cancel := context.WithTimeout(ctx, life/3)
				err := renew(limited)
				cancel()
				if errors.Is(err, broker.ErrConflict) && ctx.Err() == nil {
					e.cfg.Observe.LeaseLost()
					return // it never comes back
				}
				if err != nil && ctx.Err() == nil {
					e.cfg.Logger.WarnContext(ctx, "lease not renewed", "error", err)
				}
			}
		}
	}()
	return func() { cancel(); <-done }
}
