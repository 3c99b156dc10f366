package sqlstore_test

import (
	"crypto/rand"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/keybroker/keybroker/internal/sqlstore"
)

func TestMain(m *testing.M) {
	if writeUntilKilled() {
		return
	}
	goleak.VerifyTestMain(m)
}

// open opens a store in a file and closes it at the end of the test.
func open(t testing.TB, path string, now func() time.Time) *sqlstore.Store {
	t.Helper()
	s, err := sqlstore.OpenSQLite(t.Context(), path, sqlstore.Config{Now: now, Random: rand.Reader})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

func dbPath(t testing.TB) string { return filepath.Join(t.TempDir(), "broker.db") }
