package rotation

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
)

// prepare is phase 1: is the new key usable, is it the customer's to give, are
// all grants on it, can everything be moved to it? Until the switch the domain
// stays as it was; a failure here undoes what was made.
func (e *Engine) prepare(ctx context.Context, j Job) (Job, error) {
	if j.Undo != "" {
		return e.undo(ctx, j)
	}
	if j.TargetKey == "" {
		return e.resolveTarget(ctx, j)
	}
	p, err := e.readPlan(ctx, j)
	if err != nil {
		return j, err
	}
	if j.PrepareTime.IsZero() {
		j, err = e.grantEverything(ctx, p, j)
		return e.undoOnFailure(ctx, j, err)
	}
	if p.serviceGrants() {
		if visible := j.GrantTime.Add(e.broker.Windows().GrantVisibility); p.now.Before(visible) {
			return j, waitUntil(visible, "grants on the new key must be visible at KMS everywhere before the switch")
		}
	}
	if err := e.checkTarget(ctx, p.domain, j); err != nil {
		return e.undoOnFailure(ctx, j, err)
	}
	if err := e.dryRun(ctx, p, j, nil); err != nil {
		return e.undoOnFailure(ctx, j, e.perhapsInvisible(p, j, err))
	}
	if err := e.probeHalves(ctx, p.domain, j, nil); err != nil {
		return e.undoOnFailure(ctx, j, err)
	}
	return e.switchKey(ctx, j)
}

// A plan is what PREPARING reads of the domain at the start of a step.
type plan struct {
	now     time.Time
	domain  broker.Domain
	keys    []broker.DomainKey
	grants  []broker.Grant // live ones, the worker's too
	reserve broker.Context // the reserved pair alone
}

// readPlan reads it, and also whatever else is to be of the same snapshot.
func (e *Engine) readPlan(ctx context.Context, j Job, also ...func(tx Tx) error) (plan, error) {
	var p plan
	err := e.store.View(ctx, func(tx Tx) (err error) {
		p.now = tx.Now()
		if p.domain, err = tx.DomainByUID(ctx, j.Domain); err != nil {
			return err
		}
		if p.keys, err = tx.DomainKeys(ctx, j.Domain); err != nil {
			return err
		}
		if p.grants, err = tx.LiveGrants(ctx, j.Domain); err != nil {
			return err
		}
		for _, read := range also {
			if err := read(tx); err != nil {
				return err
			}
		}
		return nil
	})
	p.reserve = broker.Context(nil).With(p.domain.Reserved)
	return p, err
}

func (p plan) serviceGrants() bool {
	return slices.ContainsFunc(p.grants, func(g broker.Grant) bool { return !g.Worker })
}

// sources are the older keys that rows may still be under, each once, the
// target's own left out. Under a closed one there are none: a full pass has seen it.
func (p plan) sources(j Job) []broker.KeyARN {
	var arns []broker.KeyARN
	for _, k := range p.keys {
		if k.Epoch < j.TargetEpoch && k.Readable() && k.KMSKey != j.TargetKey && !slices.Contains(arns, k.KMSKey) {
			arns = append(arns, k.KMSKey)
		}
	}
	return arns
}

// resolveTarget asks KMS which key was meant, once and for all: an alias that is
// moved later is not followed.
func (e *Engine) resolveTarget(ctx context.Context, j Job) (Job, error) {
	p, err := e.readPlan(ctx, j)
	if err != nil {
		return j, err
	}
	meta, err := e.registrar.DescribeKey(ctx, j.TargetGiven)
	if err != nil {
		return e.undoOnFailure(ctx, j, describeFailed(j.TargetGiven, err))
	}
	e.cfg.At("prepare.described")
	if err := e.checkMetadata(p.domain, meta); err != nil {
		return e.undoOnFailure(ctx, j, err)
	}
	if meta.ARN == p.domain.KMSKey {
		return e.undoOnFailure(ctx, j, failWith(broker.ReasonKeyUnchanged, "the domain has this key already"))
	}
	err = e.store.Update(ctx, func(tx Tx) error {
		if err := tx.LockDomain(ctx, j.Domain, broker.Exclusive); err != nil {
			return err
		}
		d, err := tx.DomainByUID(ctx, j.Domain)
		if err != nil {
			return err
		}
		d.KeyChange.TargetKey = meta.ARN
		if err := tx.UpdateDomain(ctx, d); err != nil {
			return err
		}
		if err := tx.InsertDomainKey(ctx, broker.DomainKey{Domain: d.UID, Epoch: j.TargetEpoch, KMSKey: meta.ARN, State: broker.KeyPreparing}); err != nil {
			return err
		}
		resolved := j
		resolved.TargetKey = meta.ARN
		if err := tx.UpdateJob(ctx, resolved); err != nil {
			return err
		}
		j, err = tx.Job(ctx, j.Ref())
		return err
	})
	return j, err
}

func describeFailed(key string, err error) error {
	switch broker.ClassOf(err) {
	case broker.KMSNotFound:
		return failWith(broker.ReasonKeyNotFound, "KMS does not know %s", key)
	case broker.KMSDenied:
		return failWith(broker.ReasonKeyPolicyMissing, "KMS does not let the broker describe %s: put GenerateKeyPolicy's statements into its key policy", key)
	case broker.KMSInvalidRequest:
		return failWith(broker.ReasonKeyARNInvalid, "KMS does not accept %s as a key", key)
	}
	return err
}

// checkMetadata: the wrong kind of key fails the change; one that is only
// disabled blocks it.
func (e *Engine) checkMetadata(d broker.Domain, m broker.KeyMetadata) error {
	err := e.broker.CheckKey(d, m)
	var be *broker.Error
	if !errors.As(err, &be) {
		return err
	}
	if be.Reason == broker.ReasonKeyDisabled || be.Reason == broker.ReasonKeyStateInvalid {
		return blockOn(To, be.Reason, "%s: %s", m.ARN, be.Detail)
	}
	return failWith(be.Reason, "%s: %s", m.ARN, be.Detail)
}

// checkTarget is (a) and (b): the key's kind and state, and whether it is the
// customer's to give.
func (e *Engine) checkTarget(ctx context.Context, d broker.Domain, j Job) error {
	meta, err := e.registrar.DescribeKey(ctx, string(j.TargetKey))
	if err != nil {
		return blockOnKMS(To, j.TargetKey, err)
	}
	if err := e.checkMetadata(d, meta); err != nil {
		return err
	}
	return e.probeOwnership(ctx, d, j)
}

// grantEverything is (c) and (d): the broker's and every live service grant on
// the new key, and with their tokens a dry run of all that must be possible.
// A grant that is being created adds the new key by itself. Nothing is asked of
// older keys: what they refuse is no reason to stay on them.
func (e *Engine) grantEverything(ctx context.Context, p plan, j Job) (Job, error) {
	if err := e.checkTarget(ctx, p.domain, j); err != nil {
		return j, err
	}
	var tokens []broker.Secret
	ensured := map[broker.GrantUID]bool{}
	for _, g := range p.grants {
		if g.State != broker.GrantActive {
			continue
		}
		minted, err := e.broker.EnsureGrantOn(ctx, broker.System, g.Domain, g.UID, j.TargetEpoch)
		if broker.ClassOf(err) == broker.KMSInvalidPrincipal {
			return j, blockOn(To, broker.ReasonGranteeNotAllowed, "KMS does not know the grantee of %s any more: RevokeGrant lets the change go on",
				broker.GrantName(p.domain.ID, g.ID))
		}
		if err != nil {
			return j, blockOnKMS(To, j.TargetKey, err)
		}
		if g.Worker {
			tokens = minted
		}
		ensured[g.UID] = true
	}
	var made []broker.KMSGrant
	p, err := e.readPlan(ctx, j, func(tx Tx) (err error) {
		made, err = onTarget(ctx, tx, j)
		return err
	})
	if err != nil {
		return j, err
	}
	for _, g := range unprepared(p.grants, made, j) {
		if ensured[g.UID] {
			return j, takenAwayFrom(p.domain, g, j)
		}
	}
	for _, k := range made {
		j.GrantTime = latest(j.GrantTime, k.LiveTime)
	}
	if err := e.dryRun(ctx, p, j, tokens); err != nil {
		return j, e.perhapsInvisible(p, j, err)
	}
	if err := e.probeHalves(ctx, p.domain, j, tokens); err != nil {
		return j, err
	}
	e.cfg.At("prepare.granted")
	j.PrepareTime = p.now
	return j, nil
}

// onTarget gives what KMS holds on a job's new key.
func onTarget(ctx context.Context, tx Tx, j Job) ([]broker.KMSGrant, error) {
	return tx.RecordedKMSGrants(ctx, j.Domain, broker.KMSGrantRange{From: j.TargetEpoch, Below: j.TargetEpoch + 1})
}

// unprepared gives the grants that could not be used after the switch.
func unprepared(live []broker.Grant, made []broker.KMSGrant, j Job) (lacking []broker.Grant) {
	target := broker.DomainKey{Domain: j.Domain, Epoch: j.TargetEpoch, KMSKey: j.TargetKey, State: broker.KeyPreparing}
	of := map[broker.GrantUID][]broker.KMSGrant{}
	for _, k := range made {
		of[k.Grant] = append(of[k.Grant], k)
	}
	for _, g := range live {
		if g.State == broker.GrantActive && broker.Missing(g, target, of[g.UID]) {
			lacking = append(lacking, g)
		}
	}
	return lacking
}

// takenAwayFrom: what a grant had on the new key is gone, and nobody makes it
// again unasked, so somebody has to decide.
func takenAwayFrom(d broker.Domain, g broker.Grant, j Job) error {
	if g.Worker {
		return blockOn(To, broker.ReasonKeyAccessDenied, "the broker's own grant on %s was taken away: ResumeReencryptionJob with a reason makes it again", j.TargetKey)
	}
	return blockOn(To, broker.ReasonKeyAccessDenied, "what %s had on %s was taken away: RenewGrant makes it again, and RevokeGrant lets the change go on without",
		broker.GrantName(d.ID, g.ID), j.TargetKey)
}

// perhapsInvisible turns a denial into a wait as long as KMS may not yet show
// the grants that were made last.
func (e *Engine) perhapsInvisible(p plan, j Job, err error) error {
	var h *hold
	if !errors.As(err, &h) || h.Reason != broker.ReasonKeyAccessDenied {
		return err
	}
	if visible := j.GrantTime.Add(e.broker.Windows().GrantVisibility); p.now.Before(visible) {
		return waitUntil(p.now.Add(e.cfg.Poll), "the broker's own grants on the new key are not visible at KMS yet")
	}
	return err
}

// dryRun asks KMS whether the worker may do all that the change needs: make
// data keys under the new key, read them again, and move every older row. What
// fails first on the new key is its side's; after that it is the old one's.
func (e *Engine) dryRun(ctx context.Context, p plan, j Job, tokens []broker.Secret) error {
	_, err := e.worker.GenerateDataKeyWithoutPlaintext(ctx, broker.GenerateDataKey{Key: j.TargetKey,
		KeySpec: broker.DefaultKeySpec, Context: p.reserve, Tokens: tokens, DryRun: true})
	if err != nil {
		return blockOnKMS(To, j.TargetKey, err)
	}
	if err := e.dryRunReEncrypt(ctx, p, j.TargetKey, j.TargetKey, tokens); err != nil {
		return blockOnKMS(To, j.TargetKey, err)
	}
	for _, source := range p.sources(j) {
		err := e.dryRunReEncrypt(ctx, p, source, j.TargetKey, tokens)
		if err == nil {
			continue
		}
		if !broker.ClassOf(err).LostAccess() {
			return blockOnKMS(From, source, err)
		}
		if j.AllowInaccessibleSource && j.Phase == Preparing {
			continue
		}
		if used, countErr := e.hasRows(ctx, p, source); countErr != nil || !used {
			if countErr != nil {
				return countErr
			}
			continue
		}
		return sourceFailed(j, source, err)
	}
	return nil
}

// sourceFailed: before the switch, an old key that cannot be read fails the
// change, since nothing is lost by staying; after it, the job waits.
func sourceFailed(j Job, source broker.KeyARN, err error) error {
	blocked := blockOnKMS(From, source, err)
	var h *hold
	if j.Phase == Preparing && errors.As(blocked, &h) {
		h.State = Failed
	}
	return blocked
}

func (e *Engine) dryRunReEncrypt(ctx context.Context, p plan, from, to broker.KeyARN, tokens []broker.Secret) error {
	_, err := e.worker.ReEncrypt(ctx, broker.ReEncrypt{SourceKey: from, SourceContext: p.reserve,
		DestinationKey: to, DestinationContext: p.reserve, Tokens: tokens, DryRun: true})
	return err
}

// hasRows may read every row of the domain; it is asked only of a key that failed.
func (e *Engine) hasRows(ctx context.Context, p plan, key broker.KeyARN) (used bool, err error) {
	err = e.store.View(ctx, func(tx Tx) error {
		used, err = tx.HasDataKeys(ctx, p.domain.UID, key)
		return err
	})
	return used, err
}
