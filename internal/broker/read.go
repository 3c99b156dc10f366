package broker

import (
	"context"
	"errors"
)

// GetDomain gives a domain with the keys that it had.
func (b *Broker) GetDomain(ctx context.Context, _ Caller, id DomainID) (Domain, []DomainKey, error) {
	var d Domain
	var keys []DomainKey
	err := b.store.View(ctx, func(tx Tx) (err error) {
		if d, err = tx.Domain(ctx, id); err != nil {
			return domainNotFound(err, id)
		}
		keys, err = tx.DomainKeys(ctx, d.UID)
		return err
	})
	return d, keys, err
}

// ListDomains gives up to limit domains with an id greater than after, and the
// keys that each had.
func (b *Broker) ListDomains(ctx context.Context, _ Caller, after DomainID, limit int) (domains []Domain, keys [][]DomainKey, err error) {
	err = b.store.View(ctx, func(tx Tx) (err error) {
		if domains, err = tx.ListDomains(ctx, after, limit); err != nil {
			return err
		}
		keys = make([][]DomainKey, len(domains))
		for i, d := range domains {
			if keys[i], err = tx.DomainKeys(ctx, d.UID); err != nil {
				return err
			}
		}
		return nil
	})
	return domains, keys, err
}

// A DataKeyView is a data key with what its reader needs: the complete
// encryption context and the key's ARN.
type DataKeyView struct {
	DataKey
	DomainID DomainID
	KMSKey   KeyARN
	// EncryptionContext is what KMS needs to decrypt: Context and the reserved pair.
	EncryptionContext Context
}

func viewOf(d Domain, keys []DomainKey, k DataKey) DataKeyView {
	key, _ := KeyOfEpoch(keys, k.Epoch)
	return DataKeyView{DataKey: k, DomainID: d.ID, KMSKey: key.KMSKey, EncryptionContext: k.Context.With(d.Reserved)}
}

// GetDataKey gives one wrapped data key.
func (b *Broker) GetDataKey(ctx context.Context, _ Caller, id DomainID, key DataKeyID) (DataKeyView, error) {
	var view DataKeyView
	err := b.store.View(ctx, func(tx Tx) error {
		d, err := tx.Domain(ctx, id)
		if err != nil {
			return domainNotFound(err, id)
		}
		view, err = readDataKey(ctx, tx, d, key)
		return err
	})
	return view, err
}

func readDataKey(ctx context.Context, tx Tx, d Domain, id DataKeyID) (DataKeyView, error) {
	k, err := tx.DataKey(ctx, d.UID, id)
	if err != nil {
		return DataKeyView{}, notFound(err, ReasonDataKeyNotFound, DataKeyName(d.ID, id))
	}
	keys, err := tx.DomainKeys(ctx, d.UID)
	if err != nil {
		return DataKeyView{}, err
	}
	return viewOf(d, keys, k), nil
}

// A DataKeyCursor is a place in the list of data keys: the last one given.
type DataKeyCursor struct {
	Domain  DomainID
	DataKey DataKeyID
}

// ListDataKeys gives up to limit data keys after a place in the list: those of
// one domain or, for the id "-", of all (AIP-159), by domain and id.
func (b *Broker) ListDataKeys(ctx context.Context, _ Caller, id DomainID, after DataKeyCursor, limit int) ([]DataKeyView, error) {
	var views []DataKeyView
	err := b.store.View(ctx, func(tx Tx) error {
		views = nil
		if id != "-" {
			d, err := tx.Domain(ctx, id)
			if err != nil {
				return domainNotFound(err, id)
			}
			views, err = listDataKeys(ctx, tx, d, after.DataKey, limit)
			return err
		}
		return listAllDataKeys(ctx, tx, after, limit, &views)
	})
	return views, err
}

// listAllDataKeys walks from domain to domain until limit rows are found.
func listAllDataKeys(ctx context.Context, tx Tx, after DataKeyCursor, limit int, views *[]DataKeyView) error {
	const domainsAtATime = 100
	if after.Domain != "" {
		if d, err := tx.Domain(ctx, after.Domain); err == nil {
			rest, err := listDataKeys(ctx, tx, d, after.DataKey, limit)
			if err != nil {
				return err
			}
			*views = rest
		}
	}
	for len(*views) < limit {
		domains, err := tx.ListDomains(ctx, after.Domain, domainsAtATime)
		if err != nil || len(domains) == 0 {
			return err
		}
		for _, d := range domains {
			more, err := listDataKeys(ctx, tx, d, "", limit-len(*views))
			if err != nil {
				return err
			}
			*views = append(*views, more...)
			if len(*views) >= limit {
				return nil
			}
			after.Domain = d.ID
		}
	}
	return nil
}

func listDataKeys(ctx context.Context, tx Tx, d Domain, after DataKeyID, limit int) ([]DataKeyView, error) {
	rows, err := tx.ListDataKeys(ctx, d.UID, after, limit)
	if err != nil || len(rows) == 0 {
		return nil, err
	}
	keys, err := tx.DomainKeys(ctx, d.UID)
	if err != nil {
		return nil, err
	}
	views := make([]DataKeyView, len(rows))
	for i, k := range rows {
		views[i] = viewOf(d, keys, k)
	}
	return views, nil
}

// notFound gives a store's plain ErrNotFound its reason and resource.
func notFound(err error, reason Reason, resource string) error {
	if errors.Is(err, ErrNotFound) {
		return &Error{Kind: ErrNotFound, Reason: reason, Resource: resource, Detail: "there is no such resource"}
	}
	return err
}

func domainNotFound(err error, id DomainID) error {
	return notFound(err, ReasonDomainNotFound, id.Name())
}

// alreadyExists gives a store's ErrAlreadyExists its reason and resource, unless
// the store knew a better one.
func alreadyExists(err error, reason Reason, resource string) error {
	if !errors.Is(err, ErrAlreadyExists) {
		return err
	}
	if ReasonOf(err) == ReasonDataKeyIDDeleted {
		return &Error{Kind: ErrAlreadyExists, Reason: ReasonDataKeyIDDeleted, Resource: resource,
			Detail: "a data key of this id was deleted, and ids are never used again: choose another"}
	}
	return &Error{Kind: ErrAlreadyExists, Reason: reason, Resource: resource,
		Detail: "a resource of this name exists: read it, or choose another id"}
}
