package sqlstore

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

// migrations holds one folder per engine; a number means the same step in each.
// A migration comes with the code that needs it and is run before that code, on
// a database that the release before is still at work on. So it only adds, with
// defaults that mean "as before", and takes away a release later: see
// CONTRIBUTING.md, "A change of the schema".
//
//go:embed migrations
var migrations embed.FS

// A SchemaError says that this program cannot run on the schema of a database.
type SchemaError struct {
	// Stored is the version of the database's schema, 0 if it has none.
	Stored int64
	// Oldest is the version that a program must know at least to run on it.
	Oldest int64
	// Known is the newest version that this program knows.
	Known int64
}

// Error implements error. It names the way out.
func (e *SchemaError) Error() string {
	switch {
	case e.Stored == 0:
		return "the database has no schema yet: run broker migrate"
	case e.Stored < e.Known:
		return fmt.Sprintf("the database has schema version %d and this program needs %d: run broker migrate", e.Stored, e.Known)
	}
	return fmt.Sprintf("the database has schema version %d, for programs that know version %d at least, and this one knows %d: use a newer program, or restore a backup",
		e.Stored, e.Oldest, e.Known)
}

// migrateSQLite brings the schema up to date. A file has one program at a time,
// so a schema that is newer than the program's is refused.
func migrateSQLite(ctx context.Context, db *sql.DB) error {
	provider, err := newMigrator(goose.DialectSQLite3, db, "migrations/sqlite")
	if err != nil {
		return err
	}
	stored, known, err := provider.GetVersions(ctx)
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	if stored > known {
		return fmt.Errorf("migrate: %w", &SchemaError{Stored: stored, Oldest: stored, Known: known})
	}
	if _, err := provider.Up(ctx); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	return nil
}

// newMigrator runs what is missing of a folder, each migration in a transaction
// unless it says otherwise: what makes an index on PostgreSQL does.
func newMigrator(dialect goose.Dialect, db *sql.DB, folder string, options ...goose.ProviderOption) (*goose.Provider, error) {
	files, err := fs.Sub(migrations, folder)
	if err != nil {
		return nil, fmt.Errorf("migrate: %w", err)
	}
	options = append(options, goose.WithDisableGlobalRegistry(true))
	provider, err := goose.NewProvider(dialect, db, files, options...)
	if err != nil {
		return nil, fmt.Errorf("migrate: %w", err)
	}
	return provider, nil
}

const postgresFolder = "migrations/postgres"

// migrationLockWait bounds how long a migration waits for another program's
// transactions on a table, in milliseconds: who wants the table meanwhile waits
// behind the migration.
const migrationLockWait = "10000"

// migratorWait is how long a migrator waits for another, in seconds.
const migratorWait = 300

// MigratePostgres brings the schema of a PostgreSQL database up to date and tells
// its version before and after. One migrator works at a time, by an advisory
// lock; others wait for it, up to five minutes. A schema that this program may
// not run on is left alone and refused with a *SchemaError; a newer one that it
// may run on is left alone.
func MigratePostgres(ctx context.Context, url string) (before, after int64, err error) {
	return migratePostgres(ctx, url, migratorWait)
}

func migratePostgres(ctx context.Context, url string, wait uint64) (before, after int64, err error) {
	config, err := postgresConfig(url)
	if err != nil {
		return 0, 0, fmt.Errorf("migrate: %w", err)
	}
	c := config.ConnConfig
	c.RuntimeParams["application_name"] = "keybroker migrate"
	c.RuntimeParams["lock_timeout"] = migrationLockWait
	c.RuntimeParams["statement_timeout"] = "0" // an index on a large table takes its time, whatever the role's default
	db := stdlib.OpenDB(*c)
	defer db.Close() //nolint:errcheck // everything that counts is committed
	one, err := lock.NewPostgresSessionLocker(lock.WithLockID(lockKey("schema")), lock.WithLockTimeout(1, wait))
	if err != nil {
		return 0, 0, fmt.Errorf("migrate: %w", err)
	}
	provider, err := newMigrator(goose.DialectPostgres, db, postgresFolder, goose.WithSessionLocker(oneMigrator{one}))
	if err != nil {
		return 0, 0, err
	}
	schema, err := readSchema(ctx, db.QueryRowContext)
	if err != nil {
		return 0, 0, fmt.Errorf("migrate: %w", withoutURL(err))
	}
	if schema.Known = newest(provider); schema.Oldest > schema.Known {
		return 0, 0, fmt.Errorf("migrate: %w", schema)
	}
	if _, err := provider.Up(ctx); err != nil {
		return schema.Stored, 0, fmt.Errorf("migrate: %w", err)
	}
	return schema.Stored, max(schema.Stored, schema.Known), nil
}

// oneMigrator says what it waited for in vain: its locker says only that it did.
type oneMigrator struct{ lock.SessionLocker }

func (m oneMigrator) SessionLock(ctx context.Context, conn *sql.Conn) error {
	err := m.SessionLocker.SessionLock(ctx, conn)
	if err != nil && err.Error() == "failed to acquire lock" {
		return errors.New("another broker migrate is still at work, perhaps on an index of a large table, which may take hours: " +
			"run this again when it is done (in pg_stat_activity it is 'keybroker migrate')")
	}
	return err
}

// checkPostgres refuses a schema that this program cannot run on. It needs no
// right to change anything.
func checkPostgres(ctx context.Context, pool *pgxpool.Pool) error {
	db := stdlib.OpenDBFromPool(pool)
	defer db.Close() //nolint:errcheck // which leaves the pool alone
	provider, err := newMigrator(goose.DialectPostgres, db, postgresFolder)
	if err != nil {
		return err
	}
	schema, err := readSchema(ctx, db.QueryRowContext)
	if err != nil {
		return withoutURL(err)
	}
	if schema.Known = newest(provider); schema.Stored < schema.Known || schema.Oldest > schema.Known {
		return schema
	}
	return nil
}

func newest(p *goose.Provider) int64 {
	sources := p.ListSources() // ascending
	return sources[len(sources)-1].Version
}

// undefinedTable is PostgreSQL's error code of a table that is not there.
const undefinedTable = "42P01"

// readSchema reads what a PostgreSQL database says of its schema.
func readSchema(ctx context.Context, queryRow func(context.Context, string, ...any) *sql.Row) (*SchemaError, error) {
	s := &SchemaError{}
	err := queryRow(ctx, `
		select (select max(version_id) from goose_db_version where is_applied), oldest_known
		from compatibility`).Scan(&s.Stored, &s.Oldest)
	var refused *pgconn.PgError
	if errors.As(err, &refused) && refused.Code == undefinedTable {
		return s, nil
	}
	return s, err
}
