package broker_test

import (
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/test/harness"
)

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
	err := b.Store.Broker().Update(t.Context(), func(tx broker.Tx) error {
		g.State = broker.GrantRevokedByCustomer
		return tx.UpdateGrant(t.Context(), g.Grant)
	})
	if err != nil {
		t.Fatal(err)
	}
	in := broker.RenewGrant{Domain: "acme", ID: g.ID, TTL: time.Hour}
	_, err = b.Broker.RenewGrant(t.Context(), harness.Caller, in)
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
	err := b.Store.Broker().Update(t.Context(), func(tx broker.Tx) error {
		g.State = broker.GrantRevokedByCustomer
		return tx.UpdateGrant(t.Context(), g.Grant)
	})
	if err != nil {
		t.Fatal(err)
	}
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
