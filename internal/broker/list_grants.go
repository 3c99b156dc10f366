package broker

import "context"

// A GrantCursor is a place in the list of grants: the last one given.
type GrantCursor struct {
	Domain DomainID
	Grant  GrantID
}

// ListGrants gives up to limit grants after a place in the list: those of one
// domain or, for the id "-", of all (AIP-159), by domain and id, in every state.
// The worker's own is not among them.
func (b *Broker) ListGrants(ctx context.Context, _ Caller, id DomainID, after GrantCursor, limit int) ([]GrantView, error) {
	var views []GrantView
	err := b.store.View(ctx, func(tx Tx) error {
		views = nil
		if id != "-" {
			d, err := tx.Domain(ctx, id)
			if err != nil {
				return domainNotFound(err, id)
			}
			views, err = listGrants(ctx, tx, d, after.Grant, limit)
			return err
		}
		return listAllGrants(ctx, tx, after, limit, &views)
	})
	return views, err
}

// listAllGrants walks from domain to domain until limit grants are found.
func listAllGrants(ctx context.Context, tx Tx, after GrantCursor, limit int, views *[]GrantView) error {
	const domainsAtATime = 100
	if after.Domain != "" {
		if d, err := tx.Domain(ctx, after.Domain); err == nil {
			rest, err := listGrants(ctx, tx, d, after.Grant, limit)
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
			more, err := listGrants(ctx, tx, d, "", limit-len(*views))
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

func listGrants(ctx context.Context, tx Tx, d Domain, after GrantID, limit int) ([]GrantView, error) {
	grants, err := tx.ListGrants(ctx, d.UID, after, limit)
	if err != nil {
		return nil, err
	}
	views := make([]GrantView, len(grants))
	for i, g := range grants {
		if views[i], err = viewGrant(ctx, tx, d, g); err != nil {
			return nil, err
		}
	}
	return views, nil
}
