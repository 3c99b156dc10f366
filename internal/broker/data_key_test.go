package broker_test

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/google/go-cmp/cmp"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/test/harness"
)

func (b *bench) createDataKey(id broker.DataKeyID) (broker.DataKeyView, error) {
	return b.Broker.CreateDataKey(b.t.Context(), harness.Caller, broker.NewDataKey{Domain: "acme", ID: id, Context: broker.Context{"tenant": "acme"}})
}

func (b *bench) mustDataKey(id broker.DataKeyID) broker.DataKeyView {
	b.t.Helper()
	k, err := b.createDataKey(id)
	if err != nil {
		b.t.Fatal(err)
	}
	return k
}

func (b *bench) getDataKey(id broker.DataKeyID) (broker.DataKeyView, error) {
	return b.Broker.GetDataKey(b.t.Context(), harness.Caller, "acme", id)
}

// wantReadable: the row decrypts under exactly the key recorded for it (I1).
func (b *bench) wantReadable(k broker.DataKeyView, length int) {
	b.t.Helper()
	out, err := b.Customer.Decrypt(b.t.Context(), &kms.DecryptInput{CiphertextBlob: k.Ciphertext,
		EncryptionContext: k.EncryptionContext, KeyId: aws.String(string(k.KMSKey))})
	if err != nil {
		b.t.Errorf("%s under %s: %v", k.ID, k.KMSKey, err)
	} else if len(out.Plaintext) != length {
		b.t.Errorf("%s has %d bytes, want %d", k.ID, len(out.Plaintext), length)
	}
}

func TestCreateDataKey(t *testing.T) {
	b := newActive(t)
	d := b.domain("acme")
	for spec, length := range map[string]int{"": 32, "AES_256": 32, "AES_128": 16} {
		k, err := b.Broker.CreateDataKey(t.Context(), harness.Caller, broker.NewDataKey{Domain: "acme", KeySpec: spec, Context: broker.Context{"tenant": "acme"}})
		if err != nil {
			t.Fatal(err)
		}
		if k.KMSKey != d.KMSKey || k.Epoch != 1 || k.Version != 1 || k.KeyMaterialID == "" {
			t.Errorf("%+v", k)
		}
		if diff := cmp.Diff(broker.Context{"tenant": "acme", d.Reserved.Key: d.Reserved.Value}, k.EncryptionContext); diff != "" {
			t.Error(diff)
		}
		b.wantReadable(k, length)
		read, err := b.getDataKey(k.ID)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(k, read); diff != "" {
			t.Error(diff)
		}
	}
	for _, c := range b.Calls() {
		if strings.HasPrefix(c.Operation, "GenerateDataKey") && (c.Operation != "GenerateDataKeyWithoutPlaintext" || c.Principal != harness.WorkerRole) {
			t.Errorf("%s by %s: a plaintext left KMS (T8)", c.Operation, c.Principal)
		}
	}
}

func TestCreateDataKeyRefusals(t *testing.T) {
	b := newActive(t)
	if _, err := b.NewDomain(t.Context(), "pending"); err != nil {
		t.Fatal(err)
	}
	b.mustDataKey("taken")
	for name, test := range map[string]struct {
		in   broker.NewDataKey
		want broker.Reason
	}{
		"taken":              {broker.NewDataKey{Domain: "acme", ID: "taken"}, broker.ReasonDataKeyAlreadyExists},
		"bad id":             {broker.NewDataKey{Domain: "acme", ID: "a/b"}, broker.ReasonFieldInvalid},
		"all of them":        {broker.NewDataKey{Domain: "acme", ID: "-"}, broker.ReasonFieldInvalid},
		"other spec":         {broker.NewDataKey{Domain: "acme", KeySpec: "RSA_2048"}, broker.ReasonFieldInvalid},
		"unknown domain":     {broker.NewDataKey{Domain: "nobody"}, broker.ReasonDomainNotFound},
		"domain without key": {broker.NewDataKey{Domain: "pending"}, broker.ReasonDomainPendingKey},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := b.Broker.CreateDataKey(t.Context(), harness.Caller, test.in)
			wantReason(t, err, test.want)
		})
	}
}

// I14: an id is never given out twice; I13: a stale etag changes nothing.
func TestDeleteDataKey(t *testing.T) {
	b := newActive(t)
	k := b.mustDataKey("k")
	remove := func(requestID, etag string) error {
		r := broker.Request{}
		if requestID != "" {
			r = request("DeleteDataKey", requestID, "body")
		}
		return b.Broker.DeleteDataKey(t.Context(), harness.Caller, r, "acme", "k", etag)
	}
	wantReason(t, remove("", "7"), broker.ReasonEtagMismatch)
	if _, err := b.getDataKey("k"); err != nil {
		t.Fatal(err)
	}
	wantReason(t, remove("r", k.Etag()), "")
	wantReason(t, remove("r", k.Etag()), "") // a repeat
	wantReason(t, remove("", ""), broker.ReasonDataKeyNotFound)
	_, err := b.getDataKey("k")
	wantReason(t, err, broker.ReasonDataKeyNotFound)
	_, err = b.createDataKey("k")
	wantReason(t, err, broker.ReasonDataKeyIDDeleted)
	wantReason(t, b.Broker.DeleteDataKey(t.Context(), harness.Caller, broker.Request{}, "nobody", "k", ""), broker.ReasonDomainNotFound)
}

// Pages join without a gap or a repeat, in one domain and over all of them.
func TestListDataKeys(t *testing.T) {
	b := newActive(t)
	b.onboard("beta") // stays empty
	b.onboard("zeta")
	var all, acme []string
	for _, d := range []broker.DomainID{"acme", "zeta"} {
		for i := range 5 {
			k, err := b.Broker.CreateDataKey(t.Context(), harness.Caller, broker.NewDataKey{Domain: d, ID: broker.DataKeyID(fmt.Sprint("k", i))})
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, broker.DataKeyName(d, k.ID))
			if d == "acme" {
				acme = append(acme, broker.DataKeyName(d, k.ID))
			}
		}
	}
	for parent, want := range map[broker.DomainID][]string{"-": all, "acme": acme, "beta": nil} {
		for page := 1; page <= 11; page++ {
			var got []string
			var after broker.DataKeyCursor
			for range 20 {
				views, err := b.Broker.ListDataKeys(t.Context(), harness.Caller, parent, after, page)
				if err != nil {
					t.Fatal(err)
				}
				if len(views) > page {
					t.Fatalf("a page of %d for %d", len(views), page)
				}
				for _, v := range views {
					got = append(got, broker.DataKeyName(v.DomainID, v.ID))
					after = broker.DataKeyCursor{Domain: v.DomainID, DataKey: v.ID}
				}
				if len(views) < page {
					break
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s in pages of %d: %s", parent, page, diff)
			}
		}
	}
	_, err := b.Broker.ListDataKeys(t.Context(), harness.Caller, "nobody", broker.DataKeyCursor{}, 10)
	wantReason(t, err, broker.ReasonDomainNotFound)
}

// I8: of calls with one request id at the same time, one stores, and all answer
// with its key, whether the caller named it or not.
func TestConcurrentCreateDataKey(t *testing.T) {
	for _, id := range []broker.DataKeyID{"k", ""} {
		t.Run("id="+string(id), func(t *testing.T) {
			b := newActive(t)
			in := broker.NewDataKey{Request: request("CreateDataKey", "r", "body"), Domain: "acme", ID: id}
			views := make([]broker.DataKeyView, 6)
			errs := make([]error, len(views))
			var wg sync.WaitGroup
			for i := range views {
				wg.Go(func() { views[i], errs[i] = b.Broker.CreateDataKey(t.Context(), harness.Caller, in) })
			}
			wg.Wait()
			for i := range views {
				if errs[i] != nil {
					t.Fatal(errs[i])
				}
				if diff := cmp.Diff(views[0], views[i]); diff != "" {
					t.Errorf("call %d: %s", i, diff)
				}
			}
			if rows := b.query(`select data_key_id from data_key`); len(rows) != 1 {
				t.Errorf("%d rows", len(rows))
			}
		})
	}
}

// The same, one after the other in a fixed order: the first is overtaken while
// it is at KMS.
func TestCreateDataKeyIsOvertaken(t *testing.T) {
	b := newActive(t)
	in := broker.NewDataKey{Request: request("CreateDataKey", "r", "body"), Domain: "acme"}
	var won broker.DataKeyView
	b.road.after("GenerateDataKeyWithoutPlaintext", func() {
		var err error
		if won, err = b.Broker.CreateDataKey(t.Context(), harness.Caller, in); err != nil {
			t.Error(err)
		}
	})
	k, err := b.Broker.CreateDataKey(t.Context(), harness.Caller, in)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(won, k); diff != "" {
		t.Error(diff)
	}
}

// T10, I1: a switch between KMS's answer and the store. The key is made again:
// the row is under the new key.
func TestCreateDataKeyDuringASwitch(t *testing.T) {
	b := newActive(t)
	old := b.domain("acme").KMSKey
	_, next := b.beginChange("acme")
	b.road.after("GenerateDataKeyWithoutPlaintext", func() { b.untilSwitched("acme", next) })
	k := b.mustDataKey("k")
	if k.KMSKey != next || k.Epoch != 2 || old == next {
		t.Errorf("stored under %s of epoch %d", k.KMSKey, k.Epoch)
	}
	b.wantReadable(k, 32)
	read, err := b.getDataKey("k")
	if err != nil || !bytes.Equal(read.Ciphertext, k.Ciphertext) {
		t.Errorf("the row is not what was answered: %v", err)
	}
}

// I14: the domain is deleted between KMS's answer and the store. It gains no row.
func TestCreateDataKeyDuringADeletion(t *testing.T) {
	b := newActive(t)
	b.road.after("GenerateDataKeyWithoutPlaintext", func() {
		if err := b.Engine.DeleteDomain(t.Context(), harness.Caller, rotation.DeleteDomain{Domain: "acme"}); err != nil {
			t.Error(err)
		}
	})
	_, err := b.createDataKey("k")
	wantReason(t, err, broker.ReasonDomainNotFound)
	if rows := b.query(`select data_key_id from data_key`); len(rows) != 0 {
		t.Errorf("the deleted domain has %d rows", len(rows))
	}
}

// A domain whose key changes during every attempt is a conflict, not a loop.
func TestCreateDataKeyGivesUp(t *testing.T) {
	_, store, _ := newHeard(t)
	moving := &movingKMS{store: store}
	b := brokerOver(t, store, moving)
	_, err := b.CreateDataKey(t.Context(), harness.Caller, broker.NewDataKey{Domain: "acme"})
	wantReason(t, err, broker.ReasonKeyChangeInProgress)
	if len(store.stored) != 0 || moving.calls > 10 {
		t.Errorf("%d rows after %d calls", len(store.stored), moving.calls)
	}
}

type movingKMS struct {
	heard
	store *oneDomain
	calls int
}

func (m *movingKMS) GenerateDataKeyWithoutPlaintext(_ context.Context, g broker.GenerateDataKey) (broker.WrappedKey, error) {
	m.calls++
	m.store.d.Epoch++
	return broker.WrappedKey{Ciphertext: []byte("blob"), Key: g.Key}, nil
}

// KEY_INACCESSIBLE begins when the key cannot be used at an unchanged epoch, is
// set once, and ends with the next success; a failure to answer is no such loss.
func TestKeyInaccessible(t *testing.T) {
	for code, want := range map[string]broker.Reason{
		"AccessDeniedException":    broker.ReasonKeyAccessDenied,
		"DisabledException":        broker.ReasonKeyDisabled,
		"KMSInvalidStateException": broker.ReasonKeyStateInvalid,
		"NotFoundException":        broker.ReasonKeyNotFound,
	} {
		t.Run(code, func(t *testing.T) {
			b := newActive(t)
			b.road.fail("GenerateDataKeyWithoutPlaintext", code)
			since := b.now()
			for range 2 {
				_, err := b.createDataKey("k")
				wantReason(t, err, want)
				b.Clock.Advance(time.Minute)
			}
			if d := b.domain("acme"); d.State != broker.DomainKeyInaccessible || !d.InaccessibleSince.Equal(since) {
				t.Errorf("%s since %s, want since %s", d.State, d.InaccessibleSince, since)
			}
			b.road.open()
			b.mustDataKey("k")
			if d := b.domain("acme"); d.State != broker.DomainActive || !d.InaccessibleSince.IsZero() {
				t.Errorf("%s since %s after a success", d.State, d.InaccessibleSince)
			}
		})
	}
	for code, want := range map[string]broker.Reason{
		"ThrottlingException":  broker.ReasonKMSThrottled,
		"KMSInternalException": broker.ReasonKMSUnavailable,
	} {
		t.Run(code, func(t *testing.T) {
			b := newActive(t)
			b.road.fail("GenerateDataKeyWithoutPlaintext", code)
			_, err := b.createDataKey("k")
			wantReason(t, err, want)
			if d := b.domain("acme"); d.State != broker.DomainActive {
				t.Errorf("the domain is %s", d.State)
			}
		})
	}
}

// The real thing: the customer disables the key, and enables it again. A key
// that was replaced while the call was at KMS is no loss.
func TestDisabledKey(t *testing.T) {
	b := newActive(t)
	key := aws.String(string(b.domain("acme").KMSKey))
	if _, err := b.Customer.DisableKey(t.Context(), &kms.DisableKeyInput{KeyId: key}); err != nil {
		t.Fatal(err)
	}
	_, err := b.createDataKey("k")
	wantReason(t, err, broker.ReasonKeyDisabled)
	if _, err := b.Customer.EnableKey(t.Context(), &kms.EnableKeyInput{KeyId: key}); err != nil {
		t.Fatal(err)
	}
	b.mustDataKey("k")

	_, next := b.beginChange("acme")
	b.untilSwitched("acme", next) // the first key is the older one now
	if d := b.domain("acme"); d.State != broker.DomainActive {
		t.Errorf("the domain is %s", d.State)
	}
}
