//go:build !bug_no_drain

package rotation

import (
	"time"

	"github.com/keybroker/keybroker/internal/broker"
)

// drainClock says how long a wrap grant that ended at end may still have data
// keys on their way to us: KMS may honour it for grant_visibility more, and the
// service may hold what it made for max_store_delay.
func drainClock(end time.Time, w broker.Windows) time.Time {
	return end.Add(w.GrantVisibility + w.MaxStoreDelay)
}
