package broker

import (
	"context"
	"errors"
	"slices"
)

// RetireEpochs retires every KMS grant of a domain that which selects and that
// may exist at KMS with a known id. It returns how many it retired; an intent
// without an answer is left to ResolveIntents.
func (b *Broker) RetireEpochs(ctx context.Context, domain DomainUID, which func(KMSGrant) bool) (int, error) {
	var chosen []KMSGrant
	err := b.store.View(ctx, func(tx Tx) error {
		all, err := tx.KMSGrants(ctx, domain, "")
		chosen = slices.DeleteFunc(all, func(k KMSGrant) bool {
			return !which(k) || (k.State != KMSGrantLive && k.State != KMSGrantRetiring)
		})
		return err
	})
	if err != nil {
		return 0, err
	}
	return len(chosen), b.retireKMSGrants(ctx, System, chosen)
}

// retireKMSGrants retires grants at KMS: the will is committed first, then KMS
// is asked, then the outcome is committed. Asking twice does no harm. It goes
// on after a refusal and returns the first.
func (b *Broker) retireKMSGrants(ctx context.Context, caller Caller, grants []KMSGrant) error {
	if len(grants) == 0 {
		return nil
	}
	err := b.store.Update(ctx, func(tx Tx) error {
		for i := range grants {
			grants[i].State, grants[i].IntendTime = KMSGrantRetiring, tx.Now()
			if err := tx.UpdateKMSGrant(ctx, grants[i]); err != nil {
				return err
			}
			if err := tx.Audit(ctx, kmsGrantEvent(caller, "kms.RetireGrant", AuditIntended, grants[i])); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	var refusals error
	requestIDs := map[string]string{}
	for _, g := range grants {
		requestID, err := b.registrar.RetireGrant(ctx, g.KMSKey, g.KMSGrantID)
		if err != nil {
			refusals = errors.Join(refusals, err)
			continue
		}
		requestIDs[g.Name] = requestID
	}
	recordErr := b.store.Update(context.WithoutCancel(ctx), func(tx Tx) error {
		for _, g := range grants {
			requestID, ok := requestIDs[g.Name]
			if !ok {
				continue
			}
			g.State, g.EndTime = KMSGrantRetired, tx.Now()
			if err := tx.UpdateKMSGrant(ctx, g); err != nil {
				return err
			}
			event := kmsGrantEvent(caller, "kms.RetireGrant", AuditDone, g)
			event.KMSRequestID = requestID
			if err := tx.Audit(ctx, event); err != nil {
				return err
			}
		}
		return nil
	})
	return errors.Join(refusals, recordErr)
}

// endGrant puts a grant into a final state and retires what KMS has of it. What
// has no answer yet is left to ResolveIntents, which retires it when it shows. A
// grant that was renewed since it was found due does not expire.
func (b *Broker) endGrant(ctx context.Context, caller Caller, domain DomainUID, uid GrantUID, state GrantState, r Request) error {
	renewed := false
	err := b.store.Update(ctx, func(tx Tx) error {
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
		if renewed = state == GrantExpired && tx.Now().Before(g.ExpireTime); renewed {
			return nil
		}
		g.State = state
		if err := tx.UpdateGrant(ctx, g); err != nil {
			return err
		}
		name := GrantName(d.ID, g.ID)
		if err := tx.Audit(ctx, AuditEvent{Caller: caller.Subject, Action: "grants.end", Domain: d.UID, Resource: name,
			Outcome: AuditDone, RequestID: r.ID, Detail: map[string]string{"state": string(state)}}); err != nil {
			return err
		}
		return finish(ctx, tx, caller, r, name)
	})
	if err != nil || renewed {
		return err
	}
	_, err = b.RetireEpochs(ctx, domain, func(k KMSGrant) bool { return k.Grant == uid })
	return err
}

// ResolveIntents closes intents that got no answer, and only by what KMS lists:
// an intent that is older than a call can last, and than KMS takes to show a
// grant, is live if a listing begun now has its Name, and was never made if
// not. Live ones that no open key wants are retired. It returns how many of the
// intents that which selects are still open.
func (b *Broker) ResolveIntents(ctx context.Context, domain DomainUID, which func(KMSGrant) bool) (open int, err error) {
	var due []KMSGrant
	err = b.store.View(ctx, func(tx Tx) error {
		due, open = nil, 0
		all, err := tx.KMSGrants(ctx, domain, "")
		if err != nil {
			return err
		}
		settled := tx.Now().Add(-b.settling())
		for _, k := range all {
			if k.State != KMSGrantIntended || !which(k) {
				continue
			}
			open++
			if !k.IntendTime.After(settled) {
				due = append(due, k)
			}
		}
		return nil
	})
	if err != nil {
		return open, err
	}
	for _, k := range due {
		if err := b.resolveIntent(ctx, k); err != nil {
			return open, err
		}
		open--
	}
	return open, nil
}

func (b *Broker) resolveIntent(ctx context.Context, k KMSGrant) error {
	listed, err := b.registrar.ListGrants(ctx, k.KMSKey, "")
	if err != nil && ClassOf(err) != KMSNotFound { // a key that is gone has no grants
		return err
	}
	var needless []KMSGrant
	err = b.store.Update(ctx, func(tx Tx) error {
		needless = nil
		if err := tx.LockDomain(ctx, k.Domain, Shared); err != nil {
			return err
		}
		now, err := kmsGrantNow(ctx, tx, k)
		if err != nil || now.State != KMSGrantIntended || !now.IntendTime.Equal(k.IntendTime) {
			return err // answered or asked again meanwhile
		}
		i := slices.IndexFunc(listed, func(l ListedGrant) bool { return l.Name == k.Name })
		if i < 0 {
			now.State, now.EndTime = KMSGrantFailed, tx.Now()
			if err := tx.UpdateKMSGrant(ctx, now); err != nil {
				return err
			}
			return tx.Audit(ctx, kmsGrantEvent(System, "kms.CreateGrant", AuditRefused, now))
		}
		now.State, now.KMSGrantID, now.LiveTime = KMSGrantLive, listed[i].ID, tx.Now()
		if err := tx.UpdateKMSGrant(ctx, now); err != nil {
			return err
		}
		if err := tx.Audit(ctx, kmsGrantEvent(System, "kms.CreateGrant", AuditDone, now)); err != nil {
			return err
		}
		g, err := tx.GrantByUID(ctx, k.Domain, k.Grant)
		if err != nil {
			return err
		}
		keys, err := tx.DomainKeys(ctx, k.Domain)
		if err != nil {
			return err
		}
		if !wanted(g, keys, now) {
			needless = append(needless, now)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return b.retireKMSGrants(ctx, System, needless)
}

func kmsGrantNow(ctx context.Context, tx Tx, k KMSGrant) (KMSGrant, error) {
	all, err := tx.KMSGrants(ctx, k.Domain, k.Grant)
	if err != nil {
		return KMSGrant{}, err
	}
	for _, now := range all {
		if now.Name == k.Name {
			return now, nil
		}
	}
	return KMSGrant{}, ErrNotFound
}
