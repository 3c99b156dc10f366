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

// testRequestsAreForgotten: records whose time has come may go, and only those;
// the table must not grow for ever.
func testRequestsAreForgotten(t *testing.T, b *storeBench) {
	record := func(id string, done bool, life time.Duration) broker.RequestRecord {
		return broker.RequestRecord{RequestKey: broker.RequestKey{Caller: "alice", Method: "m", ID: id}, Done: done, Until: b.clock.Now().Add(life)}
	}
	put := func(r broker.RequestRecord) {
		t.Helper()
		b.update(func(ctx context.Context, tx rotation.Tx) error { return tx.PutRequestRecord(ctx, r) })
	}
	const old = 10
	for i := range old {
		put(record(fmt.Sprint("old-", i), true, time.Minute))
	}
	put(record("in-flight", false, time.Minute))
	put(record("young", true, time.Hour))
	b.clock.Advance(2 * time.Minute)
	for i := range old {
		put(record(fmt.Sprint("new-", i), true, time.Hour))
	}
	kept := map[string]bool{}
	b.view(func(ctx context.Context, tx rotation.Tx) error {
		for _, id := range []string{"in-flight", "young", "new-0", "new-9"} {
			_, err := tx.RequestRecord(ctx, broker.RequestKey{Caller: "alice", Method: "m", ID: id})
			kept[id] = err == nil
		}
		for i := range old {
			_, err := tx.RequestRecord(ctx, broker.RequestKey{Caller: "alice", Method: "m", ID: fmt.Sprint("old-", i)})
			if !errors.Is(err, broker.ErrNotFound) {
				kept["old"] = true
			}
		}
		return nil
	})
	equal(t, "which records are kept", kept, map[string]bool{"in-flight": true, "young": true, "new-0": true, "new-9": true})
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
}
