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
// repetition, also where the pool has no second connection to spare.
func TestSilentStatement(t *testing.T) {
	at := postgresURL(t)
	direct := reopenPostgres(t, at, nil)
	insertDomain(t, direct)
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
	err = s.Broker().Update(ctx, func(tx broker.Tx) error {
		if runs++; runs == 1 {
			p.silence()
		} else {
			s.Wait(time.Minute, time.Minute) // the server is well again, however slow
		}
		return tx.InsertDataKey(ctx, broker.DataKey{Domain: "u", ID: "k", UID: "k", Ciphertext: []byte("x"), Version: 1})
	})
	if err != nil || runs != 2 || !has(t, direct, "k") {
		t.Errorf("%v after %d runs, stored is %v; want it stored by the second", err, runs, has(t, direct, "k"))
	}
}
