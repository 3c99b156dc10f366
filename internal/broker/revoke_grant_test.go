package broker_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/test/harness"
)

func (b *bench) revokeGrant(requestID, etag string) (broker.GrantView, error) {
	in := broker.RevokeGrant{Domain: "acme", ID: "orders", Etag: etag, Reason: "the service is gone"}
	if requestID != "" {
		in.Request = request("RevokeGrant", requestID, "body")
	}
	return b.Broker.RevokeGrant(b.t.Context(), harness.Caller, in)
}

// wantNoGrants: neither KMS nor the database has anything of the service left on
// the keys.
func (b *bench) wantNoGrants(keys ...broker.KeyARN) {
	b.t.Helper()
	for _, key := range keys {
		if left := b.serviceGrants(key); len(left) != 0 {
			b.t.Errorf("%d grants are left on %s", len(left), key)
		}
	}
	if open := b.query(`select name, state from kms_grant where not worker and state in ('INTENDED', 'LIVE', 'RETIRING')`); len(open) > 0 {
		b.t.Errorf("open in the database: %q", open)
	}
}

func TestRevokeGrant(t *testing.T) {
	b := newActive(t)
	key := b.domain("acme").KMSKey
	g := b.mustGrant(newGrant("r1"))
	_, err := b.revokeGrant("r2", "77")
	wantReason(t, err, broker.ReasonEtagMismatch)
	revoked, err := b.revokeGrant("r2", g.Etag())
	if err != nil {
		t.Fatal(err)
	}
	if revoked.State != broker.GrantRevoked || len(revoked.KMSKeys) != 0 || len(revoked.Tokens) != 0 {
		t.Errorf("%+v", revoked)
	}
	b.wantNoGrants(key)
	if got := b.query(`select outcome, detail from audit_event where action = 'grants.revoke'`); len(got) != 1 || got[0] != `DONE {"reason":"the service is gone","state":"REVOKED"}` {
		t.Errorf("audit: %q", got)
	}

	// A repeat, another call and a stale etag all find it as it is.
	b.Calls()
	for _, requestID := range []string{"r2", "r3", ""} {
		again, err := b.revokeGrant(requestID, g.Etag())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(revoked, again); diff != "" {
			t.Errorf("revoked again as %q: %s", requestID, diff)
		}
	}
	if calls := b.Calls(); len(calls) != 0 {
		t.Errorf("KMS was asked %d times for what has ended", len(calls))
	}
	_, err = b.renew("", "")
	wantReason(t, err, broker.ReasonGrantEnded)
	// The request that made it is answered, and makes nothing.
	if made := b.mustGrant(newGrant("r1")); made.State != broker.GrantRevoked || len(made.Tokens) != 0 {
		t.Errorf("CreateGrant again: %+v", made)
	}
	b.wantNoGrants(key)
}

func TestRevokeGrantRefusals(t *testing.T) {
	b := newActive(t)
	long := make([]byte, 1025)
	for name, c := range map[string]struct {
		in   broker.RevokeGrant
		want broker.Reason
	}{
		"no domain":        {broker.RevokeGrant{Domain: "other", ID: "orders"}, broker.ReasonDomainNotFound},
		"no grant":         {broker.RevokeGrant{Domain: "acme", ID: "orders"}, broker.ReasonGrantNotFound},
		"the worker's own": {broker.RevokeGrant{Domain: "acme", ID: "keybroker-worker"}, broker.ReasonGrantNotFound},
		"a long reason":    {broker.RevokeGrant{Domain: "acme", ID: "orders", Reason: string(long)}, broker.ReasonFieldInvalid},
	} {
		_, err := b.Broker.RevokeGrant(t.Context(), harness.Caller, c.in)
		if got := broker.ReasonOf(err); got != c.want {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
}

// Whatever KMS says of RetireGrant, the grant is REVOKED, and the sweep goes on
// with it.
func TestRevokeGrantWithoutKMS(t *testing.T) {
	for _, fault := range []string{"lost", "KMSInternalException", "AccessDeniedException", "ThrottlingException", "DisabledException"} {
		t.Run(fault, func(t *testing.T) {
			b := newActive(t)
			key := b.domain("acme").KMSKey
			b.mustGrant(newGrant(""))
			if fault == "lost" {
				b.road.lose("RetireGrant")
			} else {
				b.road.fail("RetireGrant", fault)
			}
			g, err := b.revokeGrant("r1", "")
			if err != nil {
				t.Fatal(err)
			}
			if g.State != broker.GrantRevoked {
				t.Errorf("the grant is %s", g.State)
			}
			if diff := cmp.Diff([]broker.KeyARN{key}, g.KMSKeys); diff != "" {
				t.Errorf("KMS may still hold it, and the answer does not say so: %s", diff)
			}
			b.road.open()
			b.Clock.Advance(10 * time.Second)
			b.sweep()
			b.wantNoGrants(key)
		})
	}
}

// A grant revoked while a key change prepares, or moves rows, ends on both keys,
// and the change goes on without it.
func TestRevokeDuringKeyChange(t *testing.T) {
	for name, until := range map[string]func(b *bench, next broker.KeyARN){
		"PREPARING": func(b *bench, next broker.KeyARN) {
			for range 50 {
				if len(b.serviceGrants(next)) == 2 {
					return
				}
				if _, err := b.Step(b.t.Context()); err != nil {
					b.t.Fatal(err)
				}
			}
			b.t.Fatal("the change never granted on the new key")
		},
		"REENCRYPTING": func(b *bench, next broker.KeyARN) { b.untilSwitched("acme", next) },
	} {
		t.Run(name, func(t *testing.T) {
			b := newActive(t)
			old := b.domain("acme").KMSKey
			for _, id := range []broker.DataKeyID{"a", "b", "c", "d", "e", "f", "g"} {
				if _, err := b.createDataKey(id); err != nil {
					t.Fatal(err)
				}
			}
			b.mustGrant(newGrant(""))
			job, next := b.beginChange("acme")
			until(b, next)
			if _, err := b.revokeGrant("r1", ""); err != nil {
				t.Fatal(err)
			}
			b.wantNoGrants(old, next)
			if _, err := b.Finish(t.Context(), "acme", job); err != nil {
				t.Fatal(err)
			}
			if got := b.domain("acme").KMSKey; got != next {
				t.Errorf("the domain is under %s", got)
			}
			b.wantNoGrants(old, next)
		})
	}
}

// A revocation that comes between KMS's answers to a CreateGrant, or to a
// RenewGrant, wins: what KMS makes after is retired when it shows, also if its
// answer is lost.
func TestRevokeAmid(t *testing.T) {
	revoke := func(b *bench) func() {
		return func() {
			if _, err := b.revokeGrant("r9", ""); err != nil {
				b.t.Error(err)
			}
		}
	}
	t.Run("create", func(t *testing.T) {
		b := newActive(t)
		b.road.after("CreateGrant", revoke(b))
		g, err := b.createGrant(newGrant("r1"))
		if err != nil || g.State != broker.GrantRevoked || len(g.Tokens) != 0 {
			t.Errorf("%+v, %v", g, err)
		}
		b.wantNoGrants(b.domain("acme").KMSKey)
	})
	t.Run("create, lost", func(t *testing.T) {
		b := newActive(t)
		key := b.domain("acme").KMSKey
		b.road.lose("CreateGrant")
		_, err := b.createGrant(newGrant("r1"))
		wantReason(t, err, broker.ReasonKMSUnavailable)
		b.road.open()
		revoke(b)()
		if n := len(b.serviceGrants(key)); n != 1 {
			t.Fatalf("%d grants at KMS, want the one whose answer was lost", n)
		}
		b.Clock.Advance(settling)
		b.sweep()
		b.wantNoGrants(key)
	})
	t.Run("renew", func(t *testing.T) {
		b := newActive(t)
		key := b.domain("acme").KMSKey
		b.mustGrant(newGrant(""))
		b.road.after("ListGrants", revoke(b)) // the renewal's listing, before it asks for a fresh token
		if _, err := b.renew("r1", ""); err != nil {
			t.Logf("renewal: %v", err)
		}
		if got := b.grantState("orders"); got != broker.GrantRevoked {
			t.Errorf("the grant is %s", got)
		}
		b.Clock.Advance(settling)
		b.sweep()
		b.sweepOrphans()
		b.wantNoGrants(key)
	})
}
