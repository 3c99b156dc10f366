package broker

import (
	"context"
	"errors"
	"slices"
	"time"
)

const (
	// listBatch bounds the keys that one SweepOrphans lists, and listAtATime how
	// many of them at a time: every 10 s, a fifth of KMS's 100 ListGrants calls a
	// second (KMS Developer Guide, Request quotas); 10^5 keys take 84 min. Ours.
	listBatch, listAtATime = 200, 4
	// keyMemory is how long a key is still listed after its last use: what a
	// process that slept made on it late is found as long.
	keyMemory = 24 * time.Hour
)

// SweepOrphans compares what KMS holds with what the database says, key by key,
// each at most once in grant_visibility. It is called periodically, beside Sweep.
//
//   - An orphan, a grant under a Name of this deployment that should not be
//     there, is retired: one without a row, one whose row says that it was never
//     made, is retired or gone, another than the one recorded under its Name, and
//     one whose grant has ended or whose key is closed. KMS is listed first and
//     the database is read after, so that every row which was there before its
//     grant is seen.
//   - A grant that is missing in two listings was taken away by the key's owner:
//     see noteMissing.
//
// It does nothing unless Config.SweepOrphans is set: a database that was restored
// from a backup knows nothing of what was made since, and would take live grants
// for orphans and retired ones for taken away.
func (b *Broker) SweepOrphans(ctx context.Context) error {
	if !b.cfg.SweepOrphans {
		return nil
	}
	var keys []KeyARN
	var begun time.Time
	err := b.store.Update(ctx, func(tx Tx) (err error) {
		begun = tx.Now()
		keys, err = tx.ClaimListings(ctx, begun.Add(-b.cfg.Windows.GrantVisibility), listBatch)
		return err
	})
	if err != nil {
		return err
	}
	return atATime(listAtATime, keys, func(key KeyARN) error { return b.sweepKey(ctx, key, begun) })
}

// sweepKey is SweepOrphans for one key. begun is before its listing.
func (b *Broker) sweepKey(ctx context.Context, key KeyARN, begun time.Time) error {
	listed, err := b.registrar.ListGrants(ctx, key, "")
	if err != nil && ClassOf(err) != KMSNotFound {
		return err
	}
	// A key that KMS does not know, or hides, says nothing about its grants.
	unknown := err != nil
	k, err := b.readKey(ctx, key, listed)
	if err != nil {
		return err
	}
	var failed failures
	for _, l := range listed {
		row, known := k.rows[l.Name]
		if _, ours := b.ParseKMSGrantName(l.Name); ours && b.orphan(row, known, l, begun) {
			failed.add(b.retireOrphan(ctx, key, l, begun))
		}
	}
	failed.add(b.retireKMSGrants(ctx, System, k.needless(listed)))
	if !unknown {
		failed.add(b.compareListing(ctx, k, listed, begun))
	}
	failed.add(b.store.Update(ctx, func(tx Tx) error { return tx.ForgetListing(ctx, key, tx.Now().Add(-keyMemory)) }))
	return failed.err()
}

// A keyView is what the database says of one key's grants.
type keyView struct {
	rows  map[string]KMSGrant // by Name: every open one, and those that KMS listed
	live  map[GrantUID]bool
	epoch map[DomainUID][]DomainKey
}

func (b *Broker) readKey(ctx context.Context, key KeyARN, listed []ListedGrant) (k keyView, err error) {
	err = b.store.View(ctx, func(tx Tx) error {
		k = keyView{rows: map[string]KMSGrant{}, live: map[GrantUID]bool{}, epoch: map[DomainUID][]DomainKey{}}
		open, err := tx.KMSGrantsOnKey(ctx, key)
		if err != nil {
			return err
		}
		for _, row := range open {
			k.rows[row.Name] = row
			if _, read := k.epoch[row.Domain]; read {
				continue
			}
			if k.epoch[row.Domain], err = tx.DomainKeys(ctx, row.Domain); err != nil {
				return err
			}
			live, err := tx.LiveGrants(ctx, row.Domain)
			if err != nil {
				return err
			}
			for _, g := range live {
				k.live[g.UID] = true
			}
		}
		for _, l := range listed {
			if _, ours := b.ParseKMSGrantName(l.Name); !ours || k.rows[l.Name].Name != "" {
				continue
			}
			row, err := tx.KMSGrantByName(ctx, l.Name)
			if err != nil && !errors.Is(err, ErrNotFound) {
				return err
			}
			if err == nil {
				k.rows[l.Name] = row
			}
		}
		return nil
	})
	return k, err
}

// needless are the recorded grants that KMS lists although their grant has ended
// or their key is closed.
func (k keyView) needless(listed []ListedGrant) (needless []KMSGrant) {
	for _, l := range listed {
		row, known := k.rows[l.Name]
		if !known || row.State != KMSGrantLive || row.KMSGrantID != l.ID {
			continue
		}
		key, ok := KeyOfEpoch(k.epoch[row.Domain], row.Epoch)
		closed := !ok || slices.Contains([]KeyState{KeyClosed, KeyRetired, KeyAbandoned}, key.State)
		if closed || !k.live[row.Grant] {
			needless = append(needless, row)
		}
	}
	return needless
}

// orphan says whether KMS lists a grant that the row of its Name does not stand
// for. A row that is closed stands for its grant until KMS has had time to forget
// it.
func (b *Broker) orphan(row KMSGrant, known bool, l ListedGrant, begun time.Time) bool {
	switch {
	case !known:
		return orphanWithoutRow()
	case row.State == KMSGrantIntended:
		return false // its call is under way, or ResolveIntents comes
	case row.MayExist():
		return row.KMSGrantID != l.ID
	}
	return row.KMSGrantID != l.ID || row.EndTime.Add(b.cfg.Windows.GrantVisibility).Before(begun)
}

// retireOrphan retires a listed grant that nobody recorded, if it is still an
// orphan: an answer to the call that made it may have been recorded meanwhile.
func (b *Broker) retireOrphan(ctx context.Context, key KeyARN, l ListedGrant, begun time.Time) error {
	event := AuditEvent{Caller: System.Subject, Action: "kms.RetireGrant", Resource: l.Name, Outcome: AuditIntended,
		Detail: map[string]string{"kms_key": string(key), "kms_grant_id": l.ID, "orphan": "true"}}
	still := false
	err := b.store.Update(ctx, func(tx Tx) error {
		row, err := tx.KMSGrantByName(ctx, l.Name)
		known := err == nil
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		if still = b.orphan(row, known, l, begun); !still {
			return nil
		}
		event.Domain = row.Domain
		if row.State == KMSGrantFailed && row.KMSGrantID == "" {
			row.KMSGrantID = l.ID // an answer that still comes finds it closed
			if err := tx.UpdateKMSGrant(ctx, row); err != nil {
				return err
			}
		}
		return tx.Audit(ctx, event)
	})
	if err != nil || !still {
		return err
	}
	requestID, err := b.registrar.RetireGrant(ctx, key, l.ID)
	if err != nil {
		return err // the next listing shows it again
	}
	ctx = context.WithoutCancel(ctx)
	return b.store.Update(ctx, func(tx Tx) error {
		row, err := tx.KMSGrantByName(ctx, l.Name)
		// Its drain clock starts again, or for the first time: a service can use a
		// grant whose making was thought to have failed.
		if err == nil && (row.State == KMSGrantRetired || row.State == KMSGrantFailed) {
			row.EndTime = tx.Now()
			err = tx.UpdateKMSGrant(ctx, row)
		}
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		event.Outcome, event.KMSRequestID = AuditDone, requestID
		return tx.Audit(ctx, event)
	})
}
