package rotation

import (
	"context"

	"github.com/keybroker/keybroker/internal/broker"
)

// standingMost bounds each count of Standing; ours. Whoever sees it is alarmed
// enough.
const standingMost = 10_000

// Standing is what stands open in the database, of all domains: the same on every
// replica. No count goes beyond standingMost.
type Standing struct {
	Jobs []JobCount
	// OverdueGrants are live grants whose ExpireTime has come: Sweep ends them within
	// its interval.
	OverdueGrants int64
	// OpenIntents are KMS grants that were asked for and not answered yet, Retiring
	// those that are to be retired and are not yet.
	OpenIntents, Retiring int64
}

// JobCount is how many open jobs are alike. Reason is "" for one that is not
// BLOCKED.
type JobCount struct {
	Kind   Kind
	State  State
	Reason broker.Reason
	Jobs   int64
}

// Standing reads what stands open, by a few walks over small indexes.
func (e *Engine) Standing(ctx context.Context) (s Standing, err error) {
	err = e.store.View(ctx, func(tx Tx) error {
		s, err = tx.Standing(ctx, standingMost)
		return err
	})
	return s, err
}
