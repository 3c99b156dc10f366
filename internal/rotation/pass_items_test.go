package rotation

import (
	"testing"

	"github.com/keybroker/keybroker/internal/broker"
)

// TestOldestFound: what KMS has moved was there; what it can be asked about no more
// is believed to be there, unless it may be under a key that is still open.
func TestOldestFound(t *testing.T) {
	keys := []broker.DomainKey{
		{Epoch: 1, KMSKey: "a", State: broker.KeyClosed},
		{Epoch: 2, KMSKey: "b", State: broker.KeyClosed},
		{Epoch: 3, KMSKey: "c", State: broker.KeySuperseded},
		{Epoch: 4, KMSKey: "a", State: broker.KeyRetired},
		{Epoch: 5, KMSKey: "b", State: broker.KeySuperseded},
	}
	refused := &broker.Error{Kind: broker.ErrDenied}
	for _, c := range []struct {
		what  string
		under []broker.KeyARN
		err   error
		want  broker.Epoch
	}{
		{"nowhere", nil, nil, 0},
		{"nowhere, refused", nil, refused, 0},
		{"moved from an open key", []broker.KeyARN{"c"}, nil, 3},
		{"moved from a key that is also closed", []broker.KeyARN{"b"}, nil, 2},
		{"under closed keys", []broker.KeyARN{"a"}, refused, 1},
		{"under an open key", []broker.KeyARN{"c"}, refused, 0},
		{"under a key that is open once more", []broker.KeyARN{"b"}, refused, 0},
		{"under a closed or an open key", []broker.KeyARN{"c", "a"}, refused, 0},
		{"under no key of the domain", []broker.KeyARN{"x"}, refused, 0},
	} {
		receipts := []Receipt{{}, {under: c.under, Err: c.err}}
		if got := oldestFound(receipts, keys); got != c.want {
			t.Errorf("%s: epoch %d, want %d", c.what, got, c.want)
		}
	}
	both := []Receipt{{under: []broker.KeyARN{"c"}}, {under: []broker.KeyARN{"b", "a"}, Err: refused}}
	keys = keys[:3]
	if got := oldestFound(both, keys); got != 1 {
		t.Errorf("of several: epoch %d, want 1", got)
	}
}
