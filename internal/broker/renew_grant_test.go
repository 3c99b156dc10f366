package broker_test

import (
	"slices"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/google/go-cmp/cmp"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/test/harness"
)

func (b *bench) renew(requestID, etag string) (broker.GrantView, error) {
	in := broker.RenewGrant{Domain: "acme", ID: "orders", TTL: 2 * time.Hour, Etag: etag, Reason: "test"}
	if requestID != "" {
		in.Request = request("RenewGrant", requestID, "body")
	}
	return b.Broker.RenewGrant(b.t.Context(), harness.Caller, in)
}

func (b *bench) grantIDs(key broker.KeyARN) []string {
	b.t.Helper()
	var ids []string
	for _, g := range b.serviceGrants(key) {
		ids = append(ids, aws.ToString(g.GrantId))
	}
	return ids
}

func (b *bench) usableWith(tokens []broker.Secret) error {
	d := b.domain("acme")
	return b.useKey(d.KMSKey, map[string]string{d.Reserved.Key: d.Reserved.Value, "tenant": "acme"}, tokens)
}

// A renewal gives a later end and fresh tokens, and makes no grant at KMS.
func TestRenewGrant(t *testing.T) {
	b := newActive(t)
	key := b.domain("acme").KMSKey
	g := b.mustGrant(newGrant("r1"))
	before := b.grantIDs(key)
	b.Clock.Advance(30 * time.Minute)
	renewed, err := b.renew("r2", g.Etag())
	if err != nil {
		t.Fatal(err)
	}
	if want := b.now().Add(2 * time.Hour); !renewed.ExpireTime.Equal(want) {
		t.Errorf("ends at %s, want %s", renewed.ExpireTime, want)
	}
	if diff := cmp.Diff(before, b.grantIDs(key)); diff != "" {
		t.Errorf("KMS has other grants: %s", diff)
	}
	if len(renewed.Tokens) != 2 || slices.Equal(renewed.Tokens[0], g.Tokens[0]) {
		t.Errorf("%d tokens; want two that are fresh", len(renewed.Tokens))
	}
	if err := b.usableWith(renewed.Tokens); err != nil {
		t.Error(err)
	}
	b.Clock.Advance(time.Hour) // past the first end
	b.sweep()
	if n := len(b.serviceGrants(key)); n != 2 {
		t.Errorf("%d grants are left at KMS after the end that was renewed", n)
	}
}

func TestRenewGrantRefusals(t *testing.T) {
	b := newActive(t)
	g := b.mustGrant(newGrant(""))
	if _, err := b.renew("", g.Etag()); err != nil {
		t.Fatal(err)
	}
	_, err := b.renew("", g.Etag())
	wantReason(t, err, broker.ReasonEtagMismatch) // I13
	for _, ttl := range []time.Duration{0, -time.Hour, time.Second, 367 * 24 * time.Hour} {
		_, err := b.Broker.RenewGrant(t.Context(), harness.Caller, broker.RenewGrant{Domain: "acme", ID: "orders", TTL: ttl})
		wantReason(t, err, broker.ReasonFieldInvalid)
	}
	for _, in := range []broker.RenewGrant{{Domain: "acme", ID: "nobody"}, {Domain: "acme", ID: "keybroker-worker"}} {
		in.TTL = time.Hour
		_, err := b.Broker.RenewGrant(t.Context(), harness.Caller, in)
		wantReason(t, err, broker.ReasonGrantNotFound)
	}
	b.Clock.Advance(3 * time.Hour)
	b.sweep()
	_, err = b.renew("", "")
	wantReason(t, err, broker.ReasonGrantEnded)
}

// takeAway has the key's owner remove every grant of the service.
func (b *bench) takeAway(key broker.KeyARN) {
	b.t.Helper()
	for _, g := range b.serviceGrants(key) {
		b.revoke(key, g)
	}
	if n := len(b.serviceGrants(key)); n != 0 {
		b.t.Fatalf("%d grants are left", n)
	}
}

// What the customer took away only a renewal makes again, once per renewal; no
// repeat of an older call does. Both within the time in which KMS may not show
// a grant yet, and after it.
func TestWhatTheCustomerTookAway(t *testing.T) {
	for name, age := range map[string]time.Duration{"young": 0, "visible": windows.GrantVisibility} {
		t.Run(name, func(t *testing.T) {
			b := newActive(t)
			key := b.domain("acme").KMSKey
			b.mustGrant(newGrant("r1"))
			b.Clock.Advance(age)
			b.takeAway(key)

			repeat, err := b.createGrant(newGrant("r1"))
			if err != nil {
				t.Fatal(err)
			}
			if n := len(b.serviceGrants(key)); n != 0 || len(repeat.Tokens) != 0 {
				t.Errorf("the repeat of CreateGrant made %d grants and %d tokens", n, len(repeat.Tokens))
			}
			renewed, err := b.renew("r2", "")
			if err != nil {
				t.Fatal(err)
			}
			if n := len(b.serviceGrants(key)); n != 2 || len(renewed.Tokens) != 2 {
				t.Errorf("the renewal made %d grants and %d tokens, want 2 and 2", n, len(renewed.Tokens))
			}
			if err := b.usableWith(renewed.Tokens); err != nil {
				t.Error(err)
			}
			want := []string{"1 unwrap 1 RETIRED", "1 unwrap 2 LIVE", "1 wrap 1 RETIRED", "1 wrap 2 LIVE"}
			if diff := cmp.Diff(want, b.kmsGrantStates()); diff != "" {
				t.Error(diff)
			}
			b.wantNoOrphans(key)

			b.Clock.Advance(age)
			b.takeAway(key)
			repeat, err = b.renew("r2", "")
			if err != nil {
				t.Fatal(err)
			}
			if n := len(b.serviceGrants(key)); n != 0 || len(repeat.Tokens) != 0 {
				t.Errorf("the repeat of RenewGrant made %d grants and %d tokens (I8)", n, len(repeat.Tokens))
			}
		})
	}
}

// A grant that is on record as taken away comes back by a renewal.
func TestRenewAfterRevokedByCustomer(t *testing.T) {
	b := newActive(t)
	d := b.domain("acme")
	g := b.mustGrant(newGrant("r1"))
	b.takeAway(d.KMSKey)
	err := b.Store.Broker().Update(t.Context(), func(tx broker.Tx) error {
		made, err := tx.KMSGrants(t.Context(), d.UID, g.UID)
		if err != nil {
			return err
		}
		for _, k := range made {
			k.State, k.EndTime = broker.KMSGrantGone, tx.Now()
			if err := tx.UpdateKMSGrant(t.Context(), k); err != nil {
				return err
			}
		}
		g.State = broker.GrantRevokedByCustomer
		return tx.UpdateGrant(t.Context(), g.Grant)
	})
	if err != nil {
		t.Fatal(err)
	}
	b.Calls()
	repeat, err := b.createGrant(newGrant("r1"))
	if err != nil || len(repeat.Tokens) != 0 || len(b.Calls()) != 0 {
		t.Errorf("the repeat of CreateGrant answers with %d tokens, %v", len(repeat.Tokens), err)
	}
	renewed, err := b.renew("r2", "")
	if err != nil {
		t.Fatal(err)
	}
	if renewed.State != broker.GrantActive || len(renewed.Tokens) != 2 {
		t.Errorf("%s with %d tokens", renewed.State, len(renewed.Tokens))
	}
	b.wantNoOrphans(d.KMSKey)
}

// A renewal that fails at KMS can be repeated at once, and is one renewal.
func TestFailedRenewalLetsGo(t *testing.T) {
	for _, operation := range []string{"ListGrants", "CreateGrant"} {
		t.Run(operation, func(t *testing.T) {
			b := newActive(t)
			b.mustGrant(newGrant("r1"))
			b.road.lose(operation)
			_, err := b.renew("r2", "")
			wantReason(t, err, broker.ReasonKMSUnavailable)
			b.road.open()
			end := b.now().Add(2 * time.Hour)
			b.Clock.Advance(time.Minute)
			g, err := b.renew("r2", "")
			if err != nil {
				t.Fatal(err)
			}
			if !g.ExpireTime.Equal(end) || len(g.Tokens) != 2 {
				t.Errorf("ends at %s with %d tokens, want %s and 2", g.ExpireTime, len(g.Tokens), end)
			}
			b.wantNoOrphans(b.domain("acme").KMSKey)
		})
	}
}

// The owner retires a grant between KMS's listing and the request for a token:
// the grant that this makes is retired at once.
func TestRetiredBetweenListingAndToken(t *testing.T) {
	b := newActive(t)
	key := b.domain("acme").KMSKey
	in := newGrant("r1")
	in.Operations = []string{"Decrypt"}
	b.mustGrant(in)
	since := 0
	b.audited(&since)
	b.road.after("ListGrants", func() { b.takeAway(key) })
	g, err := b.createGrant(in)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(b.serviceGrants(key)); n != 0 || len(g.Tokens) != 0 {
		t.Errorf("%d grants and %d tokens, want none", n, len(g.Tokens))
	}
	want := []string{
		"test kms.CreateGrant DONE - kb/test/UID/unwrap/1/1",
		"keybroker kms.RetireGrant INTENDED - kb/test/UID/unwrap/1/1",
		"keybroker kms.RetireGrant DONE - kb/test/UID/unwrap/1/1",
	}
	if diff := cmp.Diff(want, b.audited(&since)); diff != "" {
		t.Errorf("I5: audited: %s", diff)
	}
	ids := b.query(`select distinct json_extract(detail, '$.kms_grant_id') from audit_event where seq > ? order by seq`, since-len(want))
	recorded := b.query(`select kms_grant_id from kms_grant where name like '%unwrap/1/1' and not worker`)
	if len(ids) != 1 || slices.Equal(ids, recorded) {
		t.Errorf("the events name %v, want the one grant that was made and not %v", ids, recorded)
	}
}
