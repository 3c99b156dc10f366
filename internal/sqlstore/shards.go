package sqlstore

import (
	"context"
	"slices"
	"time"

	"github.com/keybroker/keybroker/internal/rotation"
)

const shardColumns = `
	shard.domain_uid, shard.job_id, shard.shard_index, shard.low, shard.high, shard.cursor,
	shard.again, shard.finished, shard.done, shard.relabelled, shard.failed,
	shard.lease_owner, shard.lease_seq, shard.lease_until`

func shardFields(s *rotation.Shard) []any {
	return []any{
		&s.Domain, &s.Job, &s.Index, &s.Low, &s.High, &s.Cursor,
		&s.Again, &s.Finished, &s.Done, &s.Relabelled, &s.Failed,
		&s.Lease.Owner, &s.Lease.Seq, at{&s.Lease.Until},
	}
}

func scanShard(r row) (s rotation.Shard, err error) {
	err = r.Scan(shardFields(&s)...)
	return s, err
}

// InsertShards implements rotation.Tx. New shards start above every fence that
// the job's former shards gave out, so that a worker of the former ones writes
// nothing.
func (t *txn) InsertShards(ctx context.Context, shards []rotation.Shard) error {
	fences := map[rotation.JobRef]int64{}
	for _, s := range shards {
		ref := rotation.JobRef{Domain: s.Domain, ID: s.Job}
		if _, replaced := fences[ref]; !replaced {
			fence, err := t.removeShards(ctx, ref)
			if err != nil {
				return err
			}
			fences[ref] = fence
		}
		if _, err := t.exec(ctx, "insert shard", `
			insert into shard (
				domain_uid, job_id, shard_index, low, high, cursor,
				again, finished, done, relabelled, failed, lease_owner, lease_seq, lease_until)
			values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)`,
			s.Domain, s.Job, s.Index, s.Low, s.High, s.Cursor,
			s.Again, s.Finished, s.Done, s.Relabelled, s.Failed,
			s.Lease.Owner, s.Lease.Seq+fences[ref], micros(s.Lease.Until)); err != nil {
			return err
		}
	}
	return nil
}

// removeShards gives the first fence that none of the removed shards used. The
// fences are those that it removed: a claim that came in between is among them.
func (t *txn) removeShards(ctx context.Context, r rotation.JobRef) (fence int64, err error) {
	used, err := all(ctx, t, "remove shards", scanInt, `
		delete from shard
		where domain_uid = $1 and job_id = $2
		returning lease_seq`, r.Domain, r.ID)
	if err != nil || len(used) == 0 {
		return 0, err
	}
	return slices.Max(used) + 1, nil
}

// Shards implements rotation.Tx.
func (t *txn) Shards(ctx context.Context, r rotation.JobRef) ([]rotation.Shard, error) {
	return all(ctx, t, "list shards", scanShard, `
		select `+shardColumns+`
		from shard
		where domain_uid = $1 and job_id = $2
		order by shard_index`, r.Domain, r.ID)
}

// Progress implements rotation.Tx.
func (t *txn) Progress(ctx context.Context, r rotation.JobRef) (rotation.Progress, error) {
	return one(ctx, t, "sum shards", "shard", func(r row) (p rotation.Progress, err error) {
		err = r.Scan(&p.Shards, &p.FinishedShards, &p.Done, &p.Relabelled, &p.Failed)
		return p, err
	}, `
		select count(*), count(case when finished then 1 end),
			cast(coalesce(sum(done), 0) as bigint),
			cast(coalesce(sum(relabelled), 0) as bigint),
			cast(coalesce(sum(failed), 0) as bigint)
		from shard
		where domain_uid = $1 and job_id = $2`, r.Domain, r.ID)
}

// claimCandidates is how many shards a claim looks at: where other replicas
// claim at the same time, the first may be gone.
const claimCandidates = 32

// ClaimShard implements rotation.Tx. It prefers shards that nobody left behind,
// of the oldest job. The condition on three states is that of the index job_open;
// the next one narrows it.
func (t *txn) ClaimShard(ctx context.Context, owner string, ttl time.Duration) (rotation.Shard, rotation.Job, error) {
	free, err := all(ctx, t, "list free shards", scanShard, `
		select `+shardColumns+`
		from job
		join shard on shard.domain_uid = job.domain_uid and shard.job_id = job.job_id
		where job.state in ('RUNNING', 'PAUSED', 'BLOCKED')
			and job.state = 'RUNNING' and (job.phase = 'REENCRYPTING' or job.kind = 'VERIFY')
			and not shard.finished and shard.lease_until <= $1
		order by shard.lease_until, job.create_time, shard.domain_uid, shard.job_id, shard.shard_index
		limit $2`, micros(t.now), claimCandidates)
	if err != nil {
		return rotation.Shard{}, rotation.Job{}, err
	}
	for _, s := range free {
		taken, err := t.takeShard(ctx, &s, owner, ttl)
		if err != nil {
			return rotation.Shard{}, rotation.Job{}, err
		}
		if taken {
			j, err := t.Job(ctx, rotation.JobRef{Domain: s.Domain, ID: s.Job})
			return s, j, err
		}
	}
	return rotation.Shard{}, rotation.Job{}, notFound("free shard")
}

// takeShard raises the fence unless another has done so since s was read. A
// lease that ran out was not released: its holder may have moved rows since its
// last commit, so the shard is swept once more.
func (t *txn) takeShard(ctx context.Context, s *rotation.Shard, owner string, ttl time.Duration) (bool, error) {
	before := s.Lease
	s.Again = s.Again || !before.Until.IsZero()
	s.Lease = rotation.Lease{Owner: owner, Seq: before.Seq + 1, Until: t.now.Add(ttl)}
	n, err := t.exec(ctx, "claim shard", `
		update shard
		set again = $4, lease_owner = $5, lease_seq = $6, lease_until = $7
		where domain_uid = $1 and job_id = $2 and shard_index = $3
			and lease_seq = $8 and lease_until = $9 and not finished`,
		s.Domain, s.Job, s.Index, s.Again, owner, s.Lease.Seq, micros(s.Lease.Until),
		before.Seq, micros(before.Until))
	return n == 1, err
}

// CommitShard implements rotation.Tx. A job that is paused or blocked still takes
// the commit: the rows are the truth, and its state tells the worker to stop. A
// job in a final state is broker.ErrConflict.
func (t *txn) CommitShard(ctx context.Context, s rotation.Shard, ttl time.Duration) (rotation.State, error) {
	state, err := one(ctx, t, "read job", "job", func(r row) (state rotation.State, err error) {
		err = r.Scan(&state)
		return state, err
	}, `
		select state
		from job
		where domain_uid = $1 and job_id = $2`, s.Domain, s.Job)
	if err != nil {
		return "", err
	}
	if !(rotation.Job{State: state}).Open() {
		return "", conflict("the job of the shard has ended")
	}
	owner, until := s.Lease.Owner, micros(t.now.Add(ttl))
	if ttl == 0 {
		owner, until = "", 0
	}
	n, err := t.exec(ctx, "commit shard", `
		update shard
		set cursor = $5, again = $6, finished = $7, done = $8, relabelled = $9, failed = $10,
			lease_owner = $11, lease_until = $12
		where domain_uid = $1 and job_id = $2 and shard_index = $3 and lease_seq = $4`,
		s.Domain, s.Job, s.Index, s.Lease.Seq,
		s.Cursor, s.Again, s.Finished, s.Done, s.Relabelled, s.Failed, owner, until)
	if err != nil {
		return "", err
	}
	if n == 0 {
		return "", lostLease("shard")
	}
	return state, nil
}

// RenewShard implements rotation.Tx. A released lease is not renewed.
func (t *txn) RenewShard(ctx context.Context, s rotation.Shard, ttl time.Duration) error {
	n, err := t.exec(ctx, "renew shard", `
		update shard
		set lease_until = $5
		where domain_uid = $1 and job_id = $2 and shard_index = $3 and lease_seq = $4 and lease_until > 0`,
		s.Domain, s.Job, s.Index, s.Lease.Seq, micros(t.now.Add(ttl)))
	if err == nil && n == 0 {
		return lostLease("shard")
	}
	return err
}
