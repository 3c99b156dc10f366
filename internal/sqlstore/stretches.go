package sqlstore

import (
	"context"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
)

// stretchRows is how many rows of a domain one statement reads at most where it
// may have to look at very many to find few: some 10 ms of PostgreSQL's time, and
// far below answerTime where each is on a page of its own and the disk is slow. Ours.
const stretchRows = 10_000

// shardScan is a keyset scan along the primary key that ends after limit rows or
// at the shard's upper bound. It leaves out the job's recorded failures, as long
// as their rows are what they were. $1 to $4 are its own.
const shardScan = `
	select ` + dataKeyColumns + `
	from data_key
	where domain_uid = $1 and data_key_id > $2 and data_key_id <= $3
		and not exists (
			select 1
			from job_failure
			where job_failure.domain_uid = data_key.domain_uid
				and job_failure.job_id = $4
				and job_failure.data_key_id = data_key.data_key_id
				and job_failure.data_key_uid = data_key.data_key_uid
				and job_failure.version = data_key.version)`

// afterAllIDs sorts after every id: ids are of [A-Za-z0-9._-].
const afterAllIDs broker.DataKeyID = "\x7f"

// upTo is the shard's upper bound.
func upTo(s rotation.Shard) broker.DataKeyID {
	if s.High == "" {
		return afterAllIDs
	}
	return s.High
}

func shardArgs(s rotation.Shard, more ...any) []any {
	return append([]any{s.Domain, max(s.Low, s.Cursor), upTo(s), s.Job}, more...)
}

// Stretch implements rotation.Tx.
func (t *txn) Stretch(ctx context.Context, s rotation.Shard) (rotation.Shard, error) {
	last, err := all(ctx, t, "find stretch", scanID, `
		select data_key_id
		from data_key
		where domain_uid = $1 and data_key_id > $2 and data_key_id <= $3
		order by data_key_id
		limit 1 offset $4 - 1`, s.Domain, max(s.Low, s.Cursor), upTo(s), t.store.stretch)
	if len(last) > 0 {
		s.High = last[0]
	}
	return s, err
}

// PendingDataKeys implements rotation.Tx.
func (t *txn) PendingDataKeys(ctx context.Context, s rotation.Shard, target broker.Epoch, limit int) ([]broker.DataKey, error) {
	return all(ctx, t, "list pending data keys", scanDataKey, shardScan+`
			and key_epoch < $5 and not abandoned
		order by data_key_id
		limit $6 + 0`, shardArgs(s, target, limit)...)
}

// MaterialDataKeys implements rotation.Tx.
func (t *txn) MaterialDataKeys(ctx context.Context, s rotation.Shard, epoch broker.Epoch, target string, before time.Time, limit int) ([]broker.DataKey, error) {
	return all(ctx, t, "list data keys of older material", scanDataKey, shardScan+`
			and key_epoch = $5 and key_material_id <> $6 and update_time < $7 and not abandoned
		order by data_key_id
		limit $8 + 0`, shardArgs(s, epoch, target, micros(before), limit)...)
}

// ShardDataKeys implements rotation.Tx.
func (t *txn) ShardDataKeys(ctx context.Context, s rotation.Shard, limit int) ([]broker.DataKey, error) {
	return all(ctx, t, "list data keys of shard", scanDataKey, shardScan+`
			and not abandoned
		order by data_key_id
		limit $5 + 0`, shardArgs(s, limit)...)
}

// A stretch is rows of a domain that come one after the other.
type stretch struct {
	after broker.DataKeyID // the last id before them
	last  broker.DataKeyID
	rows  int64
	found int64 // those that satisfy a condition
}

// walk goes over a domain's rows, stretch by stretch, until see has had enough. more
// holds the condition's values, from $4 on.
func (t *txn) walk(ctx context.Context, op, condition string, d broker.DomainUID, see func(stretch) (goOn bool), more ...any) error {
	var after broker.DataKeyID
	for {
		s, err := one(ctx, t, op, "count", func(r row) (s stretch, err error) {
			err = r.Scan(&s.rows, &s.last, &s.found)
			return s, err
		}, `
			select count(*), coalesce(max(data_key_id), ''), count(case when `+condition+` then 1 end)
			from (
				select data_key_id, key_epoch, abandoned
				from data_key
				where domain_uid = $1 and data_key_id > $2
				order by data_key_id
				limit $3 + 0
			) as stretch`, append([]any{d, after, t.store.stretch}, more...)...)
		if err != nil {
			return err
		}
		s.after, after = after, s.last
		if !see(s) || s.rows < int64(t.store.stretch) {
			return nil
		}
	}
}

// HasDataKeys implements rotation.Tx.
func (t *txn) HasDataKeys(ctx context.Context, d broker.DomainUID, key broker.KeyARN) (has bool, err error) {
	err = t.walk(ctx, "look for data keys", `
				not abandoned and key_epoch in (
					select key_epoch
					from domain_key
					where domain_uid = $1 and kms_key = $4)`,
		d, func(s stretch) bool { has = s.found > 0; return !has }, key)
	return has, err
}

// SampleBoundaries implements rotation.Tx. It reads each of the domain's ids, and
// so is exact: bound i is the first id by which i/n of the rows are passed.
func (t *txn) SampleBoundaries(ctx context.Context, d broker.DomainUID, n int) (bounds []broker.DataKeyID, rows int64, err error) {
	var stretches []stretch
	if err := t.walk(ctx, "count data keys", `true`, d, func(s stretch) bool {
		stretches, rows = append(stretches, s), rows+s.rows
		return true
	}); err != nil {
		return nil, 0, err
	}
	passed, last := int64(0), int64(0)
	for i := int64(1); i < int64(n); i++ {
		place := (i*rows + int64(n) - 1) / int64(n)
		if place == last || place >= rows {
			continue
		}
		for ; passed+stretches[0].rows < place; stretches = stretches[1:] {
			passed += stretches[0].rows
		}
		id, err := one(ctx, t, "sample data keys", "data key", scanID, `
			select data_key_id
			from data_key
			where domain_uid = $1 and data_key_id > $2
			order by data_key_id
			limit 1 offset $3 + 0`, d, stretches[0].after, place-passed-1)
		if err != nil {
			return nil, 0, err
		}
		bounds, last = append(bounds, id), place
	}
	return bounds, rows, nil
}

func scanID(r row) (id broker.DataKeyID, err error) {
	err = r.Scan(&id)
	return id, err
}
