package broker_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/google/go-cmp/cmp"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/test/harness"
)

// sweepOrphans does what the periodic sweep does, a visibility window after the
// one before.
func (b *bench) sweepOrphans() {
	b.t.Helper()
	b.Clock.Advance(windows.GrantVisibility + time.Second)
	if err := b.Broker.SweepOrphans(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
}

// plant makes a grant at KMS behind the broker's back, in the registrar's role.
func (b *bench) plant(name string) (id string) {
	b.t.Helper()
	d := b.domain("acme")
	out, err := clientOf(b, "AKIAREGISTRAR", "registrar").CreateGrant(b.t.Context(), &kms.CreateGrantInput{
		KeyId: aws.String(string(d.KMSKey)), Name: &name, GranteePrincipal: aws.String(harness.ServiceRole),
		RetiringPrincipal: aws.String(harness.RegistrarRole), Operations: []types.GrantOperation{"Decrypt"},
		Constraints: &types.GrantConstraints{EncryptionContextSubset: map[string]string{d.Reserved.Key: d.Reserved.Value}}})
	if err != nil {
		b.t.Fatal(err)
	}
	return aws.ToString(out.GrantId)
}

func (b *bench) has(key broker.KeyARN, id string) bool {
	b.t.Helper()
	for _, g := range b.atKMS(key) {
		if aws.ToString(g.GrantId) == id {
			return true
		}
	}
	return false
}

// T6, I7: after a sweep KMS has nothing under a Name of this deployment that the
// database does not; what others made is left alone.
func TestOrphansAreRetired(t *testing.T) {
	b := newActive(t)
	key := b.domain("acme").KMSKey
	g := b.mustGrant(newGrant(""))
	mine := b.grantIDs(key)
	orphan := b.plant("kb/test/NOBODYKNOWSTHISGRANTATALL0/unwrap/1/1")
	wrongEpoch := b.plant(fmt.Sprintf("kb/test/%s/unwrap/9/1", g.UID))
	others := []string{b.plant("kb/other/" + string(g.UID) + "/unwrap/1/1"), b.plant("kb/test/x/unwrap/01/1"), b.plant("backup")}
	b.sweepOrphans()
	for _, id := range []string{orphan, wrongEpoch} {
		if b.has(key, id) {
			t.Error("the orphan is still there")
		}
	}
	for _, id := range append(mine, others...) {
		if !b.has(key, id) {
			t.Error("a grant that is no orphan was retired")
		}
	}
	audited := b.query(`select resource, outcome from audit_event where detail like '%orphan%' and resource like '%NOBODY%' order by seq`)
	if diff := cmp.Diff([]string{"kb/test/NOBODYKNOWSTHISGRANTATALL0/unwrap/1/1 INTENDED", "kb/test/NOBODYKNOWSTHISGRANTATALL0/unwrap/1/1 DONE"}, audited); diff != "" {
		t.Error(diff)
	}
	b.Calls()
	b.sweepOrphans()
	for _, c := range b.Calls() {
		if c.Operation == "RetireGrant" {
			t.Error("a second sweep retires more")
		}
	}
}

// After a restore nothing is concluded from what the database does not know.
func TestOrphansAreKeptAfterRestore(t *testing.T) {
	b := newActive(t)
	cfg := configOf(b)
	cfg.KeepOrphans = true
	if err := b.Restart(cfg); err != nil {
		t.Fatal(err)
	}
	id := b.plant("kb/test/NOBODYKNOWSTHISGRANTATALL0/unwrap/1/1")
	b.Calls()
	b.sweepOrphans()
	if !b.has(b.domain("acme").KMSKey, id) {
		t.Error("the sweep is off, and retired a grant")
	}
	for _, c := range b.Calls() {
		if strings.Contains(c.Principal, "registrar") {
			t.Errorf("the sweep is off, and called %s", c.Operation)
		}
	}
}

// The rows that say that a grant must not be there: never made, retired, gone;
// of a grant that has ended; and another one under the Name of a live one.
func TestOrphansByTheirRows(t *testing.T) {
	b := newActive(t)
	key := b.domain("acme").KMSKey
	t.Run("failed", func(t *testing.T) {
		b.road.fail("CreateGrant", "DisabledException")
		in := newGrant("")
		in.ID = "failed"
		_, err := b.createGrant(in)
		wantReason(t, err, broker.ReasonKeyDisabled)
		b.road.open()
		failed := b.query(`select name from kms_grant where state = 'FAILED'`)[0]
		id := b.plant(failed)
		b.sweepOrphans()
		if b.has(key, id) {
			t.Error("the orphan is still there")
		}
	})
	t.Run("retired", func(t *testing.T) {
		in := newGrant("")
		in.Operations = []string{"Decrypt"}
		b.mustGrant(in)
		if _, err := b.revokeGrant("", ""); err != nil {
			t.Fatal(err)
		}
		retired := b.query(`select name from kms_grant where state = 'RETIRED'`)[0]
		before := b.query(`select end_time from kms_grant where state = 'RETIRED'`)[0]
		id := b.plant(retired)
		b.sweepOrphans()
		if b.has(key, id) {
			t.Error("the orphan is still there")
		}
		if after := b.query(`select end_time from kms_grant where state = 'RETIRED'`)[0]; after <= before {
			t.Error("its drain clock did not start again")
		}
	})
	t.Run("live under another id", func(t *testing.T) {
		in := newGrant("")
		in.ID, in.Operations = "second", []string{"Decrypt"}
		b.mustGrant(in)
		live := b.query(`select name, kms_grant_id from kms_grant where state = 'LIVE' and not worker`)[0]
		liveName, liveID, _ := strings.Cut(live, " ")
		id := b.plant(liveName) // other parameters: another grant
		if id == liveID {
			t.Fatal("KMS took it for the same")
		}
		b.sweepOrphans()
		if b.has(key, id) || !b.has(key, liveID) {
			t.Error("of two grants under one Name, the recorded one must stay, and no other")
		}
	})
}

// An intent whose call is under way is nobody's orphan, whenever the sweep looks.
func TestOrphanSweepAmidCreate(t *testing.T) {
	b := newActive(t)
	b.road.after("CreateGrant", b.sweepOrphans)
	g := b.mustGrant(newGrant("r1"))
	if err := b.usableWith(g.Tokens); err != nil {
		t.Error(err)
	}
	b.wantNoOrphans(b.domain("acme").KMSKey)
}

// An answer that comes after its intent was closed, and after the sweep found the
// grant, makes nothing live that was retired.
func TestLateAnswerAfterOrphanSweep(t *testing.T) {
	b := newActive(t)
	key := b.domain("acme").KMSKey
	b.road.after("CreateGrant", func() {
		b.Clock.Advance(settling)
		b.road.fail("ListGrants", "NotFoundException") // hidden: the intent is closed
		b.sweep()
		b.road.open()
		b.sweepOrphans() // KMS shows it now
	})
	g := b.mustGrant(newGrant("r1"))
	b.wantNoOrphans(key)
	if n := len(b.serviceGrants(key)); n != 2 || g.State != broker.GrantActive {
		t.Errorf("the grant is %s with %d KMS grants", g.State, n)
	}
	known := b.query(`select kms_grant_id from kms_grant where state = 'LIVE' and not worker`)
	for _, id := range known {
		if !b.has(key, id) {
			t.Error("the database has a live grant that KMS has not")
		}
	}
}

// One key that is not listed keeps no other waiting, and is listed again later.
func TestOrphanSweepGoesOn(t *testing.T) {
	b := newActive(t)
	id := b.plant("kb/test/NOBODYKNOWSTHISGRANTATALL0/unwrap/1/1")
	key := b.domain("acme").KMSKey
	for i := range 5 {
		b.onboard(broker.DomainID(fmt.Sprint("other-", i)))
	}
	var listings atomic.Int64
	b.road.set(func(op string, send func() (*http.Response, error)) (*http.Response, error) {
		if op == "ListGrants" && listings.Add(1) == 1 {
			return refusal("AccessDeniedException"), nil
		}
		return send()
	})
	b.Clock.Advance(windows.GrantVisibility + time.Second)
	if err := b.Broker.SweepOrphans(t.Context()); err == nil {
		t.Error("the sweep says nothing of the refusal")
	}
	if n := listings.Load(); n != 6 {
		t.Errorf("%d listings, want one for each key", n)
	}
	b.sweepOrphans()
	if b.has(key, id) {
		t.Error("the orphan is still there")
	}
	// Within a visibility window, nobody lists again.
	listings.Store(10)
	if err := b.Broker.SweepOrphans(t.Context()); err != nil || listings.Load() != 10 {
		t.Errorf("%d listings too many, %v", listings.Load()-10, err)
	}
}

// What a key's owner refuses is told as that, but where something else failed too.
func TestOrphanSweepTellsRefusalsApart(t *testing.T) {
	for second, want := range map[string]broker.KMSClass{
		"AccessDeniedException": broker.KMSDenied, "ThrottlingException": broker.KMSThrottled} {
		t.Run(second, func(t *testing.T) {
			b := newActive(t)
			b.onboard("other")
			var listings atomic.Int64
			b.road.set(func(op string, send func() (*http.Response, error)) (*http.Response, error) {
				switch {
				case op != "ListGrants":
					return send()
				case listings.Add(1) == 1:
					return refusal("AccessDeniedException"), nil
				}
				return refusal(second), nil
			})
			b.Clock.Advance(windows.GrantVisibility + time.Second)
			if err := b.Broker.SweepOrphans(t.Context()); broker.ClassOf(err) != want {
				t.Errorf("got %v, want %s", err, want)
			}
		})
	}
}

// emptyListing shows no grant at all.
func emptyListing(op string, send func() (*http.Response, error)) (*http.Response, error) {
	if op != "ListGrants" {
		return send()
	}
	answer := refusal("none")
	body := `{"Grants":[],"Truncated":false}`
	answer.Status, answer.StatusCode = "200 OK", http.StatusOK
	answer.Body, answer.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
	return answer, nil
}
