package rotation

import (
	"context"
	"slices"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
)

// A Forecast is an estimate of how long a key change takes, from what is known
// now.
type Forecast struct {
	Rows           int64 // those of the sources: where one says AtLeast, this does
	CallsPerSecond float64
	// Moving is the time of re-encryption alone, Total that from the call to the
	// job's end, with the announced waits.
	Moving, Total time.Duration
}

// forecast estimates a change at Normal priority.
func (e *Engine) forecast(ctx context.Context, p plan, found KeyChangePlan) (*Forecast, error) {
	if e.cfg.RowBudget == nil {
		return nil, nil
	}
	var rate, capacity float64
	var beside float64
	err := e.store.View(ctx, func(tx Tx) (err error) {
		if rate, capacity, err = e.allowed(ctx, tx, p.domain.Region); err != nil {
			return err
		}
		beside, err = partsTaken(ctx, tx, p.domain.UID)
		return err
	})
	if err != nil {
		return nil, err
	}
	if rate == 0 { // nobody is at work: this replica would be
		s := e.cfg.Pacer.Expect(e.cfg.RowBudget(p.domain.Region))
		rate, capacity = s.Rate, e.capacity(s)
	}
	f := &Forecast{}
	for _, s := range found.Sources {
		f.Rows += s.Rows
	}
	f.CallsPerSecond = min(rate, capacity) * Normal.part() / (Normal.part() + beside)
	if f.CallsPerSecond <= 0 {
		return nil, nil
	}
	f.Moving = time.Duration(float64(f.Rows) / f.CallsPerSecond * float64(time.Second))
	f.Total = e.total(p, f.Moving)
	return f, nil
}

// partsTaken sums the parts of the other domains' jobs that are giving rows to KMS.
func partsTaken(ctx context.Context, tx Tx, own broker.DomainUID) (parts float64, err error) {
	moving, err := tx.MovingJobs(ctx, own)
	for priority, jobs := range moving {
		parts += float64(jobs) * priority.part()
	}
	return parts, err
}

// total adds the waits of a change in which nothing goes wrong: for new grants,
// for stores under the old key, which goes on beside the moving, for readers, and
// for KMS to forget the old grants. A domain's first key waits for nothing.
func (e *Engine) total(p plan, moving time.Duration) time.Duration {
	if p.domain.Epoch == 0 {
		return 0
	}
	w := e.broker.Windows()
	total := moving
	if slices.ContainsFunc(p.grants, func(g broker.Grant) bool { return !g.Worker && g.Wraps() }) {
		total = max(total, w.GrantVisibility+w.MaxStoreDelay)
	}
	if slices.ContainsFunc(p.grants, func(g broker.Grant) bool { return !g.Worker }) {
		total += w.GrantVisibility
	}
	return total + w.MaxReadDelay + w.GrantVisibility
}
