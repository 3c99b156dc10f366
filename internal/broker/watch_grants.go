package broker

import (
	"context"
	"slices"
	"time"
)

// compareListing holds the live rows of a key against a listing that was begun
// at this time. A row younger than KMS takes to show a grant is left alone.
func (b *Broker) compareListing(ctx context.Context, k keyView, listed []ListedGrant, begun time.Time) error {
	ids := make(map[string]bool, len(listed))
	for _, l := range listed {
		ids[l.ID] = true
	}
	var failed failures
	for _, row := range k.rows {
		switch {
		case row.State != KMSGrantLive || !row.LiveTime.Add(b.cfg.Windows.GrantVisibility).Before(begun):
		case ids[row.KMSGrantID] && !row.MissTime.IsZero():
			failed.add(b.noteSeen(ctx, row))
		case !ids[row.KMSGrantID]:
			failed.add(b.noteMissing(ctx, row, begun))
		}
	}
	return failed.err()
}

// noteSeen forgets that a listing missed a grant.
func (b *Broker) noteSeen(ctx context.Context, row KMSGrant) error {
	return b.store.Update(ctx, func(tx Tx) error {
		now, err := tx.KMSGrantByName(ctx, row.Name)
		if err != nil || now.State != KMSGrantLive {
			return err
		}
		now.MissTime = time.Time{}
		return tx.UpdateKMSGrant(ctx, now)
	})
}

// noteMissing records that a listing misses a live grant which we did not
// retire. One listing may lie; at the second, a later one, the key's owner has
// taken it away: it is GONE. A service's grant that loses one on the domain's
// present key has ended, as REVOKED_BY_CUSTOMER, and the rest of it is retired;
// only RenewGrant brings it back. The worker's grant goes on without, and the
// jobs that need it block, until ReviveWorkerGrant.
func (b *Broker) noteMissing(ctx context.Context, row KMSGrant, begun time.Time) error {
	var marked []KMSGrant
	err := b.store.Update(ctx, func(tx Tx) error {
		marked = nil
		if err := tx.LockDomain(ctx, row.Domain, Shared); err != nil {
			return err
		}
		now, err := tx.KMSGrantByName(ctx, row.Name)
		if err != nil || now.State != KMSGrantLive || now.KMSGrantID != row.KMSGrantID {
			return err // retired, or another one's, meanwhile
		}
		if now.MissTime.IsZero() {
			now.MissTime = begun
			return tx.UpdateKMSGrant(ctx, now)
		}
		if !now.MissTime.Before(begun) {
			return nil
		}
		marked, err = b.takenAway(ctx, tx, now)
		return err
	})
	if err != nil {
		return err
	}
	return b.retireMarked(ctx, System, marked)
}

// takenAway gives what is to be retired of the grant that lost a KMS grant.
func (b *Broker) takenAway(ctx context.Context, tx Tx, k KMSGrant) ([]KMSGrant, error) {
	k.State, k.EndTime = KMSGrantGone, tx.Now()
	if err := tx.UpdateKMSGrant(ctx, k); err != nil {
		return nil, err
	}
	if err := tx.Audit(ctx, kmsGrantEvent(System, "kms.grantGone", AuditDone, k)); err != nil {
		return nil, err
	}
	d, err := tx.DomainByUID(ctx, k.Domain)
	if err != nil {
		return nil, err
	}
	g, err := tx.GrantByUID(ctx, k.Domain, k.Grant)
	if err != nil || g.Worker || !g.Live() || k.Epoch != d.Epoch {
		return nil, err
	}
	made, err := tx.KMSGrants(ctx, k.Domain, k.Grant)
	if err != nil {
		return nil, err
	}
	if last, _ := lastAttempt(made, k.Epoch, k.Kind); last.MayExist() {
		return nil, nil // it was made again already, because somebody asked for it
	}
	return b.endGrantIn(ctx, tx, System, d, g, ending{state: GrantRevokedByCustomer, action: "grants.revokedByCustomer"}, Request{})
}

// ReviveWorkerGrant makes the worker's KMS grants of a domain again where its
// open keys show them no more. The key's owner may have taken them away on
// purpose: so it is done only on a person's word, with a reason for the audit
// log. A key that refuses keeps none of the others from it, and its refusal is
// told.
func (b *Broker) ReviveWorkerGrant(ctx context.Context, caller Caller, domain DomainUID, reason string) error {
	if err := RequireReason(reason); err != nil {
		return err
	}
	var worker Grant
	var name string
	err := b.store.Update(ctx, func(tx Tx) error {
		d, err := tx.DomainByUID(ctx, domain)
		if err != nil {
			return err
		}
		name = d.ID.Name()
		if worker, err = workerGrant(ctx, tx, d); err != nil {
			return err
		}
		return tx.Audit(ctx, AuditEvent{Caller: caller.Subject, Action: "grants.reviveWorker", Domain: d.UID,
			Resource: name, Outcome: AuditDone, Detail: map[string]string{"reason": reason}})
	})
	if err != nil {
		return err
	}
	_, left, err := b.regrant(ctx, caller, worker, Request{}, ensuring{revive: true})
	if err == nil && left != nil {
		err = RefusedByKMS(left, name)
	}
	return err
}

// WorkerRetiredOnOpenKey says whether the broker itself has retired what the worker
// needs on a key that was replaced and may still be read from: a job had closed the
// key, and it was opened again.
func (b *Broker) WorkerRetiredOnOpenKey(ctx context.Context, domain DomainUID) (retired bool, err error) {
	err = b.store.View(ctx, func(tx Tx) error {
		d, err := tx.DomainByUID(ctx, domain)
		if err != nil {
			return err
		}
		worker, err := workerGrant(ctx, tx, d)
		if err != nil {
			return err
		}
		keys, err := tx.DomainKeys(ctx, domain)
		if err != nil {
			return err
		}
		made, err := tx.KMSGrants(ctx, domain, worker.UID)
		retired = slices.ContainsFunc(keys, func(k DomainKey) bool {
			last, _ := lastAttempt(made, k.Epoch, Unwrap)
			return k.State == KeySuperseded && (last.State == KMSGrantRetiring || last.State == KMSGrantRetired)
		})
		return err
	})
	return retired, err
}

// workerGrant gives the worker's grant of a domain, which lives as long as that.
func workerGrant(ctx context.Context, tx Tx, d Domain) (Grant, error) {
	live, err := tx.LiveGrants(ctx, d.UID)
	if err != nil {
		return Grant{}, err
	}
	i := slices.IndexFunc(live, func(g Grant) bool { return g.Worker })
	if i < 0 {
		return Grant{}, domainNotFound(ErrNotFound, d.ID)
	}
	return live[i], nil
}
