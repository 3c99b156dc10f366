package sqlstore_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/internal/sqlstore"
)

// openJobs fills the tables, by texts that both engines understand: so many domains,
// each with a job whose one shard wants a worker, like the job that is given.
func openJobs(n int) []string {
	const columns = `kind, phase, state, block_reason, block_side, block_message, block_since, block_next_probe,
		source_epoch, target_epoch, source_key, target_key, target_given, target_material, reason, caller,
		allow_inaccessible, accept_mismatch, undo, fail_reason, fail_message, wait_message, wait_until, prepare_time, grant_time,
		switch_time, last_move_time, close_time, retire_time, list_time, grants_retired, estimated_rows, verified_rows,
		lease_owner, lease_seq, lease_until, version, update_time, end_time, priority`
	many := fmt.Sprintf(`with recursive n (i) as (select 1 union all select i + 1 from n where i < %d)`, n)
	return []string{
		many + `insert into domain select 'd' || i, 'many' || i, '', '', 'ACTIVE', 0, '', '', '', '', 2, 2, '', '', 0, '[]', '[]', '{}', 1, 0, 0 from n`,
		many + `insert into job (domain_uid, job_id, create_time, ` + columns + `)
			select 'd' || i, 'j', i, ` + columns + ` from n cross join job where domain_uid = 'u1'`,
		many + `insert into shard (domain_uid, job_id, shard_index, low, high, cursor, again, finished, done, relabelled, failed,
				lease_owner, lease_seq, lease_until, pace_rows, pace_calls, pace_throttled, pace_time)
			select 'd' || i, 'j', 0, '', '', '', false, false, 0, 0, 0, '', 0, 0, 0, 0, 0, 0 from n`,
	}
}

// TestOpenJobsAreNotRead: what a worker asks once in a second is answered from the
// jobs that are at work and from the first of those that wait, among 5,000 that wait.
func TestOpenJobsAreNotRead(t *testing.T) {
	ctx := t.Context()
	verbs := map[string]struct {
		call    func(tx rotation.Tx) error
		indexes []string
	}{
		"ClaimShard": {func(tx rotation.Tx) error {
			_, _, err := tx.ClaimShard(ctx, "me", time.Hour)
			return err
		}, []string{"shard_held", "job_moving"}},
		"ShardWanted": {func(tx rotation.Tx) error {
			_, err := tx.ShardWanted(ctx, rotation.JobRef{Domain: "u1", ID: "j1"})
			return err
		}, []string{"shard_held", "job_moving"}},
		"DueJobs": {func(tx rotation.Tx) error {
			_, err := tx.DueJobs(ctx, rotation.High, "me", rotation.Job{}, 8)
			return err
		}, []string{"job_due"}},
	}
	path, url := dbPath(t), postgresURL(t)
	onSQLite, onPostgres := open(t, path, time.Now), reopenPostgres(t, url, nil)
	for _, s := range []*sqlstore.Store{onSQLite, onPostgres} {
		benchJob(t, s)
	}
	for _, text := range openJobs(5000) {
		execPast(t, path, text)
		execPostgres(t, url, text)
	}
	execPostgres(t, url, `vacuum analyze`)
	for name, v := range verbs {
		recorded, statements := onPostgres.Recorded()
		if err := recorded.Rotation().Update(ctx, v.call); err != nil {
			t.Fatal(err)
		}
		used := map[string]bool{}
		for text, args := range statements() {
			plans := map[string]string{"SQLite": strings.Join(planOnSQLite(t, path, text), "; ")}
			for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
				if !strings.Contains(strings.TrimSpace(text), "update") {
					// The jobs fill 400 blocks, and their shards 100. Beyond what is at work
					// 32 jobs are looked at, each by a few look-ups of some blocks.
					blocks, plan := runOnPostgres(t, url, mode, text, args)
					if blocks > 350 {
						t.Errorf("%s on PostgreSQL, %s: reads %d blocks: %s", name, mode, blocks, plan)
					}
					plans["PostgreSQL, "+mode] = plan
				}
			}
			for where, plan := range plans {
				for _, index := range v.indexes {
					used[index+" on "+where] = used[index+" on "+where] || strings.Contains(plan, index)
				}
			}
		}
		for index, used := range used {
			if !used {
				t.Errorf("%s: no statement uses %s", name, index)
			}
		}
	}
}

// TestEndedJobsHaveNoOwners: whoever held a shard when its job ended can give it back
// no more, and no claim looks at it for ever.
func TestEndedJobsHaveNoOwners(t *testing.T) {
	at, ctx := postgresURL(t), t.Context()
	s := reopenPostgres(t, at, nil)
	ref := rotation.JobRef{Domain: benchJob(t, s).Domain, ID: "j1"}
	const owned = `select count(*)::text from shard where lease_owner <> ''`
	if n := queryPostgres(t, at, owned); n != "1" {
		t.Fatalf("%s shards have owners, want 1", n)
	}
	if err := s.Rotation().Update(ctx, func(tx rotation.Tx) error {
		j, err := tx.Job(ctx, ref)
		if err != nil {
			return err
		}
		j.State = rotation.Superseded
		return tx.UpdateJob(ctx, j)
	}); err != nil {
		t.Fatal(err)
	}
	if n := queryPostgres(t, at, owned); n != "0" {
		t.Errorf("%s shards have owners after their job's end", n)
	}
}

// BenchmarkOpenJobs is what each worker and each replica asks again and again, with
// very many jobs open.
func BenchmarkOpenJobs(b *testing.B) {
	for _, jobs := range []int{10_000, 100_000} {
		path, url := dbPath(b), postgresURL(b)
		stores := map[string]*sqlstore.Store{"sqlite": open(b, path, time.Now), "postgres": reopenPostgres(b, url, nil)}
		for _, s := range stores {
			benchJob(b, s)
		}
		for _, text := range openJobs(jobs) {
			execPast(b, path, text)
			execPostgres(b, url, text)
		}
		execPostgres(b, url, `vacuum analyze`)
		for engine, s := range stores {
			ctx := b.Context()
			var mine rotation.JobRef
			for name, ask := range map[string]func(tx rotation.Tx) error{
				"claim and release": func(tx rotation.Tx) error {
					shard, j, err := tx.ClaimShard(ctx, "bench", time.Hour)
					if err != nil {
						return err
					}
					mine, shard.Pace.Time = j.Ref(), tx.Now()
					_, _, err = tx.CommitShard(ctx, shard, 0)
					return err
				},
				"wanted": func(tx rotation.Tx) error {
					_, err := tx.ShardWanted(ctx, rotation.JobRef{Domain: "u1", ID: "j1"})
					return err
				},
				"due, high": func(tx rotation.Tx) error {
					_, err := tx.DueJobs(ctx, rotation.High, "me", rotation.Job{}, 8)
					return err
				},
				"due, normal": func(tx rotation.Tx) error {
					_, err := tx.DueJobs(ctx, rotation.Normal, "me", rotation.Job{}, 8)
					return err
				},
				"moving": func(tx rotation.Tx) error { _, err := tx.MovingJobs(ctx, mine.Domain); return err },
			} {
				b.Run(fmt.Sprintf("%d/%s/%s", jobs, engine, name), func(b *testing.B) {
					for b.Loop() {
						if err := s.Rotation().Update(ctx, ask); err != nil {
							b.Fatal(err)
						}
					}
				})
			}
		}
	}
}
