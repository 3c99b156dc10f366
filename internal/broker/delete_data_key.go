package broker

import (
	"context"
	"errors"
)

// DeleteDataKey removes a data key for good. Its id is never used again. etag
// may be "": then whatever version is there is deleted, also one that a job makes
// meanwhile.
func (b *Broker) DeleteDataKey(ctx context.Context, caller Caller, r Request, id DomainID, key DataKeyID, etag string) error {
	var err error
	for range storeAttempts {
		err = b.deleteDataKey(ctx, caller, r, id, key, etag)
		// The store's own conflict has no reason: the row moved between read and delete.
		if etag != "" || !errors.Is(err, ErrConflict) || ReasonOf(err) != "" {
			return err
		}
	}
	return err
}

func (b *Broker) deleteDataKey(ctx context.Context, caller Caller, r Request, id DomainID, key DataKeyID, etag string) error {
	return b.store.Update(ctx, func(tx Tx) error {
		rec, err := begin(ctx, tx, caller, r)
		if rec != nil || err != nil {
			return err
		}
		d, err := tx.Domain(ctx, id)
		if err != nil {
			return domainNotFound(err, id)
		}
		name := DataKeyName(id, key)
		k, err := tx.DataKey(ctx, d.UID, key)
		if err != nil {
			return notFound(err, ReasonDataKeyNotFound, name)
		}
		if etag != "" && etag != k.Etag() {
			return etagMismatch(name)
		}
		if err := tx.DeleteDataKey(ctx, k); err != nil {
			return notFound(err, ReasonDataKeyNotFound, name)
		}
		if err := tx.Audit(ctx, AuditEvent{Caller: caller.Subject, Action: "dataKeys.delete", Domain: d.UID,
			Resource: name, Outcome: AuditDone, RequestID: r.ID}); err != nil {
			return err
		}
		return finish(ctx, tx, caller, r, name)
	})
}
