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
	conn  *pgxpool.Conn
	began time.Time // by the database's clock
}

var _ session = (*postgresSession)(nil)

func (s *postgresSession) exec(ctx context.Context, query string, args ...any) (int64, error) {
	tag, err := s.conn.Exec(ctx, query, args...)
	return tag.RowsAffected(), s.broken(err)
}

func (s *postgresSession) query(ctx context.Context, query string, args ...any) (rows, error) {
	r, err := s.conn.Query(ctx, query, args...)
	if err != nil {
		return nil, s.broken(err)
	}
	return postgresRows{r, s}, nil
}

// batchSession is a session that runs several statements in one round trip. Each
// sees what the ones before it did, and what others committed before it began.
type batchSession interface {
	// texts gives for each statement the one text column of its rows.
	texts(ctx context.Context, batch *pgx.Batch) ([][]string, error)
}

var _ batchSession = (*postgresSession)(nil)

func (s *postgresSession) texts(ctx context.Context, batch *pgx.Batch) (answers [][]string, err error) {
	results := s.conn.SendBatch(ctx, batch)
	defer func() { err = s.broken(errors.Join(err, results.Close())) }()
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
// transaction: PostgreSQL rolls back what was not committed.
func (s *postgresSession) broken(err error) error {
	if err != nil && s.conn.Conn().IsClosed() {
		return &lostConnectionError{err}
	}
	return err
}

// commit tells three answers apart: committed, certainly rolled back, and none.
// Once the word has been sent only the server's own refusal proves that nothing
// was stored: pgconn.SafeToRetry is no help, since a connection that breaks while
// the answer is awaited is reported as one that was closed before.
func (s *postgresSession) commit() error {
	defer s.conn.Release()
	if s.conn.Conn().IsClosed() {
		return &lostConnectionError{pgconn.ErrConnClosed}
	}
	ctx, cancel := context.WithTimeout(context.Background(), commitTime)
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
	return &unansweredCommitError{err}
}

func (s *postgresSession) rollback() {
	ctx, cancel := context.WithTimeout(context.Background(), rollbackTime)
	defer cancel()
	// If it fails, the pool gives the connection up, which rolls back as well.
	_, _ = s.conn.Conn().PgConn().Exec(ctx, "rollback").ReadAll()
	s.conn.Release()
}

// postgresRows gives pgx's rows the face of database/sql's.
type postgresRows struct {
	pgx.Rows
	session *postgresSession
}

var _ rows = postgresRows{}

func (r postgresRows) Err() error { return r.session.broken(r.Rows.Err()) }

func (r postgresRows) Close() error {
	r.Rows.Close()
	return nil
}
