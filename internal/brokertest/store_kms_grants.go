package brokertest

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
)

// insertGrants stores grants with what they have at KMS.
func (b *storeBench) insertGrants(grants []broker.Grant, made ...broker.KMSGrant) {
	b.t.Helper()
	b.update(func(ctx context.Context, tx rotation.Tx) error {
		for _, g := range grants {
			if err := tx.InsertGrant(ctx, g); err != nil {
				return err
			}
		}
		for _, k := range made {
			if err := tx.InsertKMSGrant(ctx, k); err != nil {
				return err
			}
		}
		return nil
	})
}

// testKMSGrantsInRange: every state of a KMS grant, of each kind, under three
// epochs, of a live grant and of an ended one.
func testKMSGrantsInRange(t *testing.T, b *storeBench) {
	alpha, beta := b.domain("alpha"), b.domain("beta")
	now := b.clock.Now()
	live, ended, foreign := newGrant(alpha.UID, "live", now), newGrant(alpha.UID, "ended", now), newGrant(beta.UID, "foreign", now)
	ended.State = broker.GrantExpired
	var all []broker.KMSGrant // in the order of the lists
	for _, g := range []broker.Grant{ended, live} {
		for _, e := range []broker.Epoch{1, 2, 10} {
			for _, kind := range []broker.GrantKind{broker.Unwrap, broker.Wrap} {
				for i, state := range []broker.KMSGrantState{broker.KMSGrantIntended, broker.KMSGrantLive, broker.KMSGrantRetiring,
					broker.KMSGrantRetired, broker.KMSGrantFailed, broker.KMSGrantGone} {
					k := newKMSGrant(g, e, kind, i+1, now)
					k.State = state
					all = append(all, k)
				}
			}
		}
	}
	fine := newGrant(alpha.UID, "without a failure", now)
	b.insertGrants([]broker.Grant{live, ended, foreign, fine}, append(slices.Clone(all), newKMSGrant(foreign, 2, broker.Wrap, 1, now))...)

	selected := func(is func(k broker.KMSGrant) bool) (some []broker.KMSGrant) {
		for _, k := range all {
			if is(k) {
				some = append(some, k)
			}
		}
		return some
	}
	for _, c := range []struct {
		r  broker.KMSGrantRange
		is func(k broker.KMSGrant) bool
	}{
		{broker.KMSGrantRange{}, func(broker.KMSGrant) bool { return true }},
		{broker.KMSGrantRange{Below: 10}, func(k broker.KMSGrant) bool { return k.Epoch == 1 || k.Epoch == 2 }},
		{broker.KMSGrantRange{From: 2}, func(k broker.KMSGrant) bool { return k.Epoch == 2 || k.Epoch == 10 }},
		{broker.KMSGrantRange{From: 2, Below: 3}, func(k broker.KMSGrant) bool { return k.Epoch == 2 }},
		{broker.KMSGrantRange{Below: 1}, func(broker.KMSGrant) bool { return false }},
		{broker.KMSGrantRange{Kind: broker.Unwrap}, func(k broker.KMSGrant) bool { return k.Kind == broker.Unwrap }},
		{broker.KMSGrantRange{Below: 2, Kind: broker.Wrap}, func(k broker.KMSGrant) bool { return k.Kind == broker.Wrap && k.Epoch == 1 }},
	} {
		b.view(func(ctx context.Context, tx rotation.Tx) error {
			recorded, err := tx.RecordedKMSGrants(ctx, alpha.UID, c.r)
			equal(t, fmt.Sprintf("recorded KMS grants in %+v", c.r), recorded, selected(func(k broker.KMSGrant) bool {
				return c.is(k) && (k.State == broker.KMSGrantLive || k.State == broker.KMSGrantRetiring)
			}))
			if err != nil {
				return err
			}
			intents, err := tx.KMSIntents(ctx, alpha.UID, c.r)
			equal(t, fmt.Sprintf("intents in %+v", c.r), intents, selected(func(k broker.KMSGrant) bool {
				return c.is(k) && k.State == broker.KMSGrantIntended
			}))
			return err
		})
	}
	b.view(func(ctx context.Context, tx rotation.Tx) error {
		failed, err := tx.FailedOn(ctx, alpha.UID, 2)
		equal(t, "live grants that failed under an epoch", failed, []broker.GrantUID{live.UID})
		return err
	})
}

// testKMSGrantsUnderEpoch: what a key change asks about the past of an epoch.
func testKMSGrantsUnderEpoch(t *testing.T, b *storeBench) {
	alpha, beta := b.domain("alpha"), b.domain("beta")
	now := b.clock.Now()
	service, worker, foreign := newGrant(alpha.UID, "service", now), newGrant(alpha.UID, "worker", now), newGrant(beta.UID, "foreign", now)
	service.State, service.Inventory = broker.GrantRevoked, broker.InventorySelf
	never, elsewhere := newGrant(alpha.UID, "never", now), newGrant(alpha.UID, "elsewhere", now)
	never.Inventory, elsewhere.Inventory = broker.InventorySelf, broker.InventorySelf
	worker.Worker = true
	attempt := 0
	made := func(g broker.Grant, e broker.Epoch, kind broker.GrantKind, state broker.KMSGrantState, id string, end time.Duration) broker.KMSGrant {
		attempt++
		k := newKMSGrant(g, e, kind, attempt, now)
		k.Worker, k.State, k.KMSGrantID = g.Worker, state, id
		if end > 0 {
			k.EndTime = now.Add(end)
		}
		return k
	}
	b.insertGrants([]broker.Grant{service, worker, foreign, never, elsewhere},
		made(service, 4, broker.Wrap, broker.KMSGrantRetired, "a", 1*time.Minute),
		made(service, 4, broker.Wrap, broker.KMSGrantFailed, "b", 2*time.Minute), // a listing has shown it since
		made(service, 4, broker.Wrap, broker.KMSGrantGone, "c", 3*time.Minute),
		made(service, 4, broker.Unwrap, broker.KMSGrantRetired, "d", 4*time.Minute),
		made(worker, 4, broker.Wrap, broker.KMSGrantRetired, "e", 5*time.Minute),
		made(worker, 4, broker.Wrap, broker.KMSGrantLive, "f", 0),
		made(service, 4, broker.Unwrap, broker.KMSGrantLive, "g", 0),
		made(service, 4, broker.Wrap, broker.KMSGrantFailed, "", 6*time.Minute),
		made(never, 4, broker.Unwrap, broker.KMSGrantFailed, "", 6*time.Minute),
		made(foreign, 4, broker.Wrap, broker.KMSGrantRetired, "h", 7*time.Minute),
		made(elsewhere, 3, broker.Wrap, broker.KMSGrantRetired, "i", 8*time.Minute),
		made(service, 5, broker.Wrap, broker.KMSGrantFailed, "", 9*time.Minute),
		made(worker, 6, broker.Unwrap, broker.KMSGrantRetired, "j", 10*time.Minute),
	)
	check := func(e broker.Epoch, wrap, end time.Time, self ...broker.GrantID) {
		t.Helper()
		b.view(func(ctx context.Context, tx rotation.Tx) error {
			got, err := tx.LastServiceWrap(ctx, alpha.UID, e)
			equal(t, fmt.Sprint("the last wrap grant of a service under epoch ", e), got, wrap)
			if err != nil {
				return err
			}
			got, err = tx.LastKMSGrantEnd(ctx, alpha.UID, e)
			equal(t, fmt.Sprint("the last end under epoch ", e), got, end)
			if err != nil {
				return err
			}
			all, err := tx.SelfGrantsOn(ctx, alpha.UID, e)
			var on []broker.GrantID
			for _, g := range all {
				if g.Epoch < e {
					t.Errorf("%s under epoch %d, asked from %d on", g.ID, g.Epoch, e)
				}
				if g.Epoch == e {
					on = append(on, g.ID)
				}
			}
			equal(t, fmt.Sprint("services with keys of their own under epoch ", e), slices.Compact(on), self)
			return err
		})
	}
	none := time.Time{}
	check(4, now.Add(3*time.Minute), now.Add(5*time.Minute), "service")
	check(3, now.Add(8*time.Minute), now.Add(8*time.Minute), "elsewhere")
	check(5, none, none)
	check(6, none, now.Add(10*time.Minute))
	check(7, none, none)

	b.clock.Advance(time.Hour)
	for i, state := range []broker.KMSGrantState{broker.KMSGrantIntended, broker.KMSGrantLive, broker.KMSGrantRetiring} {
		e := broker.Epoch(20 + i)
		b.insertGrants(nil, made(never, e, broker.Wrap, broker.KMSGrantRetired, fmt.Sprint("id-", i), time.Minute), made(never, e, broker.Wrap, state, "", 0))
		check(e, b.clock.Now(), now.Add(time.Minute), "never")
	}
}
