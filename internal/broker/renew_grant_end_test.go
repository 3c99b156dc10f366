package broker_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/test/harness"
)

// seenRevoked stores that the customer has revoked a grant.
func (b *bench) seenRevoked(g broker.GrantView) {
	b.t.Helper()
	err := b.Store.Broker().Update(b.t.Context(), func(tx broker.Tx) error {
		g.State = broker.GrantRevokedByCustomer
		return tx.UpdateGrant(b.t.Context(), g.Grant)
	})
	if err != nil {
		b.t.Fatal(err)
	}
}

// A renewal never shortens a life: the later end wins, whoever comes first.
func TestLaterEndWins(t *testing.T) {
	b := newActive(t)
	g := b.mustGrant(newGrant(""))
	renew := func(ttl time.Duration) time.Time {
		t.Helper()
		renewed, err := b.Broker.RenewGrant(t.Context(), harness.Caller, broker.RenewGrant{Domain: "acme", ID: g.ID, TTL: ttl})
		if err != nil {
			t.Fatal(err)
		}
		return renewed.ExpireTime
	}
	long := renew(48 * time.Hour)
	if want := b.Clock.Now().Add(48 * time.Hour).Truncate(time.Microsecond); !long.Equal(want) {
		t.Errorf("ends at %s, want %s", long, want)
	}
	if short := renew(time.Minute); !short.Equal(long) {
		t.Errorf("a short renewal moved the end from %s to %s", long, short)
	}
}

// To make anew what the customer took away, one says why.
func TestRevivalNeedsAReason(t *testing.T) {
	b := newActive(t)
	g := b.mustGrant(newGrant(""))
	b.seenRevoked(g)
	in := broker.RenewGrant{Domain: "acme", ID: g.ID, TTL: time.Hour}
	_, err := b.Broker.RenewGrant(t.Context(), harness.Caller, in)
	wantReason(t, err, broker.ReasonFieldInvalid)
	in.Reason = "the customer asked for it"
	if _, err := b.Broker.RenewGrant(t.Context(), harness.Caller, in); err != nil {
		t.Error(err)
	}
}

// The later end wins too where two renewals bring a grant back at the same time,
// and neither finds one stored: here the short one comes and goes while the long
// one is at KMS.
func TestLaterEndWinsOfTwoRevivals(t *testing.T) {
	b := newActive(t)
	g := b.mustGrant(newGrant(""))
	b.takeAway(b.domain("acme").KMSKey)
	b.seenRevoked(g)
	renew := func(ttl time.Duration) (broker.GrantView, error) {
		return b.Broker.RenewGrant(t.Context(), harness.Caller, broker.RenewGrant{Domain: "acme", ID: g.ID, TTL: ttl, Reason: "the customer asked for it"})
	}
	met := false
	b.at = func(point string) {
		if point == "grant.intended" && !met {
			met = true
			if _, err := renew(time.Hour); err != nil {
				t.Errorf("the short renewal: %v", err)
			}
		}
	}
	want := b.now().Add(30 * 24 * time.Hour)
	renewed, err := renew(30 * 24 * time.Hour)
	if err != nil || !met {
		t.Fatalf("the long renewal: %v, with a short one meanwhile: %t", err, met)
	}
	if !renewed.ExpireTime.Equal(want) || renewed.State != broker.GrantActive {
		t.Errorf("%s until %s, want %s", renewed.State, renewed.ExpireTime, want)
	}
}

// A revival that failed is repeated after a shorter one has brought the grant back:
// its end is the later one, and what it intended has an outcome.
func TestLaterEndWinsOfARepeatedRevival(t *testing.T) {
	b := newActive(t)
	g := b.mustGrant(newGrant(""))
	b.takeAway(b.domain("acme").KMSKey)
	b.seenRevoked(g)
	renew := func(id string, ttl time.Duration) (broker.GrantView, error) {
		return b.Broker.RenewGrant(t.Context(), harness.Caller, broker.RenewGrant{Domain: "acme", ID: g.ID, TTL: ttl,
			Request: request("RenewGrant", id, id), Reason: "the customer asked for it"})
	}
	b.road.fail("CreateGrant", "LimitExceededException")
	b.at = func(string) {
		b.at = nil
		_, err := renew("long", 30*24*time.Hour)
		wantReason(t, err, broker.ReasonRequestInProgress)
		if refused := (*broker.Error)(nil); errors.As(err, &refused) && refused.Resource != broker.GrantName("acme", g.ID) {
			t.Errorf("the same request is at work on %q", refused.Resource)
		}
	}
	_, err := renew("long", 30*24*time.Hour)
	wantReason(t, err, broker.ReasonGrantLimitExceeded)
	b.road.open()
	if _, err := renew("short", time.Hour); err != nil {
		t.Fatal(err)
	}
	want := b.now().Add(30 * 24 * time.Hour)
	for range 2 {
		renewed, err := renew("long", 30*24*time.Hour)
		if err != nil || !renewed.ExpireTime.Equal(want) {
			t.Errorf("the repeat: until %s, %v, want %s", renewed.ExpireTime, err, want)
		}
		b.Clock.Advance(time.Hour / 2)
	}
	if got := b.query(`select outcome from audit_event where action = 'grants.renew' and request_id = 'long' order by seq`); !slices.Equal(got, []string{"INTENDED", "DONE"}) {
		t.Errorf("audit of the repeated renewal: %q", got)
	}
}
