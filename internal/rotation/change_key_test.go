package rotation_test

import (
	"errors"
	"testing"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/test/harness"
)

// The first key is a change from none; every later one says what it was decided
// on.
func TestChangeKeyNeedsTheEtag(t *testing.T) {
	ctx := t.Context()
	b := newBench(t)
	if _, _, err := b.Onboard(ctx, "acme"); err != nil { // without one
		t.Fatal(err)
	}
	key, err := b.NewKey(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.Engine.ChangeKey(ctx, harness.Caller, rotation.ChangeKey{Domain: "acme", KMSKey: string(key), Reason: "test"})
	if broker.ReasonOf(err) != broker.ReasonEtagRequired || !errors.Is(err, broker.ErrInvalid) {
		t.Errorf("without an etag: %v, want %s", err, broker.ReasonEtagRequired)
	}
}

// A domain without a key needs no etag. One that is given counts all the same
// (I13).
func TestStaleEtagOfADomainWithoutAKey(t *testing.T) {
	ctx := t.Context()
	b := newBench(t)
	before, err := b.NewDomain(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	key, err := b.NewKey(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Broker.UpdateDomain(ctx, harness.Caller, broker.DomainUpdate{ID: "acme", DisplayName: "Acme"}); err != nil {
		t.Fatal(err)
	}
	err = b.Engine.DeleteDomain(ctx, harness.Caller, rotation.DeleteDomain{Domain: "acme", Etag: before.Etag()})
	if broker.ReasonOf(err) != broker.ReasonEtagMismatch {
		t.Errorf("DeleteDomain: %v, want %s", err, broker.ReasonEtagMismatch)
	}
	_, err = b.Engine.ChangeKey(ctx, harness.Caller, rotation.ChangeKey{Domain: "acme", KMSKey: string(key), Etag: before.Etag(), Reason: "test"})
	if broker.ReasonOf(err) != broker.ReasonEtagMismatch {
		t.Errorf("ChangeKey: %v, want %s", err, broker.ReasonEtagMismatch)
	}
	if now, _, err := b.Broker.GetDomain(ctx, harness.Caller, "acme"); err != nil || now.KeyChange != (broker.KeyChange{}) {
		t.Errorf("the domain: %+v, %v", now, err)
	}
}

func newBench(t *testing.T) *harness.Bench {
	t.Helper()
	b, err := harness.New(t.Context(), harness.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}
