package brokertest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
)

func testSelfGrants(t *testing.T, b *storeBench) {
	alpha, beta := b.domain("alpha"), b.domain("beta")
	now := b.clock.Now()
	another := newGrant(alpha.UID, "another-role", now)
	another.Inventory, another.Grantee = broker.InventorySelf, "arn:aws:iam::444455556666:role/another"
	b.update(func(ctx context.Context, tx rotation.Tx) error {
		for i, state := range []broker.GrantState{broker.GrantActive, broker.GrantCreating, broker.GrantExpired, broker.GrantRevoked, broker.GrantRevokedByCustomer, broker.GrantFailed} {
			self := newGrant(alpha.UID, broker.GrantID(fmt.Sprint("s", i)), now)
			self.Inventory, self.State = broker.InventorySelf, state
			if err := tx.InsertGrant(ctx, self); err != nil {
				return err
			}
		}
		foreign := newGrant(beta.UID, "foreign", now)
		foreign.Inventory = broker.InventorySelf
		if err := tx.InsertGrant(ctx, foreign); err != nil {
			return err
		}
		if err := tx.InsertGrant(ctx, another); err != nil {
			return err
		}
		return tx.InsertGrant(ctx, newGrant(alpha.UID, "r-broker", now))
	})
	// Whose keys they are never changes, whatever becomes of the grant.
	b.update(func(ctx context.Context, tx rotation.Tx) error {
		g, err := tx.Grant(ctx, alpha.UID, "s0")
		if err != nil {
			return err
		}
		g.State, g.Inventory = broker.GrantRevoked, broker.InventoryBroker
		return tx.UpdateGrant(ctx, g)
	})
	b.view(func(ctx context.Context, tx rotation.Tx) error {
		got, err := tx.SelfGrants(ctx, alpha.UID, another.Grantee)
		equal(t, "such grants of another role", grantIDs(got), []broker.GrantID{"another-role"})
		if err != nil {
			return err
		}
		got, err = tx.SelfGrants(ctx, alpha.UID, newGrant(alpha.UID, "", now).Grantee)
		equal(t, "grants of a service that keeps its own wrapped keys", grantIDs(got), []broker.GrantID{"s0", "s1", "s2", "s3", "s4", "s5"})
		return err
	})
}

func testSettlements(t *testing.T, b *storeBench) {
	alpha, beta := b.domain("alpha"), b.domain("beta")
	now := b.clock.Now()
	var words []rotation.Settlement
	b.update(func(ctx context.Context, tx rotation.Tx) error {
		for _, d := range []broker.Domain{alpha, beta} {
			for _, id := range []broker.GrantID{"g1", "g2"} {
				g := newGrant(d.UID, id, now)
				if err := tx.InsertGrant(ctx, g); err != nil {
					return err
				}
				for _, e := range []broker.Epoch{2, 3} {
					s := rotation.Settlement{Domain: d.UID, Grant: g.UID, Epoch: e, Kind: rotation.Attested, Caller: "caller",
						Pass: "pass", BeginTime: now.Add(-time.Hour), Items: 5, GivenUp: 2, Time: now}
					if err := tx.PutSettlement(ctx, s); err != nil {
						return err
					}
					words = append(words, s)
				}
			}
		}
		return nil
	})
	at := func(what string, from broker.Epoch, want ...rotation.Settlement) {
		t.Helper()
		b.view(func(ctx context.Context, tx rotation.Tx) error {
			got, err := tx.Settlements(ctx, alpha.UID, from)
			equal(t, what, got, want)
			return err
		})
	}
	first, other := words[0], words[2]
	at("settlements of an epoch and of those above it", 2, first, other, words[1], words[3])
	at("settlements of the newest epoch", 3, words[1], words[3])
	at("settlements from an epoch without any", 1, first, other, words[1], words[3])
	at("settlements above all", 4)

	replaced := rotation.Settlement{Domain: alpha.UID, Grant: first.Grant, Epoch: 2, Kind: rotation.Overridden, Caller: "operator",
		Reason: "gone", Time: now.Add(time.Minute)}
	b.update(func(ctx context.Context, tx rotation.Tx) error { return tx.PutSettlement(ctx, replaced) })
	at("settlements after one was replaced", 2, replaced, other, words[1], words[3])
	for _, want := range []bool{true, false} {
		b.update(func(ctx context.Context, tx rotation.Tx) error {
			deleted, err := tx.DeleteSettlement(ctx, first)
			equal(t, "deleted", deleted, want)
			return err
		})
	}
	at("settlements after one was deleted", 2, other, words[1], words[3])
}
