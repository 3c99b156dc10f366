package sqlstore_test

import (
	"database/sql"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// record keeps what the program of now says to its database, for the schemas of
// its successors: go test ./internal/sqlstore -run 'TestSQLite$|TestPostgres$' -record
var record = flag.Bool("record", false, "write testdata/statements of the present schema")

const (
	statements = "testdata/statements"
	between    = ";\n"
)

// statementsFile is named by the newest migration that the statements were said on.
func statementsFile(t *testing.T, engine string, migration int) string {
	t.Helper()
	return filepath.Join(statements, fmt.Sprintf("%04d_%s.sql", migration, engine))
}

func newestMigration(t *testing.T, engine string) (newest int) {
	t.Helper()
	files, err := filepath.Glob("migrations/" + engine + "/*.sql")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d migrations of %s, %v", len(files), engine, err)
	}
	if _, err := fmt.Sscanf(filepath.Base(files[len(files)-1]), "%d_", &newest); err != nil {
		t.Fatal(err)
	}
	return newest
}

func recordStatements(t *testing.T, engine string, texts []string) {
	t.Helper()
	text := strings.Join(texts, between) + between
	if err := os.WriteFile(statementsFile(t, engine, newestMigration(t, engine)), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestOlderPrograms: each statement of the programs before can be said on the
// schema of now, since their replicas work on while the new ones come. What a
// statement then means is for the rules of CONTRIBUTING.md, "A change of the
// schema".
func TestOlderPrograms(t *testing.T) {
	t.Run("sqlite", func(t *testing.T) {
		path := dbPath(t)
		open(t, path, time.Now)
		db, err := sql.Open("sqlite", "file:"+path)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		sayOlder(t, "sqlite", func(text string) error {
			stmt, err := db.PrepareContext(t.Context(), text)
			if err == nil {
				err = stmt.Close()
			}
			return err
		}, func(text string) error {
			_, err := db.ExecContext(t.Context(), text)
			return err
		})
	})
	t.Run("postgres", func(t *testing.T) {
		conn, err := pgx.Connect(t.Context(), postgresURL(t))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(t.Context())
		sayOlder(t, "postgres", func(text string) error {
			_, err := conn.Prepare(t.Context(), "", text)
			return err
		}, func(text string) error {
			_, err := conn.Exec(t.Context(), text)
			return err
		})
	})
}

func sayOlder(t *testing.T, engine string, prepare, exec func(text string) error) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(statements, "*_"+engine+".sql"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files of statements, %v", len(files), err)
	}
	refused := func() (all []error) {
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			said := strings.Split(strings.TrimSuffix(string(text), between), between)
			if len(said) < 50 {
				t.Errorf("%s has %d statements", file, len(said))
			}
			for _, s := range said {
				if err := prepare(s); err != nil {
					all = append(all, fmt.Errorf("%s: %w:%s", file, err, s))
				}
			}
		}
		return all
	}
	for _, err := range refused() {
		t.Error(err)
	}
	if err := exec("alter table data_key rename column key_spec to spec"); err != nil {
		t.Fatal(err)
	}
	if len(refused()) == 0 {
		t.Error("a schema without data_key.key_spec passes")
	}
}
