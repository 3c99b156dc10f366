package sqlstore

import (
	"context"
	"time"

	"github.com/keybroker/keybroker/internal/rotation"
)

// LeaseJob implements rotation.Tx.
func (t *txn) LeaseJob(ctx context.Context, r rotation.JobRef, owner string, ttl time.Duration) (rotation.Job, error) {
	n, err := t.exec(ctx, "lease job", `
		update job
		set lease_owner = $3, lease_seq = lease_seq + 1, lease_until = $4
		where domain_uid = $1 and job_id = $2 and (lease_until <= $5 or lease_owner = $3)`,
		r.Domain, r.ID, owner, micros(t.now.Add(ttl)), micros(t.now))
	if err != nil {
		return rotation.Job{}, err
	}
	j, err := t.Job(ctx, r)
	if err == nil && n == 0 {
		return rotation.Job{}, conflict("another replica holds the lease of the job")
	}
	return j, err
}

// RenewJob implements rotation.Tx. A released lease is not renewed: a late
// ticker would keep the next taker out.
func (t *txn) RenewJob(ctx context.Context, r rotation.JobRef, seq int64, ttl time.Duration) error {
	n, err := t.exec(ctx, "renew job", `
		update job
		set lease_until = $4
		where domain_uid = $1 and job_id = $2 and lease_seq = $3 and lease_until > 0`,
		r.Domain, r.ID, seq, micros(t.now.Add(ttl)))
	return t.jobFence(ctx, r, n, err)
}

// ReleaseJob implements rotation.Tx.
func (t *txn) ReleaseJob(ctx context.Context, r rotation.JobRef, seq int64) error {
	n, err := t.exec(ctx, "release job", `
		update job
		set lease_owner = '', lease_until = 0
		where domain_uid = $1 and job_id = $2 and lease_seq = $3`, r.Domain, r.ID, seq)
	return t.jobFence(ctx, r, n, err)
}

func (t *txn) jobFence(ctx context.Context, r rotation.JobRef, n int64, err error) error {
	if err != nil || n == 1 {
		return err
	}
	there, err := exists(ctx, t, "read job", jobProbe, r.Domain, r.ID)
	switch {
	case err != nil:
		return err
	case there:
		return lostLease("job")
	}
	return notFound("job")
}
