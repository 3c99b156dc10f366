package rotation

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
)

// Attest takes a service's word, at the end of a pass, that it has no wrapped
// key left under a key older than the domain's present one. It is stored for
// each grant that the pass is about, once however often it is sent, and lets a
// job that waited for it look again.
//
// The word counts only if the pass began after the last service wrap grant on
// every older key had ended, and what was made by it had the time to arrive: the
// drain's clocks. A service that has begun to look through its keys before that
// may have stored another one behind its own back.
func (e *Engine) Attest(ctx context.Context, caller broker.Caller, pass Pass, givenUp int64) ([]SelfInventory, error) {
	var out []SelfInventory
	err := e.store.Update(ctx, func(tx Tx) error {
		d, err := pass.lockDomain(ctx, tx)
		if err != nil {
			return err
		}
		if err := pass.stillAt(d); err != nil {
			return err
		}
		until, err := e.drained(ctx, tx, d.UID, d.Epoch)
		if err != nil {
			return err
		}
		word := Settlement{Domain: d.UID, Epoch: d.Epoch, Kind: Attested, Caller: caller.Subject, Pass: pass.ID,
			BeginTime: pass.BeginTime, Items: pass.Items, GivenUp: givenUp, Time: tx.Now()}
		if !word.counts(until) {
			return tooEarly(pass.Owner.resource(d), tx.Now(), until)
		}
		out, err = settleGrants(ctx, tx, d, pass.Owner, word)
		return err
	})
	if err != nil {
		return nil, err
	}
	e.cfg.At("inventory.attested")
	return out, e.wakeForWords(ctx, pass.Domain)
}

func tooEarly(resource string, now, until time.Time) error {
	return &broker.Error{Kind: broker.ErrPrecondition, Reason: broker.ReasonAttestationTooEarly, Resource: resource,
		Detail:     "the pass began before data keys under the older keys could no longer appear: begin a new pass, over all wrapped keys, at or after " + until.UTC().Format(time.RFC3339),
		RetryAfter: max(0, until.Sub(now))}
}

// settleGrants stores a service's word for each of its grants, and gives what is
// stored. The word of one pass is stored once: an answer was lost, and the client
// asks again. An operator's word stands.
func settleGrants(ctx context.Context, tx Tx, d broker.Domain, owner PassOwner, word Settlement) ([]SelfInventory, error) {
	grants, err := owner.grants(ctx, tx, d)
	if err != nil {
		return nil, err
	}
	before, err := tx.Settlements(ctx, d.UID, d.Epoch)
	if err != nil {
		return nil, err
	}
	var out []SelfInventory
	for _, g := range grants {
		stored := word
		stored.Grant = g.UID
		i := slices.IndexFunc(before, func(s Settlement) bool {
			return s.Grant == g.UID && (s.Kind == Overridden || s.Pass == word.Pass)
		})
		if i >= 0 {
			stored = before[i]
		} else if err := putSettlement(ctx, tx, d, g, stored, ""); err != nil {
			return nil, err
		}
		out = append(out, SelfInventory{Domain: d.ID, Grant: g, Settled: &stored, KMSKey: d.KMSKey})
	}
	return out, nil
}

// putSettlement stores a word, with its audit row.
func putSettlement(ctx context.Context, tx Tx, d broker.Domain, g broker.Grant, word Settlement, requestID string) error {
	if err := tx.PutSettlement(ctx, word); err != nil {
		return err
	}
	event := settlementEvent("selfInventories.settle", d, g, word, d.KMSKey)
	event.RequestID = requestID
	return tx.Audit(ctx, event)
}

// takeBackAttestations forgets what the owner of a pass attested about an epoch
// and those above it, and says whether there was anything. An operator's word
// stands.
func takeBackAttestations(ctx context.Context, tx Tx, caller broker.Caller, pass Pass, d broker.Domain, keys []broker.DomainKey, about broker.Epoch) (any bool, err error) {
	settled, err := tx.Settlements(ctx, d.UID, about+1)
	if err != nil || len(settled) == 0 {
		return false, err
	}
	grants, err := pass.Owner.grants(ctx, tx, d)
	if err != nil {
		return false, err
	}
	for _, s := range settled {
		i := slices.IndexFunc(grants, func(g broker.Grant) bool { return g.UID == s.Grant })
		if i < 0 || s.Kind != Attested {
			continue
		}
		deleted, err := tx.DeleteSettlement(ctx, s)
		if err != nil {
			return any, err
		}
		if !deleted { // another call was first
			continue
		}
		any = true
		s.Caller = caller.Subject
		key, _ := broker.KeyOfEpoch(keys, s.Epoch)
		if err := tx.Audit(ctx, settlementEvent("selfInventories.takeBack", d, grants[i], s, key.KMSKey)); err != nil {
			return any, err
		}
	}
	return any, nil
}

// settlementEvent is the audit event of a word; key is that of its epoch.
func settlementEvent(action string, d broker.Domain, g broker.Grant, s Settlement, key broker.KeyARN) broker.AuditEvent {
	return broker.AuditEvent{Caller: s.Caller, Action: action, Domain: d.UID, Resource: broker.GrantName(d.ID, g.ID),
		Outcome: broker.AuditDone, Detail: map[string]string{"kind": string(s.Kind), "kms_key": string(key), "pass": s.Pass,
			"items": strconv.FormatInt(s.Items, 10), "given_up": strconv.FormatInt(s.GivenUp, 10), "reason": s.Reason}}
}

// wakeForWords lets a job that waits for a service's word, or goes on since it was
// given, look again at once. If the job is being changed at this moment, its next
// step will do.
func (e *Engine) wakeForWords(ctx context.Context, d broker.DomainUID) error {
	err := e.store.Update(ctx, func(tx Tx) error {
		jobs, err := tx.UnfinishedJobs(ctx, d)
		if err != nil {
			return err
		}
		for _, j := range jobs {
			switch {
			case j.State == Blocked && j.Block.Reason == broker.ReasonSelfInventory && j.Block.NextProbe.After(tx.Now()):
				j.Block.NextProbe = tx.Now()
			case j.State == Running && j.Phase == Retiring && j.WaitUntil.After(tx.Now()):
				j.WaitUntil = tx.Now()
			default:
				continue
			}
			if err := tx.UpdateJob(ctx, j); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil && !errors.Is(err, broker.ErrConflict) {
		return err
	}
	e.nudge()
	return nil
}
