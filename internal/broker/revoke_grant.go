package broker

import (
	"context"
	"unicode/utf8"
)

// RevokeGrant is a RevokeGrant call.
type RevokeGrant struct {
	Request Request
	Domain  DomainID
	ID      GrantID
	Etag    string // "" revokes whatever version is there
	Reason  string
}

// RevokeGrant ends a grant at once and for good, on every key and in every state
// of the key. The end is committed before KMS is asked: whatever KMS answers to
// RetireGrant, and if it answers not at all, the grant is REVOKED, no key change
// carries it over, and Sweep goes on until KMS has retired what is there (the
// view's KMSKeys say where it may still be). What KMS answers for later, to a
// call that was under way, is retired when it shows. A grant that has ended
// before is answered as it is; one that the customer took away is REVOKED, so
// that nobody can renew it.
func (b *Broker) RevokeGrant(ctx context.Context, caller Caller, in RevokeGrant) (GrantView, error) {
	if utf8.RuneCountInString(in.Reason) > maxReason {
		return GrantView{}, invalidField(ReasonFieldInvalid, "reason", "must have at most %d characters: it goes into the audit log", maxReason)
	}
	var g Grant
	var marked []KMSGrant
	err := b.store.Update(ctx, func(tx Tx) error {
		marked = nil
		d, found, err := findGrant(ctx, tx, in.Domain, in.ID)
		if err != nil {
			return err
		}
		g = found
		rec, err := begin(ctx, tx, caller, in.Request)
		if rec != nil || err != nil {
			return err
		}
		if err := tx.LockDomain(ctx, d.UID, Shared); err != nil {
			return err
		}
		if d, err = tx.DomainByUID(ctx, d.UID); err != nil {
			return err
		}
		if g, err = tx.GrantByUID(ctx, d.UID, g.UID); err != nil {
			return err
		}
		name := GrantName(d.ID, g.ID)
		if g.Live() || g.State == GrantRevokedByCustomer {
			if in.Etag != "" && in.Etag != g.Etag() {
				return etagMismatch(name)
			}
			end := ending{state: GrantRevoked, action: "grants.revoke", reason: in.Reason}
			if marked, err = b.endGrantIn(ctx, tx, caller, d, g, end, in.Request); err != nil {
				return err
			}
		}
		return finish(ctx, tx, caller, in.Request, name)
	})
	if err != nil {
		return GrantView{}, err
	}
	if err := b.retireMarked(ctx, caller, marked); err != nil && ClassOf(err) == "" {
		return GrantView{}, err // not KMS: the store, or the caller is gone
	}
	return b.grantView(ctx, g.Domain, g.UID)
}
