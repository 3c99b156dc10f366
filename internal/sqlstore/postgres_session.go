package sqlstore

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// How long the end of a transaction may take. A commit that is answered later
// than that counts as not answered.
const (
	commitTime   = 30 * time.Second
	rollbackTime = 5 * time.Second
)

// postgresSession is one transaction on a connection of the pool.
type postgresSession struct {
	dialect *postgresDialect
	conn    *pgxpool.Conn
	began   time.Time // by the database's clock
	silent  bool      // the server did not answer in time
}

var _ session = (*postgresSession)(nil)

// begin says a transaction's first words. Whatever becomes of its caller, the
// answer tells of the server.
func (s *postgresSession) begin(text string) error {
	ctx, cancel := context.WithTimeoutCause(context.Background(), s.dialect.begins, errUnanswered)
	defer cancel()
	results, err := s.conn.Conn().PgConn().Exec(ctx, text).ReadAll()
	if err == nil {
		s.began, err = readClock(results)
	}
	return s.broken(ctx, err)
}

// bound is the context of a statement: errUnanswered ends one that is not answered.
func (s *postgresSession) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, s.dialect.answers, errUnanswered)
}

func (s *postgresSession) exec(ctx context.Context, query string, args ...any) (int64, error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	tag, err := s.conn.Exec(ctx, query, args...)
	return tag.RowsAffected(), s.broken(ctx, err)
}

func (s *postgresSession) query(ctx context.Context, query string, args ...any) (rows, error) {
	ctx, cancel := s.bound(ctx)
	r, err := s.conn.Query(ctx, query, args...)
	if err != nil {
		defer cancel()
		return nil, s.broken(ctx, err)
	}
	return postgresRows{r, s, ctx, cancel}, nil
}

// batchSession is a session that runs several statements in one round trip. Each
// sees what the ones before it did, and what others committed before it began.
type batchSession interface {
	// texts gives for each statement the one text column of its rows.
	texts(ctx context.Context, batch *pgx.Batch) ([][]string, error)
}

var _ batchSession = (*postgresSession)(nil)

func (s *postgresSession) texts(ctx context.Context, batch *pgx.Batch) (answers [][]string, err error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	results := s.conn.SendBatch(ctx, batch)
	defer func() { err = s.broken(ctx, errors.Join(err, results.Close())) }()
	for range batch.Len() {
		rows, err := results.Query()
		if err != nil {
			return nil, err
		}
		answer, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return nil, err
		}
		answers = append(answers, answer)
	}
	return answers, nil
}

// broken marks an error after which there is no connection any more, and so no
// transaction: PostgreSQL rolls back what was not committed. Where its caller was
// still there, the server or the way to it failed, so that the pool's other
// connections are most likely as dead.
func (s *postgresSession) broken(ctx context.Context, err error) error {
	if err == nil || !s.conn.Conn().IsClosed() {
		return err
	}
	if ctx.Err() == nil || errors.Is(context.Cause(ctx), errUnanswered) {
		s.silent = true
		s.dialect.pool.Reset()
	}
	return &lostConnectionError{err}
}

// release gives the connection back to the pool, which gives up one that is lost or
// in a transaction. One that is silent leaves the pool at once: pgx, which has closed
// it, takes 15 s to part from it, and its place is needed.
func (s *postgresSession) release() {
	if s.silent {
		s.conn.Hijack()
		return
	}
	s.conn.Release()
}

// commit tells three answers apart: committed, certainly rolled back, and none.
// Once the word has been sent only the server's own refusal proves that nothing
// was stored: pgconn.SafeToRetry is no help, since a connection that breaks while
// the answer is awaited is reported as one that was closed before.
func (s *postgresSession) commit() error {
	defer s.release()
	if s.conn.Conn().IsClosed() {
		return &lostConnectionError{pgconn.ErrConnClosed}
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), commitTime, errUnanswered)
	defer cancel()
	results, err := s.conn.Conn().PgConn().Exec(ctx, "commit").ReadAll()
	switch {
	case err == nil && len(results) == 1 && results[0].CommandTag.String() == "COMMIT":
		return nil
	case err == nil:
		return errRolledBack
	case isRefusal(err):
		return err
	}
	_ = s.broken(ctx, err)
	return &unansweredCommitError{err}
}

func (s *postgresSession) rollback() {
	ctx, cancel := context.WithTimeout(context.Background(), rollbackTime)
	defer cancel()
	// If it fails, the pool gives the connection up, which rolls back as well.
	_, _ = s.conn.Conn().PgConn().Exec(ctx, "rollback").ReadAll()
	s.release()
}

// postgresRows gives pgx's rows the face of database/sql's.
type postgresRows struct {
	pgx.Rows
	session *postgresSession
	ctx     context.Context // of the statement whose answer they are
	cancel  context.CancelFunc
}

var _ rows = postgresRows{}

func (r postgresRows) Err() error { return r.session.broken(r.ctx, r.Rows.Err()) }

func (r postgresRows) Close() error {
	r.Rows.Close()
	r.cancel()
	return nil
}
