package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"

	"database/sql"

	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
	_ "modernc.org/sqlite" // registers the driver "sqlite"
)

// OpenSQLite opens the vault in one SQLite file, which it makes (readable for
// its owner only) if it is absent, and brings its schema up to date. The
// directory must exist and belong on a local disk. There is no in-memory mode:
// memory databases of SQLite that several connections share have no snapshots;
// tests take a file in a temporary directory.
//
// It fails if the file's schema is newer than this program's.
func OpenSQLite(ctx context.Context, path string, cfg Config) (*Store, error) {
	if cfg.Now == nil {
		return nil, errors.New("open store: Config.Now must be set")
	}
	if path == "" {
		return nil, errors.New("open store: the path of the database file must be set")
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if err := createPrivate(path); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	writer, err := openSQLite(path, "immediate", writerPragmas)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if err := migrateSQLite(ctx, writer); err != nil {
		return nil, errors.Join(fmt.Errorf("open store: %w", err), writer.Close())
	}
	reader, err := openSQLite(path, "deferred", readerPragmas)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open store: %w", err), writer.Close())
	}
	store, err := newStore(newSQLite(writer, reader, cfg.Now), cfg)
	if err != nil {
		return nil, errors.Join(err, writer.Close(), reader.Close())
	}
	return store, nil
}

// newStore fills in what the configuration leaves out.
func newStore(d dialect, cfg Config) (*Store, error) {
	s := &Store{dialect: d, random: cfg.Random, log: cfg.logger(), tracer: cfg.Tracer, stretch: stretchRows}
	if s.tracer == nil {
		s.tracer = tracenoop.NewTracerProvider().Tracer("")
	}
	meter := cfg.Meter
	if meter == nil {
		meter = metricnoop.NewMeterProvider().Meter("")
	}
	var err error
	s.retries, err = meter.Int64Counter("keybroker.store.retries",
		metric.WithDescription("Transactions that were run again after a transient conflict of the database."),
		metric.WithUnit("{transaction}"))
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	return s, nil
}

func (c Config) logger() *slog.Logger {
	if c.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return c.Logger
}

// createPrivate makes an absent file with mode 0600; SQLite gives its companions
// (-wal, -shm) the mode of the file.
func createPrivate(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// The connections' settings. A writer's commit is on the disk when it returns
// (synchronous FULL); busy_timeout, in milliseconds, is for other processes that
// have the file open, an operator's sqlite3 say.
var (
	writerPragmas = []string{"busy_timeout(1000)", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(ON)"}
	readerPragmas = []string{"busy_timeout(1000)", "query_only(ON)"}
)

// openSQLite opens no connection yet. Idle connections are not kept: the dialect
// holds those that it uses.
func openSQLite(path, txlock string, pragmas []string) (*sql.DB, error) {
	dsn := url.URL{Scheme: "file", Path: path, RawQuery: url.Values{
		"_txlock": {txlock},
		"_pragma": pragmas,
	}.Encode()}
	db, err := sql.Open("sqlite", dsn.String())
	if err != nil {
		return nil, err
	}
	db.SetMaxIdleConns(-1)
	return db, nil
}
