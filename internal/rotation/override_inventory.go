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
	var given bool
	err := e.store.Update(ctx, func(tx Tx) error {
		given = false
		d, err := tx.Domain(ctx, in.Domain)
		if err != nil {
			return notFound(err, broker.ReasonDomainNotFound, in.Domain.Name())
		}
		if d, err = (Pass{Domain: d.UID}).lockDomain(ctx, tx); err != nil {
			return err
		}
		g, err := selfGrant(ctx, tx, d, in.Grant)
		if err != nil {
			return err
		}
		done, err := broker.Begin(ctx, tx, caller, in.Request)
		if err != nil {
			return err
		}
		if out, err = e.inventoryOf(ctx, tx, d, g); err != nil {
			return err
		}
		if out.Settled == nil && done == "" {
			given = true
			out.KMSKey = d.KMSKey
			out.Settled = &Settlement{Domain: d.UID, Grant: g.UID, Epoch: d.Epoch, Kind: Overridden, Caller: caller.Subject,
				Reason: in.Reason, Time: tx.Now()}
			if err := putSettlement(ctx, tx, d, g, *out.Settled, in.Request.ID); err != nil {
				return err
			}
		}
		return broker.Finish(ctx, tx, caller, in.Request, broker.GrantName(d.ID, g.ID))
	})
	if err != nil || !given {
		return out, err
	}
	return out, e.wakeForWords(ctx, out.Grant.Domain)
}

// inventoryOf gives what is known of one grant, if anybody asks for a word about
// it.
func (e *Engine) inventoryOf(ctx context.Context, tx Tx, d broker.Domain, g broker.Grant) (SelfInventory, error) {
	keys, err := tx.DomainKeys(ctx, d.UID)
	if err != nil {
		return SelfInventory{}, err
	}
	all, err := e.selfInventories(ctx, tx, d, keys, replaced(keys, d.Epoch))
	if err != nil {
		return SelfInventory{}, err
	}
	i := slices.IndexFunc(all, func(s SelfInventory) bool { return s.Grant.UID == g.UID })
	if i < 0 {
		return SelfInventory{}, &broker.Error{Kind: broker.ErrPrecondition, Reason: broker.ReasonNoOlderKey, Resource: broker.GrantName(d.ID, g.ID),
			Detail: "the grant was on no older key: there is nothing to override; after the switch of a key change there is"}
	}
	return all[i], nil
}
