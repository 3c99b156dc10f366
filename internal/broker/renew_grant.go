package broker

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"
)

// RenewGrant is a RenewGrant call.
type RenewGrant struct {
	Request Request
	Domain  DomainID
	ID      GrantID
	TTL     time.Duration
	Etag    string // "" renews whatever version is there
	Reason  string // needed for a grant that the customer took away
}

// RenewGrant gives a grant a new end, counted from now, and fresh tokens. It
// never shortens a life: of two renewals the later end wins, in any order. What
// KMS no longer shows of it is made again: this call, with its reason, is the
// only way back for a grant that the customer took away. Such a grant has its new
// end once KMS has made it again, and stays as it was if KMS refuses.
func (b *Broker) RenewGrant(ctx context.Context, caller Caller, in RenewGrant) (GrantView, error) {
	if in.TTL < MinGrantTTL || in.TTL > MaxGrantTTL {
		return GrantView{}, invalidField(ReasonFieldInvalid, "ttl", "must be %s to %s", MinGrantTTL, MaxGrantTTL)
	}
	if err := validateReason(in.Reason); err != nil {
		return GrantView{}, err
	}
	var g Grant
	var end time.Time
	var repeat bool
	err := b.store.Update(ctx, func(tx Tx) error {
		repeat, end = false, tx.Now().Add(in.TTL).Truncate(time.Microsecond) // as it is stored
		d, found, err := findGrant(ctx, tx, in.Domain, in.ID)
		if err != nil {
			return err
		}
		g = found
		rec, err := begin(ctx, tx, caller, in.Request)
		if err != nil {
			return err
		}
		if rec != nil && rec.Done {
			repeat = true
			return nil
		}
		name := GrantName(d.ID, g.ID)
		switch {
		case rec == nil:
			if err := renew(ctx, tx, caller, in, d, &g, end); err != nil {
				return err
			}
		case g.State == GrantActive: // perhaps by another renewal, with an end of its own
			end = endIn(*rec)
		}
		return inFlight(ctx, tx, caller, in.Request, renewalRecord(name, end), b.patience())
	})
	if err != nil {
		return GrantView{}, err
	}
	if repeat {
		view, _, err := b.regrant(ctx, caller, g, Request{}, ensuring{})
		return view, err
	}
	view, _, err := b.regrant(ctx, caller, g, in.Request, ensuring{revive: true, back: in.Reason != "", end: end})
	if err != nil {
		after := context.WithoutCancel(ctx)
		err = errors.Join(err, b.retireUnlessLive(after, caller, g), b.letGo(after, caller, in.Request))
	}
	return view, err
}

// renewalRecord is what the record of a renewal in flight keeps: the grant, and the
// end that it is to have.
func renewalRecord(name string, end time.Time) string {
	return name + " " + end.UTC().Format(time.RFC3339Nano)
}

// endIn gives the end that a renewal which did not finish was to give its grant;
// zero if its record does not say.
func endIn(rec RequestRecord) time.Time {
	_, text, _ := strings.Cut(rec.Resource, " ")
	end, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return time.Time{}
	}
	return end
}

// retireUnlessLive retires what was made of a grant that did not come back.
func (b *Broker) retireUnlessLive(ctx context.Context, caller Caller, g Grant) error {
	var marked []KMSGrant
	err := b.store.Update(ctx, func(tx Tx) error {
		marked = nil
		if err := tx.LockDomain(ctx, g.Domain, Shared); err != nil {
			return err
		}
		now, err := tx.GrantByUID(ctx, g.Domain, g.UID)
		if err != nil || now.Live() {
			return err
		}
		made, err := tx.KMSGrants(ctx, g.Domain, g.UID)
		if err != nil {
			return err
		}
		made = slices.DeleteFunc(made, func(k KMSGrant) bool { return k.State != KMSGrantLive })
		marked, err = markRetiring(ctx, tx, caller, made, b.patience())
		return err
	})
	if err == nil {
		err = b.retireMarked(ctx, caller, marked)
	}
	return err
}

// renew gives a grant that is ACTIVE its new end. What is to come back is only
// audited here: activate stores it.
func renew(ctx context.Context, tx Tx, caller Caller, in RenewGrant, d Domain, g *Grant, end time.Time) error {
	name := GrantName(d.ID, g.ID)
	if in.Etag != "" && in.Etag != g.Etag() {
		return etagMismatch(name)
	}
	if g.State != GrantActive && g.State != GrantRevokedByCustomer {
		return precondition(ReasonGrantEnded, name, "the grant is %s and cannot be renewed: create another", g.State)
	}
	if g.State == GrantRevokedByCustomer && in.Reason == "" {
		return invalidField(ReasonFieldInvalid, "reason", "must say why a grant that the customer revoked is made again")
	}
	outcome := AuditIntended
	if g.State == GrantActive {
		outcome = AuditDone
		if end.After(g.ExpireTime) {
			g.ExpireTime = end
		}
		if err := tx.UpdateGrant(ctx, *g); err != nil {
			return err
		}
	}
	return tx.Audit(ctx, AuditEvent{Caller: caller.Subject, Action: "grants.renew", Domain: d.UID, Resource: name,
		Outcome: outcome, RequestID: in.Request.ID, Detail: map[string]string{"reason": in.Reason}})
}

// regrant answers with tokens for every KMS grant that the grant has on an open
// key. A recorded grant that KMS still shows is asked for again under its own
// Name, which makes no new grant but a new token. Those that KMS shows no more
// are made anew by a revival, and left alone otherwise: their owner took them
// away. A grant that has ended is answered without tokens, and without any call.
// What a key other than the present one refuses is left out, and the first such
// refusal is told as left.
func (b *Broker) regrant(ctx context.Context, caller Caller, g Grant, r Request, how ensuring) (view GrantView, left, err error) {
	g.State = how.as(g.State)
	if !g.Live() {
		view, err = b.grantView(ctx, g.Domain, g.UID)
		return view, nil, err
	}
	d, have, err := b.onOpenKeys(ctx, g)
	if err != nil {
		return GrantView{}, nil, err
	}
	name := GrantName(d.ID, g.ID)
	var had ensured
	for _, k := range have {
		token, err := b.freshToken(ctx, caller, d, g, k)
		if err == nil && token == nil && how.revive {
			// A listing may lie: what it hides is retired before it is made again.
			err = b.retireKMSGrants(ctx, caller, []KMSGrant{k})
		}
		switch {
		case err != nil && canWait(d, k, err):
			had.leave(err)
		case err != nil:
			return GrantView{}, nil, RefusedByKMS(err, name)
		case token != nil:
			had.tokens = append(had.tokens, token)
		}
	}
	made, err := b.ensureGrant(ctx, caller, g.Domain, g.UID, r, how)
	if err != nil {
		return GrantView{}, nil, RefusedByKMS(err, name)
	}
	had.leave(made.left)
	view, err = b.grantView(ctx, g.Domain, g.UID)
	view.Tokens = append(had.tokens, made.tokens...)
	return view, had.left, err
}

// onOpenKeys reads what a grant has on keys that want it, as recorded.
func (b *Broker) onOpenKeys(ctx context.Context, g Grant) (d Domain, have []KMSGrant, err error) {
	err = b.store.View(ctx, func(tx Tx) (err error) {
		if d, err = tx.DomainByUID(ctx, g.Domain); err != nil {
			return err
		}
		keys, err := tx.DomainKeys(ctx, g.Domain)
		if err != nil {
			return err
		}
		have, err = tx.KMSGrants(ctx, g.Domain, g.UID)
		have = slices.DeleteFunc(have, func(k KMSGrant) bool { return k.State != KMSGrantLive || !wanted(g, keys, k) })
		return err
	})
	return d, have, err
}

// freshToken mints another token for a recorded KMS grant, or nil if KMS shows
// the grant no more.
func (b *Broker) freshToken(ctx context.Context, caller Caller, d Domain, g Grant, k KMSGrant) (Secret, error) {
	listed, err := b.registrar.ListGrants(ctx, k.KMSKey, k.KMSGrantID)
	if err != nil {
		return nil, err
	}
	if len(listed) == 0 {
		if young, err := b.youngerThanVisibility(ctx, k); err != nil || !young {
			return nil, err
		}
	}
	made, err := b.registrar.CreateGrant(ctx, b.newKMSGrant(d, g, k))
	if err != nil {
		return nil, err
	}
	if made.ID != k.KMSGrantID {
		return nil, b.retireStray(ctx, caller, k, made)
	}
	return made.Token, nil
}

// retireStray retires a grant that KMS made where a token was wanted: the
// recorded one is gone, so its Name made another, which nobody asked for.
func (b *Broker) retireStray(ctx context.Context, caller Caller, k KMSGrant, made CreatedKMSGrant) error {
	k.KMSGrantID = made.ID
	event := kmsGrantEvent(caller, "kms.CreateGrant", AuditDone, k)
	event.KMSRequestID = made.RequestID
	ctx = context.WithoutCancel(ctx)
	if err := b.store.Update(ctx, func(tx Tx) error { return tx.Audit(ctx, event) }); err != nil {
		return err
	}
	return b.retireOrphan(ctx, k.KMSKey, ListedGrant{ID: made.ID, Name: k.Name}, time.Time{})
}

// youngerThanVisibility reports whether KMS may not show the grant yet.
func (b *Broker) youngerThanVisibility(ctx context.Context, k KMSGrant) (young bool, err error) {
	err = b.store.View(ctx, func(tx Tx) error {
		young = tx.Now().Before(k.LiveTime.Add(b.cfg.Windows.GrantVisibility))
		return nil
	})
	return young, err
}
