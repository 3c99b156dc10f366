package sqlstore_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/keybroker/keybroker/internal/sqlstore"
)

// TestMigrationTakesItsTime: what an operator allows a statement by default is not
// for the building of an index.
func TestMigrationTakesItsTime(t *testing.T) {
	at := postgres.Database(t)
	execPostgres(t, at, `do $$ begin execute format('alter database %I set statement_timeout = 1', current_database()); end $$`) // in ms
	if _, _, err := sqlstore.MigratePostgres(t.Context(), at); err != nil {
		t.Error(err)
	}
}

// TestMigratorsWait: who waits for another migrator in vain is told so.
func TestMigratorsWait(t *testing.T) {
	at := postgres.Database(t)
	other, err := pgx.Connect(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close(t.Context())
	if _, err := other.Exec(t.Context(), `select pg_advisory_lock($1)`, sqlstore.SchemaLock()); err != nil {
		t.Fatal(err)
	}
	if err := sqlstore.MigrateSoon(t.Context(), at); err == nil || !strings.Contains(err.Error(), "another broker migrate is still at work") {
		t.Errorf("beside another migrator: %v", err)
	}
}

var (
	sqlComment  = regexp.MustCompile(`(?m)--.*$`)
	createTable = regexp.MustCompile(`^create table ([a-z_]+)`)
	createIndex = regexp.MustCompile(`^create (?:unique )?index (concurrently )?(?:if not exists )?([a-z_]+) on ([a-z_]+)`)
	newColumn   = regexp.MustCompile(`^alter table [a-z_]+ add column (.*)$`)
	// outsideAll is what a migration without a transaction may be made of: each of
	// them can be run again after a crash.
	outsideAll = regexp.MustCompile(`^(set lock_timeout = 0|reset lock_timeout|drop index concurrently if exists [a-z_]+|create (unique )?index concurrently .*)$`)
)

// faultOf tells what is wrong with a migration of PostgreSQL, "" for nothing. In a
// transaction "create index" keeps every writer of its table waiting until it is
// done (PostgreSQL, CREATE INDEX, Building Indexes Concurrently). A column without
// a default shuts older programs out.
func faultOf(text string) string {
	outside := strings.Contains(text, "-- +goose NO TRANSACTION")
	var made, statements []string
	for s := range strings.SplitSeq(sqlComment.ReplaceAllString(text, ""), ";") {
		s = strings.Join(strings.Fields(strings.ToLower(s)), " ")
		if s == "" {
			continue
		}
		if outside && !outsideAll.MatchString(s) {
			return "belongs into a migration of its own, which has a transaction: " + s
		}
		if m := createTable.FindStringSubmatch(s); m != nil {
			made = append(made, m[1])
		}
		if m := newColumn.FindStringSubmatch(s); m != nil && strings.Contains(m[1], "not null") && !strings.Contains(m[1], "default") {
			return "leaves programs of the release before no way to insert: " + s
		}
		if m := createIndex.FindStringSubmatch(s); m != nil && !slices.Contains(made, m[3]) {
			switch dropped := "drop index concurrently if exists " + m[2]; {
			case !outside || m[1] == "":
				return "blocks the writers of " + m[3] + ": " + s
			case strings.Contains(s, "if not exists"):
				return "takes for good what a crash left invalid: " + s
			case !slices.Contains(statements, "set lock_timeout = 0"):
				return "gives up when a transaction takes long: " + s
			case !slices.Contains(statements, dropped):
				return "fails when it is run again: " + s
			}
		}
		statements = append(statements, s)
	}
	return ""
}

// concurrent is the first migration that the rule is for; those before it ran
// before anybody had rows.
const concurrent = 5

func TestMigrationsLetWritersOn(t *testing.T) {
	files, err := filepath.Glob("migrations/postgres/*.sql")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, file := range files {
		var number int
		if _, err := fmt.Sscanf(filepath.Base(file), "%d_", &number); err != nil || number < concurrent {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if fault := faultOf(string(text)); fault != "" {
			t.Errorf("%s %s; CONTRIBUTING.md, \"A change of the schema\", has the form", file, fault)
		}
		seen++
	}
	if seen == 0 {
		t.Error("no migration was looked at")
	}

	const outside = "-- +goose NO TRANSACTION\n-- +goose Up\nset lock_timeout = 0;\n"
	for name, text := range map[string]string{
		"in a transaction":    "-- +goose Up\ncreate index i on data_key (version);",
		"unique":              "-- +goose Up\ncreate unique index i on data_key (version);",
		"not concurrently":    outside + "create index i on data_key (version);",
		"if not exists":       outside + "create index concurrently if not exists i on data_key (version);",
		"not dropped":         outside + "create index concurrently i on data_key (version);",
		"another one dropped": outside + "drop index concurrently if exists j;\ncreate index concurrently i on data_key (version);",
		"impatient":           "-- +goose NO TRANSACTION\ndrop index concurrently if exists i;\ncreate index concurrently i on data_key (version);",
		"without a default":   "-- +goose Up\nalter table data_key add column c bigint not null;",
		"with a column":       outside + "alter table data_key add column c bigint not null default 0;",
	} {
		if faultOf(text) == "" {
			t.Errorf("%s: passes", name)
		}
	}
	for name, text := range map[string]string{
		"of a new table": "-- +goose Up\ncreate table t (\n\tc bigint not null -- create index i on data_key\n);\ncreate index i on t (c);",
		"as it should":   outside + "drop index concurrently if exists i;\ncreate index concurrently i on data_key (version);\nreset lock_timeout;",
	} {
		if fault := faultOf(text); fault != "" {
			t.Errorf("%s: %s", name, fault)
		}
	}
}

// TestIndexLeftInvalid: a migrator that dies while it builds an index leaves one
// that is there and used by nothing. The next one makes it anew.
func TestIndexLeftInvalid(t *testing.T) {
	url := postgresURL(t)
	const index = "data_key_abandoned"
	valid := func() string {
		return queryPostgres(t, url, `select indisvalid::text from pg_index where indexrelid = '`+index+`'::regclass`)
	}
	execPostgres(t, url, `drop index `+index)
	execPostgres(t, url, `insert into periodic select 'p' || n, '', 0 from generate_series(1, 2) as n`)
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	_, err = conn.Exec(t.Context(), `create unique index concurrently `+index+` on periodic (owner)`)
	if err == nil || valid() != "false" {
		t.Fatalf("two equal rows left an index that is valid: %v", err)
	}
	execPostgres(t, url, `
		delete from goose_db_version where version_id >= 5;
		alter table job drop column verify_cursor, drop column verify_seen, drop column verify_rows, drop column worked_time`) // of versions 7 and 9
	if _, _, err := sqlstore.MigratePostgres(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	if after := valid(); after != "true" {
		t.Errorf("the index is valid: %s", after)
	}
}
