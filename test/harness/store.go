package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/keybroker/keybroker/internal/brokertest"
	"github.com/keybroker/keybroker/internal/sqlstore"
)

// EngineVariable names the variable that chooses the engine of whoever does not
// choose one: SQLite, the default, or PostgreSQL.
const EngineVariable = "KEYBROKER_TEST_ENGINE"

// The engines.
const (
	SQLite   = "sqlite"
	Postgres = "postgres"
)

// Engine is what EngineVariable says.
func Engine() string {
	if e := os.Getenv(EngineVariable); e != "" {
		return e
	}
	return SQLite
}

// openStore opens an empty database of the engine.
func (b *Bench) openStore(ctx context.Context, cfg Config) (err error) {
	storeConfig := sqlstore.Config{Now: b.Clock.Now}
	switch engine := cfg.engine(); engine {
	case SQLite:
		path := filepath.Join(cfg.Dir, "keybroker.db")
		b.reader = reader{driver: "sqlite", source: "file:" + path + "?mode=ro", versionText: `pragma data_version`,
			tablesText: `select name from sqlite_master where type = 'table' and name not like 'sqlite_%'`}
		b.Store, err = sqlstore.OpenSQLite(ctx, path, storeConfig)
	case Postgres:
		var url string
		if url, err = databases.take(ctx); err != nil {
			return err
		}
		b.close = append(b.close, func() error { return databases.giveBack(context.WithoutCancel(ctx), url) })
		b.reader = reader{driver: "pgx", source: url, versionText: `select pg_current_snapshot()`,
			tablesText: `select relname from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace`}
		b.Store, err = sqlstore.OpenPostgres(ctx, url, storeConfig)
	default:
		return fmt.Errorf("%s: %q is no engine: %s or %s", EngineVariable, engine, SQLite, Postgres)
	}
	if err == nil {
		b.close = append(b.close, b.Store.Close)
	}
	return err
}

func (c Config) engine() string {
	if c.Engine != "" {
		return c.Engine
	}
	return Engine()
}

// databases are this process's, on a server that ends with it.
var databases pool

// A pool keeps migrated databases for the next Bench: to empty one takes a tenth
// of the time that making one takes, and the model needs hundreds.
type pool struct {
	server brokertest.Postgres
	mu     sync.Mutex
	free   []string
}

func (p *pool) take(ctx context.Context) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.free); n > 0 {
		url := p.free[n-1]
		p.free = p.free[:n-1]
		return url, nil
	}
	url, _, err := p.server.Create(ctx)
	if err != nil {
		return "", err
	}
	_, _, err = sqlstore.MigratePostgres(ctx, url)
	return url, err
}

// giveBack empties a database. What says which schema it has stays.
func (p *pool) giveBack(ctx context.Context, url string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, `
		do $$
		begin
			execute (
				select 'truncate ' || string_agg(quote_ident(relname), ', ') || ' restart identity'
				from pg_class
				where relkind = 'r' and relnamespace = 'public'::regnamespace
					and relname not in ('goose_db_version', 'compatibility'));
		end $$`)
	if err := errors.Join(err, conn.Close(ctx)); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free = append(p.free, url)
	return nil
}
