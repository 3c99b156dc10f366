package broker

import (
	"context"
	"slices"
)

// An ending says how a grant ends: its last state, and the audit row's words.
type ending struct {
	state          GrantState
	action, reason string
}

// endGrant puts a grant into a final state and retires what KMS has of it. What
// has no answer yet is left to ResolveIntents, which retires it when it shows.
func (b *Broker) endGrant(ctx context.Context, caller Caller, domain DomainUID, uid GrantUID, e ending, r Request) error {
	var marked []KMSGrant
	err := b.store.Update(ctx, func(tx Tx) error {
		marked = nil
		if err := tx.LockDomain(ctx, domain, Shared); err != nil {
			return err
		}
		d, err := tx.DomainByUID(ctx, domain)
		if err != nil {
			return err
		}
		g, err := tx.GrantByUID(ctx, domain, uid)
		if err != nil || !g.Live() {
			return err
		}
		if marked, err = b.endGrantIn(ctx, tx, caller, d, g, e, r); err != nil {
			return err
		}
		return finish(ctx, tx, caller, r, GrantName(d.ID, g.ID))
	})
	if err != nil {
		return err
	}
	return b.retireMarked(ctx, caller, marked)
}

// endGrantIn ends a grant within a transaction that holds its domain, and marks
// every KMS grant that it has, under all epochs, in the same one: no crash can
// come between. What it gives is to be retired at KMS when the transaction has
// committed; if that fails, Sweep goes on with it.
func (b *Broker) endGrantIn(ctx context.Context, tx Tx, caller Caller, d Domain, g Grant, e ending, r Request) ([]KMSGrant, error) {
	g.State = e.state
	if err := tx.UpdateGrant(ctx, g); err != nil {
		return nil, err
	}
	detail := map[string]string{"state": string(e.state)}
	if e.reason != "" {
		detail["reason"] = e.reason
	}
	if err := tx.Audit(ctx, AuditEvent{Caller: caller.Subject, Action: e.action, Domain: d.UID, Resource: GrantName(d.ID, g.ID),
		Outcome: AuditDone, RequestID: r.ID, Detail: detail}); err != nil {
		return nil, err
	}
	made, err := tx.KMSGrants(ctx, d.UID, g.UID)
	if err != nil {
		return nil, err
	}
	made = slices.DeleteFunc(made, func(k KMSGrant) bool { return !endsWithGrant(k, d.Epoch) })
	return markRetiring(ctx, tx, caller, made, b.patience())
}
