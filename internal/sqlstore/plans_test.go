package sqlstore_test

import (
	"database/sql"
	"flag"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/brokertest"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/internal/sqlstore"
)

// runContract runs the store's contract, and then looks at the plan of every
// statement that it took: none reads a whole table.
func runContract(t *testing.T, engine string, open func(*testing.T, func() time.Time) *sqlstore.Store, wholeTables func(t *testing.T, text string) []string) {
	texts := map[string]bool{}
	brokertest.RunStore(t, func(t *testing.T, now func() time.Time) (broker.Store, rotation.Store) {
		s, statements := open(t, now).Recorded()
		t.Cleanup(func() {
			for text := range statements() {
				texts[text] = true
			}
		})
		return s.Broker(), s.Rotation()
	})
	for text := range texts {
		for _, step := range wholeTables(t, text) {
			t.Errorf("%s in:%s", step, text)
		}
	}
	for text := range texts {
		if bareLimit.MatchString(text) {
			t.Errorf(`SQLite plans this anew each time, unless it says "limit $n + 0":%s`, text)
		}
	}
	// With -run TestSQLite/Topic there are only that topic's.
	whole := !strings.Contains(flag.Lookup("test.run").Value.String(), "/")
	if whole && len(texts) < 50 {
		t.Errorf("only %d statements were seen", len(texts))
	}
	if whole && *record {
		recordStatements(t, engine, slices.Sorted(maps.Keys(texts)))
	}
}

var bareLimit = regexp.MustCompile(`(?i)limit\s+\$\d+(\s*[^\s+\d]|\s*$)`)

func TestSQLite(t *testing.T) {
	path := dbPath(t)
	open(t, path, time.Now)
	runContract(t, "sqlite", func(t *testing.T, now func() time.Time) *sqlstore.Store { return open(t, dbPath(t), now) },
		func(t *testing.T, text string) []string { return scansOnSQLite(t, path, text) })
}

func TestPostgres(t *testing.T) {
	url := postgresURL(t)
	runContract(t, "postgres", func(t *testing.T, now func() time.Time) *sqlstore.Store { return openPostgres(t, now) },
		func(t *testing.T, text string) []string { return scansOnPostgres(t, url, text) })
}

// small is what may be read whole: what a statement itself has selected, by the
// name that it gives it, and a table with a row for each live process.
func small() []string {
	return []string{"stretch", "first_rows", "open_jobs", "held", "high", "normal", "costs", "overdue", "unanswered", "workers", "claims", "best", "mine", "other", aRowPerProcess}
}

const aRowPerProcess = "replica"

// scanOfTable is a step of SQLite's that reads a table from end to end. A scan
// that uses an index is one of a partial index, which holds no more than what is
// asked for.
var scanOfTable = regexp.MustCompile(`^SCAN [a-z_]+$`)

func scansOnSQLite(t *testing.T, path, query string) (scans []string) {
	t.Helper()
	for _, step := range planOnSQLite(t, path, query) {
		if scanOfTable.MatchString(step) && !slices.Contains(small(), strings.TrimPrefix(step, "SCAN ")) {
			scans = append(scans, step)
		}
	}
	return scans
}

// planOnSQLite gives the steps of a statement.
func planOnSQLite(t *testing.T, path, query string) (steps []string) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	args := make([]any, 0, 40)
	for strings.Contains(query+" ", "$"+strconv.Itoa(len(args)+1)) {
		args = append(args, nil)
	}
	rows, err := db.QueryContext(t.Context(), "explain query plan "+query, args...)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	defer rows.Close()
	for rows.Next() {
		var id, parent, unused int
		var detail string
		if err := rows.Scan(&id, &parent, &unused, &detail); err != nil {
			t.Fatal(err)
		}
		steps = append(steps, detail)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return steps
}

func scansOnPostgres(t *testing.T, url, query string) (scans []string) {
	t.Helper()
	steps := planOnPostgres(t, url, query)
	for i, step := range steps {
		if strings.Contains(step, "Seq Scan") && !strings.Contains(step, " on "+aRowPerProcess+" ") {
			scans = append(scans, step)
		}
		condition := ""
		if i+1 < len(steps) {
			condition = steps[i+1]
		}
		if ofDomain.MatchString(step) && !strings.Contains(condition, "data_key_id") && !readsDomain.MatchString(query) {
			scans = append(scans, step+", "+condition)
		}
	}
	return scans
}

// ofDomain is a step that may read all data keys of a domain, or their tombstones.
var ofDomain = regexp.MustCompile(`(using|Bitmap Index Scan on) data_key(_tombstone)?_pk`)

// readsDomain is a statement that is meant to read the first rows of a domain.
var readsDomain = regexp.MustCompile(`group by key_epoch`)

// planOnPostgres gives the steps of a statement. It has the planner avoid
// sequential scans, which it likes best of all for empty tables: one that is left
// has no index that would do.
func planOnPostgres(t *testing.T, url, query string) (steps []string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	exec := func(text string) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), text, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
	}
	exec("set enable_seqscan = off")
	exec("set plan_cache_mode = force_generic_plan")
	exec("prepare statement as " + query)
	var parameters int
	if err := conn.QueryRow(t.Context(), `select cardinality(parameter_types) from pg_prepared_statements where name = 'statement'`).Scan(&parameters); err != nil {
		t.Fatal(err)
	}
	call := "execute statement"
	if parameters > 0 {
		call += "(" + strings.TrimSuffix(strings.Repeat("null, ", parameters), ", ") + ")"
	}
	rows, err := conn.Query(t.Context(), "explain "+call, pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	for rows.Next() {
		var step string
		if err := rows.Scan(&step); err != nil {
			t.Fatal(err)
		}
		steps = append(steps, strings.TrimSpace(step))
	}
	if err := rows.Err(); err != nil {
		t.Fatal(fmt.Errorf("%s: %w", query, err))
	}
	return steps
}
