package broker_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/google/go-cmp/cmp"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/test/harness"
)

// takeAway revokes, as the key's owner, the first grant of a role that has an
// operation.
func (b *bench) takeFrom(key broker.KeyARN, role string, operation types.GrantOperation) {
	b.t.Helper()
	for _, g := range b.atKMS(key) {
		if aws.ToString(g.GranteePrincipal) == role && slices.Contains(g.Operations, operation) {
			b.revoke(key, g)
			return
		}
	}
	b.t.Fatalf("no grant of %s on %s", operation, key)
}

// The key's owner takes one of a grant's two KMS grants away: after the second
// listing the grant has ended, and the other one with it.
func TestTakenAway(t *testing.T) {
	for _, operation := range []types.GrantOperation{"Decrypt", "GenerateDataKey"} {
		t.Run(string(operation), func(t *testing.T) {
			b := newActive(t)
			key := b.domain("acme").KMSKey
			b.mustGrant(newGrant(""))
			b.Clock.Advance(windows.GrantVisibility)
			b.takeFrom(key, harness.ServiceRole, operation)
			b.sweepOrphans()
			if got := b.grantState("orders"); got != broker.GrantActive {
				t.Fatalf("%s after one listing, which may lie", got)
			}
			b.sweepOrphans()
			if got := b.grantState("orders"); got != broker.GrantRevokedByCustomer {
				t.Fatalf("%s after two listings", got)
			}
			b.wantNoGrants(key)
			audited := b.query(`select action, outcome from audit_event where action in ('kms.grantGone', 'grants.revokedByCustomer') order by seq`)
			if diff := cmp.Diff([]string{"kms.grantGone DONE", "grants.revokedByCustomer DONE"}, audited); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// What one listing misses and the next shows was never away; nor is what is too
// young to be shown, or what is hidden by a key that KMS does not find.
func TestListingsThatLie(t *testing.T) {
	b := newActive(t)
	key := b.domain("acme").KMSKey
	b.mustGrant(newGrant(""))
	listing := func(code string) {
		t.Helper()
		if code != "" {
			b.road.fail("ListGrants", code)
		}
		b.Clock.Advance(windows.GrantVisibility + time.Second)
		_ = b.Broker.SweepOrphans(t.Context())
		b.road.open()
	}
	listing("")
	for range 3 { // an empty listing, then one that shows everything
		b.road.set(emptyListing)
		listing("")
		b.road.open()
		listing("")
	}
	for range 3 {
		listing("NotFoundException")
		listing("AccessDeniedException")
	}
	if got := b.grantState("orders"); got != broker.GrantActive {
		t.Errorf("the grant is %s", got)
	}
	if n := len(b.serviceGrants(key)); n != 2 {
		t.Errorf("KMS has %d grants", n)
	}

	// A grant that KMS does not show yet.
	in := newGrant("")
	in.ID = "young"
	b.Clock.Advance(windows.GrantVisibility + time.Second)
	b.mustGrant(in)
	b.road.set(emptyListing)
	if err := b.Broker.SweepOrphans(t.Context()); err != nil {
		t.Fatal(err)
	}
	if missed := b.query(`select g.grant_id from kms_grant k join domain_grant g on g.grant_uid = k.grant_uid where k.miss_time > 0 and g.grant_id = 'young'`); len(missed) != 0 {
		t.Error("a grant younger than the visibility window counts as missing")
	}
}

// Nothing brings back what the customer took away, but a renewal with a reason:
// no repeat of the call that made it, no key change, no sweep.
func TestTakenAwayStaysAway(t *testing.T) {
	b := newActive(t)
	old := b.domain("acme").KMSKey
	b.mustGrant(newGrant("r1"))
	b.Clock.Advance(windows.GrantVisibility)
	b.takeFrom(old, harness.ServiceRole, "Decrypt")
	b.sweepOrphans()
	b.sweepOrphans()

	if g := b.mustGrant(newGrant("r1")); g.State != broker.GrantRevokedByCustomer || len(g.Tokens) != 0 {
		t.Errorf("the repeat of CreateGrant: %+v", g)
	}
	job, next := b.beginChange("acme")
	if _, err := b.Finish(t.Context(), "acme", job); err != nil {
		t.Fatal(err)
	}
	b.sweep()
	for _, key := range []broker.KeyARN{old, next} {
		if n := len(b.serviceGrants(key)); n != 0 {
			t.Errorf("on %s the grant was made again unasked, %d times", key, n)
		}
	}
	_, err := b.Broker.RenewGrant(t.Context(), harness.Caller, broker.RenewGrant{Domain: "acme", ID: "orders", TTL: time.Hour})
	wantReason(t, err, broker.ReasonFieldInvalid)
	g, err := b.renew("", "")
	if err != nil {
		t.Fatal(err)
	}
	if err := b.usableWith(g.Tokens); err != nil || g.State != broker.GrantActive {
		t.Errorf("after the renewal the grant is %s: %v", g.State, err)
	}
	if n := len(b.serviceGrants(next)); n != 2 {
		t.Errorf("KMS has %d grants, want both", n)
	}

	// One that is lost on a key that was replaced does not end the grant, and is
	// not made again either.
	_, third := b.beginChange("acme")
	b.untilSwitched("acme", third)
	b.Clock.Advance(windows.GrantVisibility)
	b.takeFrom(next, harness.ServiceRole, "Decrypt")
	b.sweepOrphans()
	b.sweepOrphans()
	if got := b.grantState("orders"); got != broker.GrantActive {
		t.Errorf("the grant is %s", got)
	}
	b.mustGrant(newGrant("r1")) // reads it again
	if b.uses(next, "Decrypt") {
		t.Error("on the replaced key the grant was made again unasked")
	}
}

// uses reports whether the service has a grant of an operation on a key.
func (b *bench) uses(key broker.KeyARN, operation types.GrantOperation) bool {
	b.t.Helper()
	return slices.ContainsFunc(b.serviceGrants(key), func(g types.GrantListEntry) bool { return slices.Contains(g.Operations, operation) })
}

// A grant whose wrap grant is lost while KMS refuses to retire the rest is whole
// again after a renewal.
func TestRenewalOfHalfRetired(t *testing.T) {
	b := newActive(t)
	key := b.domain("acme").KMSKey
	b.mustGrant(newGrant(""))
	b.Clock.Advance(windows.GrantVisibility)
	b.takeFrom(key, harness.ServiceRole, "GenerateDataKey")
	b.sweepOrphans()
	b.road.fail("RetireGrant", "KMSInternalException")
	b.Clock.Advance(windows.GrantVisibility + time.Second)
	if err := b.Broker.SweepOrphans(t.Context()); err == nil {
		t.Error("the sweep says nothing of the failure")
	}
	b.road.open()
	if _, err := b.renew("", ""); err != nil {
		t.Fatal(err)
	}
	b.Clock.Advance(settling)
	b.sweep()
	b.wantNoOrphans(key)
	if !b.uses(key, "Decrypt") || !b.uses(key, "GenerateDataKey") || len(b.serviceGrants(key)) != 2 {
		t.Errorf("KMS has %d grants, want one of each kind", len(b.serviceGrants(key)))
	}
}

// A revocation of what the customer took away is for good.
func TestRevokeTakenAway(t *testing.T) {
	b := newActive(t)
	key := b.domain("acme").KMSKey
	b.mustGrant(newGrant(""))
	b.Clock.Advance(windows.GrantVisibility)
	b.takeFrom(key, harness.ServiceRole, "Decrypt")
	b.sweepOrphans()
	b.sweepOrphans()
	if g, err := b.revokeGrant("", ""); err != nil || g.State != broker.GrantRevoked {
		t.Errorf("%+v, %v", g, err)
	}
	_, err := b.renew("", "")
	wantReason(t, err, broker.ReasonGrantEnded)
}

// A grant that loses its KMS grant on the key being prepared holds the switch
// back until somebody renews or revokes it.
func TestTakenAwayInPreparing(t *testing.T) {
	for _, way := range []string{"renew", "revoke"} {
		t.Run(way, func(t *testing.T) {
			b := newActive(t)
			b.mustGrant(newGrant(""))
			job, next := b.beginChange("acme")
			for len(b.serviceGrants(next)) < 2 {
				if _, err := b.Step(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			b.takeFrom(next, harness.ServiceRole, "Decrypt")
			b.sweepOrphans()
			b.sweepOrphans()
			if got := b.grantState("orders"); got != broker.GrantActive {
				t.Errorf("the grant is %s: on the domain's present key it is whole", got)
			}
			for range 20 {
				if moved, err := b.Step(t.Context()); err != nil {
					t.Fatal(err)
				} else if !moved {
					b.Clock.Advance(time.Minute)
				}
			}
			if b.domain("acme").KMSKey == next || b.uses(next, "Decrypt") {
				t.Error("switched, or made again unasked")
			}
			var err error
			if way == "renew" {
				_, err = b.renew("", "")
			} else {
				_, err = b.revokeGrant("", "")
			}
			if err != nil {
				t.Fatal(err)
			}
			if view, err := b.Finish(t.Context(), "acme", job); err != nil || view.State != rotation.Succeeded {
				t.Fatalf("%+v, %v", view.Block, err)
			}
		})
	}
}

// The worker's own grant, taken away, is not made again by anything but a
// person's word.
func TestWorkerGrantTakenAway(t *testing.T) {
	b := newActive(t)
	d := b.domain("acme")
	b.Clock.Advance(windows.GrantVisibility)
	for _, operation := range []types.GrantOperation{"GenerateDataKeyWithoutPlaintext", "ReEncryptFrom"} {
		b.takeFrom(d.KMSKey, harness.WorkerRole, operation)
	}
	b.sweepOrphans()
	b.sweepOrphans()
	if diff := cmp.Diff([]string{"GONE", "GONE"}, b.query(`select state from kms_grant where worker`)); diff != "" {
		t.Error(diff)
	}
	_, err := b.createDataKey("k")
	wantReason(t, err, broker.ReasonKeyAccessDenied)
	if _, err := b.Broker.EnsureGrant(t.Context(), broker.System, d.UID, b.workerUID(), broker.Request{}); err != nil {
		t.Fatal(err)
	}
	if _, err = b.createDataKey("k"); err == nil {
		t.Error("the worker's grant was made again unasked")
	}

	wantReason(t, b.Broker.ReviveWorkerGrant(t.Context(), harness.Caller, d.UID, ""), broker.ReasonFieldInvalid)
	for range 2 {
		if err := b.Broker.ReviveWorkerGrant(t.Context(), harness.Caller, d.UID, "the customer agrees"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err = b.createDataKey("k"); err != nil {
		t.Error(err)
	}
	if n := len(b.atKMS(d.KMSKey)); n != 2 {
		t.Errorf("KMS has %d grants, want the worker's two", n)
	}
	if got := b.query(`select detail from audit_event where action = 'grants.reviveWorker'`); len(got) != 2 || !strings.Contains(got[0], "the customer agrees") {
		t.Errorf("audit: %q", got)
	}
}

// Before any listing has seen the loss, a person's word is enough too.
func TestReviveWorkerAtOnce(t *testing.T) {
	b := newActive(t)
	d := b.domain("acme")
	b.Clock.Advance(windows.GrantVisibility)
	b.takeFrom(d.KMSKey, harness.WorkerRole, "GenerateDataKeyWithoutPlaintext")
	if err := b.Broker.ReviveWorkerGrant(t.Context(), harness.Caller, d.UID, "now"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.createDataKey("k"); err != nil {
		t.Error(err)
	}
	b.sweepOrphans()
	b.sweepOrphans()
	if n := len(b.atKMS(d.KMSKey)); n != 2 {
		t.Errorf("KMS has %d grants, want the worker's two", n)
	}
}

func (b *bench) workerUID() broker.GrantUID {
	return broker.GrantUID(b.query(`select grant_uid from domain_grant where worker`)[0])
}

// A key that is forgotten once nothing needs it is listed no more.
func TestForgottenKeysAreNotListed(t *testing.T) {
	b := newActive(t)
	old := b.domain("acme").KMSKey
	job, _ := b.beginChange("acme")
	if _, err := b.Finish(t.Context(), "acme", job); err != nil {
		t.Fatal(err)
	}
	b.sweepOrphans()
	listed := func() (found bool) {
		b.Calls()
		b.sweepOrphans()
		for _, c := range b.Calls() {
			found = found || (c.Operation == "ListGrants" && c.KeyARN == string(old))
		}
		return found
	}
	if !listed() {
		t.Error("a key used a moment ago is not listed")
	}
	b.Clock.Advance(25 * time.Hour)
	b.sweepOrphans()
	if listed() {
		t.Error("a key retired a day ago is still listed")
	}
	if _, err := b.Customer.DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: aws.String(string(old))}); err != nil {
		t.Fatal(err)
	}
}
