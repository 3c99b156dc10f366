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
	b, err := harness.New(ctx, harness.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
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
