package sqlstore_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/brokertest"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/internal/sqlstore"
)

// TestDatabaseClock: the database's clock is the judge, in both kinds of
// transactions.
func TestDatabaseClock(t *testing.T) {
	at := postgresURL(t)
	s := reopenPostgres(t, at, nil)
	read := func() time.Time {
		text := queryPostgres(t, at, `select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')`)
		now, err := time.Parse(time.RFC3339Nano, text)
		if err != nil {
			t.Fatal(err)
		}
		return now
	}
	for what, run := range map[string]func(context.Context, func(broker.Tx) error) error{"Update": s.Broker().Update, "View": s.Broker().View} {
		before := read()
		var now time.Time
		if err := run(t.Context(), func(tx broker.Tx) error { now = tx.Now(); return nil }); err != nil {
			t.Fatal(err)
		}
		if after := read(); now.Before(before) || now.After(after) {
			t.Errorf("%s: the time is %v, want one between %v and %v", what, now, before, after)
		}
	}
}

// TestLastMoveIsLate: the time of a move is the database's when the job's row is
// held, not when the transaction began.
func TestLastMoveIsLate(t *testing.T) {
	at := postgresURL(t)
	s := reopenPostgres(t, at, nil)
	insertDomain(t, s)
	ref, ctx := rotation.JobRef{Domain: "u", ID: "j"}, t.Context()
	var waited int64
	if err := s.Rotation().Update(ctx, func(tx rotation.Tx) error {
		if err := tx.InsertJob(ctx, rotation.Job{Domain: ref.Domain, ID: ref.ID, Kind: rotation.KindKeyChange, Phase: rotation.Reencrypting, State: rotation.Running, Priority: rotation.Normal, Version: 1}); err != nil {
			return err
		}
		if _, err := fmt.Sscan(queryPostgres(t, at, `select (extract(epoch from clock_timestamp()) * 1000000)::bigint::text`), &waited); err != nil {
			return err
		}
		return tx.TouchJob(ctx, ref)
	}); err != nil {
		t.Fatal(err)
	}
	if err := s.Rotation().View(ctx, func(tx rotation.Tx) error {
		j, err := tx.Job(ctx, ref)
		if j.LastMoveTime.UnixMicro() < waited {
			t.Errorf("the last move was %v before the job was held", time.Duration(waited-j.LastMoveTime.UnixMicro())*time.Microsecond)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// insertOnce stores a row by itself and counts how often the function ran.
func insertOnce(ctx context.Context, s *sqlstore.Store, id broker.DataKeyID) (runs int, err error) {
	err = s.Broker().Update(ctx, func(tx broker.Tx) error {
		runs++
		return tx.InsertDataKey(ctx, broker.DataKey{Domain: "u", ID: id, UID: broker.DataKeyUID(id), Ciphertext: []byte("x"), Version: 1})
	})
	return runs, err
}

func insertDomain(t testing.TB, s *sqlstore.Store) {
	t.Helper()
	if err := s.Broker().Update(t.Context(), func(tx broker.Tx) error {
		return tx.InsertDomain(t.Context(), broker.Domain{UID: "u", ID: "d", State: broker.DomainActive, Version: 1})
	}); err != nil {
		t.Fatal(err)
	}
}

func has(t testing.TB, s *sqlstore.Store, id broker.DataKeyID) bool {
	t.Helper()
	err := s.Broker().View(t.Context(), func(tx broker.Tx) error {
		_, err := tx.DataKey(t.Context(), "u", id)
		return err
	})
	if err != nil && !errors.Is(err, broker.ErrNotFound) {
		t.Fatal(err)
	}
	return err == nil
}

// TestUnansweredCommit: where no answer comes to a commit, the caller is told so,
// nothing is run again, and the store goes on, whether it was stored or not.
func TestUnansweredCommit(t *testing.T) {
	at := postgresURL(t)
	direct := reopenPostgres(t, at, nil)
	insertDomain(t, direct)
	p, through := newProxy(t, at)
	s := reopenPostgres(t, through, nil)
	for mode, c := range map[cut]struct {
		id     broker.DataKeyID
		stored bool
	}{beforeCommit: {"lost-before", false}, afterCommit: {"lost-after", true}} {
		p.next.Store(int32(mode))
		runs, err := insertOnce(t.Context(), s, c.id)
		if !errors.Is(err, broker.ErrUnavailable) || !strings.Contains(err.Error(), "did not say whether it stored") {
			t.Errorf("%s: got error %v, want one that says that nobody knows", c.id, err)
		}
		if runs != 1 {
			t.Errorf("%s: the function was run %d times", c.id, runs)
		}
		if got := has(t, direct, c.id); got != c.stored {
			t.Errorf("%s: stored is %v, want %v", c.id, got, c.stored)
		}
		if _, err := insertOnce(t.Context(), s, c.id+"-next"); err != nil {
			t.Errorf("after %s: %v", c.id, err)
		}
	}
}

// TestSetupIsCutOff: a server that goes while a new connection is set up is one
// that was away for a moment, not one that answers strangely.
func TestSetupIsCutOff(t *testing.T) {
	p, through := newProxy(t, postgresURL(t))
	s := reopenPostgres(t, through, nil)
	err := s.Broker().Update(t.Context(), func(broker.Tx) error { // has the only connection
		p.next.Store(int32(inSetup))
		return s.Broker().View(t.Context(), func(tx broker.Tx) error { return nil })
	})
	if err != nil {
		t.Error(err)
	}
	if left := cut(p.next.Load()); left != nowhere {
		t.Error("nothing was cut off")
	}
}

// backends gives the server's processes behind n transactions of a store that are
// open at once.
func backends(t *testing.T, s *sqlstore.Store, at string, n int) []string {
	t.Helper()
	var begun, seen, open sync.WaitGroup
	begun.Add(n)
	seen.Add(1)
	for range n {
		open.Go(func() {
			if err := s.Broker().View(t.Context(), func(broker.Tx) error { begun.Done(); seen.Wait(); return nil }); err != nil {
				t.Error(err)
			}
		})
	}
	begun.Wait()
	pids := queryPostgres(t, at, `
		select string_agg(pid::text, ' ')
		from pg_stat_activity
		where datname = current_database() and state = 'idle in transaction'`)
	seen.Done()
	open.Wait()
	return strings.Fields(pids)
}

// TestCallerWhoLeavesInBegin: a call that is given up while its transaction begins
// says nothing of the server, so no connection is given up with it: where a slow
// database made callers leave, opening all connections anew would make it slower.
func TestCallerWhoLeavesInBegin(t *testing.T) {
	at := postgresURL(t)
	p, through := newProxy(t, at)
	s := reopenPostgres(t, through, nil)
	s.Wait(time.Minute, time.Minute)
	const connections, left = 8, 3
	before := backends(t, s, at, connections)
	if len(before) != connections {
		t.Fatalf("%d connections, want %d", len(before), connections)
	}
	for range left {
		ctx, leave := context.WithCancel(t.Context())
		p.next.Store(int32(inBegin))
		go func() { <-p.late; leave() }()
		if err := s.Broker().View(ctx, func(broker.Tx) error { return nil }); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want %v", err, context.Canceled)
		}
		p.onward <- struct{}{}
	}
	for _, pid := range backends(t, s, at, connections-left) {
		if !slices.Contains(before, pid) {
			t.Errorf("connection %s was opened anew: had %v", pid, before)
		}
	}
}

// TestSleeper: a replica that stops in the middle of a transaction does not hold
// a domain for ever; what it does when it wakes up is done anew, and once.
func TestSleeper(t *testing.T) {
	at := postgresURL(t)
	sleepy := reopenPostgres(t, at+"&idle_in_transaction_session_timeout=1000", nil)
	other := reopenPostgres(t, at, nil)
	insertDomain(t, other)
	ctx := t.Context()
	runs := 0
	err := sleepy.Broker().Update(ctx, func(tx broker.Tx) error {
		runs++
		if err := tx.LockDomain(ctx, "u", broker.Shared); err != nil {
			return err
		}
		if runs == 1 { // it sleeps until the switch has come through
			if err := other.Broker().Update(ctx, func(tx broker.Tx) error {
				return tx.LockDomain(ctx, "u", broker.Exclusive)
			}); err != nil {
				return fmt.Errorf("the switch: %w", err)
			}
		}
		return tx.InsertDataKey(ctx, broker.DataKey{Domain: "u", ID: "k", UID: "k", Ciphertext: []byte("x"), Version: 1})
	})
	if err != nil || runs != 2 || !has(t, other, "k") {
		t.Errorf("the sleeper: %v after %d runs, stored is %v; want it stored by the second", err, runs, has(t, other, "k"))
	}
}

// TestLockWait: who waits for a domain in vain is told, and has stored nothing.
func TestLockWait(t *testing.T) {
	at := postgresURL(t)
	holder, waiter := reopenPostgres(t, at, nil), reopenPostgres(t, at+"&lock_timeout=20", nil)
	ctx := t.Context()
	err := holder.Broker().Update(ctx, func(tx broker.Tx) error {
		if err := tx.LockDomain(ctx, "u", broker.Exclusive); err != nil {
			return err
		}
		err := waiter.Broker().Update(ctx, func(tx broker.Tx) error {
			if err := tx.InsertDomain(ctx, broker.Domain{UID: "u", ID: "d", State: broker.DomainActive}); err != nil {
				return err
			}
			return tx.LockDomain(ctx, "u", broker.Shared)
		})
		if broker.ReasonOf(err) != broker.ReasonStoreUnavailable {
			t.Errorf("a wait in vain: got %v", err)
		}
		_, err = tx.DomainByUID(ctx, "u")
		if !errors.Is(err, broker.ErrNotFound) {
			t.Errorf("what the waiter had done: got %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A crowd of writers stores pairs of rows and remembers what was acknowledged.
type crowd struct {
	store *sqlstore.Store
	mu    sync.Mutex
	acked []broker.DataKeyID
	wg    sync.WaitGroup
}

// work stores until ctx ends. A writer repeats what was not answered; that it is
// there already then counts as an answer.
func (c *crowd) work(ctx context.Context, t *testing.T, writers int) {
	for w := range writers {
		c.wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				id := broker.DataKeyID(fmt.Sprintf("k-%d-%d", w, n))
				for {
					err := c.pair(context.WithoutCancel(ctx), id)
					if err == nil || errors.Is(err, broker.ErrAlreadyExists) {
						break
					}
					if !errors.Is(err, broker.ErrUnavailable) {
						t.Errorf("%s: %v", id, err)
						return
					}
				}
				c.mu.Lock()
				c.acked = append(c.acked, id)
				c.mu.Unlock()
			}
		})
	}
}

func (c *crowd) pair(ctx context.Context, id broker.DataKeyID) error {
	return c.store.Broker().Update(ctx, func(tx broker.Tx) error {
		if err := tx.LockDomain(ctx, "u", broker.Shared); err != nil {
			return err
		}
		for _, part := range []broker.DataKeyID{"-a", "-b"} {
			if err := tx.InsertDataKey(ctx, broker.DataKey{Domain: "u", ID: id + part, UID: broker.DataKeyUID(id + part), Ciphertext: []byte("x"), Version: 1}); err != nil {
				return err
			}
		}
		return nil
	})
}

// reached waits until so many more pairs are acknowledged.
func (c *crowd) reached(ctx context.Context, t *testing.T, more int) {
	t.Helper()
	count := func() int { c.mu.Lock(); defer c.mu.Unlock(); return len(c.acked) }
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for want := count() + more; count() < want; {
		if ctx.Err() != nil {
			t.Fatalf("the writers stand still at %d pairs", count())
		}
		// A transaction of our own takes as long as one of theirs.
		_ = c.store.Ping(ctx)
	}
}

// check wants each acknowledged pair, and pairs only.
func (c *crowd) check(t *testing.T) {
	t.Helper()
	stored := map[broker.DataKeyID]bool{}
	if err := c.store.Broker().View(t.Context(), func(tx broker.Tx) error {
		rows, err := tx.ListDataKeys(t.Context(), "u", "", 1_000_000)
		for _, k := range rows {
			stored[k.ID] = true
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for _, id := range c.acked {
		if !stored[id+"-a"] || !stored[id+"-b"] {
			t.Errorf("%s was acknowledged and is not stored", id)
		}
	}
	if len(stored) != 2*len(c.acked) {
		t.Errorf("%d rows are stored, and %d pairs were acknowledged", len(stored), len(c.acked))
	}
	t.Logf("%d pairs", len(c.acked))
}

// TestTerminatedBackends: sessions that an operator ends cost repetitions, and
// nothing else.
func TestTerminatedBackends(t *testing.T) {
	at := postgresURL(t)
	c := &crowd{store: reopenPostgres(t, at, nil)}
	insertDomain(t, c.store)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	c.work(ctx, t, 8)
	for range 10 {
		c.reached(ctx, t, 20)
		execPostgres(t, at, `
			select pg_terminate_backend(pid)
			from pg_stat_activity
			where datname = current_database() and pid <> pg_backend_pid()`)
	}
	stop()
	c.wg.Wait()
	c.check(t)
}

// TestImmediateRestart: a server that stops as if its machine had failed, with
// the settings of production, loses nothing that it had acknowledged.
func TestImmediateRestart(t *testing.T) {
	server := &brokertest.Postgres{Durable: true}
	server.Need(t)
	defer func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	}()
	at, _, err := server.Create(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := sqlstore.MigratePostgres(t.Context(), at); err != nil {
		t.Fatal(err)
	}
	for setting, want := range map[string]string{"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on"} {
		if got := queryPostgres(t, at, "show "+setting); got != want {
			t.Errorf("%s is %s, want %s", setting, got, want)
		}
	}
	s, err := sqlstore.OpenPostgres(t.Context(), at, sqlstore.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	insertDomain(t, s)
	c := &crowd{store: s}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	c.work(ctx, t, 8)
	for range 3 {
		c.reached(ctx, t, 50)
		server.Restart(t)
	}
	c.reached(ctx, t, 50)
	stop()
	c.wg.Wait()
	c.check(t)
}

// TestPasswordIsKept: no error shows what the URL holds.
func TestPasswordIsKept(t *testing.T) {
	const password = "s3cret-of-the-vault"
	good, err := url.Parse(postgres.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	good.User = url.UserPassword("nobody-here", password)
	for what, at := range map[string]string{
		"no URL":               "host=localhost password=" + password,
		"another scheme":       "mysql://user:" + password + "@localhost/db",
		"a port of no number":  "postgres://user:" + password + "@localhost:port/db",
		"a broken escape":      "postgres://user:" + password + "%zz@localhost/db",
		"a password with an @": "postgres://user:" + password + "@more@localhost:1/db?connect_timeout=1",
		"nobody listens":       "postgres://user:" + password + "@127.0.0.1:1/db?sslmode=disable",
		"no such role":         good.String(),
	} {
		s, err := sqlstore.OpenPostgres(t.Context(), at, sqlstore.Config{})
		if err == nil {
			_ = s.Close()
			t.Errorf("%s: opened", what)
			continue
		}
		_, _, migrateErr := sqlstore.MigratePostgres(t.Context(), at)
		if migrateErr == nil {
			t.Errorf("%s: migrated", what)
			continue
		}
		for _, text := range []string{err.Error(), fmt.Sprintf("%+v", err), migrateErr.Error(), fmt.Sprintf("%+v", migrateErr)} {
			if strings.Contains(text, password) {
				t.Errorf("%s: the error shows the password: %s", what, strings.ReplaceAll(text, password, "[password]"))
			}
		}
	}
}
