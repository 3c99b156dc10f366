package sqlstore_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/brokertest"
	"github.com/keybroker/keybroker/internal/sqlstore"
)

// crashStore tells the test binary to be the process that is killed, and names
// its store: a file or a URL.
const crashStore = "KEYBROKER_TEST_CRASH_STORE"

// openAny opens whatever crashStore may name.
func openAny(ctx context.Context, at string) (*sqlstore.Store, error) {
	cfg := sqlstore.Config{Now: brokertest.NewStoreClock().Now, Random: rand.Reader}
	if strings.HasPrefix(at, "postgres:") {
		return sqlstore.OpenPostgres(ctx, at, cfg)
	}
	return sqlstore.OpenSQLite(ctx, at, cfg)
}

// writeUntilKilled stores rows one by one and says each id after its commit. It
// reports whether this process is that writer.
func writeUntilKilled() bool {
	at := os.Getenv(crashStore)
	if at == "" {
		return false
	}
	ctx := context.Background()
	s, err := openAny(ctx, at)
	if err != nil {
		panic(err)
	}
	start, err := s.Secret(ctx, "start", 8)
	if err != nil {
		panic(err)
	}
	_ = s.Broker().Update(ctx, func(tx broker.Tx) error {
		return tx.InsertDomain(ctx, broker.Domain{UID: "u", ID: "d", State: broker.DomainActive, Version: 1})
	})
	for i := 0; ; i++ {
		id := broker.DataKeyID(fmt.Sprintf("k-%d-%d", os.Getpid(), i))
		if err := s.Broker().Update(ctx, func(tx broker.Tx) error {
			if err := tx.LockDomain(ctx, "u", broker.Shared); err != nil {
				return err
			}
			// Two rows or none: half a transaction would show.
			for _, part := range []broker.DataKeyID{"-a", "-b"} {
				if err := tx.InsertDataKey(ctx, broker.DataKey{Domain: "u", ID: id + part, UID: broker.DataKeyUID(id), Ciphertext: start, Version: 1}); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			panic(err)
		}
		fmt.Println(id)
	}
}

// TestKill kills a writer with SIGKILL several times over: the file stays sound,
// every row that was acknowledged is there, and nobody waits for the dead.
func TestKill(t *testing.T) {
	t.Run("SQLite", func(t *testing.T) {
		path := dbPath(t)
		killWriters(t, path, func() { checkIntegrity(t, path) })
	})
	t.Run("PostgreSQL", func(t *testing.T) { killWriters(t, postgresURL(t), func() {}) })
}

func killWriters(t *testing.T, at string, check func()) {
	var acknowledged []broker.DataKeyID
	for round := range 5 {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), crashStore+"="+at)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			acknowledged = append(acknowledged, broker.DataKeyID(lines.Text()))
			if n == 20*(round+1) {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := cmd.Wait(); err == nil {
			t.Fatal("the writer was not killed")
		}
		check()
	}
	ctx := t.Context()
	s, err := openAny(ctx, at)
	if err != nil {
		t.Fatal(err)
	}
	closeAtEnd(t, s)
	if err := s.Broker().Update(ctx, func(tx broker.Tx) error { return tx.LockDomain(ctx, "u", broker.Exclusive) }); err != nil {
		t.Errorf("the domain that the dead held: %v", err)
	}
	if err := s.Broker().View(ctx, func(tx broker.Tx) error {
		for _, id := range acknowledged {
			for _, part := range []broker.DataKeyID{"-a", "-b"} {
				if _, err := tx.DataKey(ctx, "u", id+part); err != nil {
					t.Errorf("row %s%s was acknowledged: %v", id, part, err)
				}
			}
		}
		all, err := tx.ListDataKeys(ctx, "u", "", 1_000_000)
		if len(all)%2 != 0 || len(all) < 2*len(acknowledged) {
			t.Errorf("%d rows are stored, %d were acknowledged: want an even number, not less", len(all), 2*len(acknowledged))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

func checkIntegrity(t *testing.T, path string) {
	t.Helper()
	for _, check := range []string{"pragma integrity_check", "select count(*) || ' orphans' from pragma_foreign_key_check"} {
		if got := queryText(t, path, check); got != "ok" && got != "0 orphans" {
			t.Errorf("%s: %s", check, got)
		}
	}
}

// queryText runs a query for one text past the store.
func queryText(t *testing.T, path, query string) (text string) {
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
	if err := db.QueryRowContext(t.Context(), query).Scan(&text); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return text
}
