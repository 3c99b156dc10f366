package sqlstore_test

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/keybroker/keybroker/internal/sqlstore"
)

var update = flag.Bool("update", false, "write the golden files")

// sqliteSchema gives the statements of the migrated schema.
func sqliteSchema(t *testing.T) string {
	t.Helper()
	path := dbPath(t)
	open(t, path, time.Now)
	return queryText(t, path, `
		select group_concat(sql, char(10, 10) order by type desc, name) || char(10)
		from sqlite_schema
		where sql is not null and name not like 'goose%' and name not like 'sqlite%'`)
}

// postgresSchema gives the migrated schema as the catalog tells it.
func postgresSchema(t *testing.T) string {
	t.Helper()
	url := postgres.Database(t)
	if _, _, err := sqlstore.MigratePostgres(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	return queryPostgres(t, url, `
		with
		part (of_table, place, line) as (
			select c.relname, a.attnum, format('%s %s%s not null=%s%s', a.attname, format_type(a.atttypid, a.atttypmod),
				case when a.attcollation = 950 then ' collate "C"' else '' end, a.attnotnull,
				case a.attidentity when 'a' then ' identity' else '' end)
			from pg_attribute a
			join pg_class c on c.oid = a.attrelid and c.relkind = 'r' and c.relnamespace = 'public'::regnamespace
			where a.attnum > 0
			union all
			select conrelid::regclass::text, 1000 + row_number() over (order by conname), format('constraint %s %s', conname, pg_get_constraintdef(oid))
			from pg_constraint
			where connamespace = 'public'::regnamespace and contype <> 'n'
			union all
			select tablename, 2000 + row_number() over (order by indexname), indexdef
			from pg_indexes
			where schemaname = 'public' and not exists (select 1 from pg_constraint where conname = indexname)
			union all
			select relname, 3000, array_to_string(reloptions, ', ')
			from pg_class
			where relkind = 'r' and relnamespace = 'public'::regnamespace and reloptions is not null
		),
		tables (text) as (
			select of_table || E'\n\t' || string_agg(line, E'\n\t' order by place) || E'\n'
			from part
			where of_table not like 'goose%'
			group by of_table
		)
		select string_agg(text, E'\n' order by text collate "C")
		from tables`)
}

// queryPostgres runs a query for one text past the store.
func queryPostgres(t testing.TB, url, query string, args ...any) (text string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if err := conn.QueryRow(t.Context(), query, args...).Scan(&text); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return text
}

// execPostgres runs a statement past the store.
func execPostgres(t testing.TB, url, statement string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func TestSchemaGolden(t *testing.T) {
	for engine, schema := range map[string]func(*testing.T) string{"sqlite": sqliteSchema, "postgres": postgresSchema} {
		t.Run(engine, func(t *testing.T) {
			got := schema(t)
			golden := filepath.Join("testdata", "schema_"+engine+".golden")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("the migrated schema (-golden +got); go test -update writes it:\n%s", diff)
			}
		})
	}
}

var (
	tableName = regexp.MustCompile(`(?m)^(?:CREATE TABLE )?([a-z_]+)(?: \(|$)`)
	// SQLite puts a column that was added later behind the last one, on its line.
	columnName     = regexp.MustCompile(`(?m)(?:^\t|, )([a-z_]+) +(?:text|integer|blob|bigint|bytea|boolean)\b`)
	constraintName = regexp.MustCompile(`(?m)^\tconstraint ([a-z_]+)`)
	indexName      = regexp.MustCompile(`(?i)create index ([a-z_]+) `)
)

// things gives the tables, columns, constraints and indexes of a schema's text.
func things(schema string) []string {
	var all []string
	for _, table := range regexp.MustCompile(`\n\n`).Split(strings.TrimSpace(schema), -1) {
		for _, index := range indexName.FindAllStringSubmatch(table, -1) {
			all = append(all, "index "+index[1])
		}
		name := tableName.FindStringSubmatch(table)
		if name == nil {
			continue
		}
		for _, c := range constraintName.FindAllStringSubmatch(table, -1) {
			all = append(all, name[1]+" constraint "+c[1])
		}
		for _, c := range columnName.FindAllStringSubmatch(table, -1) {
			all = append(all, name[1]+"."+c[1])
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// TestSchemasAgree holds the engines' schemas against each other, by names: what
// one has and the other has not is a migration that was forgotten.
func TestSchemasAgree(t *testing.T) {
	onSQLite, onPostgres := things(sqliteSchema(t)), things(postgresSchema(t))
	if len(onSQLite) < 100 {
		t.Fatalf("only %d things were found in SQLite's schema", len(onSQLite))
	}
	// What the engines have for reasons of their own.
	own := func(name string) bool {
		return strings.HasSuffix(name, "_bool") || // PostgreSQL has a type for it
			name == "audit_event constraint audit_event_pk" || // SQLite's is on the column's own line
			strings.HasPrefix(name, "compatibility") // only programs on one PostgreSQL differ in age
	}
	if diff := cmp.Diff(slices.DeleteFunc(onSQLite, own), slices.DeleteFunc(onPostgres, own)); diff != "" {
		t.Errorf("the schemas (-SQLite +PostgreSQL):\n%s", diff)
	}
}

var keyConstraint = regexp.MustCompile(`(?m)^\tconstraint (\w+) (?:PRIMARY KEY|UNIQUE|FOREIGN KEY) \((\w+)`)

// TestKeysBeginWithTheDomain: what belongs to a domain has keys that begin with
// its uid, so that a store may be distributed by it. The others are those that
// ARCHITECTURE.md, section 9, says how to keep.
func TestKeysBeginWithTheDomain(t *testing.T) {
	var others []string
	all := keyConstraint.FindAllStringSubmatch(postgresSchema(t), -1)
	for _, key := range all {
		if key[2] != "domain_uid" {
			others = append(others, key[1])
		}
	}
	slices.Sort(others)
	want := []string{"audit_event_pk", "compatibility_pk", "domain_id_unique", "kms_grant_name_unique", "listed_key_pk",
		"meta_pk", "periodic_pk", "replica_pk", "request_pk"}
	if diff := cmp.Diff(want, others); diff != "" || len(all) < 25 {
		t.Errorf("of %d keys, those that do not begin with domain_uid (-known +found):\n%s", len(all), diff)
	}
	text, err := os.ReadFile(filepath.Join("..", "..", "ARCHITECTURE.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range others {
		if !strings.Contains(string(text), "`"+name) {
			t.Errorf("ARCHITECTURE.md, section 9, does not say how %s would be kept", name)
		}
	}
}

// TestSchemaVersions: a program refuses what it cannot run on, names the way
// out, and runs on a newer schema as long as that has everything it needs.
func TestSchemaVersions(t *testing.T) {
	url := postgres.Database(t)
	cfg := sqlstore.Config{}
	refused := func(what, wayOut string) {
		t.Helper()
		s, err := sqlstore.OpenPostgres(t.Context(), url, cfg)
		var schema *sqlstore.SchemaError
		if !errors.As(err, &schema) || !strings.Contains(err.Error(), wayOut) {
			t.Errorf("%s: got error %v, want a SchemaError with %q", what, err, wayOut)
		}
		if err == nil {
			_ = s.Close()
		}
	}
	refused("an empty database", "run broker migrate")

	before, after, err := sqlstore.MigratePostgres(t.Context(), url)
	if err != nil || before != 0 || after < 1 {
		t.Fatalf("the first migration: from %d to %d, %v", before, after, err)
	}
	if before, again, err := sqlstore.MigratePostgres(t.Context(), url); err != nil || before != after || again != after {
		t.Errorf("the second migration: from %d to %d, %v; want nothing done at %d", before, again, err, after)
	}
	reopenPostgres(t, url, nil)

	execPostgres(t, url, `update goose_db_version set is_applied = false where version_id > 0`)
	refused("an older schema", "run broker migrate")
	execPostgres(t, url, `update goose_db_version set is_applied = true`)

	execPostgres(t, url, `insert into goose_db_version (version_id, is_applied) values (9999, true)`)
	reopenPostgres(t, url, nil) // expanded only: the program of the release before goes on
	if before, after, err := sqlstore.MigratePostgres(t.Context(), url); err != nil || before != 9999 || after != 9999 {
		t.Errorf("a migration by an older program: from %d to %d, %v; want nothing done at 9999", before, after, err)
	}
	execPostgres(t, url, `update compatibility set oldest_known = 9999`)
	refused("a schema that needs newer programs", "use a newer program")
	var schema *sqlstore.SchemaError
	if _, _, err := sqlstore.MigratePostgres(t.Context(), url); !errors.As(err, &schema) {
		t.Errorf("a migration of a schema that needs newer programs: got %v", err)
	}
}

// TestMigrateTogether: many migrators make one schema.
func TestMigrateTogether(t *testing.T) {
	url := postgres.Database(t)
	done := make(chan error)
	const migrators = 4
	for range migrators {
		go func() {
			_, _, err := sqlstore.MigratePostgres(t.Context(), url)
			done <- err
		}()
	}
	for range migrators {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if got := queryPostgres(t, url, `
		select coalesce(string_agg(version_id::text, ', '), '')
		from goose_db_version
		where version_id in (select version_id from goose_db_version group by version_id having count(*) > 1)`); got != "" {
		t.Errorf("migrations that were run twice: %s", got)
	}
}

func TestNewerSchemaIsRefused(t *testing.T) {
	path := dbPath(t)
	s, err := sqlstore.OpenSQLite(t.Context(), path, sqlstore.Config{Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	execPast(t, path, `insert into goose_db_version (version_id, is_applied) values (9999, 1)`)
	_, err = sqlstore.OpenSQLite(t.Context(), path, sqlstore.Config{Now: time.Now})
	if err == nil || !strings.Contains(err.Error(), "schema version 9999") {
		t.Errorf("a newer schema: got error %v", err)
	}
}
