package broker_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/keybroker/keybroker/internal/broker"
)

// A domain whose key was refused is ACTIVE again without a call of anybody, once
// the key's owner lets the broker use it. No data key is made for that.
func TestProbedKeyHeals(t *testing.T) {
	b := newActive(t)
	key := aws.String(string(b.domain("acme").KMSKey))
	if _, err := b.Customer.DisableKey(t.Context(), &kms.DisableKeyInput{KeyId: key}); err != nil {
		t.Fatal(err)
	}
	_, err := b.createDataKey("k")
	wantReason(t, err, broker.ReasonKeyDisabled)
	lost := b.domain("acme")
	b.probe()
	if d := b.domain("acme"); d.State != broker.DomainKeyInaccessible || d.Version != lost.Version {
		t.Errorf("%s, version %d, while the key is disabled; want %s, version %d", d.State, d.Version, broker.DomainKeyInaccessible, lost.Version)
	}
	if _, err := b.Customer.EnableKey(t.Context(), &kms.EnableKeyInput{KeyId: key}); err != nil {
		t.Fatal(err)
	}
	b.probe()
	if d := b.domain("acme"); d.State != broker.DomainActive || !d.InaccessibleSince.IsZero() {
		t.Errorf("%s since %s, with a key that can be used", d.State, d.InaccessibleSince)
	}
	if rows := b.query(`select data_key_id from data_key`); len(rows) != 0 {
		t.Errorf("the probe made data keys: %q", rows)
	}
	if events := b.query(`select outcome from audit_event where action = 'domains.keyAccessible'`); len(events) != 1 {
		t.Errorf("%d audit rows say that the key can be used", len(events))
	}
	b.Calls()
	b.probe()
	if calls := b.Calls(); len(calls) != 0 {
		t.Errorf("%d KMS calls about keys that can be used", len(calls))
	}
}

func (b *bench) probe() {
	b.t.Helper()
	b.Clock.Advance(time.Minute)
	if err := b.Broker.ProbeKeys(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
}

// Each domain is tried, however many there are; and KMS's silence about one is
// told, and says nothing about its key.
func TestProbesOfManyKeys(t *testing.T) {
	b := newActive(t)
	const domains = 205 // more than two pages
	if err := b.Store.Broker().Update(t.Context(), func(tx broker.Tx) error {
		d, err := tx.Domain(t.Context(), "acme")
		d.State = broker.DomainKeyInaccessible
		for i := range domains {
			d.ID, d.UID = broker.DomainID(fmt.Sprint("d", i)), broker.DomainUID(fmt.Sprint("uid", i))
			err = errors.Join(err, tx.InsertDomain(t.Context(), d))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	b.road.fail("GenerateDataKeyWithoutPlaintext", "KMSInternalException")
	if err := b.Broker.ProbeKeys(t.Context()); broker.ClassOf(err) != broker.KMSUnavailable {
		t.Errorf("KMS fails, and the probe says %v", err)
	}
	if left := b.query(`select count(*) from domain where state = 'KEY_INACCESSIBLE'`)[0]; left != "205" {
		t.Errorf("%s domains are inaccessible after probes without an answer, want 205", left)
	}
	b.road.open()
	b.probe()
	if left := b.query(`select count(*) from domain where state = 'KEY_INACCESSIBLE'`)[0]; left != "0" {
		t.Errorf("%s domains are inaccessible still", left)
	}
}
