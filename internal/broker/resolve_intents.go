package broker

import (
	"context"
	"slices"
)

// ResolveIntents closes intents that got no answer, and only by what KMS lists:
// an intent that is older than a call can last, and than KMS takes to show a
// grant, is live if a listing begun now has its Name, and was never made if
// not. Live ones that no open key wants are retired. It returns how many of the
// intents in the range are still open.
func (b *Broker) ResolveIntents(ctx context.Context, domain DomainUID, which KMSGrantRange) (open int, err error) {
	var due []KMSGrant
	err = b.store.View(ctx, func(tx Tx) error {
		intents, err := tx.KMSIntents(ctx, domain, which)
		settled := tx.Now().Add(-b.settling())
		open = len(intents)
		due = slices.DeleteFunc(intents, func(k KMSGrant) bool { return k.IntendTime.After(settled) })
		return err
	})
	if err != nil {
		return open, err
	}
	resolved, err := b.resolveIntents(ctx, due)
	return open - resolved, err
}

// resolveIntents closes intents that have settled. Each key is listed once. It
// goes on after a key that KMS does not list, and gives how many it closed.
func (b *Broker) resolveIntents(ctx context.Context, settled []KMSGrant) (resolved int, err error) {
	byKey := map[KeyARN][]KMSGrant{}
	for _, k := range settled {
		byKey[k.KMSKey] = append(byKey[k.KMSKey], k)
	}
	var failed failures
	for key, intents := range byKey {
		listed, err := b.ListKMSGrants(ctx, key)
		if err != nil && ClassOf(err) != KMSNotFound { // a key that is gone has no grants
			failed.add(err)
			continue
		}
		ids := make(map[string]string, len(listed))
		for _, l := range listed {
			if _, ok := ids[l.Name]; !ok {
				ids[l.Name] = l.ID
			}
		}
		for batch := range slices.Chunk(intents, retireBatch) {
			if err := b.resolveBatch(ctx, batch, ids); err != nil {
				failed.add(err)
				continue
			}
			resolved += len(batch)
		}
	}
	return resolved, failed.err()
}

// resolveBatch closes intents by a listing: ids has the KMS grant of each Name.
func (b *Broker) resolveBatch(ctx context.Context, intents []KMSGrant, ids map[string]string) error {
	var needless []KMSGrant
	err := b.store.Update(ctx, func(tx Tx) error {
		needless = nil
		for _, k := range intents {
			found, err := resolveIntent(ctx, tx, k, ids[k.Name])
			if err != nil {
				return err
			}
			if found == nil {
				continue
			}
			marked, err := markRetiring(ctx, tx, System, []KMSGrant{*found}, b.patience())
			if err != nil {
				return err
			}
			needless = append(needless, marked...)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return b.retireMarked(ctx, System, needless)
}

// resolveIntent closes one intent, unless it was answered or asked again
// meanwhile: id is what KMS lists under its Name, or "". It gives the KMS grant
// if no open key wants it.
func resolveIntent(ctx context.Context, tx Tx, k KMSGrant, id string) (needless *KMSGrant, err error) {
	if err := tx.LockDomain(ctx, k.Domain, Shared); err != nil {
		return nil, err
	}
	g, err := tx.GrantByUID(ctx, k.Domain, k.Grant)
	if err != nil {
		return nil, err
	}
	now, err := tx.KMSGrantByName(ctx, k.Name)
	if err != nil || now.State != KMSGrantIntended || !now.IntendTime.Equal(k.IntendTime) {
		return nil, err
	}
	if id == "" {
		now.State, now.EndTime = KMSGrantFailed, tx.Now()
		if err := tx.UpdateKMSGrant(ctx, now); err != nil {
			return nil, err
		}
		return nil, tx.Audit(ctx, kmsGrantEvent(System, "kms.CreateGrant", AuditRefused, now))
	}
	now.State, now.KMSGrantID, now.LiveTime = KMSGrantLive, id, tx.Now()
	if err := tx.UpdateKMSGrant(ctx, now); err != nil {
		return nil, err
	}
	if err := tx.Audit(ctx, kmsGrantEvent(System, "kms.CreateGrant", AuditDone, now)); err != nil {
		return nil, err
	}
	keys, err := tx.DomainKeys(ctx, k.Domain)
	if err != nil || wanted(g, keys, now) {
		return nil, err
	}
	return &now, nil
}
