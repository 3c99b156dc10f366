package sqlstore_test

import (
	"database/sql"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/brokertest"
	"github.com/keybroker/keybroker/internal/rotation"
)

// TestSQLite runs the store's contract, and then looks at the plan of every
// statement that it took: none reads a whole table.
func TestSQLite(t *testing.T) {
	statements := map[string]bool{}
	brokertest.RunStore(t, func(t *testing.T, now func() time.Time) (broker.Store, rotation.Store) {
		s := open(t, dbPath(t), now)
		t.Cleanup(func() { // runs before the store is closed
			for _, text := range s.Statements() {
				statements[text] = true
			}
		})
		return s.Broker(), s.Rotation()
	})
	path := dbPath(t)
	open(t, path, time.Now)
	explained := 0
	for text := range statements {
		if strings.HasPrefix(text, "begin") || text == "commit" || text == "rollback" {
			continue
		}
		explained++
		for _, step := range plan(t, path, text) {
			if wholeTable.MatchString(step) && step != "SCAN placed" { // a subquery's name
				t.Errorf("%s in:%s", step, text)
			}
		}
	}
	if explained < 50 {
		t.Errorf("only %d statements were seen", explained)
	}
}

// wholeTable is a step that reads a table from end to end. A scan that uses an
// index is one of a partial index, which holds no more than what is asked for.
var wholeTable = regexp.MustCompile(`^SCAN [a-z_]+$`)

func plan(t *testing.T, path, query string) (steps []string) {
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
