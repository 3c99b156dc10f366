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
		words, err := e.words(ctx, tx, d.UID, d.Epoch)
		if err != nil {
			return err
		}
		word, known := words[g.UID]
		if !known && done == "" {
			word, given = Settlement{Domain: d.UID, Grant: g.UID, Epoch: d.Epoch, Kind: Overridden, Caller: caller.Subject,
				Reason: in.Reason, Time: tx.Now()}, true
			if err := override(ctx, tx, d, g, word, in.Request.ID); err != nil {
				return err
			}
		}
		out = SelfInventory{Domain: d.ID, Grant: g}
		if known || given {
			out.Settled, out.KMSKey = &word, d.KMSKey
		}
		return broker.Finish(ctx, tx, caller, in.Request, broker.GrantName(d.ID, g.ID))
	})
	if err != nil || !given {
		return out, err
	}
	return out, e.wakeBlocked(ctx, out.Grant.Domain)
}

// override stores an operator's word, if it is asked for.
func override(ctx context.Context, tx Tx, d broker.Domain, g broker.Grant, word Settlement, requestID string) error {
	keys, err := tx.DomainKeys(ctx, d.UID)
	if err != nil {
		return err
	}
	open, err := selfGrantsOn(ctx, tx, d.UID, superseded(keys, d.Epoch))
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(open, func(o broker.Grant) bool { return o.UID == g.UID }) {
		return &broker.Error{Kind: broker.ErrPrecondition, Reason: broker.ReasonNoOlderKey, Resource: broker.GrantName(d.ID, g.ID),
			Detail: "the grant is on no older key that is still open: there is nothing to override; after the switch of a key change there is"}
	}
	return putSettlement(ctx, tx, d, g, word, requestID)
}
