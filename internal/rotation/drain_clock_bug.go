//go:build bug_no_drain

package rotation

import (
	"time"

	"github.com/keybroker/keybroker/internal/broker"
)

// drainClock is broken on purpose: the seeded bug "no drain".
func drainClock(time.Time, broker.Windows) time.Time { return time.Time{} }
