package brokertest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
)

func testRequests(t *testing.T, b *storeBench) {
	key := broker.RequestKey{Caller: "alice", Method: "/keybroker.v1.DomainService/CreateDomain", ID: "r-1"}
	b.refused(broker.ErrNotFound, "an absent request", func(ctx context.Context, tx rotation.Tx) error {
		_, err := tx.RequestRecord(ctx, key)
		return err
	})
	rec := broker.RequestRecord{RequestKey: key, Hash: sha256.Sum256([]byte("body")), Resource: "domains/alpha", Until: b.clock.Now().Add(time.Minute)}
	put := func(r broker.RequestRecord) {
		t.Helper()
		b.update(func(ctx context.Context, tx rotation.Tx) error { return tx.PutRequestRecord(ctx, r) })
	}
	want := func(what string, r broker.RequestRecord) {
		t.Helper()
		b.view(func(ctx context.Context, tx rotation.Tx) error {
			got, err := tx.RequestRecord(ctx, r.RequestKey)
			equal(t, what, got, r)
			return err
		})
	}
	put(rec)
	want("a request in flight", rec)
	others := []broker.RequestRecord{rec, rec, rec}
	others[0].Caller, others[1].Method, others[2].ID = "bob", "/other", "r-2"
	for i := range others {
		others[i].Resource = "domains/other"
		put(others[i])
	}
	rec.Done, rec.Resource, rec.Hash, rec.Until = true, "domains/beta", sha256.Sum256([]byte("other")), rec.Until.Add(24*time.Hour)
	put(rec)
	want("a request replaced", rec)
	for _, r := range others {
		want("a request that differs in one part of its key", r)
	}
}

// testForgetRequests: finished records go when their time has come, unfinished ones
// later, those of longest ago first, and no others.
func testForgetRequests(t *testing.T, b *storeBench) {
	now := b.clock.Now()
	put := func(id string, done bool, until time.Time) {
		t.Helper()
		b.update(func(ctx context.Context, tx rotation.Tx) error {
			return tx.PutRequestRecord(ctx, broker.RequestRecord{
				RequestKey: broker.RequestKey{Caller: "alice", Method: "m", ID: id}, Done: done, Until: until, Resource: "domains/alpha",
			})
		})
	}
	put("oldest", true, now.Add(time.Minute))
	put("old", true, now.Add(2*time.Minute))
	put("due", true, now.Add(time.Hour))
	put("young", true, now.Add(time.Hour+time.Microsecond))
	put("stuck", false, now.Add(3*time.Minute))
	put("slow", false, now.Add(3*time.Minute+time.Microsecond))
	b.clock.Advance(time.Hour)
	forget := func(limit, want int) {
		t.Helper()
		b.update(func(ctx context.Context, tx rotation.Tx) error {
			got, err := tx.ForgetRequests(ctx, now.Add(3*time.Minute), limit)
			equal(t, fmt.Sprintf("forgotten of up to %d", limit), got, want)
			return err
		})
	}
	kept := func(what string, want ...string) {
		t.Helper()
		var got []string
		b.view(func(ctx context.Context, tx rotation.Tx) error {
			for _, id := range []string{"due", "old", "oldest", "slow", "stuck", "young"} {
				_, err := tx.RequestRecord(ctx, broker.RequestKey{Caller: "alice", Method: "m", ID: id})
				if err == nil {
					got = append(got, id)
				} else if !errors.Is(err, broker.ErrNotFound) {
					return err
				}
			}
			return nil
		})
		equal(t, what, got, want)
	}
	forget(2, 2)
	kept("after the two of longest ago", "due", "slow", "stuck", "young")
	forget(10, 2)
	kept("after all that may go", "slow", "young")
	forget(10, 0)
}

func testAudit(_ *testing.T, b *storeBench) {
	b.update(func(ctx context.Context, tx rotation.Tx) error {
		for _, outcome := range []broker.AuditOutcome{broker.AuditIntended, broker.AuditDone, broker.AuditRefused} {
			if err := tx.Audit(ctx, broker.AuditEvent{
				Caller: "alice", Action: "domains.create", Domain: "uid-alpha", Resource: "domains/alpha",
				Outcome: outcome, RequestID: "r-1", KMSRequestID: "k-1", Detail: map[string]string{"a": "b"},
			}); err != nil {
				return err
			}
		}
		return tx.Audit(ctx, broker.AuditEvent{Caller: "alice", Action: "bare", Outcome: broker.AuditDone})
	})
}

func testPeriodic(t *testing.T, b *storeBench) {
	take := func(name, owner string, every time.Duration, want bool) {
		t.Helper()
		b.update(func(ctx context.Context, tx rotation.Tx) error {
			got, err := tx.TakePeriodic(ctx, name, owner, every)
			if got != want {
				t.Errorf("%s for %s: taken is %v, want %v", name, owner, got, want)
			}
			return err
		})
	}
	take("expiry", "one", time.Minute, true)
	take("expiry", "two", time.Minute, false)
	take("expiry", "one", time.Minute, false)
	take("orphans", "two", time.Minute, true)
	b.clock.Advance(time.Minute - time.Microsecond)
	take("expiry", "two", time.Minute, false)
	b.clock.Advance(time.Microsecond)
	take("expiry", "two", time.Minute, true)
	take("expiry", "one", time.Minute, false)
	take("expiry", "one", 0, true)

	// A task that takes long is renewed, and is due a while after that.
	b.clock.Advance(time.Minute)
	b.update(func(ctx context.Context, tx rotation.Tx) error { return tx.RenewPeriodic(ctx, "expiry", "one") })
	take("expiry", "two", time.Minute, false)
	b.clock.Advance(time.Minute)
	take("expiry", "two", time.Minute, true)
	b.refused(broker.ErrConflict, "renewing what another has taken", func(ctx context.Context, tx rotation.Tx) error {
		return tx.RenewPeriodic(ctx, "expiry", "one")
	})
	b.refused(broker.ErrConflict, "renewing what nobody has taken", func(ctx context.Context, tx rotation.Tx) error {
		return tx.RenewPeriodic(ctx, "absent", "one")
	})
}
