package sqlstore

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"

	"github.com/pressly/goose/v3"
)

// migrations holds one folder per engine. A migration only adds, one release
// before the code that needs what it adds, so that two releases can share a
// database during an upgrade.
//
//go:embed migrations
var migrations embed.FS

// migrateSQLite brings the schema up to date.
func migrateSQLite(ctx context.Context, db *sql.DB) error {
	return migrate(ctx, goose.DialectSQLite3, db, "migrations/sqlite")
}

// migrate runs what is missing of a folder, each migration in a transaction. A
// schema that is newer than the folder is left alone and refused.
func migrate(ctx context.Context, dialect goose.Dialect, db *sql.DB, folder string) error {
	files, err := fs.Sub(migrations, folder)
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	provider, err := goose.NewProvider(dialect, db, files, goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	stored, known, err := provider.GetVersions(ctx)
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	if stored > known {
		return fmt.Errorf("migrate: the database has schema version %d and this program knows %d: use the newer program that made it, or restore a backup", stored, known)
	}
	if _, err := provider.Up(ctx); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	return nil
}
