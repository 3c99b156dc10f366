package broker_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/test/harness"
)

func (b *bench) grantState(id broker.GrantID) broker.GrantState {
	b.t.Helper()
	g, err := b.Broker.GetGrant(b.t.Context(), harness.Caller, "acme", id)
	if err != nil {
		b.t.Fatal(err)
	}
	return g.State
}

// I7: a grant ends when its time has come, on every key it is on, and not
// before. The worker's own has no end.
func TestSweepExpires(t *testing.T) {
	b := newActive(t)
	b.mustGrant(newGrant("r1"))
	old := b.domain("acme").KMSKey
	_, next := b.beginChange("acme")
	b.untilSwitched("acme", next)
	g, err := b.Broker.GetGrant(t.Context(), harness.Caller, "acme", "orders")
	if err != nil {
		t.Fatal(err)
	}
	b.Clock.Advance(g.ExpireTime.Sub(b.Clock.Now()) - time.Microsecond)
	b.sweep()
	if got := b.grantState("orders"); got != broker.GrantActive {
		t.Fatalf("%s before its end", got)
	}
	b.Clock.Advance(time.Microsecond)
	b.sweep()
	if got := b.grantState("orders"); got != broker.GrantExpired {
		t.Errorf("%s at its end", got)
	}
	for _, key := range []broker.KeyARN{old, next} {
		if left := b.serviceGrants(key); len(left) != 0 {
			t.Errorf("%d grants are left on %s", len(left), key)
		}
	}
	b.Clock.Advance(1000 * time.Hour)
	b.sweep()
	if _, err := b.createDataKey("k"); err != nil {
		t.Errorf("the worker's own grant ended: %v", err)
	}
}

// A renewal that commits before the sweep's own transaction wins, though the
// grant was due; one that comes after it is told so.
func TestRenewalAgainstSweep(t *testing.T) {
	b := newActive(t)
	first := newGrant("")
	first.ID, first.TTL = "first", 30*time.Minute
	b.mustGrant(first)
	b.mustGrant(newGrant(""))
	b.Clock.Advance(time.Hour) // both are due
	if _, err := b.renew("", ""); err != nil {
		t.Fatal(err)
	}
	b.road.after("RetireGrant", func() {
		late := broker.RenewGrant{Domain: "acme", ID: "first", TTL: time.Hour}
		_, err := b.Broker.RenewGrant(t.Context(), harness.Caller, late)
		wantReason(t, err, broker.ReasonGrantEnded)
	})
	b.sweep()
	if got := b.grantState("first"); got != broker.GrantExpired {
		t.Errorf("first is %s", got)
	}
	if got := b.grantState("orders"); got != broker.GrantActive {
		t.Errorf("orders was renewed and is %s", got)
	}
	if n := len(b.serviceGrants(b.domain("acme").KMSKey)); n != 2 {
		t.Errorf("KMS has %d grants, want the renewed one's two", n)
	}
}

// A RetireGrant without an answer is asked again, though the grant has ended;
// one key that refuses does not keep the sweep from others (I10).
func TestSweepRetiresAgain(t *testing.T) {
	for _, fault := range []string{"lost", "refused"} {
		t.Run(fault, func(t *testing.T) {
			b := newActive(t)
			key := b.domain("acme").KMSKey
			b.mustGrant(newGrant(""))
			b.Clock.Advance(time.Hour)
			if fault == "lost" {
				b.road.lose("RetireGrant")
			} else {
				b.road.fail("RetireGrant", "AccessDeniedException")
			}
			if err := b.Broker.Sweep(t.Context()); err == nil {
				t.Error("the sweep says nothing of the failure")
			}
			b.road.open()
			if diff := cmp.Diff([]string{"1 unwrap 1 RETIRING", "1 wrap 1 RETIRING"}, b.kmsGrantStates()); diff != "" {
				t.Error(diff)
			}
			b.Clock.Advance(settling)
			b.sweep()
			if diff := cmp.Diff([]string{"1 unwrap 1 RETIRED", "1 wrap 1 RETIRED"}, b.kmsGrantStates()); diff != "" {
				t.Error(diff)
			}
			if left := b.serviceGrants(key); len(left) != 0 {
				t.Errorf("%d grants are left at KMS", len(left))
			}
		})
	}
}

// A key that KMS has deleted has no grants: its intents are closed.
func TestIntentsOfADeletedKey(t *testing.T) {
	b := newActive(t)
	b.road.lose("CreateGrant")
	_, err := b.createGrant(newGrant("r1"))
	wantReason(t, err, broker.ReasonKMSUnavailable)
	b.road.fail("ListGrants", "NotFoundException")
	b.Clock.Advance(settling)
	b.sweep()
	if diff := cmp.Diff([]string{"1 unwrap 1 FAILED", "1 wrap 1 FAILED"}, b.kmsGrantStates()); diff != "" {
		t.Error(diff)
	}
}

// An answer that comes while a listing is being read, or after it closed the
// intent, counts: the grant is live and known.
func TestAnswersThatComeLate(t *testing.T) {
	t.Run("during the listing", func(t *testing.T) {
		b := newActive(t)
		b.road.fail("CreateGrant", "KMSInternalException")
		_, err := b.createGrant(newGrant("r1"))
		wantReason(t, err, broker.ReasonKMSUnavailable)
		b.Clock.Advance(settling)
		b.road.after("ListGrants", func() { b.mustGrant(newGrant("r1")) }) // the listing is empty, and old by now
		b.sweep()
		if diff := cmp.Diff([]string{"1 unwrap 1 LIVE", "1 wrap 1 LIVE"}, b.kmsGrantStates()); diff != "" {
			t.Error(diff)
		}
		b.wantNoOrphans(b.domain("acme").KMSKey)
	})
	t.Run("after the intent was closed", func(t *testing.T) {
		b := newActive(t)
		b.road.after("CreateGrant", func() {
			b.Clock.Advance(settling)
			b.road.fail("ListGrants", "NotFoundException") // KMS shows the grant to nobody yet
			b.sweep()
			b.road.open()
		})
		g := b.mustGrant(newGrant("r1"))
		if g.State != broker.GrantActive {
			t.Errorf("the grant is %s", g.State)
		}
		b.wantNoOrphans(b.domain("acme").KMSKey)
		b.Clock.Advance(time.Hour)
		b.sweep()
		if left := b.serviceGrants(b.domain("acme").KMSKey); len(left) != 0 {
			t.Errorf("%d grants outlived the TTL (I7)", len(left))
		}
	})
}

// A grant that a crash left half made, and that nobody goes on with, is given up
// when its request would be forgotten: it does not stay CREATING for ever, and
// what was made of it at KMS is retired.
func TestSweepGivesUpWhatNobodyFinishes(t *testing.T) {
	b := newActive(t)
	key := b.domain("acme").KMSKey
	in := newGrant("r1")
	in.TTL = 30 * 24 * time.Hour
	b.road.lose("CreateGrant")
	_, err := b.createGrant(in)
	wantReason(t, err, broker.ReasonKMSUnavailable)
	b.road.open()
	begun := b.now()
	b.sweep()
	b.Clock.Advance(begun.Add(24*time.Hour - time.Microsecond).Sub(b.now()))
	b.sweep()
	if got := b.grantState("orders"); got != broker.GrantCreating {
		t.Fatalf("%s within 24 hours, in which a repeat may go on with it", got)
	}
	b.Clock.Advance(time.Microsecond)
	b.sweep()
	if got := b.grantState("orders"); got != broker.GrantFailed {
		t.Errorf("%s after 24 hours", got)
	}
	if left := b.serviceGrants(key); len(left) != 0 {
		t.Errorf("%d grants are left at KMS", len(left))
	}
	if open := b.query(`select name from kms_grant where not worker and state not in ('RETIRED', 'FAILED')`); len(open) != 0 {
		t.Errorf("still open: %v", open)
	}
}

// The time that a half made grant was asked for ends it too, if that is shorter.
func TestSweepEndsAHalfMadeGrantInTime(t *testing.T) {
	b := newActive(t)
	b.road.lose("CreateGrant")
	_, err := b.createGrant(newGrant("r1"))
	wantReason(t, err, broker.ReasonKMSUnavailable)
	b.road.open()
	b.Clock.Advance(newGrant("").TTL)
	b.sweep()
	if got := b.grantState("orders"); got != broker.GrantExpired {
		t.Errorf("%s at its end", got)
	}
}

// Requests are remembered for 24 hours (the API's promise), and no longer,
// finished or not.
func TestSweepForgetsRequests(t *testing.T) {
	b := newActive(t)
	for i := range 3 {
		in := broker.NewDataKey{Request: request("CreateDataKey", fmt.Sprint("r", i), "body"), Domain: "acme", ID: broker.DataKeyID(fmt.Sprint("k", i))}
		if _, err := b.Broker.CreateDataKey(t.Context(), harness.Caller, in); err != nil {
			t.Fatal(err)
		}
	}
	b.road.lose("CreateGrant")
	_, err := b.createGrant(newGrant("unfinished"))
	wantReason(t, err, broker.ReasonKMSUnavailable)
	b.road.open()
	begun := b.now()
	count := func() string { return b.query(`select count(*) from request`)[0] }
	b.Clock.Advance(24*time.Hour - time.Second)
	b.sweep()
	if got := count(); got != "4" {
		t.Errorf("%s requests are remembered within 24 hours, want 4", got)
	}
	b.Clock.Advance(begun.Add(24*time.Hour + time.Second).Sub(b.now()))
	b.sweep()
	if got := count(); got != "0" {
		t.Errorf("%s requests are remembered after 24 hours, want none", got)
	}
}
