//go:build unix

package chaos_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// A site is what a keeper's broker runs on: one process after the other on
// SQLite, or replicas on PostgreSQL.
type site interface {
	caller
	// up gives a process that is not known to be down.
	up(ctx context.Context) (*running, error)
	// kill ends a process as kill -9 does.
	kill(r *running) error
	// read shows the database as the processes that were killed left it.
	read(ctx context.Context, see func(querier) error) error
	// replace starts another process in the place of one that has ended, with an
	// environment.
	replace(ctx context.Context, r *running, env ...string) (*running, error)
}

// alone is the site on SQLite. Broker and KMS end together.
type alone struct {
	*system
	tmp string
}

func (a alone) kill(r *running) error {
	r.expectHarm()
	return errors.Join(r.Kill(), r.buried())
}

func (a alone) replace(ctx context.Context, _ *running, env ...string) (*running, error) {
	return a.start(ctx, env...)
}

// read opens a copy of the files.
func (a alone) read(ctx context.Context, see func(querier) error) (err error) {
	dir, err := os.MkdirTemp(a.tmp, "read-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	for _, file := range []string{"keybroker.db", "keybroker.db-wal"} {
		if err := copyFile(filepath.Join(dir, file), filepath.Join(a.data, file)); err != nil {
			return err
		}
	}
	db, err := sql.Open("sqlite", "file:"+filepath.Join(dir, "keybroker.db")+"?mode=ro")
	if err != nil {
		return err
	}
	return errors.Join(see(db), db.Close())
}

// crowd is the site on PostgreSQL. The KMS is a process of its own.
type crowd struct {
	*cluster
	db *sql.DB
}

func (c crowd) index(r *running) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := slices.Index(c.members[:], r); i >= 0 {
		return i, nil
	}
	return 0, fmt.Errorf("%s is no replica any more", r.API)
}

func (c crowd) kill(r *running) error {
	i, err := c.index(r)
	if err != nil {
		return err
	}
	return c.cluster.kill(i)
}

func (c crowd) replace(ctx context.Context, r *running, _ ...string) (*running, error) {
	i, err := c.index(r)
	if err != nil {
		return nil, err
	}
	if err := c.startReplica(ctx, i, 0); err != nil {
		return nil, err
	}
	return c.member(i), nil
}

// read opens one snapshot beside the living replicas.
func (c crowd) read(ctx context.Context, see func(querier) error) error {
	tx, err := c.db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	if err != nil {
		return err
	}
	return errors.Join(see(tx), tx.Rollback())
}
