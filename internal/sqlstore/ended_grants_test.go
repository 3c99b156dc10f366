package sqlstore_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/internal/sqlstore"
)

// manyEnded fills the tables, by texts that both engines understand: a domain that
// is at its second key, with 25,000 grants that have ended, which left 50,000 KMS
// grants under both keys, and with ten live ones, whose wrap grants on the older key
// are retired; beside it, another domain has very many that are being made or retired.
func manyEnded() []string {
	grants := func(domain, id string, n int, state string) string {
		return fmt.Sprintf(`
			with recursive n (i) as (select 1 union all select i + 1 from n where i < %[2]d)
			insert into domain_grant (domain_uid, grant_id, grant_uid, worker, grantee, operations, constraint_subset, constraint_equals,
				state, expire_time, version, create_time, update_time)
			select '%[4]s', '%[1]s-' || i, '%[1]s-' || i, false, 'role', '[]', '{}', '{}', '%[3]s', 1, 1, 1, 1
			from n`, id, n, state, domain)
	}
	made := func(domain, id string, n int, epoch, kind, state string) string {
		end := "i"
		if state == "LIVE" {
			end = "0"
		}
		return fmt.Sprintf(`
			with recursive n (i) as (select 1 union all select i + 1 from n where i < %[2]d)
			insert into kms_grant (domain_uid, grant_uid, key_epoch, kind, attempt, worker, name, kms_key, kms_grant_id, state,
				intend_time, live_time, end_time, next_try, miss_time)
			select '%[7]s', '%[1]s-' || i, %[3]s, '%[4]s', 1, false, 'kb/%[1]s-' || i || '/%[4]s/' || %[3]s, 'arn:' || %[3]s, 'id-%[1]s-%[4]s-' || i, '%[5]s',
				1, 1, %[6]s, 9000000000000000, 0
			from n`, id, n, epoch, kind, state, end, domain)
	}
	return []string{
		`insert into domain select 'BIG', 'big', '', '', 'ACTIVE', 0, '', '', '', '', 2, 2, '', '', 0, '[]', '[]', '{}', 1, 0, 0`,
		`insert into domain select 'OTHER', 'other', '', '', 'ACTIVE', 0, '', '', '', '', 2, 2, '', '', 0, '[]', '[]', '{}', 1, 0, 0`,
		`insert into domain select 'GONE', 'gone', '', '', 'DELETED', 0, '', '', '', '', 2, 2, '', '', 0, '[]', '[]', '{}', 1, 0, 0`,
		grants("BIG", "ended", 25_000, "REVOKED"),
		made("BIG", "ended", 25_000, "(1 + i % 2)", "wrap", "RETIRED"), made("BIG", "ended", 25_000, "(1 + i % 2)", "unwrap", "RETIRED"),
		grants("BIG", "live", 10, "ACTIVE"), made("BIG", "live", 10, "2", "wrap", "LIVE"), made("BIG", "live", 10, "2", "unwrap", "LIVE"),
		made("BIG", "live", 10, "1", "wrap", "RETIRED"), made("BIG", "live", 10, "1", "unwrap", "LIVE"), made("BIG", "live", 1, "0", "unwrap", "FAILED"),
		grants("OTHER", "other", 2000, "ACTIVE"), made("OTHER", "other", 2000, "3", "wrap", "INTENDED"), made("OTHER", "other", 2000, "3", "unwrap", "RETIRING"),
	}
}

// TestEndedGrantsAreNotRead: whatever a domain's calls and jobs ask of its grants is
// answered from an index that holds what was asked for: among 25,000 ended grants no
// verb reads more than a few times what the ten live ones are.
func TestEndedGrantsAreNotRead(t *testing.T) {
	const d = "BIG"
	verbs := map[string]struct {
		call    func(tx rotation.Tx) (n int, err error)
		want    int
		indexes []string
	}{
		"LiveGrants": {func(tx rotation.Tx) (int, error) { return length(tx.LiveGrants(t.Context(), d)) },
			10, []string{"domain_grant_live"}},
		"KMSGrants": {func(tx rotation.Tx) (int, error) { return length(tx.KMSGrants(t.Context(), d, "live-2")) },
			4, []string{"kms_grant_pk"}},
		"RecordedKMSGrants of an epoch": {func(tx rotation.Tx) (int, error) {
			return length(tx.RecordedKMSGrants(t.Context(), d, broker.KMSGrantRange{Below: 2}))
		}, 10, []string{"kms_grant_open"}},
		"RecordedKMSGrants of a kind": {func(tx rotation.Tx) (int, error) {
			return length(tx.RecordedKMSGrants(t.Context(), d, broker.KMSGrantRange{Kind: broker.Wrap}))
		}, 10, []string{"kms_grant_open"}},
		"RecordedKMSGrants": {func(tx rotation.Tx) (int, error) {
			return length(tx.RecordedKMSGrants(t.Context(), d, broker.KMSGrantRange{}))
		}, 30, []string{"kms_grant_open"}},
		"KMSIntents": {func(tx rotation.Tx) (int, error) {
			return length(tx.KMSIntents(t.Context(), d, broker.KMSGrantRange{Below: 2}))
		}, 0, []string{"kms_grant_open"}},
		"FailedOn": {func(tx rotation.Tx) (int, error) { return length(tx.FailedOn(t.Context(), d, 0)) },
			1, []string{"kms_grant_failed"}},
		"StaleKMSGrants": {func(tx rotation.Tx) (int, error) { return length(tx.StaleKMSGrants(t.Context(), 100)) },
			0, []string{"kms_grant_stale"}},
		"LastServiceWrap": {func(tx rotation.Tx) (int, error) {
			end, err := tx.LastServiceWrap(t.Context(), d, 1)
			return int(end.UnixMicro()), err
		}, 25_000, []string{"kms_grant_open", "kms_grant_used"}},
		"LastKMSGrantEnd": {func(tx rotation.Tx) (int, error) {
			end, err := tx.LastKMSGrantEnd(t.Context(), d, 1)
			return int(end.UnixMicro()), err
		}, 25_000, []string{"kms_grant_used"}},
		"SelfGrants": {func(tx rotation.Tx) (int, error) { return length(tx.SelfGrants(t.Context(), d, "role")) },
			0, []string{"domain_grant_self"}},
		"SelfGrantsOn": {func(tx rotation.Tx) (int, error) { return length(tx.SelfGrantsOn(t.Context(), d, 1)) },
			0, []string{"domain_grant_self"}},
		"DueJobs": {func(tx rotation.Tx) (int, error) {
			return length(tx.DueJobs(t.Context(), rotation.Normal, "me", rotation.Job{}, 10))
		},
			1, []string{"kms_grant_open"}},
		"DeletedDomains": {func(tx rotation.Tx) (int, error) { return length(tx.DeletedDomains(t.Context(), 10)) },
			0, []string{"kms_grant_open"}},
	}
	path, url := dbPath(t), postgresURL(t)
	onSQLite, onPostgres := open(t, path, time.Now), reopenPostgres(t, url, nil)
	for _, text := range manyEnded() {
		execPast(t, path, text)
		execPostgres(t, url, text)
	}
	execPostgres(t, url, `vacuum analyze`)
	for _, s := range []*sqlstore.Store{onSQLite, onPostgres} {
		aJobInReencrypting(t, s, d)
	}
	for name, v := range verbs {
		var texts map[string][]any
		for _, s := range []*sqlstore.Store{onSQLite, onPostgres} {
			recorded, statements := s.Recorded()
			if err := recorded.Rotation().View(t.Context(), func(tx rotation.Tx) error {
				n, err := v.call(tx)
				if n != v.want {
					t.Errorf("%s gives %d, want %d", name, n, v.want)
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
			texts = statements()
		}
		for text, args := range texts {
			checkSQLitePlan(t, name, planOnSQLite(t, path, text), v.indexes)
			for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
				blocks, plan := runOnPostgres(t, url, mode, text, args)
				for _, index := range v.indexes {
					if !strings.Contains(plan, `"`+index+`"`) {
						t.Errorf("%s on PostgreSQL, %s: %s is not used: %s", name, mode, index, plan)
					}
				}
				// The ended grants alone fill 2,000 blocks, and an index that holds them 200.
				if blocks > 60 {
					t.Errorf("%s on PostgreSQL, %s: reads %d blocks: %s", name, mode, blocks, plan)
				}
			}
		}
	}
}

func length[T any](list []T, err error) (int, error) { return len(list), err }

// aJobInReencrypting is a key change of the domain to its second key.
func aJobInReencrypting(t *testing.T, s *sqlstore.Store, d broker.DomainUID) {
	t.Helper()
	err := s.Rotation().Update(t.Context(), func(tx rotation.Tx) error {
		j := rotation.Job{Domain: d, ID: "j", Kind: rotation.KindKeyChange, Priority: rotation.Normal,
			Phase: rotation.Reencrypting, State: rotation.Running, TargetEpoch: 3, Version: 1, CreateTime: tx.Now()}
		if err := tx.InsertJob(t.Context(), j); err != nil {
			return err
		}
		return tx.InsertShards(t.Context(), []rotation.Shard{{Domain: d, Job: j.ID}})
	})
	if err != nil {
		t.Fatal(err)
	}
}

// checkSQLitePlan: each step that looks at grants searches an index by the domain or
// the key, or walks one whole that is partial, and each of the indexes is used.
func checkSQLitePlan(t *testing.T, name string, plan, indexes []string) {
	t.Helper()
	for _, index := range indexes {
		// A table without rowid has no index of that name: it is its primary key.
		step := index
		if index == "kms_grant_pk" {
			step = "kms_grant USING PRIMARY KEY (domain_uid=? AND grant_uid=?"
		}
		if !slices.ContainsFunc(plan, func(s string) bool { return strings.Contains(s, step) }) {
			t.Errorf("%s on SQLite: %s is not used: %q", name, index, plan)
		}
	}
	for _, step := range plan {
		if strings.HasSuffix(step, "kms_grant USING PRIMARY KEY (domain_uid=?)") || strings.Contains(step, "autoindex_domain_grant") && strings.HasSuffix(step, "(domain_uid=?)") {
			t.Errorf("%s on SQLite reads every grant of the domain: %q", name, plan)
		}
	}
}

// runOnPostgres runs a prepared statement, and gives how many blocks of tables and
// indexes it read, and its plan.
func runOnPostgres(t *testing.T, url, mode, query string, args []any) (blocks int, plan string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	for _, text := range []string{"set plan_cache_mode = " + mode, "prepare statement as " + query} {
		if _, err := conn.Exec(t.Context(), text, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
	}
	call := "execute statement"
	if len(args) > 0 {
		literals := make([]string, len(args))
		for i, arg := range args {
			literals[i] = fmt.Sprint(arg)
			if reflect.TypeOf(arg).Kind() == reflect.String {
				literals[i] = "'" + literals[i] + "'"
			}
		}
		call += "(" + strings.Join(literals, ", ") + ")"
	}
	if err := conn.QueryRow(t.Context(), "explain (analyze, buffers, timing off, format json) "+call, pgx.QueryExecModeSimpleProtocol).Scan(&plan); err != nil {
		t.Fatalf("%s: %v", call, err)
	}
	var explained []struct {
		Plan struct {
			Hit  int `json:"Shared Hit Blocks"`
			Read int `json:"Shared Read Blocks"`
		}
	}
	if err := json.Unmarshal([]byte(plan), &explained); err != nil {
		t.Fatal(err)
	}
	return explained[0].Plan.Hit + explained[0].Plan.Read, plan
}
