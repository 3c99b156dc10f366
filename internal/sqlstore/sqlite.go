package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/keybroker/keybroker/internal/broker"
)

// readers is how many Views run at a time on SQLite.
const readers = 4

// sqliteDialect runs every Update on one connection, one at a time, and Views on
// a few others. A connection is held for the store's life, with its prepared
// statements: preparing costs more than running for most of them.
type sqliteDialect struct {
	clock          func() time.Time
	writer, reader *sql.DB
	writers, views chan *sqliteConn // free connections
	closed         chan struct{}
	closeOnce      sync.Once
	closeErr       error
}

var _ dialect = (*sqliteDialect)(nil)

func newSQLite(writer, reader *sql.DB, clock func() time.Time) *sqliteDialect {
	e := &sqliteDialect{
		clock: clock, writer: writer, reader: reader,
		writers: make(chan *sqliteConn, 1), views: make(chan *sqliteConn, readers),
		closed: make(chan struct{}),
	}
	e.writers <- &sqliteConn{db: writer, home: e.writers, begin: "begin immediate"}
	for range readers {
		e.views <- &sqliteConn{db: reader, home: e.views, begin: "begin"}
	}
	return e
}

func (e *sqliteDialect) begin(ctx context.Context, readOnly bool) (session, error) {
	free := e.writers
	if readOnly {
		free = e.views
	}
	select {
	case <-e.closed:
		return nil, errClosed
	default:
	}
	select {
	case c := <-free:
		if err := c.open(ctx); err != nil {
			c.release(false)
			return nil, err
		}
		return c, nil
	case <-e.closed:
		return nil, errClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

var errClosed = errors.New("the store is closed")

func (e *sqliteDialect) now(context.Context, session) (time.Time, error) { return e.clock(), nil }

func (e *sqliteDialect) later(ctx context.Context, s session) (time.Time, error) {
	return e.now(ctx, s)
}

// lock has nothing to do: the one writer holds everything.
func (e *sqliteDialect) lock(ctx context.Context, _ session, _ string, _ broker.LockMode) error {
	return ctx.Err()
}

func (e *sqliteDialect) holding(hold) string { return "" }

// dataKeysOf says by "cross join" which table comes first (sqlite.org/optoverview.html).
func (e *sqliteDialect) dataKeysOf() string {
	return `
		select ` + dataKeyColumns + `
		from json_each($2) as wanted
		cross join data_key
		where domain_uid = $1 and data_key_id = wanted.value`
}

// insertDataKeys runs one prepared statement per row, as moveDataKeys does. Why a
// row was not inserted is asked for after: that is rare.
func (e *sqliteDialect) insertDataKeys(ctx context.Context, s session, keys []broker.DataKey) ([]insertion, error) {
	ends := make([]insertion, len(keys))
	ctx = context.WithoutCancel(ctx)
	for i, k := range keys {
		n, err := s.exec(ctx, `
			insert into data_key (`+dataKeyColumns+`)
			select $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13
			where not exists (
				select 1
				from data_key_tombstone
				where domain_uid = $1 and data_key_id = $2)
			on conflict do nothing`, dataKeyArgs(k)...)
		if err != nil {
			return nil, err
		}
		if n == 1 {
			continue
		}
		if ends[i], err = whyNotInserted(ctx, s, k); err != nil {
			return nil, err
		}
	}
	return ends, nil
}

func whyNotInserted(ctx context.Context, s session, k broker.DataKey) (insertion, error) {
	found, err := s.query(ctx, dataKeyProbe, string(k.Domain), string(k.ID))
	if err != nil {
		return 0, err
	}
	defer found.Close() //nolint:errcheck // Err has said it
	if found.Next() {
		return idTaken, found.Err()
	}
	return idDeleted, found.Err()
}

// shredDataKeys reads the same rows twice: nobody else writes in between.
func (e *sqliteDialect) shredDataKeys(ctx context.Context, s session, d broker.DomainUID, now int64, limit int) (int64, error) {
	if _, err := s.exec(ctx, `
		insert into data_key_tombstone (domain_uid, data_key_id, data_key_uid, delete_time)
		select domain_uid, data_key_id, data_key_uid, $2
		from data_key
		where domain_uid = $1
		order by data_key_id
		limit $3 + 0`, d, now, limit); err != nil {
		return 0, err
	}
	return s.exec(ctx, `
		delete from data_key
		where domain_uid = $1 and data_key_id in (
			select data_key_id
			from data_key
			where domain_uid = $1
			order by data_key_id
			limit $2 + 0)`, d, limit)
}

// moveDataKeys runs one prepared statement per row: twice as fast here as any
// bulk form (json_each), measured.
func (e *sqliteDialect) moveDataKeys(ctx context.Context, s session, b moveBatch) ([]bool, error) {
	moved := make([]bool, len(b.moves))
	ctx = context.WithoutCancel(ctx)
	for i, m := range b.moves {
		n, err := s.exec(ctx, `
			update data_key
			set ciphertext = $3, key_material_id = $4, kms_request_id = $5,
				key_epoch = $6, version = version + 1, update_time = $7
			where`+moveMatches,
			string(b.domain), string(m.ID), []byte(m.Ciphertext), m.KeyMaterialID, m.KMSRequestID,
			int64(b.target), b.now, string(m.UID), m.Version, int64(m.FromEpoch))
		if err != nil {
			return nil, err
		}
		moved[i] = n == 1
	}
	return moved, nil
}

// classify knows SQLite's result codes (sqlite.org/rescode.html). SQLite's texts
// name tables, columns and constraints, never values.
func (e *sqliteDialect) classify(err error) (class, string) {
	if errors.Is(err, errClosed) {
		return classUnavailable, errClosed.Error()
	}
	var lite *sqlite.Error
	if !errors.As(err, &lite) {
		return classOther, fmt.Sprintf("%T", err)
	}
	text := fmt.Sprintf("%s (result code %d)", lite.Error(), lite.Code())
	switch lite.Code() {
	case sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, sqlite3.SQLITE_CONSTRAINT_ROWID:
		return classUnique, text
	case sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
		return classForeignKey, text
	}
	switch lite.Code() & 0xff {
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return classTransient, text
	case sqlite3.SQLITE_INTERRUPT:
		return classInterrupted, text
	case sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_CORRUPT,
		sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PROTOCOL:
		return classUnavailable, text
	}
	return classOther, text
}

func (e *sqliteDialect) close() error {
	e.closeOnce.Do(func() {
		close(e.closed)
		var errs []error
		for range readers {
			errs = append(errs, (<-e.views).drop())
		}
		// The writer goes last: the last connection folds the write-ahead log back
		// into the file.
		errs = append(errs, e.reader.Close(), (<-e.writers).drop(), e.writer.Close())
		e.closeErr = errors.Join(errs...)
	})
	return e.closeErr
}

// sqliteConn is one connection and, while it is out of its home, the session
// that runs on it.
type sqliteConn struct {
	db    *sql.DB
	home  chan<- *sqliteConn
	begin string
	conn  *sql.Conn // nil until needed, and after a failure
	stmts map[string]*sql.Stmt
}

var _ session = (*sqliteConn)(nil)

// open begins a transaction, on a new connection if there is none.
func (c *sqliteConn) open(ctx context.Context) error {
	if c.conn == nil {
		conn, err := c.db.Conn(ctx)
		if err != nil {
			return err
		}
		c.conn, c.stmts = conn, map[string]*sql.Stmt{}
	}
	_, err := c.exec(ctx, c.begin)
	return err
}

func (c *sqliteConn) exec(ctx context.Context, query string, args ...any) (int64, error) {
	stmt, err := c.prepared(ctx, query)
	if err != nil {
		return 0, err
	}
	result, err := stmt.ExecContext(ctx, args...)
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

func (c *sqliteConn) query(ctx context.Context, query string, args ...any) (rows, error) {
	stmt, err := c.prepared(ctx, query)
	if err != nil {
		return nil, err
	}
	return stmt.QueryContext(ctx, args...)
}

// prepared keeps each statement of this connection; texts are constants of this
// package, so their number is bounded.
func (c *sqliteConn) prepared(ctx context.Context, query string) (*sql.Stmt, error) {
	if stmt, ok := c.stmts[query]; ok {
		return stmt, nil
	}
	stmt, err := c.conn.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	c.stmts[query] = stmt
	return stmt, nil
}

func (c *sqliteConn) commit() error {
	_, err := c.exec(context.Background(), "commit")
	c.release(err == nil)
	return err
}

func (c *sqliteConn) rollback() {
	_, err := c.exec(context.Background(), "rollback")
	c.release(err == nil)
}

// release brings the connection home. One whose transaction did not end cleanly
// is given up, which rolls back whatever was left; the next user opens another.
func (c *sqliteConn) release(clean bool) {
	if !clean {
		_ = c.drop() // it is of no more use either way
	}
	c.home <- c
}

func (c *sqliteConn) drop() error {
	if c.conn == nil {
		return nil
	}
	var errs []error
	for _, stmt := range c.stmts {
		errs = append(errs, stmt.Close())
	}
	errs = append(errs, c.conn.Close())
	c.conn, c.stmts = nil, nil
	return errors.Join(errs...)
}
