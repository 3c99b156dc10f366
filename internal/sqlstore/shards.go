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
	shard.pace_rows, shard.pace_calls, shard.pace_throttled, shard.pace_time,
	shard.lease_owner, shard.lease_seq, shard.lease_until`

func shardFields(s *rotation.Shard) []any {
	return []any{
		&s.Domain, &s.Job, &s.Index, &s.Low, &s.High, &s.Cursor,
		&s.Again, &s.Finished, &s.Done, &s.Relabelled, &s.Failed,
		thousandths{&s.Pace.Rows}, thousandths{&s.Pace.Calls}, thousandths{&s.Pace.Throttled}, at{&s.Pace.Time},
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
			if err := t.noteWorked(ctx, ref, s.Pace.Time); err != nil {
				return err
			}
			fence, err := t.removeShards(ctx, ref)
			if err != nil {
				return err
			}
			fences[ref] = fence
		}
		if _, err := t.exec(ctx, "insert shard", `
			insert into shard (
				domain_uid, job_id, shard_index, low, high, cursor,
				again, finished, done, relabelled, failed,
				pace_rows, pace_calls, pace_throttled, pace_time, lease_owner, lease_seq, lease_until)
			values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)`,
			s.Domain, s.Job, s.Index, s.Low, s.High, s.Cursor,
			s.Again, s.Finished, s.Done, s.Relabelled, s.Failed,
			toThousandths(s.Pace.Rows), toThousandths(s.Pace.Calls), toThousandths(s.Pace.Throttled), micros(s.Pace.Time),
			s.Lease.Owner, s.Lease.Seq+fences[ref], micros(s.Lease.Until)); err != nil {
			return err
		}
	}
	return nil
}

// noteWorked keeps from when on a job without a worker waits for one: since it was
// worked on, or its shards were cut.
func (t *txn) noteWorked(ctx context.Context, r rotation.JobRef, at time.Time) error {
	_, err := t.exec(ctx, "note when a job was worked on", `
		update job
		set worked_time = $3
		where domain_uid = $1 and job_id = $2 and worked_time < $3`, r.Domain, r.ID, micros(at))
	return err
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

// withoutWorker and longestFirst, with a priority between them, are its jobs that
// want workers and have none: nobody owns a shard of theirs, and one is not finished.
// They come in the order of their claims, which the index job_moving has too. It cannot
// say whether there is such a shard; but a job without one has been worked on after
// those that wait, or is being worked on, and of these there are few.
const (
	withoutWorker = `
			select job.domain_uid, job.job_id, job.create_time, job.priority, job.worked_time
			from job
			where ` + movingJob + `
				and exists (
					select 1
					from shard
					where shard.domain_uid = job.domain_uid and shard.job_id = job.job_id and not shard.finished)
				and not exists (
					select 1
					from shard
					where shard.domain_uid = job.domain_uid and shard.job_id = job.job_id and shard.lease_owner <> '')
				and job.priority = `
	longestFirst = `
			order by job.worked_time, job.create_time, job.domain_uid, job.job_id
			limit $3 + 0`
)

// claims is how good a claim the jobs that want workers have to one more, at the
// time $1: the smaller, the better. It is what a job's live leases and one more count,
// each by the inverse of the job's part. That of a job without a live lease falls
// with the turns, each as long as $2, since it was worked on: so it comes to its
// part in time where there are too few workers for all. Both are in millionths.
//
// It looks at the jobs whose shards have owners, who are as many as there are workers,
// and of the others at the first $3 of each priority: so it costs the same for any
// number of jobs.
//
// A cross join tells SQLite where to begin.
const claims = `
		with held as (
			select distinct domain_uid, job_id
			from shard
			where lease_owner <> ''
		), workers as (
			select job.domain_uid, job.job_id, job.create_time, job.priority,
				count(case when shard.lease_until > $1 then 1 end) as live,
				count(case when shard.lease_until <= $1 and not shard.finished then 1 end) as free,
				max(shard.pace_time) as worked
			from held
			cross join job
			cross join shard
			where ` + movingJob + `
				and job.domain_uid = held.domain_uid and job.job_id = held.job_id
				and shard.domain_uid = held.domain_uid and shard.job_id = held.job_id
			group by job.domain_uid, job.job_id, job.create_time, job.priority
			union all
			select domain_uid, job_id, create_time, priority, 0, 1, worked_time
			from (` + withoutWorker + `'HIGH'` + longestFirst + `
			) as high
			union all
			select domain_uid, job_id, create_time, priority, 0, 1, worked_time
			from (` + withoutWorker + `'NORMAL'` + longestFirst + `
			) as normal
		), costs as (
			select domain_uid, job_id, create_time, live, free, worked,
				case when priority = 'HIGH' then 1000000 else 4000000 end as cost
			from workers
		), claims as (
			select domain_uid, job_id, create_time, free, worked,
				cost * live as taken,
				case
					when live > 0 then cost * (live + 1)
					when worked < $1 then cost * cast($2 as bigint) / ($2 + $1 - worked)
					else cost
				end as claim
			from costs
		)`

// ClaimShard implements rotation.Tx. Within a job it prefers shards that nobody
// left behind.
func (t *txn) ClaimShard(ctx context.Context, owner string, ttl time.Duration) (rotation.Shard, rotation.Job, error) {
	free, err := all(ctx, t, "list free shards", scanShard, claims+`
		select `+shardColumns+`
		from (
			select domain_uid, job_id, create_time, worked, claim
			from claims
			where free > 0
			order by claim, worked, create_time, domain_uid, job_id
			limit $3 + 0
		) as best
		cross join shard
		where shard.domain_uid = best.domain_uid and shard.job_id = best.job_id and shard.lease_until <= $1 and not shard.finished
		order by best.claim, best.worked, best.create_time,
			best.domain_uid, best.job_id, shard.lease_until, shard.shard_index
		limit $3 + 0`, micros(t.now), rotation.Turn.Microseconds(), claimCandidates)
	if err != nil {
		return rotation.Shard{}, rotation.Job{}, err
	}
	for _, s := range free {
		j, err := t.Job(ctx, rotation.JobRef{Domain: s.Domain, ID: s.Job})
		if err != nil {
			return rotation.Shard{}, rotation.Job{}, err
		}
		taken, err := t.takeShard(ctx, &s, j.Kind, owner, ttl)
		if taken || err != nil {
			return s, j, err
		}
	}
	return rotation.Shard{}, rotation.Job{}, notFound("free shard")
}

// ShardWanted implements rotation.Tx. It compares what ClaimShard would compare
// if the worker's lease were back, so that no worker is let go and claimed again
// by the same job.
func (t *txn) ShardWanted(ctx context.Context, r rotation.JobRef) (bool, error) {
	return exists(ctx, t, "compare jobs' claims", claims+`
		select 1
		from claims as mine, claims as other
		where mine.domain_uid = $4 and mine.job_id = $5 and other.free > 0 and other.claim < mine.taken
		limit 1`, micros(t.now), rotation.Turn.Microseconds(), claimCandidates, r.Domain, r.ID)
}

// Paces implements rotation.Tx.
func (t *txn) Paces(ctx context.Context, r rotation.JobRef) ([]rotation.Pace, error) {
	return all(ctx, t, "list paces", func(r row) (p rotation.Pace, err error) {
		err = r.Scan(thousandths{&p.Rows}, thousandths{&p.Calls}, thousandths{&p.Throttled}, at{&p.Time})
		return p, err
	}, `
		select pace_rows, pace_calls, pace_throttled, pace_time
		from shard
		where domain_uid = $1 and job_id = $2 and pace_time > 0`, r.Domain, r.ID)
}

// takeShard raises the fence unless another has done so since s was read. A
// lease that ran out was not released: its holder may have moved rows since its
// last commit, so the shard is swept once more. A VERIFY job moves none.
func (t *txn) takeShard(ctx context.Context, s *rotation.Shard, kind rotation.Kind, owner string, ttl time.Duration) (bool, error) {
	before := s.Lease
	s.Again = s.Again || !before.Until.IsZero() && kind != rotation.KindVerify
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
func (t *txn) CommitShard(ctx context.Context, s rotation.Shard, ttl time.Duration) (rotation.State, rotation.Priority, error) {
	j, err := one(ctx, t, "read job", "job", func(r row) (j rotation.Job, err error) {
		err = r.Scan(&j.State, &j.Priority)
		return j, err
	}, `
		select state, priority
		from job
		where domain_uid = $1 and job_id = $2`, s.Domain, s.Job)
	if err != nil {
		return "", "", err
	}
	if !j.Open() {
		return "", "", conflict("the job of the shard has ended")
	}
	owner, until := s.Lease.Owner, micros(t.now.Add(ttl))
	if ttl == 0 {
		owner, until = "", 0
		if err := t.noteWorked(ctx, rotation.JobRef{Domain: s.Domain, ID: s.Job}, s.Pace.Time); err != nil {
			return "", "", err
		}
	}
	n, err := t.exec(ctx, "commit shard", `
		update shard
		set cursor = $5, again = $6, finished = $7, done = $8, relabelled = $9, failed = $10,
			lease_owner = $11, lease_until = $12,
			pace_rows = $13, pace_calls = $14, pace_throttled = $15, pace_time = $16
		where domain_uid = $1 and job_id = $2 and shard_index = $3 and lease_seq = $4`,
		s.Domain, s.Job, s.Index, s.Lease.Seq,
		s.Cursor, s.Again, s.Finished, s.Done, s.Relabelled, s.Failed, owner, until,
		toThousandths(s.Pace.Rows), toThousandths(s.Pace.Calls), toThousandths(s.Pace.Throttled), micros(s.Pace.Time))
	if err != nil {
		return "", "", err
	}
	if n == 0 {
		return "", "", lostLease("shard")
	}
	return j.State, j.Priority, nil
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
