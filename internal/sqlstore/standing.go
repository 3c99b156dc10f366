package sqlstore

import (
	"context"

	"github.com/keybroker/keybroker/internal/rotation"
)

// Standing implements rotation.Tx. Each statement walks over an index that holds
// open things alone.
func (t *txn) Standing(ctx context.Context, most int) (s rotation.Standing, err error) {
	s.Jobs, err = all(ctx, t, "count open jobs", func(r row) (c rotation.JobCount, err error) {
		err = r.Scan(&c.Kind, &c.State, &c.Reason, &c.Jobs)
		return c, err
	}, `
		select kind, state, block_reason, count(*)
		from (
			select kind, state, block_reason
			from job
			where `+openJob+`
			order by create_time, domain_uid, job_id
			limit $1 + 0
		) as open_jobs
		group by kind, state, block_reason
		order by kind, state, block_reason`, most)
	if err != nil {
		return s, err
	}
	if s.OverdueGrants, err = one(ctx, t, "count overdue grants", "count", scanInt, `
		select count(*)
		from (
			select 1
			from domain_grant
			where state in ('CREATING', 'ACTIVE') and expire_time > 0 and expire_time <= $1
			limit $2 + 0
		) as overdue`, micros(t.now), most); err != nil {
		return s, err
	}
	type count struct {
		state string
		rows  int64
	}
	stale, err := all(ctx, t, "count open KMS grants", func(r row) (c count, err error) {
		err = r.Scan(&c.state, &c.rows)
		return c, err
	}, `
		select state, count(*)
		from (
			select state
			from kms_grant
			where state in ('INTENDED', 'RETIRING')
			order by next_try
			limit $1 + 0
		) as unanswered
		group by state`, most)
	for _, c := range stale {
		if c.state == "INTENDED" {
			s.OpenIntents = c.rows
		} else {
			s.Retiring = c.rows
		}
	}
	return s, err
}
