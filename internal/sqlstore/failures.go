package sqlstore

import (
	"cmp"
	"context"
	"slices"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
)

// AddFailures implements rotation.Tx.
func (t *txn) AddFailures(ctx context.Context, failures []rotation.Failure) error {
	for _, f := range failures {
		if _, err := t.exec(ctx, "insert failure", `
			insert into job_failure (domain_uid, job_id, data_key_id, data_key_uid, version, class, message, fail_time, acknowledged)
			values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
			on conflict (domain_uid, job_id, data_key_id) do update
			set data_key_uid = excluded.data_key_uid, version = excluded.version, class = excluded.class,
				message = excluded.message, fail_time = excluded.fail_time, acknowledged = excluded.acknowledged`,
			f.Domain, f.Job, f.DataKey, f.UID, f.Version, f.Class, f.Message, micros(f.Time), f.Acknowledged); err != nil {
			return err
		}
	}
	return nil
}

// Failures implements rotation.Tx.
func (t *txn) Failures(ctx context.Context, r rotation.JobRef, after broker.DataKeyID, limit int) ([]rotation.Failure, error) {
	return all(ctx, t, "list failures", func(r row) (f rotation.Failure, err error) {
		err = r.Scan(&f.Domain, &f.Job, &f.DataKey, &f.UID, &f.Version, &f.Class, &f.Message, at{&f.Time}, &f.Acknowledged)
		return f, err
	}, `
		select domain_uid, job_id, data_key_id, data_key_uid, version, class, message, fail_time, acknowledged
		from job_failure
		where domain_uid = $1 and job_id = $2 and data_key_id > $3
		order by data_key_id
		limit $4 + 0`, r.Domain, r.ID, after, limit)
}

// DeleteFailures implements rotation.Tx.
func (t *txn) DeleteFailures(ctx context.Context, r rotation.JobRef, but broker.Epoch) error {
	var after broker.DataKeyID
	for {
		last, err := all(ctx, t, "read failures", scanID, `
			select data_key_id
			from job_failure
			where domain_uid = $1 and job_id = $2 and data_key_id > $3
			order by data_key_id
			limit 1 offset $4 - 1`, r.Domain, r.ID, after, t.store.stretch)
		if err != nil {
			return err
		}
		through := afterAllIDs
		if len(last) > 0 {
			through = last[0]
		}
		if _, err := t.exec(ctx, "delete failures", `
			delete from job_failure
			where domain_uid = $1 and job_id = $2 and data_key_id > $4 and data_key_id <= $5 and not acknowledged and (
				select count(*)
				from data_key
				where data_key.domain_uid = $1 and data_key.data_key_id = job_failure.data_key_id
					and data_key.version = job_failure.version and data_key.key_epoch = $3) = 0`,
			r.Domain, r.ID, but, after, through); err != nil || len(last) == 0 {
			return err
		}
		after = through
	}
}

// AbandonDataKey implements rotation.Tx.
func (t *txn) AbandonDataKey(ctx context.Context, f rotation.Failure) (bool, error) {
	n, err := t.exec(ctx, "abandon data key", `
		update data_key
		set abandoned = true, version = version + 1, update_time = $5
		where domain_uid = $1 and data_key_id = $2 and data_key_uid = $3 and version = $4`,
		f.Domain, f.DataKey, f.UID, f.Version, micros(t.now))
	if err != nil {
		return false, err
	}
	if n == 0 { // perhaps another job's failure was acknowledged
		given, err := exists(ctx, t, "look for abandoned data key", `
			select 1
			from data_key
			where domain_uid = $1 and data_key_id = $2 and data_key_uid = $3 and abandoned`, f.Domain, f.DataKey, f.UID)
		if err != nil || !given {
			return false, err
		}
	}
	_, err = t.exec(ctx, "acknowledge failure", `
		update job_failure
		set acknowledged = true
		where domain_uid = $1 and job_id = $2 and data_key_id = $3`, f.Domain, f.Job, f.DataKey)
	return err == nil, err
}

// AddMoved implements rotation.Tx. All transactions take the rows in one order, so
// that no two of a job's wait for each other.
func (t *txn) AddMoved(ctx context.Context, r rotation.JobRef, counts []rotation.MaterialCount) error {
	inOrder := slices.SortedFunc(slices.Values(counts), func(a, b rotation.MaterialCount) int {
		return cmp.Or(cmp.Compare(a.SourceKey, b.SourceKey), cmp.Compare(a.SourceMaterial, b.SourceMaterial), cmp.Compare(a.NewMaterial, b.NewMaterial))
	})
	for _, c := range inOrder {
		if _, err := t.exec(ctx, "count moved rows", `
			insert into job_moved (domain_uid, job_id, source_key, source_material, new_material, moved)
			values ($1, $2, $3, $4, $5, $6)
			on conflict (domain_uid, job_id, source_key, source_material, new_material) do update
			set moved = job_moved.moved + excluded.moved`,
			r.Domain, r.ID, c.SourceKey, c.SourceMaterial, c.NewMaterial, c.Rows); err != nil {
			return err
		}
	}
	return nil
}

// Moved implements rotation.Tx.
func (t *txn) Moved(ctx context.Context, r rotation.JobRef) ([]rotation.MaterialCount, error) {
	return all(ctx, t, "list moved rows", func(r row) (c rotation.MaterialCount, err error) {
		err = r.Scan(&c.SourceKey, &c.SourceMaterial, &c.NewMaterial, &c.Rows)
		return c, err
	}, `
		select source_key, source_material, new_material, moved
		from job_moved
		where domain_uid = $1 and job_id = $2
		order by source_key, source_material, new_material`, r.Domain, r.ID)
}
