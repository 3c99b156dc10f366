package broker

import (
	"context"
	"fmt"
)

// MaxBatchGet bounds one BatchGetDataKeys call, so that its answer fits a
// message.
const MaxBatchGet = 500

// BatchGetDataKeys gives data keys of one domain, in the order asked for and of
// one snapshot. It is all or nothing: the first that is not there is named.
func (b *Broker) BatchGetDataKeys(ctx context.Context, _ Caller, id DomainID, keys []DataKeyID) ([]DataKeyView, error) {
	if len(keys) == 0 || len(keys) > MaxBatchGet {
		return nil, invalidField(ReasonFieldInvalid, "names", "must be 1 to %d", MaxBatchGet)
	}
	seen := make(map[DataKeyID]bool, len(keys))
	for i, key := range keys {
		if seen[key] {
			return nil, invalidField(ReasonFieldInvalid, fmt.Sprintf("names[%d]", i), "stands twice in the request")
		}
		seen[key] = true
	}
	var views []DataKeyView
	err := b.store.View(ctx, func(tx Tx) error {
		d, err := tx.Domain(ctx, id)
		if err != nil {
			return domainNotFound(err, id)
		}
		epochs, err := tx.DomainKeys(ctx, d.UID)
		if err != nil {
			return err
		}
		found, err := tx.DataKeys(ctx, d.UID, keys)
		if err != nil {
			return err
		}
		byID := make(map[DataKeyID]DataKey, len(found))
		for _, k := range found {
			byID[k.ID] = k
		}
		views = make([]DataKeyView, len(keys))
		for i, key := range keys {
			k, ok := byID[key]
			if !ok {
				return notFound(ErrNotFound, ReasonDataKeyNotFound, DataKeyName(d.ID, key))
			}
			views[i] = viewOf(d, epochs, k)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return views, nil
}
