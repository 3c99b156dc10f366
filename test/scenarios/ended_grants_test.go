package scenarios_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/test/harness"
)

// endedKMSGrants is how many KMS grants a service leaves in two years that takes a
// fresh grant every 40 minutes: two for each.
const endedKMSGrants = 50_000

// BenchmarkEndedGrants is what a call and a key change take in a domain with ten
// live grants and very many ended ones, all of them on its present key.
func BenchmarkEndedGrants(b *testing.B) {
	for _, engine := range []string{harness.SQLite, harness.Postgres} {
		for _, ended := range []int{0, endedKMSGrants} {
			b.Run(fmt.Sprintf("CreateGrant/%s/ended=%d", engine, ended), func(b *testing.B) {
				h := withEndedGrants(b, engine, ended)
				for b.Loop() {
					createGrant(b, h)
				}
			})
			b.Run(fmt.Sprintf("KeyChange/%s/ended=%d", engine, ended), func(b *testing.B) {
				h := withEndedGrants(b, engine, ended)
				for b.Loop() {
					changeKey(b, h)
				}
			})
		}
	}
}

// withEndedGrants gives a bench with the domain "acme", which has ten live grants.
func withEndedGrants(b *testing.B, engine string, ended int) *harness.Bench {
	b.Helper()
	h, err := harness.New(b.Context(), harness.Config{Engine: engine, Dir: b.TempDir(), Windows: windows()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := h.Close(); err != nil {
			b.Error(err)
		}
	})
	d, _, err := h.Onboard(b.Context(), "acme")
	if err != nil {
		b.Fatal(err)
	}
	for range 10 {
		createGrant(b, h)
	}
	for from := 0; from < ended/2; from += 1000 {
		if err := insertEnded(b.Context(), h, d, from, from+1000); err != nil {
			b.Fatal(err)
		}
	}
	return h
}

func createGrant(b *testing.B, h *harness.Bench) {
	b.Helper()
	_, err := h.Broker.CreateGrant(b.Context(), harness.Caller, broker.NewGrant{Domain: "acme", Grantee: harness.ServiceRole,
		Operations: []string{"Decrypt", "GenerateDataKey"}, TTL: 300 * 24 * time.Hour})
	if err != nil {
		b.Fatal(err)
	}
}

func changeKey(b *testing.B, h *harness.Bench) {
	b.Helper()
	key, err := h.NewKey(b.Context(), "acme")
	if err != nil {
		b.Fatal(err)
	}
	job, err := h.ChangeKey(b.Context(), "acme", key)
	if err != nil {
		b.Fatal(err)
	}
	if view, err := h.Finish(b.Context(), "acme", job.ID); err != nil || view.State != rotation.Succeeded {
		b.Fatal(view.State, err)
	}
}

// insertEnded stores grants that were revoked, past the broker: it would ask KMS
// for each.
func insertEnded(ctx context.Context, h *harness.Bench, d broker.Domain, from, to int) error {
	return h.Store.Broker().Update(ctx, func(tx broker.Tx) error {
		begun := tx.Now().Add(-48 * time.Hour)
		for i := from; i < to; i++ {
			g := broker.Grant{Domain: d.UID, ID: broker.GrantID(fmt.Sprintf("ended-%06d", i)), UID: broker.GrantUID(fmt.Sprintf("01JENDED%018d", i)),
				Grantee: harness.ServiceRole, Operations: []string{"Decrypt", "GenerateDataKey"}, Inventory: broker.InventoryBroker,
				State: broker.GrantRevoked, ExpireTime: begun.Add(time.Hour), Version: 3, CreateTime: begun, UpdateTime: begun.Add(time.Minute)}
			if err := tx.InsertGrant(ctx, g); err != nil {
				return err
			}
			for _, kind := range []broker.GrantKind{broker.Wrap, broker.Unwrap} {
				if err := tx.InsertKMSGrant(ctx, broker.KMSGrant{Domain: d.UID, Grant: g.UID, Epoch: d.Epoch, Kind: kind, Attempt: 1,
					Name: fmt.Sprintf("kb/%s/%s/%s/%d/1", harness.Deployment, g.UID, kind, d.Epoch), KMSKey: d.KMSKey,
					KMSGrantID: fmt.Sprintf("%064x", 2*i+len(kind)%2), State: broker.KMSGrantRetired,
					IntendTime: begun.Add(time.Minute), LiveTime: begun, EndTime: begun.Add(time.Minute), NextTry: begun.Add(time.Minute)}); err != nil {
					return err
				}
			}
		}
		return nil
	})
}
