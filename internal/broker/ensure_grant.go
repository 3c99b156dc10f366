package broker

import (
	"context"
	"fmt"
	"slices"
	"time"
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
//
// What a key other than the domain's present one refuses is left out: the grant
// can be used without. A key change makes it where its new key wants it before
// the switch, and where an older key wants it once that key can be used again.
func (b *Broker) EnsureGrant(ctx context.Context, caller Caller, domain DomainUID, uid GrantUID, r Request) ([]Secret, error) {
	made, err := b.ensureGrant(ctx, caller, domain, uid, r, ensuring{})
	return made.tokens, err
}

// EnsureGrantOn is EnsureGrant for the key of one epoch alone, whose refusal is
// the call's.
func (b *Broker) EnsureGrantOn(ctx context.Context, caller Caller, domain DomainUID, uid GrantUID, epoch Epoch) ([]Secret, error) {
	made, err := b.ensureGrant(ctx, caller, domain, uid, Request{}, ensuring{only: epoch})
	return made.tokens, err
}

// ensuring says how a grant is ensured.
type ensuring struct {
	only Epoch // 0 is all open keys
	// revive: a KMS grant that was retired, or taken away by the customer, is made
	// again where an open key wants it; back: so is the grant that ended for that.
	// end, if set, is when the grant is to end, unless it ends later.
	revive, back bool
	end          time.Time
	// left are the keys that refused, but for the present one.
	left []Epoch
}

// as is the state that a grant is taken to be in: one that is to come back is
// ACTIVE, and stored so once it is back.
func (h ensuring) as(stored GrantState) GrantState {
	if h.back && stored == GrantRevokedByCustomer {
		return GrantActive
	}
	return stored
}

// skips says whether nothing is made on the key of an epoch.
func (h ensuring) skips(e Epoch, d Domain) bool {
	return h.only != 0 && e != h.only || e != d.Epoch && slices.Contains(h.left, e)
}

// ensured is what was made, and what was not: left is the first refusal of a key
// that was left out, nil for none.
type ensured struct {
	tokens []Secret
	left   error
}

func (b *Broker) ensureGrant(ctx context.Context, caller Caller, domain DomainUID, uid GrantUID, r Request, how ensuring) (ensured, error) {
	var made ensured
	var answers []KMSGrant
	for range ensureRounds {
		round, err := b.ensureRound(ctx, caller, domain, uid, r, answers, how)
		if err != nil {
			return ensured{}, err
		}
		// What is not retired now is Sweep's.
		if err := b.retireMarked(ctx, caller, round.needless); err != nil && !ClassOf(err).LostAccess() {
			return ensured{}, err
		}
		if !round.grant.Live() {
			return ensured{}, nil // ended meanwhile: its tokens are for grants that are retired
		}
		if len(round.intents) == 0 {
			return made, nil
		}
		b.cfg.At("grant.intended")
		if answers, err = b.askForAll(ctx, caller, round, &made, &how); err != nil {
			return ensured{}, err
		}
	}
	return ensured{}, &Error{Kind: ErrConflict, Reason: ReasonKeyChangeInProgress,
		Detail: fmt.Sprintf("the domain's keys changed %d times during the call: repeat it", ensureRounds)}
}

// askForAll gives KMS the intents of a round and returns its answers.
func (b *Broker) askForAll(ctx context.Context, caller Caller, round ensureRound, made *ensured, how *ensuring) (answers []KMSGrant, err error) {
	for i, intent := range round.intents {
		if how.skips(intent.Epoch, round.domain) {
			continue // its key refused the one before
		}
		granted, err := b.registrar.CreateGrant(ctx, b.newKMSGrant(round.domain, round.grant, intent))
		if err != nil {
			leave := how.only == 0 && canWait(round.domain, intent, err)
			if recordErr := b.recordRefusal(context.WithoutCancel(ctx), caller, round, i, leave, answers, err); recordErr != nil {
				return nil, recordErr
			}
			if !leave {
				return nil, err
			}
			how.left = append(how.left, intent.Epoch)
			made.leave(err)
			continue
		}
		intent.KMSGrantID, intent.State = granted.ID, KMSGrantLive
		answers = append(answers, intent)
		made.tokens = append(made.tokens, granted.Token)
		b.cfg.At("grant.created")
	}
	return answers, nil
}

// canWait says whether a grant can be used although a key refused it: a key that
// is not the domain's present one, for a cause that lies in the key.
func canWait(d Domain, k KMSGrant, err error) bool {
	class := ClassOf(err)
	return k.Epoch != d.Epoch && (class.LostAccess() || class == KMSLimitExceeded)
}

func (m *ensured) leave(err error) {
	if m.left == nil {
		m.left = err
	}
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

func (b *Broker) ensureRound(ctx context.Context, caller Caller, domain DomainUID, uid GrantUID, r Request, answers []KMSGrant, how ensuring) (ensureRound, error) {
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
		stored := round.grant.State
		round.grant.State = how.as(stored)
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
			if k.State == KMSGrantLive && !wanted(round.grant, keys, k) && (how.only == 0 || k.Epoch == how.only) {
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
		if round.intents, err = b.intend(ctx, tx, caller, round.domain, round.grant, keys, made, how); err != nil {
			return err
		}
		if len(round.intents) > 0 || how.only != 0 {
			return nil
		}
		later := how.end.After(round.grant.ExpireTime)
		if later { // also of one that another renewal has brought back meanwhile, with an end of its own
			round.grant.ExpireTime = how.end
		}
		return activate(ctx, tx, caller, round.domain, round.grant, stored, later, r)
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

// activate ends the making of a grant, or its coming back: everything that it
// needs is live. later says that it has a later end than the stored one.
func activate(ctx context.Context, tx Tx, caller Caller, d Domain, g Grant, stored GrantState, later bool, r Request) error {
	name := GrantName(d.ID, g.ID)
	if stored != GrantActive || later {
		action := "grants.renew"
		if stored == GrantCreating {
			action = "grants.create"
		}
		g.State = GrantActive
		if err := tx.UpdateGrant(ctx, g); err != nil {
			return err
		}
		if err := tx.Audit(ctx, AuditEvent{Caller: caller.Subject, Action: action, Domain: d.UID, Resource: name,
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

// LeftOut gives the KMS grants of a domain that its ACTIVE grants want on keys that
// were replaced, and that were refused or came to nothing when KMS was asked last.
func LeftOut(grants []Grant, keys []DomainKey, made []KMSGrant) []KMSGrant {
	type need struct {
		grant GrantUID
		epoch Epoch
		kind  GrantKind
	}
	last := map[need]KMSGrant{}
	for _, k := range made {
		if n := (need{k.Grant, k.Epoch, k.Kind}); k.Attempt > last[n].Attempt {
			last[n] = k
		}
	}
	var left []KMSGrant
	for _, g := range grants {
		for _, key := range keys {
			if key.State != KeySuperseded || g.State != GrantActive {
				continue
			}
			for _, kind := range needs(g, key) {
				if k := last[need{g.UID, key.Epoch, kind}]; k.State == KMSGrantFailed {
					left = append(left, k)
				}
			}
		}
	}
	return left
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
// retired, or taken away by the customer, is not made again but by a revival.
func (b *Broker) intend(ctx context.Context, tx Tx, caller Caller, d Domain, g Grant, keys []DomainKey, made []KMSGrant, how ensuring) ([]KMSGrant, error) {
	var intents []KMSGrant
	for _, key := range keys {
		if how.skips(key.Epoch, d) {
			continue
		}
		for _, kind := range needs(g, key) {
			last, attempts := lastAttempt(made, key.Epoch, kind)
			switch {
			case attempts > 0 && last.State == KMSGrantIntended:
				last.IntendTime, last.NextTry = tx.Now(), tx.Now().Add(b.settling())
				if err := tx.UpdateKMSGrant(ctx, last); err != nil {
					return nil, err
				}
			case attempts == 0 || last.State == KMSGrantFailed || makeAgain(last, how.revive):
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
// which are not sent: all, or with sameKey those on its key. Without an answer they
// stay open, and so does one that was sent before without one, or is being sent by
// another call too: the refusal speaks for one call only, and what another one made
// is found by a listing.
func (b *Broker) recordRefusal(ctx context.Context, caller Caller, round ensureRound, refused int, sameKey bool, answers []KMSGrant, cause error) error {
	return b.store.Update(ctx, func(tx Tx) error {
		if err := b.recordLive(ctx, tx, caller, answers); err != nil {
			return err
		}
		class := ClassOf(cause)
		if class == "" || class == KMSUnavailable {
			return nil
		}
		for i, intent := range round.intents[refused:] {
			if round.sentBefore[intent.Name] || sameKey && intent.Epoch != round.intents[refused].Epoch {
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
