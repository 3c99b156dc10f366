package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/keybroker/keybroker/internal/sqlstore"
)

// database says where the broker's state is: one of the two.
type database struct {
	path    string // of an SQLite file
	urlFile string // of a file that holds the URL of a PostgreSQL database
}

// shared says that other processes may be on the same database.
func (d database) shared() bool { return d.urlFile != "" }

// open opens the store. An SQLite file is made and migrated on the way; a
// PostgreSQL database has to be migrated by broker migrate, once for all its
// replicas.
func (d database) open(ctx context.Context, cfg sqlstore.Config) (*sqlstore.Store, error) {
	if !d.shared() {
		cfg.Now = time.Now
		return sqlstore.OpenSQLite(ctx, d.path, cfg)
	}
	at, err := readDatabaseURL(d.urlFile)
	if err != nil {
		return nil, err
	}
	cfg.DatabaseURL = func() (string, error) { return readDatabaseURL(d.urlFile) }
	return sqlstore.OpenPostgres(ctx, at, cfg) // whose clock is the judge: cfg.Now stays nil
}

// prepareForDev migrates a database for --dev, which is for one person's own
// machine and refuses any other (T18).
func (d database) prepareForDev(ctx context.Context) error {
	if !d.shared() {
		return nil
	}
	at, err := readDatabaseURL(d.urlFile)
	if err != nil {
		return err
	}
	onLoopback, err := sqlstore.OnLoopback(at)
	if err != nil {
		return err
	}
	if !onLoopback {
		return usagef("--dev: the database is beyond loopback: use serve --config for it, or a PostgreSQL on 127.0.0.1 or a unix socket")
	}
	_, _, err = sqlstore.MigratePostgres(ctx, at)
	return err
}

// maxDatabaseURL bounds a URL, in bytes; ours.
const maxDatabaseURL = 8 << 10

// readDatabaseURL reads the one line of a file. A URL holds a password, so it is
// given by file: not on the command line, which every user of a machine sees, nor
// in the configuration. No error shows what the file holds.
func readDatabaseURL(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("database URL: %w", err)
	}
	defer f.Close() //nolint:errcheck // it was only read
	text, err := io.ReadAll(io.LimitReader(f, maxDatabaseURL+1))
	if err != nil {
		return "", fmt.Errorf("database URL: %w", err)
	}
	line := strings.TrimSpace(string(text))
	switch {
	case line == "":
		return "", fmt.Errorf("database URL: %s is empty: it must hold one line, postgres://…", path)
	case len(text) > maxDatabaseURL || strings.ContainsAny(line, "\r\n"):
		return "", fmt.Errorf("database URL: %s must hold one line, postgres://…, and nothing else", path)
	}
	return line, nil
}

// migrate is broker migrate.
func (c command) migrate(ctx context.Context) error {
	set := c.flags("migrate")
	urlFile := set.String("database-url-file", "", "the `file` that holds the URL of the PostgreSQL database")
	path := set.String("config", "", "the configuration `file` that names it")
	if err := c.parse(set); err != nil {
		return err
	}
	switch {
	case (*urlFile == "") == (*path == ""):
		return usagef("--database-url-file: name the file with the database's URL, or by --config a configuration that names it")
	case *path != "":
		config, err := readConfig(*path)
		if err != nil {
			return fmt.Errorf("--config: %w", err)
		}
		if *urlFile = config.DatabaseURLFile; *urlFile == "" {
			return errors.New("--config: database is an SQLite file, which serve brings up to date by itself")
		}
	}
	at, err := readDatabaseURL(*urlFile)
	if err != nil {
		return err
	}
	before, after, err := sqlstore.MigratePostgres(ctx, at)
	if err != nil {
		return err
	}
	if before == after {
		_, err = fmt.Fprintf(c.stdout, "the schema is at version %d: nothing to do\n", after)
		return err
	}
	_, err = fmt.Fprintf(c.stdout, "the schema is at version %d, and was at %d\n", after, before)
	return err
}
