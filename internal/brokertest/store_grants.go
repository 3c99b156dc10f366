package brokertest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
)

func newGrant(d broker.DomainUID, id broker.GrantID, now time.Time) broker.Grant {
	return broker.Grant{
		Domain: d, ID: id, UID: broker.GrantUID(string(d) + "-" + string(id)),
		Grantee: "arn:aws:iam::444455556666:role/service", Operations: []string{"Decrypt", "Encrypt"},
		Inventory: broker.InventoryBroker, State: broker.GrantActive, ExpireTime: now.Add(time.Hour), Version: 1, CreateTime: now, UpdateTime: now,
	}
}

func newKMSGrant(g broker.Grant, e broker.Epoch, kind broker.GrantKind, attempt int, now time.Time) broker.KMSGrant {
	return broker.KMSGrant{
		Domain: g.Domain, Grant: g.UID, Epoch: e, Kind: kind, Attempt: attempt,
		Name:   fmt.Sprintf("kb/test/%s/%s/%d/%d", g.UID, kind, e, attempt),
		KMSKey: "arn:one", State: broker.KMSGrantIntended, IntendTime: now, NextTry: now,
	}
}

func testGrants(t *testing.T, b *storeBench) {
	d, other := b.domain("alpha"), b.domain("beta")
	now := b.clock.Now()
	// What a constraint asks for survives, also the difference between "nothing
	// but the reserved pair" and "no constraint".
	constraints := map[broker.GrantID]broker.Constraint{
		"none":         {},
		"subset":       {Subset: broker.Context{"tenant": "a"}},
		"equals":       {Equals: broker.Context{"tenant": "a", "b": "c"}},
		"equals-empty": {Equals: broker.Context{}},
	}
	for id, c := range constraints {
		g := newGrant(d.UID, id, now)
		g.Constraint = c
		b.update(func(ctx context.Context, tx rotation.Tx) error { return tx.InsertGrant(ctx, g) })
		b.view(func(ctx context.Context, tx rotation.Tx) error {
			got, err := tx.Grant(ctx, d.UID, id)
			equal(t, "grant as stored", got, g)
			if err != nil {
				return err
			}
			got, err = tx.GrantByUID(ctx, d.UID, g.UID)
			equal(t, "grant by uid", got, g)
			return err
		})
	}
	b.refused(broker.ErrAlreadyExists, "a second grant of the same id", func(ctx context.Context, tx rotation.Tx) error {
		again := newGrant(d.UID, "none", now)
		again.UID = "another"
		return tx.InsertGrant(ctx, again)
	})
	for what, read := range map[string]func(context.Context, rotation.Tx) error{
		"an absent grant id": func(ctx context.Context, tx rotation.Tx) error { _, err := tx.Grant(ctx, d.UID, "absent"); return err },
		"another domain's grant id": func(ctx context.Context, tx rotation.Tx) error {
			_, err := tx.Grant(ctx, other.UID, "none")
			return err
		},
		"another domain's grant uid": func(ctx context.Context, tx rotation.Tx) error {
			_, err := tx.GrantByUID(ctx, other.UID, newGrant(d.UID, "none", now).UID)
			return err
		},
		"an update of an absent grant": func(ctx context.Context, tx rotation.Tx) error {
			return tx.UpdateGrant(ctx, newGrant(d.UID, "absent", now))
		},
	} {
		b.refused(broker.ErrNotFound, what, read)
	}

	b.clock.Advance(time.Minute)
	g := newGrant(d.UID, "none", now)
	g.State, g.ExpireTime, g.Operations = broker.GrantRevoked, now.Add(5*time.Hour), []string{"Decrypt"}
	b.update(func(ctx context.Context, tx rotation.Tx) error { return tx.UpdateGrant(ctx, g) })
	b.refused(broker.ErrConflict, "an update with an old version", func(ctx context.Context, tx rotation.Tx) error {
		return tx.UpdateGrant(ctx, g)
	})
	g.Version, g.UpdateTime = 2, b.clock.Now()
	b.view(func(ctx context.Context, tx rotation.Tx) error {
		got, err := tx.Grant(ctx, d.UID, "none")
		equal(t, "grant after the update", got, g)
		return err
	})

	b.update(func(ctx context.Context, tx rotation.Tx) error {
		for i, state := range []broker.GrantState{broker.GrantCreating, broker.GrantExpired, broker.GrantFailed, broker.GrantRevokedByCustomer} {
			g := newGrant(d.UID, broker.GrantID(fmt.Sprint("state-", i)), now)
			g.State = state
			if err := tx.InsertGrant(ctx, g); err != nil {
				return err
			}
		}
		worker := newGrant(d.UID, "a-worker", now)
		worker.Worker, worker.ExpireTime = true, time.Time{}
		if err := tx.InsertGrant(ctx, worker); err != nil {
			return err
		}
		return tx.InsertGrant(ctx, newGrant(other.UID, "foreign", now))
	})
	b.view(func(ctx context.Context, tx rotation.Tx) error {
		live, err := tx.LiveGrants(ctx, d.UID)
		equal(t, "live grants", grantIDs(live), []broker.GrantID{"a-worker", "equals", "equals-empty", "state-0", "subset"})
		if len(live) > 0 && !live[0].Worker {
			t.Error("the worker's grant is no longer marked as such")
		}
		return err
	})
}

func grantIDs(grants []broker.Grant) (ids []broker.GrantID) {
	for _, g := range grants {
		ids = append(ids, g.ID)
	}
	return ids
}

func testDueGrants(t *testing.T, b *storeBench) {
	alpha, beta := b.domain("alpha"), b.domain("beta")
	now := b.clock.Now()
	b.update(func(ctx context.Context, tx rotation.Tx) error {
		for _, c := range []struct {
			d      broker.DomainUID
			id     broker.GrantID
			state  broker.GrantState
			expire time.Time
		}{
			{alpha.UID, "second", broker.GrantActive, now.Add(2 * time.Minute)},
			{beta.UID, "first", broker.GrantCreating, now.Add(time.Minute)},
			{alpha.UID, "third", broker.GrantActive, now.Add(3 * time.Minute)},
			{alpha.UID, "ended", broker.GrantRevoked, now.Add(time.Minute)},
			{alpha.UID, "for-ever", broker.GrantActive, time.Time{}},
		} {
			g := newGrant(c.d, c.id, now)
			g.State, g.ExpireTime = c.state, c.expire
			if err := tx.InsertGrant(ctx, g); err != nil {
				return err
			}
		}
		return nil
	})
	due := func(what string, limit int, want ...broker.GrantID) {
		t.Helper()
		b.view(func(ctx context.Context, tx rotation.Tx) error {
			got, err := tx.DueGrants(ctx, limit)
			equal(t, what, grantIDs(got), want)
			return err
		})
	}
	due("before any is due", 10)
	b.clock.Advance(2 * time.Minute)
	due("those due, also at this very moment, longest due first", 10, "first", "second")
	due("a limit", 1, "first")
	b.clock.Advance(time.Hour)
	due("all but the ended and the unlimited one", 10, "first", "second", "third")
}

func testUnmadeGrants(t *testing.T, b *storeBench) {
	alpha, beta := b.domain("alpha"), b.domain("beta")
	now := b.clock.Now()
	b.update(func(ctx context.Context, tx rotation.Tx) error {
		for i, c := range []struct {
			d     broker.DomainUID
			id    broker.GrantID
			state broker.GrantState
		}{
			{beta.UID, "first", broker.GrantCreating},
			{alpha.UID, "made", broker.GrantActive},
			{alpha.UID, "second", broker.GrantCreating},
			{alpha.UID, "refused", broker.GrantFailed},
			{beta.UID, "third", broker.GrantCreating},
		} {
			g := newGrant(c.d, c.id, now.Add(time.Duration(i)*time.Minute))
			g.State = c.state
			if err := tx.InsertGrant(ctx, g); err != nil {
				return err
			}
		}
		return nil
	})
	unmade := func(what string, at time.Time, limit int, want ...broker.GrantID) {
		t.Helper()
		b.update(func(ctx context.Context, tx rotation.Tx) error {
			got, err := tx.UnmadeGrants(ctx, at, limit)
			equal(t, what, grantIDs(got), want)
			return err
		})
	}
	unmade("none is that old", now.Add(-time.Microsecond), 10)
	unmade("those up to a moment, oldest first", now.Add(2*time.Minute), 10, "first", "second")
	unmade("a limit", now.Add(time.Hour), 2, "first", "second")
}

func testKMSGrants(t *testing.T, b *storeBench) {
	alpha, beta := b.domain("alpha"), b.domain("beta")
	now := b.clock.Now()
	g1, g2, g3 := newGrant(alpha.UID, "g1", now), newGrant(alpha.UID, "g2", now), newGrant(beta.UID, "g3", now)
	var all []broker.KMSGrant
	for _, g := range []broker.Grant{g1, g2} {
		for _, e := range []broker.Epoch{2, 10} {
			for _, kind := range []broker.GrantKind{broker.Unwrap, broker.Wrap} {
				for attempt := 1; attempt <= 2; attempt++ {
					all = append(all, newKMSGrant(g, e, kind, attempt, now.Add(time.Duration(len(all))*time.Second)))
				}
			}
		}
	}
	foreign := newKMSGrant(g3, 1, broker.Wrap, 1, now.Add(-time.Second))
	b.update(func(ctx context.Context, tx rotation.Tx) error {
		for _, g := range []broker.Grant{g1, g2, g3} {
			if err := tx.InsertGrant(ctx, g); err != nil {
				return err
			}
		}
		for i := range all { // backwards: lists have an order of their own
			if err := tx.InsertKMSGrant(ctx, all[len(all)-1-i]); err != nil {
				return err
			}
		}
		return tx.InsertKMSGrant(ctx, foreign)
	})
	b.refused(broker.ErrConflict, "a second KMS grant of the same identity", func(ctx context.Context, tx rotation.Tx) error {
		again := all[0]
		again.Name = "another"
		return tx.InsertKMSGrant(ctx, again)
	})
	b.refused(broker.ErrConflict, "a second KMS grant of the same Name", func(ctx context.Context, tx rotation.Tx) error {
		again := newKMSGrant(g1, 99, broker.Wrap, 1, now)
		again.Name = all[0].Name
		return tx.InsertKMSGrant(ctx, again)
	})
	b.refused(broker.ErrNotFound, "an update of an absent KMS grant", func(ctx context.Context, tx rotation.Tx) error {
		return tx.UpdateKMSGrant(ctx, newKMSGrant(g1, 99, broker.Wrap, 1, now))
	})

	live := &all[0]
	live.State, live.KMSGrantID, live.LiveTime = broker.KMSGrantLive, "id-1", now.Add(time.Minute)
	live.MissTime = now.Add(2 * time.Minute)
	retiring := &all[1]
	retiring.State, retiring.IntendTime, retiring.NextTry = broker.KMSGrantRetiring, now.Add(20*time.Second), now.Add(20*time.Second)
	gone := &all[2]
	gone.State, gone.EndTime = broker.KMSGrantGone, now.Add(time.Minute)
	b.update(func(ctx context.Context, tx rotation.Tx) error {
		for _, g := range []broker.KMSGrant{*live, *retiring, *gone} {
			if err := tx.UpdateKMSGrant(ctx, g); err != nil {
				return err
			}
		}
		return nil
	})
	b.view(func(ctx context.Context, tx rotation.Tx) error {
		got, err := tx.KMSGrants(ctx, alpha.UID, g1.UID)
		equal(t, "KMS grants of a grant", got, all[:len(all)/2])
		if err != nil {
			return err
		}
		got, err = tx.KMSGrants(ctx, alpha.UID, g2.UID)
		equal(t, "KMS grants of another grant", got, all[len(all)/2:])
		if err != nil {
			return err
		}
		named, err := tx.KMSGrantByName(ctx, all[3].Name)
		equal(t, "KMS grant by Name", named, all[3])
		return err
	})
	b.refused(broker.ErrNotFound, "an unknown Name", func(ctx context.Context, tx rotation.Tx) error {
		_, err := tx.KMSGrantByName(ctx, "kb/test/unknown")
		return err
	})
	stale := func(what string, limit int, want ...broker.KMSGrant) {
		t.Helper()
		b.view(func(ctx context.Context, tx rotation.Tx) error {
			got, err := tx.StaleKMSGrants(ctx, limit)
			equal(t, what, got, want)
			return err
		})
	}
	stale("before another's next try", 100, foreign)
	b.clock.Advance(4 * time.Second)
	stale("stale KMS grants, up to the very moment, longest due first", 100, foreign, all[3], all[4])
	b.clock.Advance(time.Hour)
	stale("a limit", 2, foreign, all[3])
	b.view(func(ctx context.Context, tx rotation.Tx) error {
		got, err := tx.StaleKMSGrants(ctx, 1000)
		if len(got) != len(all)-2+1 {
			t.Errorf("all stale KMS grants: got %d, want those INTENDED or RETIRING, %d", len(got), len(all)-2+1)
		}
		if err != nil {
			return err
		}
		got, err = tx.KMSGrantsOnKey(ctx, "arn:one")
		want := append(slices.Delete(slices.Clone(all), 2, 3), foreign) // all but the gone one
		sortKMSGrants(want)
		sortKMSGrants(got)
		equal(t, "KMS grants on a key", got, want)
		if err != nil {
			return err
		}
		got, err = tx.KMSGrantsOnKey(ctx, "arn:unknown")
		equal(t, "KMS grants on another key", got, nil)
		return err
	})
}

func sortKMSGrants(grants []broker.KMSGrant) {
	slices.SortFunc(grants, func(a, b broker.KMSGrant) int { return strings.Compare(a.Name, b.Name) })
}

func testListGrants(t *testing.T, b *storeBench) {
	alpha, beta := b.domain("alpha"), b.domain("beta")
	now := b.clock.Now()
	b.update(func(ctx context.Context, tx rotation.Tx) error {
		for i, state := range []broker.GrantState{broker.GrantActive, broker.GrantExpired, broker.GrantRevokedByCustomer, broker.GrantFailed} {
			g := newGrant(alpha.UID, broker.GrantID(fmt.Sprint("g", i)), now)
			g.State = state
			if err := tx.InsertGrant(ctx, g); err != nil {
				return err
			}
		}
		worker := newGrant(alpha.UID, "g1-worker", now)
		worker.Worker = true
		if err := tx.InsertGrant(ctx, worker); err != nil {
			return err
		}
		return tx.InsertGrant(ctx, newGrant(beta.UID, "foreign", now))
	})
	for _, page := range []struct {
		after broker.GrantID
		limit int
		want  []broker.GrantID
	}{
		{"", 100, []broker.GrantID{"g0", "g1", "g2", "g3"}},
		{"g0", 2, []broker.GrantID{"g1", "g2"}},
		{"g3", 2, nil},
	} {
		b.view(func(ctx context.Context, tx rotation.Tx) error {
			list, err := tx.ListGrants(ctx, alpha.UID, page.after, page.limit)
			equal(t, fmt.Sprintf("up to %d grants after %q", page.limit, page.after), grantIDs(list), page.want)
			return err
		})
	}
}

func testListings(t *testing.T, b *storeBench) {
	d := b.domain("alpha")
	start := b.clock.Now()
	claim := func(what string, before time.Time, limit int, want ...broker.KeyARN) {
		t.Helper()
		b.update(func(ctx context.Context, tx rotation.Tx) error {
			got, err := tx.ClaimListings(ctx, before, limit)
			equal(t, what, got, want)
			return err
		})
	}
	forget := func(key broker.KeyARN, before time.Time) {
		t.Helper()
		b.update(func(ctx context.Context, tx rotation.Tx) error { return tx.ForgetListing(ctx, key, before) })
	}
	claim("without any key", start, 10)
	keys := []broker.DomainKey{
		{Domain: d.UID, Epoch: 1, KMSKey: "arn:one", State: broker.KeyCurrent},
		{Domain: d.UID, Epoch: 2, KMSKey: "arn:two", State: broker.KeyPreparing},
		{Domain: d.UID, Epoch: 3, KMSKey: "arn:one", State: broker.KeyAbandoned},
	}
	b.update(func(ctx context.Context, tx rotation.Tx) error {
		for _, k := range keys {
			if err := tx.InsertDomainKey(ctx, k); err != nil {
				return err
			}
		}
		return nil
	})
	claim("a limit", start, 1, "arn:one")
	b.clock.Advance(time.Minute)
	claim("the one that was not listed yet", start.Add(-time.Second), 10, "arn:two")
	claim("again, up to the very moment", start, 10, "arn:one")
	b.clock.Advance(time.Minute)
	claim("both", b.clock.Now(), 10, "arn:one", "arn:two")

	later := b.clock.Now().Add(time.Hour)
	forget("arn:two", later) // a change prepares for it
	b.update(func(ctx context.Context, tx rotation.Tx) error {
		keys[1].State = broker.KeyAbandoned
		if err := tx.UpdateDomainKey(ctx, keys[1]); err != nil {
			return err
		}
		g := newGrant(d.UID, "g", start)
		if err := tx.InsertGrant(ctx, g); err != nil {
			return err
		}
		k := newKMSGrant(g, 2, broker.Wrap, 1, start)
		k.KMSKey = "arn:two"
		return tx.InsertKMSGrant(ctx, k)
	})
	forget("arn:two", later) // a KMS grant may be there
	b.update(func(ctx context.Context, tx rotation.Tx) error {
		k := newKMSGrant(newGrant(d.UID, "g", start), 2, broker.Wrap, 1, start)
		k.State = broker.KMSGrantRetired
		return tx.UpdateKMSGrant(ctx, k)
	})
	forget("arn:two", b.clock.Now().Add(-time.Second)) // used since
	claim("all are still needed", b.clock.Now(), 10, "arn:one", "arn:two")
	forget("arn:two", b.clock.Now())
	claim("the forgotten one is gone", b.clock.Now(), 10, "arn:one")
	b.update(func(ctx context.Context, tx rotation.Tx) error {
		return tx.InsertDomainKey(ctx, broker.DomainKey{Domain: d.UID, Epoch: 4, KMSKey: "arn:two", State: broker.KeyPreparing})
	})
	claim("its next use brings it back", start, 10, "arn:two")
}
