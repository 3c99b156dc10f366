package sqlstore_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/brokertest"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/internal/sqlstore"
)

// TestCommitsAreKept: whatever an operator has set for the database, a commit is
// answered when it is on the disks of the server and of its synchronous standby
// (PostgreSQL, Server Configuration, synchronous_commit, has the five values).
func TestCommitsAreKept(t *testing.T) {
	at := postgresURL(t)
	for set, want := range map[string]string{
		"off": "on", "local": "on", "remote_write": "on", "on": "on", "remote_apply": "remote_apply",
	} {
		execPostgres(t, at, `do $$ begin execute format('alter database %I set synchronous_commit = `+set+`', current_database()); end $$`)
		got, err := reopenPostgres(t, at, nil).Shown(t.Context(), "synchronous_commit")
		if err != nil || got != want {
			t.Errorf("%s becomes %s, %v; want %s", set, got, err, want)
		}
	}
}

// TestLaxServer: the log names each setting with which a server may lose what it
// has committed, and nothing else.
func TestLaxServer(t *testing.T) {
	durable := &brokertest.Postgres{Durable: true}
	t.Cleanup(func() {
		if err := durable.Stop(); err != nil {
			t.Error(err)
		}
	})
	for what, server := range map[string]*brokertest.Postgres{"a durable server": durable, "the tests' server": &postgres} {
		at := server.Database(t)
		if _, _, err := sqlstore.MigratePostgres(t.Context(), at); err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		s, err := sqlstore.OpenPostgres(t.Context(), at, sqlstore.Config{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		for _, name := range []string{"fsync", "full_page_writes"} {
			lax := queryPostgres(t, at, "show "+name) == "off"
			if named := strings.Contains(log.String(), "level=WARN") && strings.Contains(log.String(), "setting="+name); named != lax {
				t.Errorf("%s: %s is off: %v, and the log says: %s", what, name, lax, log.String())
			}
		}
	}
}

// TestSilentPool: when a server's machine is gone, all connections of the pool are
// silent, and nothing closes them. A caller who leaves gets his answer at once, and
// what he found out counts for all: no more than one other connection is tried.
func TestSilentPool(t *testing.T) {
	at := postgresURL(t)
	p, through := newProxy(t, at)
	s := reopenPostgres(t, through+"&connect_timeout=60", nil)
	backends(t, s, at, 8)
	p.silence()
	ctx, leave := context.WithCancel(t.Context())
	go func() { <-p.unheard; leave() }()
	nothing := func(broker.Tx) error { return nil }
	if err := s.Broker().View(ctx, nothing); !errors.Is(err, context.Canceled) {
		t.Errorf("the caller who leaves: got %v, want %v", err, context.Canceled)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := s.Broker().Update(ctx, nothing); err != nil {
		t.Errorf("after the fail-over: %v", err)
	}
	if more := len(p.unheard); more > 1 {
		t.Errorf("%d more silent connections were tried, want 1 at most", more)
	}
}

// TestSilentStatement: a server that is gone in the middle of a transaction costs a
// repetition, also where the pool has no second connection to spare, and also where
// the statement looks at a whole domain.
func TestSilentStatement(t *testing.T) {
	at := postgresURL(t)
	direct := reopenPostgres(t, at, nil)
	insertDomain(t, direct)
	if _, err := insertOnce(t.Context(), direct, "there"); err != nil {
		t.Fatal(err)
	}
	says := map[string]func(context.Context, rotation.Tx) error{
		"InsertDataKey": func(ctx context.Context, tx rotation.Tx) error {
			return tx.InsertDataKey(ctx, broker.DataKey{Domain: "u", ID: "k", UID: "k", Ciphertext: []byte("x"), Version: 1})
		},
		"PendingDataKeys": func(ctx context.Context, tx rotation.Tx) error {
			_, err := tx.PendingDataKeys(ctx, rotation.Shard{Domain: "u", Job: "j"}, 2, 10)
			return err
		},
		"SampleBoundaries": func(ctx context.Context, tx rotation.Tx) error {
			_, _, err := tx.SampleBoundaries(ctx, "u", 2)
			return err
		},
		"HasDataKeys": func(ctx context.Context, tx rotation.Tx) error {
			_, err := tx.HasDataKeys(ctx, "u", "arn:1")
			return err
		},
		"DeleteFailures": func(ctx context.Context, tx rotation.Tx) error {
			return tx.DeleteFailures(ctx, rotation.JobRef{Domain: "u", ID: "j"}, 0)
		},
	}
	t.Run("at once", func(t *testing.T) {
		for name, say := range says {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				p, through := newProxy(t, at)
				s, err := sqlstore.OpenPostgres(t.Context(), through+"&pool_max_conns=1&connect_timeout=12", sqlstore.Config{})
				if err != nil {
					t.Fatal(err)
				}
				closeAtEnd(t, s)
				s.Wait(3*time.Second, 3*time.Second)
				ctx, cancel := context.WithTimeout(t.Context(), 14*time.Second) // less than pgx takes to part from a silent server
				defer cancel()
				runs := 0
				err = s.Rotation().Update(ctx, func(tx rotation.Tx) error {
					if runs++; runs == 1 {
						p.silence()
					} else {
						s.Wait(time.Minute, time.Minute) // the server is well again, however slow
					}
					return say(ctx, tx)
				})
				if err != nil || runs != 2 {
					t.Errorf("%v after %d runs; want it done by the second", err, runs)
				}
			})
		}
	})
	if !has(t, direct, "k") {
		t.Error("the insert is not stored")
	}
}
