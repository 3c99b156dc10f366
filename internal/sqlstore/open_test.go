package sqlstore_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/brokertest"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/internal/sqlstore"
)

// execPast runs a statement past the store.
func execPast(t testing.TB, path, statement string) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	if _, err := db.ExecContext(t.Context(), statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	foreign := filepath.Join(t.TempDir(), "foreign")
	if err := os.WriteFile(foreign, bytes.Repeat([]byte("this is no database\n"), 100), 0o600); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		path string
		cfg  sqlstore.Config
	}{
		"no clock":           {dbPath(t), sqlstore.Config{}},
		"no path":            {"", sqlstore.Config{Now: time.Now}},
		"an absent folder":   {filepath.Join(t.TempDir(), "absent", "broker.db"), sqlstore.Config{Now: time.Now}},
		"a file of no kind":  {foreign, sqlstore.Config{Now: time.Now}},
		"a folder as a file": {t.TempDir(), sqlstore.Config{Now: time.Now}},
	} {
		if s, err := sqlstore.OpenSQLite(t.Context(), c.path, c.cfg); err == nil {
			t.Errorf("%s: opened", what)
			_ = s.Close()
		}
	}
}

// TestPath: a path is a path, whatever a URI would make of it.
func TestPath(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a b?c#d%20e&mode=memory")
	open(t, path, time.Now)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 || info.Size() == 0 {
		t.Errorf("the file has mode %v and %d bytes, want -rw------- and a schema", info.Mode(), info.Size())
	}
}

func TestSecret(t *testing.T) {
	path := dbPath(t)
	mint := func(s *sqlstore.Store, name string) []byte {
		t.Helper()
		secret, err := s.Secret(t.Context(), name, 32)
		if err != nil || len(secret) != 32 {
			t.Fatalf("Secret: %d bytes, %v", len(secret), err)
		}
		return secret
	}
	one, two := open(t, path, time.Now), open(t, path, time.Now)
	kept := mint(one, "page-token")
	if !bytes.Equal(kept, mint(one, "page-token")) || !bytes.Equal(kept, mint(two, "page-token")) {
		t.Error("a secret is not kept")
	}
	if bytes.Equal(kept, mint(one, "other")) || bytes.Equal(kept, make([]byte, 32)) {
		t.Error("a secret is not random")
	}
	if _, err := one.Secret(t.Context(), "page-token", 16); err == nil {
		t.Error("a secret of another size is given out")
	}
	for name, random := range map[string]io.Reader{"no source": nil, "a dry one": strings.NewReader("short")} {
		s, err := sqlstore.OpenSQLite(t.Context(), path, sqlstore.Config{Now: time.Now, Random: random})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Secret(t.Context(), "third", 32); err == nil {
			t.Errorf("%s: a secret is given out", name)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestReopen(t *testing.T) {
	path := dbPath(t)
	ctx := t.Context()
	for _, id := range []broker.DomainID{"first", "second"} {
		s, err := sqlstore.OpenSQLite(ctx, path, sqlstore.Config{Now: time.Now})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Broker().Update(ctx, func(tx broker.Tx) error {
			return tx.InsertDomain(ctx, broker.Domain{UID: broker.DomainUID(id), ID: id, State: broker.DomainActive})
		}); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(path + "-wal"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a closed store leaves its write-ahead log: %v", err)
		}
	}
	if got := queryText(t, path, `select group_concat(domain_id) from domain`); got != "first,second" {
		t.Errorf("stored domains: %s", got)
	}
}

func TestClosed(t *testing.T) {
	s, err := sqlstore.OpenSQLite(t.Context(), dbPath(t), sqlstore.Config{Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Ping(t.Context()); err != nil {
		t.Errorf("Ping: %v", err)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	for what, run := range map[string]func() error{
		"Ping":   func() error { return s.Ping(t.Context()) },
		"Update": func() error { return s.Broker().Update(t.Context(), func(broker.Tx) error { return nil }) },
		"View":   func() error { return s.Rotation().View(t.Context(), func(rotation.Tx) error { return nil }) },
	} {
		if err := run(); broker.ReasonOf(err) != broker.ReasonStoreUnavailable || !errors.Is(err, broker.ErrUnavailable) {
			t.Errorf("%s on a closed store: got %v", what, err)
		}
	}
}

// TestTxAfterItsFunction: a transaction that outlives its function does nothing.
func TestTxAfterItsFunction(t *testing.T) {
	s := open(t, dbPath(t), time.Now)
	ctx := t.Context()
	var kept rotation.Tx
	if err := s.Rotation().Update(ctx, func(tx rotation.Tx) error { kept = tx; return nil }); err != nil {
		t.Fatal(err)
	}
	for what, verb := range map[string]func() error{
		"a write": func() error {
			return kept.InsertDomain(ctx, broker.Domain{UID: "u", ID: "d", State: broker.DomainActive})
		},
		"a read": func() error { _, err := kept.ListDomains(ctx, "", 1); return err },
		"a move": func() error { _, err := kept.MoveDataKeys(ctx, "u", 1, nil); return err },
		"a lock": func() error { return kept.LockDomain(ctx, "u", broker.Shared) },
	} {
		if verb() == nil {
			t.Errorf("%s after the transaction: no error", what)
		}
	}
}

// TestBrokenTransaction: once the engine has failed a statement, nothing of the
// transaction is stored, also if its function looks away.
func TestBrokenTransaction(t *testing.T) {
	path := dbPath(t)
	var log bytes.Buffer
	s, err := sqlstore.OpenSQLite(t.Context(), path, sqlstore.Config{Now: time.Now, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	ctx := t.Context()
	const value = "a-value-that-is-nobody's-business"
	err = s.Broker().Update(ctx, func(tx broker.Tx) error {
		if err := tx.InsertDomain(ctx, broker.Domain{UID: "u1", ID: "d1", State: broker.DomainActive}); err != nil {
			return err
		}
		_ = tx.InsertDomain(ctx, broker.Domain{UID: value, ID: value, State: value}) // no such state
		return nil
	})
	if err == nil {
		t.Fatal("a broken transaction was committed")
	}
	for where, text := range map[string]string{"the error": err.Error(), "the log": log.String()} {
		if strings.Contains(text, value) || text == "" {
			t.Errorf("%s quotes a value, or is empty: %s", where, text)
		}
	}
	if got := queryText(t, path, `select count(*) from domain`); got != "0" {
		t.Errorf("%s rows of a broken transaction are stored", got)
	}

	err = s.Broker().Update(ctx, func(tx broker.Tx) error {
		return tx.InsertDataKey(ctx, broker.DataKey{Domain: "absent", ID: "k", UID: "k", Ciphertext: []byte("x")})
	})
	if !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("a row of an absent domain: got %v", err)
	}
}

// TestDamagedFile: what the disk breaks is unavailable, not a bug and not a lie.
func TestDamagedFile(t *testing.T) {
	path := dbPath(t)
	s, err := sqlstore.OpenSQLite(t.Context(), path, sqlstore.Config{Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	if err := os.WriteFile(path, bytes.Repeat([]byte("damaged"), 10_000), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path + "-wal"); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	err = s.Ping(t.Context())
	if broker.ReasonOf(err) != broker.ReasonStoreUnavailable {
		t.Errorf("a damaged file: got %v", err)
	}
}

// TestAuditRows reads what Audit stored, which no port gives back.
func TestAuditRows(t *testing.T) {
	path := dbPath(t)
	clock := brokertest.NewStoreClock()
	s := open(t, path, clock.Now)
	ctx := t.Context()
	if err := s.Broker().Update(ctx, func(tx broker.Tx) error {
		for _, outcome := range []broker.AuditOutcome{broker.AuditIntended, broker.AuditDone} {
			if err := tx.Audit(ctx, broker.AuditEvent{Caller: "alice", Action: "kms.CreateGrant", Domain: "u", Resource: "domains/d/grants/g",
				Outcome: outcome, RequestID: "r", KMSRequestID: "k", Detail: map[string]string{"kind": "wrap", "epoch": "2"}}); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	got := queryText(t, path, `
		select group_concat(concat_ws('|', seq, event_time, caller, action, domain_uid, resource, outcome, request_id, kms_request_id, detail), char(10))
		from audit_event`)
	row := func(seq, outcome string) string {
		return seq + "|1935817689123456|alice|kms.CreateGrant|u|domains/d/grants/g|" + outcome + `|r|k|{"epoch":"2","kind":"wrap"}`
	}
	if diff := cmp.Diff(row("1", "INTENDED")+"\n"+row("2", "DONE"), got); diff != "" {
		t.Errorf("audit rows (-want +got):\n%s", diff)
	}
}

// TestForeignWriter: another process may hold the file for a while.
func TestForeignWriter(t *testing.T) {
	path := dbPath(t)
	s := open(t, path, time.Now)
	other, err := sql.Open("sqlite", "file:"+path+"?_txlock=immediate")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	held, err := other.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	nothing := func(broker.Tx) error { return nil }
	if err := s.Broker().Update(short, nothing); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a short wait: got %v", err)
	}
	if err := s.Broker().View(t.Context(), nothing); err != nil {
		t.Errorf("a view beside a foreign writer: %v", err)
	}
	if err := held.Rollback(); err != nil {
		t.Fatal(err)
	}
	if err := s.Broker().Update(t.Context(), nothing); err != nil {
		t.Errorf("after the foreign writer: %v", err)
	}
}
