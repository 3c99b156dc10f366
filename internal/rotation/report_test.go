package rotation

import (
	"testing"

	"github.com/keybroker/keybroker/internal/broker"
)

// TestLeftLater: a key that the job itself brought back, as in A to B to A, and a
// later one has replaced, is not done with before that is.
func TestLeftLater(t *testing.T) {
	for state, want := range map[broker.KeyState]bool{broker.KeyCurrent: false, broker.KeySuperseded: true, broker.KeyClosed: true, broker.KeyRetired: false} {
		keys := []broker.DomainKey{{Epoch: 1, KMSKey: "a", State: broker.KeyRetired}, {Epoch: 2, KMSKey: "b", State: broker.KeyRetired},
			{Epoch: 3, KMSKey: "a", State: state}, {Epoch: 4, KMSKey: "c", State: broker.KeyCurrent}}
		if got := leftLater(keys, Job{TargetEpoch: 3}, "a"); got != want {
			t.Errorf("of a key that is %s: %t", state, got)
		}
	}
}
