package sqlstore_test

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/keybroker/keybroker/internal/brokertest"
	"github.com/keybroker/keybroker/internal/sqlstore"
)

// postgres is the server of this package's tests.
var postgres brokertest.Postgres

func TestMain(m *testing.M) {
	if writeUntilKilled() {
		return
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if err := postgres.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, "stop PostgreSQL:", err)
			code = max(code, 1)
		}
		os.Exit(code)
	}))
}

// open opens a store in a file and closes it at the end of the test.
func open(t testing.TB, path string, now func() time.Time) *sqlstore.Store {
	t.Helper()
	s, err := sqlstore.OpenSQLite(t.Context(), path, sqlstore.Config{Now: now, Random: rand.Reader})
	if err != nil {
		t.Fatal(err)
	}
	closeAtEnd(t, s)
	return s
}

// postgresURL gives the URL of an empty, migrated database.
func postgresURL(t testing.TB) string {
	t.Helper()
	url := postgres.Database(t)
	if _, _, err := sqlstore.MigratePostgres(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	return url
}

// openPostgres opens a store in an empty database of PostgreSQL; a nil clock is
// the database's own. The store is more patient than a broker's: where many race on
// a slow machine the last one's turn comes late. PostgreSQL finds deadlocks by
// itself, after a second.
func openPostgres(t testing.TB, now func() time.Time) *sqlstore.Store {
	t.Helper()
	s := reopenPostgres(t, postgresURL(t)+"&lock_timeout=60000&connect_timeout=60", now)
	s.Wait(time.Minute, time.Minute)
	return s
}

// reopenPostgres opens one more store on a database, of more connections than a
// test has writers.
func reopenPostgres(t testing.TB, url string, now func() time.Time) *sqlstore.Store {
	t.Helper()
	s, err := sqlstore.OpenPostgres(t.Context(), url+"&pool_max_conns=72", sqlstore.Config{Now: now, Random: rand.Reader})
	if err != nil {
		t.Fatal(err)
	}
	closeAtEnd(t, s)
	return s
}

func closeAtEnd(t testing.TB, s *sqlstore.Store) {
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
}

func dbPath(t testing.TB) string { return filepath.Join(t.TempDir(), "broker.db") }
