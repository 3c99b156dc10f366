package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/keybroker/keybroker/internal/brokertest"
	"github.com/keybroker/keybroker/internal/sqlstore"
)

const (
	sqlite     = "sqlite"
	postgresql = "postgresql"
)

// A place is a database, and how other processes are told of it.
type place struct{ engine, at string }

// newPlace makes an empty database. On PostgreSQL each is one of a server that
// the bench starts for itself, with all that makes commits durable.
func (b *bench) newPlace(ctx context.Context, engine, name string) (place, error) {
	if engine == sqlite {
		dir := filepath.Join(b.dir, name)
		return place{sqlite, dir}, os.Mkdir(dir, 0o700)
	}
	url, drop, err := b.postgres.Create(ctx)
	if err != nil {
		return place{}, err
	}
	b.drops = append(b.drops, drop)
	_, _, err = sqlstore.MigratePostgres(ctx, url)
	return place{postgresql, url}, err
}

func (p place) open(ctx context.Context) (*sqlstore.Store, error) {
	if p.engine == sqlite {
		return sqlstore.OpenSQLite(ctx, filepath.Join(p.at, "keybroker.db"), sqlstore.Config{Now: time.Now})
	}
	return sqlstore.OpenPostgres(ctx, p.at, sqlstore.Config{})
}

// chooseEngines reads the flag. Without PostgreSQL here its lines are left out,
// which is said, and under CI=true is an error.
func (b *bench) chooseEngines(ctx context.Context, list string) error {
	b.engines = strings.Split(list, ",")
	for _, engine := range b.engines {
		if engine != sqlite && engine != postgresql {
			return fmt.Errorf("-engines: %q is neither %s nor %s", engine, sqlite, postgresql)
		}
	}
	if !slices.Contains(b.engines, postgresql) {
		return nil
	}
	_, drop, err := b.postgres.Create(ctx)
	if errors.Is(err, brokertest.ErrNoPostgres) && os.Getenv("CI") != "true" {
		b.say("!!! NOT MEASURED ON POSTGRESQL: %v", err)
		b.engines = slices.DeleteFunc(b.engines, func(e string) bool { return e == postgresql })
		return nil
	}
	if err != nil {
		return err
	}
	return drop()
}

// closePlaces drops the databases and ends the server.
func (b *bench) closePlaces() (err error) {
	for _, drop := range b.drops {
		err = errors.Join(err, drop())
	}
	return errors.Join(err, b.postgres.Stop())
}
