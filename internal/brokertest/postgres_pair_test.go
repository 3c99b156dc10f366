package brokertest_test

import (
	"database/sql"
	"errors"
	"os"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"

	"github.com/keybroker/keybroker/internal/brokertest"
)

// What was acknowledged before a fail-over is there after it, at the same URL,
// and again after a second one.
func TestPostgresPairFailsOver(t *testing.T) {
	pair, err := brokertest.StartPostgresPair(t.Context())
	if errors.Is(err, brokertest.ErrNoPostgres) && os.Getenv("CI") != "true" {
		t.Skipf("!!! NOT TESTED ON POSTGRESQL: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pair.Stop(); err != nil {
			t.Error(err)
		}
	})
	run := func(statement string) {
		t.Helper()
		db, err := sql.Open("pgx", pair.URL())
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	run(`create table seen (n int primary key)`)
	for n := range 2 {
		run(`insert into seen select count(*) from seen`)
		if err := pair.FailOver(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := pair.FailOver(t.Context()); err == nil {
			t.Fatal("a pair without a standby fails over")
		}
		if err := pair.Rejoin(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := pair.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		run(map[int]string{0: `select 1 / count(*) from seen`, 1: `select 1 / (count(*) - 1) from seen`}[n])
	}
}
