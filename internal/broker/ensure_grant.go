package broker

import (
	"context"
	"fmt"
	"slices"
)

// ensureRounds bounds how often EnsureGrant follows a domain that opens key
// after key while it works.
const ensureRounds = 8

// EnsureGrant makes every KMS grant that the grant needs on the keys that are
// open now, and returns the tokens that KMS minted on the way. It may be called
// at any time, by anyone, again and again: what is there already stays, and
// what was retired or taken away by the customer is not made again.
//
// Each round is one transaction that records KMS's last answers, reads the
// domain anew and commits the intents of what is missing; between rounds KMS is
// asked. So a switch that comes in between is seen, and what it made needless
// is retired at once. r, if set, is finished with the last round.
func (b *Broker) EnsureGrant(ctx context.Context, caller Caller, domain DomainUID, uid GrantUID, r Request) ([]Secret, error) {
	return b.ensureGrant(ctx, caller, domain, uid, r, false)
}

// ensureGrant is EnsureGrant; with revive, a KMS grant that was retired, or taken
// away by the customer, is made again where an open key wants it.
func (b *Broker) ensureGrant(ctx context.Context, caller Caller, domain DomainUID, uid GrantUID, r Request, revive bool) ([]Secret, error) {
	var tokens []Secret
	var answers []KMSGrant
	for range ensureRounds {
		round, err := b.ensureRound(ctx, caller, domain, uid, r, answers, revive)
		if err != nil {
			return nil, err
		}
		if err := b.retireMarked(ctx, caller, round.needless); err != nil {
			return nil, err
		}
		if !round.grant.Live() {
			return nil, nil // ended meanwhile: its tokens are for grants that are retired
		}
		if len(round.intents) == 0 {
			return tokens, nil
		}
		answers = nil
		b.cfg.At("grant.intended")
		for i, intent := range round.intents {
			made, err := b.registrar.CreateGrant(ctx, b.newKMSGrant(round.domain, round.grant, intent))
			if err != nil {
				if recordErr := b.recordRefusal(context.WithoutCancel(ctx), caller, round, i, answers, err); recordErr != nil {
					return nil, recordErr
				}
				return nil, err
			}
			intent.KMSGrantID, intent.State = made.ID, KMSGrantLive
			answers = append(answers, intent)
			tokens = append(tokens, made.Token)
			b.cfg.At("grant.created")
		}
	}
	return nil, fmt.Errorf("grant %s: its domain's keys changed %d times during the call: %w", uid, ensureRounds, ErrConflict)
}

// An ensureRound is what one transaction found.
type ensureRound struct {
	domain   Domain
	grant    Grant
	intents  []KMSGrant // committed; to be asked of KMS
	needless []KMSGrant // marked: live at KMS, for a key that does not want them any more
	// sentBefore has the Names of the intents that another call may have sent.
	sentBefore map[string]bool
}

func (b *Broker) ensureRound(ctx context.Context, caller Caller, domain DomainUID, uid GrantUID, r Request, answers []KMSGrant, revive bool) (ensureRound, error) {
	var round ensureRound
	err := b.store.Update(ctx, func(tx Tx) (err error) {
		round = ensureRound{sentBefore: map[string]bool{}}
		if err := tx.LockDomain(ctx, domain, Shared); err != nil {
			return err
		}
		if round.domain, err = tx.DomainByUID(ctx, domain); err != nil {
			return err
		}
		if round.grant, err = tx.GrantByUID(ctx, domain, uid); err != nil {
			return err
		}
		keys, err := tx.DomainKeys(ctx, domain)
		if err != nil {
			return err
		}
		if err := b.recordLive(ctx, tx, caller, answers); err != nil {
			return err
		}
		made, err := tx.KMSGrants(ctx, domain, uid)
		if err != nil {
			return err
		}
		var needless []KMSGrant
		for _, k := range made {
			if k.State == KMSGrantLive && !wanted(round.grant, keys, k) {
				needless = append(needless, k)
			}
			round.sentBefore[k.Name] = k.State == KMSGrantIntended
		}
		if round.needless, err = markRetiring(ctx, tx, caller, needless, b.patience()); err != nil {
			return err
		}
		if !round.grant.Live() {
			return finish(ctx, tx, caller, r, GrantName(round.domain.ID, round.grant.ID))
		}
		if round.intents, err = b.intend(ctx, tx, caller, round.domain, round.grant, keys, made, revive); err != nil {
			return err
		}
		if len(round.intents) > 0 {
			return nil
		}
		return activate(ctx, tx, caller, round.domain, round.grant, r)
	})
	return round, err
}

// recordLive stores KMS's answers. An intent that a listing closed meanwhile is
// live after all; one that was found and retired meanwhile stays so.
func (b *Broker) recordLive(ctx context.Context, tx Tx, caller Caller, answers []KMSGrant) error {
	for _, a := range answers {
		now, err := tx.KMSGrantByName(ctx, a.Name)
		if err != nil {
			return err
		}
		if now.KMSGrantID == a.KMSGrantID {
			continue
		}
		a.LiveTime = tx.Now()
		if err := tx.UpdateKMSGrant(ctx, a); err != nil {
			return err
		}
		if err := tx.Audit(ctx, kmsGrantEvent(caller, "kms.CreateGrant", AuditDone, a)); err != nil {
			return err
		}
	}
	return nil
}

// activate ends the making of a grant: everything that it needs is live.
func activate(ctx context.Context, tx Tx, caller Caller, d Domain, g Grant, r Request) error {
	name := GrantName(d.ID, g.ID)
	if g.State == GrantCreating {
		g.State = GrantActive
		if err := tx.UpdateGrant(ctx, g); err != nil {
			return err
		}
		if err := tx.Audit(ctx, AuditEvent{Caller: caller.Subject, Action: "grants.create", Domain: d.UID, Resource: name,
			Outcome: AuditDone, RequestID: r.ID}); err != nil {
			return err
		}
	}
	return finish(ctx, tx, caller, r, name)
}

// needs gives the kinds of KMS grants that a key wants for the grant: wrap and
// unwrap on the present key and on the one being prepared, unwrap on those that
// were replaced but may still be read from.
func needs(g Grant, k DomainKey) []GrantKind {
	switch k.State {
	case KeyPreparing, KeyCurrent:
		return g.kinds()
	case KeySuperseded:
		if slices.Contains(g.kinds(), Unwrap) {
			return []GrantKind{Unwrap}
		}
	}
	return nil
}

func wanted(g Grant, keys []DomainKey, k KMSGrant) bool {
	key, ok := KeyOfEpoch(keys, k.Epoch)
	return ok && g.Live() && slices.Contains(needs(g, key), k.Kind)
}

// Missing tells whether a live grant lacks a KMS grant on the key of an epoch.
func Missing(g Grant, key DomainKey, made []KMSGrant) bool {
	for _, kind := range needs(g, key) {
		if !slices.ContainsFunc(made, func(k KMSGrant) bool {
			return k.Grant == g.UID && k.Epoch == key.Epoch && k.Kind == kind && k.State == KMSGrantLive
		}) {
			return true
		}
	}
	return false
}

// intend commits what must be asked of KMS: each need without a KMS grant, and
// each intent that has no answer yet, under its own Name again. What was
// retired, or taken away by the customer, is not made again.
func (b *Broker) intend(ctx context.Context, tx Tx, caller Caller, d Domain, g Grant, keys []DomainKey, made []KMSGrant, revive bool) ([]KMSGrant, error) {
	var intents []KMSGrant
	for _, key := range keys {
		for _, kind := range needs(g, key) {
			last, attempts := lastAttempt(made, key.Epoch, kind)
			switch {
			case attempts > 0 && last.State == KMSGrantIntended:
				last.IntendTime, last.NextTry = tx.Now(), tx.Now().Add(b.settling())
				if err := tx.UpdateKMSGrant(ctx, last); err != nil {
					return nil, err
				}
			case attempts == 0 || last.State == KMSGrantFailed || makeAgain(last, revive):
				last = KMSGrant{Domain: d.UID, Grant: g.UID, Epoch: key.Epoch, Kind: kind, Attempt: last.Attempt + 1,
					Worker: g.Worker, KMSKey: key.KMSKey, State: KMSGrantIntended, IntendTime: tx.Now(), NextTry: tx.Now().Add(b.settling())}
				last.Name = grantName(b.cfg.Deployment, g.UID, kind, key.Epoch, last.Attempt)
				if err := tx.InsertKMSGrant(ctx, last); err != nil {
					return nil, err
				}
				if err := tx.Audit(ctx, kmsGrantEvent(caller, "kms.CreateGrant", AuditIntended, last)); err != nil {
					return nil, err
				}
			default:
				continue
			}
			intents = append(intents, last)
		}
	}
	return intents, nil
}

func lastAttempt(made []KMSGrant, e Epoch, kind GrantKind) (last KMSGrant, attempts int) {
	for _, k := range made {
		if k.Epoch == e && k.Kind == kind {
			attempts++
			if k.Attempt > last.Attempt {
				last = k
			}
		}
	}
	return last, attempts
}

// recordRefusal keeps the answers that came before KMS refused an intent of a
// round, and closes that intent, if KMS certainly did nothing, and those after it,
// which were not sent. Without an answer they stay open, and so does one that was
// sent before without one, or is being sent by another call too: the refusal
// speaks for one call only, and what another one made is found by a listing.
func (b *Broker) recordRefusal(ctx context.Context, caller Caller, round ensureRound, refused int, answers []KMSGrant, cause error) error {
	return b.store.Update(ctx, func(tx Tx) error {
		if err := b.recordLive(ctx, tx, caller, answers); err != nil {
			return err
		}
		class := ClassOf(cause)
		if class == "" || class == KMSUnavailable {
			return nil
		}
		for i, intent := range round.intents[refused:] {
			if round.sentBefore[intent.Name] {
				continue
			}
			if err := closeIntent(ctx, tx, caller, intent, class, i == 0); err != nil {
				return err
			}
		}
		return nil
	})
}

// closeIntent ends an intent that made nothing at KMS, unless another call has
// taken it up.
func closeIntent(ctx context.Context, tx Tx, caller Caller, intent KMSGrant, class KMSClass, sent bool) error {
	now, err := tx.KMSGrantByName(ctx, intent.Name)
	if err != nil || now.State != KMSGrantIntended || !now.IntendTime.Equal(intent.IntendTime) {
		return err
	}
	now.State, now.EndTime = KMSGrantFailed, tx.Now()
	if err := tx.UpdateKMSGrant(ctx, now); err != nil {
		return err
	}
	event := kmsGrantEvent(caller, "kms.CreateGrant", AuditRefused, now)
	event.Detail["class"] = string(class)
	if !sent {
		event.Detail["sent"] = "false"
	}
	return tx.Audit(ctx, event)
}

// newKMSGrant renders the one and only form of the call: the same Name goes
// with the same parameters, always.
func (b *Broker) newKMSGrant(d Domain, g Grant, k KMSGrant) NewKMSGrant {
	c := Constraint{}
	if len(g.Constraint.Equals) > 0 {
		c.Equals = g.Constraint.Equals.With(d.Reserved)
	} else {
		c.Subset = g.Constraint.Subset.With(d.Reserved)
	}
	return NewKMSGrant{Key: k.KMSKey, Name: k.Name, Grantee: g.Grantee, Retiring: b.cfg.RegistrarRole,
		Operations: g.operationsOf(k.Kind), Constraint: c}
}

func kmsGrantEvent(caller Caller, action string, outcome AuditOutcome, k KMSGrant) AuditEvent {
	detail := map[string]string{"kms_key": string(k.KMSKey)}
	if k.KMSGrantID != "" {
		detail["kms_grant_id"] = k.KMSGrantID
	}
	return AuditEvent{Caller: caller.Subject, Action: action, Domain: k.Domain, Resource: k.Name, Outcome: outcome,
		Detail: detail}
}
