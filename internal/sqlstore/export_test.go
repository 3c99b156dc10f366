package sqlstore

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// Recorded gives the store with an ear at its engine: statements tells the text of
// every statement that was run through it so far, and what it was last run with.
func (s *Store) Recorded() (recorded *Store, statements func() map[string][]any) {
	r := &recorder{dialect: s.dialect, texts: map[string][]any{}}
	recorded = &Store{dialect: r, random: s.random, log: s.log, tracer: s.tracer, retries: s.retries, stretch: s.stretch}
	return recorded, r.statements
}

type recorder struct {
	dialect
	mu    sync.Mutex
	texts map[string][]any
}

func (r *recorder) statements() map[string][]any {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.texts)
}

func (r *recorder) note(text string, args []any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.texts[text] = args
}

func (r *recorder) begin(ctx context.Context, readOnly bool) (session, error) {
	s, err := r.dialect.begin(ctx, readOnly)
	if err != nil {
		return nil, err
	}
	return recordedSession{s, r}, nil
}

func (r *recorder) now(ctx context.Context, s session) (time.Time, error) {
	return r.dialect.now(ctx, s.(recordedSession).session)
}

type recordedSession struct {
	session
	recorder *recorder
}

func (s recordedSession) exec(ctx context.Context, query string, args ...any) (int64, error) {
	s.recorder.note(query, args)
	return s.session.exec(ctx, query, args...)
}

func (s recordedSession) texts(ctx context.Context, batch *pgx.Batch) ([][]string, error) {
	for _, q := range batch.QueuedQueries {
		s.recorder.note(q.SQL, q.Arguments)
	}
	return s.session.(batchSession).texts(ctx, batch)
}

func (s recordedSession) query(ctx context.Context, query string, args ...any) (rows, error) {
	s.recorder.note(query, args)
	return s.session.query(ctx, query, args...)
}

// Shown gives a setting of PostgreSQL as the store's sessions have it.
func (s *Store) Shown(ctx context.Context, name string) (value string, err error) {
	err = s.dialect.(*postgresDialect).pool.QueryRow(ctx, `select current_setting($1)`, name).Scan(&value)
	return value, err
}

// Wait sets how long PostgreSQL may take to begin a transaction, and to answer.
func (s *Store) Wait(begins, answers time.Duration) {
	d := s.dialect.(*postgresDialect)
	d.begins, d.answers = begins, answers
}

// ReadAtOnce sets how many rows of a domain a statement reads at most.
func (s *Store) ReadAtOnce(rows int) { s.stretch = rows }

// MigrateSoon is MigratePostgres by somebody who waits for another for one second.
func MigrateSoon(ctx context.Context, url string) error {
	_, _, err := migratePostgres(ctx, url, 1)
	return err
}

// SchemaLock is the advisory lock that a migrator holds.
func SchemaLock() int64 { return lockKey("schema") }
