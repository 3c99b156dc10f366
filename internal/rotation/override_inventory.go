package rotation

import (
	"context"
	"slices"

	"github.com/keybroker/keybroker/internal/broker"
)

// OverrideInventory is an OverrideSelfInventory call.
type OverrideInventory struct {
	Request broker.Request
	Domain  broker.DomainID
	Grant   broker.GrantID
	Reason  string
}

// OverrideSelfInventory takes an operator's word in place of a service's. It
// needs a reason, and no drain: the operator answers for what is lost. A grant
// for which a word counts already is answered as it is.
func (e *Engine) OverrideSelfInventory(ctx context.Context, caller broker.Caller, in OverrideInventory) (SelfInventory, error) {
	if err := broker.RequireReason(in.Reason); err != nil {
		return SelfInventory{}, err
	}
	var out SelfInventory
	var d broker.Domain
	err := e.store.Update(ctx, func(tx Tx) (err error) {
		if d, err = tx.Domain(ctx, in.Domain); err != nil {
			return notFound(err, broker.ReasonDomainNotFound, in.Domain.Name())
		}
		if err := tx.LockDomain(ctx, d.UID, broker.Shared); err != nil {
			return err
		}
		if d, err = tx.DomainByUID(ctx, d.UID); err != nil {
			return err
		}
		g, err := selfGrant(ctx, tx, d, in.Grant)
		if err != nil {
			return err
		}
		if _, err := broker.Begin(ctx, tx, caller, in.Request); err != nil {
			return err
		}
		if out, err = e.inventoryOf(ctx, tx, d, g); err != nil {
			return err
		}
		if out.Settled == nil {
			word := Settlement{Domain: d.UID, Grant: g.UID, Epoch: d.Epoch, Kind: Overridden, Caller: caller.Subject,
				Reason: in.Reason, Time: tx.Now()}
			if err := putSettlement(ctx, tx, d, g, word, in.Request.ID); err != nil {
				return err
			}
			out.Settled, out.KMSKey = &word, d.KMSKey
		}
		return broker.Finish(ctx, tx, caller, in.Request, broker.GrantName(d.ID, g.ID))
	})
	if err != nil {
		return SelfInventory{}, err
	}
	return out, e.wakeBlocked(ctx, d.UID)
}

// inventoryOf gives what is known of one grant at the domain's present key. A
// grant that nothing is asked about is refused.
func (e *Engine) inventoryOf(ctx context.Context, tx Tx, d broker.Domain, g broker.Grant) (SelfInventory, error) {
	out := SelfInventory{Domain: d.ID, Grant: g}
	words, err := e.words(ctx, tx, d.UID, d.Epoch)
	if err != nil {
		return out, err
	}
	if word, ok := words[g.UID]; ok {
		out.Settled, out.KMSKey = &word, d.KMSKey
		return out, nil
	}
	keys, err := tx.DomainKeys(ctx, d.UID)
	if err != nil {
		return out, err
	}
	open, err := selfGrantsOn(ctx, tx, d.UID, superseded(keys, d.Epoch))
	if err != nil {
		return out, err
	}
	if !slices.ContainsFunc(open, func(o broker.Grant) bool { return o.UID == g.UID }) {
		return out, &broker.Error{Kind: broker.ErrPrecondition, Reason: broker.ReasonNoOlderKey, Resource: broker.GrantName(d.ID, g.ID),
			Detail: "the grant is on no older key that is still open: there is nothing to override; after the switch of a key change there is"}
	}
	return out, nil
}
