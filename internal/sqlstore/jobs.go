package sqlstore

import (
	"context"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
)

const jobColumns = `
	job.domain_uid, job.job_id, job.kind, job.phase, job.state,
	job.block_reason, job.block_side, job.block_message, job.block_since, job.block_next_probe,
	job.source_epoch, job.target_epoch, job.source_key, job.target_key, job.target_given, job.target_material,
	job.reason, job.caller, job.priority, job.allow_inaccessible, job.accept_mismatch, job.undo, job.fail_reason, job.fail_message, job.wait_message, job.wait_until,
	job.prepare_time, job.grant_time, job.switch_time, job.last_move_time,
	job.close_time, job.retire_time, job.list_time,
	job.grants_retired, job.estimated_rows, job.verified_rows, job.verify_cursor, job.verify_seen, job.verify_rows,
	job.lease_owner, job.lease_seq, job.lease_until,
	job.version, job.create_time, job.update_time, job.end_time`

func jobFields(j *rotation.Job) []any {
	return []any{
		&j.Domain, &j.ID, &j.Kind, &j.Phase, &j.State,
		&j.Block.Reason, &j.Block.Side, &j.Block.Message, at{&j.Block.Since}, at{&j.Block.NextProbe},
		&j.SourceEpoch, &j.TargetEpoch, &j.SourceKey, &j.TargetKey, &j.TargetGiven, &j.TargetMaterial,
		&j.Reason, &j.Caller, &j.Priority, &j.AllowInaccessibleSource, &j.AcceptMismatch, &j.Undo, &j.FailReason, &j.FailMessage, &j.WaitMessage, at{&j.WaitUntil},
		at{&j.PrepareTime}, at{&j.GrantTime}, at{&j.SwitchTime}, at{&j.LastMoveTime},
		at{&j.CloseTime}, at{&j.RetireTime}, at{&j.ListTime},
		&j.GrantsRetired, &j.EstimatedRows, &j.VerifiedRows, &j.Verify.Cursor, &j.Verify.Seen, &j.Verify.Rows,
		&j.Lease.Owner, &j.Lease.Seq, at{&j.Lease.Until},
		&j.Version, at{&j.CreateTime}, at{&j.UpdateTime}, at{&j.EndTime},
	}
}

func scanJob(r row) (j rotation.Job, err error) {
	err = r.Scan(jobFields(&j)...)
	return j, err
}

// InsertJob implements rotation.Tx. An id that exists is broker.ErrConflict.
func (t *txn) InsertJob(ctx context.Context, j rotation.Job) error {
	n, err := t.exec(ctx, "insert job", `
		insert into job (
			domain_uid, job_id, kind, phase, state,
			block_reason, block_side, block_message, block_since, block_next_probe,
			source_epoch, target_epoch, source_key, target_key, target_given, target_material,
			reason, caller, priority, allow_inaccessible, accept_mismatch, undo, fail_reason, fail_message, wait_message, wait_until,
			prepare_time, grant_time, switch_time, last_move_time,
			close_time, retire_time, list_time,
			grants_retired, estimated_rows, verified_rows, verify_cursor, verify_seen, verify_rows,
			lease_owner, lease_seq, lease_until,
			version, create_time, update_time, end_time)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19,
			$20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33, $34, $35, $36, $37, $38, $39, $40, $41, $42, $43, $44, $45, $46)
		on conflict do nothing`,
		j.Domain, j.ID, j.Kind, j.Phase, j.State,
		j.Block.Reason, j.Block.Side, j.Block.Message, micros(j.Block.Since), micros(j.Block.NextProbe),
		j.SourceEpoch, j.TargetEpoch, j.SourceKey, j.TargetKey, j.TargetGiven, j.TargetMaterial,
		j.Reason, j.Caller, j.Priority, j.AllowInaccessibleSource, j.AcceptMismatch, j.Undo, j.FailReason, j.FailMessage, j.WaitMessage, micros(j.WaitUntil),
		micros(j.PrepareTime), micros(j.GrantTime), micros(j.SwitchTime), micros(j.LastMoveTime),
		micros(j.CloseTime), micros(j.RetireTime), micros(j.ListTime),
		j.GrantsRetired, j.EstimatedRows, j.VerifiedRows, j.Verify.Cursor, j.Verify.Seen, j.Verify.Rows,
		j.Lease.Owner, j.Lease.Seq, micros(j.Lease.Until),
		j.Version, micros(j.CreateTime), micros(j.UpdateTime), micros(j.EndTime))
	if err == nil && n == 0 {
		return conflict("a job of this id is in the store already")
	}
	return err
}

// Job implements rotation.Tx.
func (t *txn) Job(ctx context.Context, r rotation.JobRef) (rotation.Job, error) {
	return one(ctx, t, "read job", "job", scanJob, `
		select `+jobColumns+`
		from job
		where domain_uid = $1 and job_id = $2`, r.Domain, r.ID)
}

// UpdateJob implements rotation.Tx. It leaves alone the lease, LastMoveTime, and
// what never changes: ids, kind, caller and time of creation.
func (t *txn) UpdateJob(ctx context.Context, j rotation.Job) error {
	n, err := t.exec(ctx, "update job", `
		update job
		set phase = $5, state = $6,
			block_reason = $7, block_side = $8, block_message = $9, block_since = $10, block_next_probe = $11,
			source_epoch = $12, target_epoch = $13, source_key = $14, target_key = $15, target_given = $16,
			reason = $17, fail_reason = $18, fail_message = $19, wait_message = $20, wait_until = $21,
			prepare_time = $22, grant_time = $23, switch_time = $24,
			close_time = $25, retire_time = $26, list_time = $27,
			grants_retired = $28, estimated_rows = $29, verified_rows = $30, end_time = $31,
			accept_mismatch = $33, undo = $34, priority = $35,
			verify_cursor = $36, verify_seen = $37, verify_rows = $38,
			version = version + 1, update_time = $32
		where domain_uid = $1 and job_id = $2 and version = $3 and lease_seq = $4`,
		j.Domain, j.ID, j.Version, j.Lease.Seq, j.Phase, j.State,
		j.Block.Reason, j.Block.Side, j.Block.Message, micros(j.Block.Since), micros(j.Block.NextProbe),
		j.SourceEpoch, j.TargetEpoch, j.SourceKey, j.TargetKey, j.TargetGiven,
		j.Reason, j.FailReason, j.FailMessage, j.WaitMessage, micros(j.WaitUntil),
		micros(j.PrepareTime), micros(j.GrantTime), micros(j.SwitchTime),
		micros(j.CloseTime), micros(j.RetireTime), micros(j.ListTime),
		j.GrantsRetired, j.EstimatedRows, j.VerifiedRows, micros(j.EndTime), micros(t.now),
		j.AcceptMismatch, j.Undo, j.Priority, j.Verify.Cursor, j.Verify.Seen, j.Verify.Rows)
	if err != nil {
		return err
	}
	if n == 0 {
		return t.absentOrChanged(ctx, "job", jobProbe, j.Domain, j.ID)
	}
	if j.Open() {
		return nil
	}
	// Nobody can give their leases back any more, and claims would look at them for ever.
	_, err = t.exec(ctx, "forget the owners of shards", `
		update shard
		set lease_owner = ''
		where domain_uid = $1 and job_id = $2 and lease_owner <> ''`, j.Domain, j.ID)
	return err
}

const jobProbe = `select 1 from job where domain_uid = $1 and job_id = $2`

// openJob is the condition of the index job_open.
const openJob = `job.state in ('RUNNING', 'PAUSED', 'BLOCKED')`

// movingJob is the jobs that want workers for their shards, and the condition of the
// index job_moving.
const movingJob = `job.state = 'RUNNING' and (job.phase = 'REENCRYPTING' or job.kind = 'VERIFY' and job.phase <> 'PREPARING')`

// DueJobs implements rotation.Tx. A job that says what it waits for is due also
// while its shards are at work: the step clears that.
func (t *txn) DueJobs(ctx context.Context, p rotation.Priority, owner string, after rotation.Job, limit int) ([]rotation.Job, error) {
	return all(ctx, t, "list due jobs", scanJob, `
		select `+jobColumns+`
		from job
		where `+openJob+` and priority = $7 and (create_time, domain_uid, job_id) > ($3, $4, $5)
			and (lease_until <= $1 or lease_owner = $2)
			and (
				state = 'BLOCKED' and block_reason <> 'CONTEXT_OR_KEY_MISMATCH' and block_next_probe <= $1
				or state = 'RUNNING' and wait_until <= $1
			)
			and not (
				`+movingJob+` and wait_message = ''
				and exists (
					select 1
					from shard
					where shard.domain_uid = job.domain_uid and shard.job_id = job.job_id and not shard.finished)
				and not exists (
					select 1
					from kms_grant
					where kms_grant.domain_uid = job.domain_uid and kms_grant.kind = 'wrap'
						and kms_grant.key_epoch < job.target_epoch and `+leftKMSGrant+` and kms_grant.state <> 'INTENDED')
			)
		order by create_time, domain_uid, job_id
		limit $6 + 0`, micros(t.now), owner, micros(after.CreateTime), after.Domain, after.ID, limit, p)
}

// MovingJobs implements rotation.Tx.
func (t *txn) MovingJobs(ctx context.Context, d broker.DomainUID) (map[rotation.Priority]int, error) {
	type count struct {
		priority rotation.Priority
		jobs     int
	}
	counts, err := all(ctx, t, "count moving jobs", func(r row) (c count, err error) {
		err = r.Scan(&c.priority, &c.jobs)
		return c, err
	}, `
		select priority, count(*)
		from job
		where `+movingJob+` and domain_uid <> $1
		group by priority`, d)
	byPriority := make(map[rotation.Priority]int, len(counts))
	for _, c := range counts {
		byPriority[c.priority] = c.jobs
	}
	return byPriority, err
}

// ListJobs implements rotation.Tx.
func (t *txn) ListJobs(ctx context.Context, d broker.DomainUID, after broker.JobID, limit int) ([]rotation.Job, error) {
	return all(ctx, t, "list jobs", scanJob, `
		select `+jobColumns+`
		from job
		where domain_uid = $1 and job_id > $2
		order by job_id
		limit $3 + 0`, d, after, limit)
}

// LastKeyChange implements rotation.Tx.
func (t *txn) LastKeyChange(ctx context.Context, d broker.DomainUID) (rotation.Job, error) {
	return one(ctx, t, "read last key change", "job", scanJob, `
		select `+jobColumns+`
		from job
		where domain_uid = $1 and kind = 'KEY_CHANGE'
		order by create_time desc, job_id desc
		limit 1`, d)
}

// UnfinishedJobs implements rotation.Tx.
func (t *txn) UnfinishedJobs(ctx context.Context, d broker.DomainUID) ([]rotation.Job, error) {
	return all(ctx, t, "list unfinished jobs", scanJob, `
		select `+jobColumns+`
		from job
		where domain_uid = $1 and state in ('RUNNING', 'PAUSED', 'BLOCKED', 'FAILED')
		order by create_time, job_id`, d)
}

// TouchJob implements rotation.Tx. The clock is read when the row is held: readers
// may have the old rows until the commit, and a batch that had to wait for others
// would count their time from before the wait.
func (t *txn) TouchJob(ctx context.Context, r rotation.JobRef) error {
	there, err := exists(ctx, t, "hold job", jobProbe+t.holding(waiting), r.Domain, r.ID)
	if err != nil {
		return err
	}
	if !there {
		return notFound("job")
	}
	now, err := t.store.dialect.later(ctx, t.session)
	if err != nil {
		return t.fail(ctx, "read the clock", err)
	}
	_, err = t.exec(ctx, "touch job", `
		update job
		set last_move_time = $3
		where domain_uid = $1 and job_id = $2`, r.Domain, r.ID, micros(now))
	return err
}
