package sqlstore_test

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/keybroker/keybroker/internal/brokertest"
	"github.com/keybroker/keybroker/internal/sqlstore"
)

// TestCommitsAreKept: whatever an operator has set for the database, a commit is
// answered when it is on the disks of the server and of its synchronous standby
// (PostgreSQL, Server Configuration, synchronous_commit, has the five values).
func TestCommitsAreKept(t *testing.T) {
	at := postgresURL(t)
	for set, want := range map[string]string{
		"off": "on", "local": "on", "remote_write": "on", "on": "on", "remote_apply": "remote_apply",
	} {
		execPostgres(t, at, `do $$ begin execute format('alter database %I set synchronous_commit = `+set+`', current_database()); end $$`)
		got, err := reopenPostgres(t, at, nil).Shown(t.Context(), "synchronous_commit")
		if err != nil || got != want {
			t.Errorf("%s becomes %s, %v; want %s", set, got, err, want)
		}
	}
}

// TestLaxServer: the log names each setting with which a server may lose what it
// has committed, and nothing else.
func TestLaxServer(t *testing.T) {
	durable := &brokertest.Postgres{Durable: true}
	t.Cleanup(func() {
		if err := durable.Stop(); err != nil {
			t.Error(err)
		}
	})
	for what, server := range map[string]*brokertest.Postgres{"a durable server": durable, "the tests' server": &postgres} {
		at := server.Database(t)
		if _, _, err := sqlstore.MigratePostgres(t.Context(), at); err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		s, err := sqlstore.OpenPostgres(t.Context(), at, sqlstore.Config{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		for _, name := range []string{"fsync", "full_page_writes"} {
			lax := queryPostgres(t, at, "show "+name) == "off"
			if named := strings.Contains(log.String(), "level=WARN") && strings.Contains(log.String(), "setting="+name); named != lax {
				t.Errorf("%s: %s is off: %v, and the log says: %s", what, name, lax, log.String())
			}
		}
	}
}
