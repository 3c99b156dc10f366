package broker_test

import (
	"encoding/base64"
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/test/harness"
)

// audited gives what was audited since the last time it was asked: caller,
// action, outcome, request id, and the resource less the grant's minted uid.
func (b *bench) audited(since *int) []string {
	b.t.Helper()
	rows := b.query(`select caller, action, outcome, case request_id when '' then '-' else request_id end, resource from audit_event where seq > ? order by seq`, *since)
	*since += len(rows)
	uids := b.query(`select grant_uid from domain_grant where not worker`)
	for i := range rows {
		for _, uid := range uids {
			rows[i] = strings.ReplaceAll(rows[i], uid, "UID")
		}
	}
	return rows
}

// I5: each change leaves its audit rows in the transaction of its effect, and
// each act at KMS that leaves something there has two: intended and outcome. A
// repeat, a read and a refusal leave none.
func TestAuditRows(t *testing.T) {
	b := &importBench{bench: newBench(t)}
	since := 0
	var g broker.GrantView
	steps := []struct {
		name string
		do   func() error
		want []string
	}{
		{"create a domain", func() error {
			_, _, err := b.Broker.CreateDomain(t.Context(), harness.Caller, broker.NewDomain{Request: request("CreateDomain", "r0", "body"), ID: "acme", Region: harness.Region})
			return err
		}, []string{"test domains.create DONE r0 domains/acme"}},
		{"read it", func() error {
			_, err := b.Broker.GenerateKeyPolicy(t.Context(), harness.Caller, broker.KeyPolicyRequest{Domain: "acme", KeyAccount: harness.CustomerAccount})
			return err
		}, nil},
		{"give it a key", func() error {
			_, key := b.beginChange("acme")
			b.untilSwitched("acme", key)
			b.audited(&since) // the rotation's own
			return nil
		}, nil},
		{"create a grant", func() (err error) {
			g, err = b.createGrant(newGrant("r1"))
			return err
		}, []string{
			"test grants.create INTENDED r1 domains/acme/grants/orders",
			"test kms.CreateGrant INTENDED - kb/test/UID/wrap/1/1",
			"test kms.CreateGrant INTENDED - kb/test/UID/unwrap/1/1",
			"test kms.CreateGrant DONE - kb/test/UID/wrap/1/1",
			"test kms.CreateGrant DONE - kb/test/UID/unwrap/1/1",
			"test grants.create DONE r1 domains/acme/grants/orders",
		}},
		{"repeat it", func() error {
			_, err := b.createGrant(newGrant("r1"))
			return err
		}, nil},
		{"renew it", func() error {
			_, err := b.renew("r2", "")
			return err
		}, []string{"test grants.renew DONE r2 domains/acme/grants/orders"}},
		{"create a data key", func() error {
			_, err := b.Broker.CreateDataKey(t.Context(), harness.Caller, broker.NewDataKey{Request: request("CreateDataKey", "r3", "body"),
				Domain: "acme", ID: "k", Context: broker.Context{"purpose": "canary-value"}})
			return err
		}, []string{"test dataKeys.create DONE r3 domains/acme/dataKeys/k"}},
		{"create it again", func() error {
			_, err := b.createDataKey("k")
			wantReason(t, err, broker.ReasonDataKeyAlreadyExists)
			return nil
		}, nil},
		{"import a straggler", func() error {
			d := b.domain("acme")
			item, _ := b.item("s", d.KMSKey, broker.Context{"purpose": "canary-value"}.With(d.Reserved))
			_, err := b.imports("r4", item)
			return err
		}, []string{"test dataKeys.import DONE r4 domains/acme"}},
		{"lose the key, twice", func() error {
			b.road.fail("GenerateDataKeyWithoutPlaintext", "DisabledException")
			defer b.road.open()
			for range 2 {
				_, err := b.createDataKey("l")
				wantReason(t, err, broker.ReasonKeyDisabled)
			}
			return nil
		}, []string{"keybroker domains.keyInaccessible DONE - domains/acme"}},
		{"find it again", func() error {
			_, err := b.createDataKey("l")
			return err
		}, []string{"test dataKeys.create DONE - domains/acme/dataKeys/l", "keybroker domains.keyAccessible DONE - domains/acme"}},
		{"delete a data key", func() error {
			return b.Broker.DeleteDataKey(t.Context(), harness.Caller, request("DeleteDataKey", "r5", "body"), "acme", "k", "")
		}, []string{"test dataKeys.delete DONE r5 domains/acme/dataKeys/k"}},
		{"let the grant expire", func() error {
			b.Clock.Advance(2 * time.Hour)
			return b.Broker.Sweep(t.Context())
		}, []string{
			"keybroker grants.end DONE - domains/acme/grants/orders",
			"keybroker kms.RetireGrant INTENDED - kb/test/UID/unwrap/1/1",
			"keybroker kms.RetireGrant INTENDED - kb/test/UID/wrap/1/1",
			"keybroker kms.RetireGrant DONE - kb/test/UID/unwrap/1/1",
			"keybroker kms.RetireGrant DONE - kb/test/UID/wrap/1/1",
		}},
		{"sweep again", func() error { return b.Broker.Sweep(t.Context()) }, nil},
		{"a grant that KMS refuses", func() error {
			b.road.fail("CreateGrant", "DisabledException")
			defer b.road.open()
			in := newGrant("")
			in.ID, in.Operations = "refused", []string{"Decrypt"}
			_, err := b.createGrant(in)
			wantReason(t, err, broker.ReasonKeyDisabled)
			return nil
		}, []string{
			"test grants.create INTENDED - domains/acme/grants/refused",
			"test kms.CreateGrant INTENDED - kb/test/UID/unwrap/1/1",
			"test kms.CreateGrant REFUSED - kb/test/UID/unwrap/1/1",
			"test grants.end DONE - domains/acme/grants/refused",
		}},
	}
	for _, step := range steps {
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if diff := cmp.Diff(step.want, b.audited(&since)); diff != "" {
			t.Errorf("%s: %s", step.name, diff)
		}
	}
	b.wantNoCanary(g)
}

// I15: no token, blob or context value is in an audit row.
func (b *importBench) wantNoCanary(g broker.GrantView) {
	b.t.Helper()
	log := strings.Join(b.query(`select * from audit_event`), "\n")
	canaries := map[string]string{"a context value": "canary-value"}
	for _, token := range g.Tokens {
		canaries["a token"] = string(token)
	}
	k, err := b.getDataKey("l")
	if err != nil {
		b.t.Fatal(err)
	}
	canaries["a blob in hex"] = hex.EncodeToString(k.Ciphertext)
	canaries["a blob in base64"] = base64.StdEncoding.EncodeToString(k.Ciphertext)
	canaries["a blob"] = string(k.Ciphertext)
	for what, canary := range canaries {
		if canary == "" || strings.Contains(log, canary) {
			b.t.Errorf("%s is in the audit log", what)
		}
	}
}
