package sqlstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
)

// Config is what every engine needs.
type Config struct {
	// Now is the clock. On SQLite it is the judge of every stored time. On
	// PostgreSQL it must be nil but in tests: the judge is the database's clock.
	Now func() time.Time
	// DatabaseURL gives the URL of the PostgreSQL database anew, before each
	// connection: its user and password may have changed, and are taken. Nothing else
	// is. nil keeps what the store was opened with.
	DatabaseURL func() (string, error)
	// Random gives unpredictable bytes, as crypto/rand.Reader does. Only Secret
	// needs it.
	Random io.Reader
	// Logger gets what goes wrong between the store and its engine; nil drops it.
	Logger *slog.Logger
	// Tracer makes one span per transaction; nil makes none.
	Tracer trace.Tracer
	// Meter counts transactions that had to be run again; nil counts nothing.
	Meter metric.Meter
}

// Store is an open vault. It is safe for concurrent use.
type Store struct {
	dialect dialect
	random  io.Reader
	log     *slog.Logger
	tracer  trace.Tracer
	retries metric.Int64Counter
	stretch int // stretchRows, but in tests
}

// maxAttempts bounds how often an Update or a View is run in all. An engine has
// waited for its locks before it gives up, so nothing waits here.
const maxAttempts = 4

// Broker gives the store as the use cases see it.
func (s *Store) Broker() broker.Store { return brokerView{s} }

// Rotation gives the store as key changes see it.
func (s *Store) Rotation() rotation.Store { return rotationView{s} }

// Ping reports whether the database answers.
func (s *Store) Ping(ctx context.Context) error {
	return s.run(ctx, "store.ping", true, func(t *txn) error {
		_, err := one(ctx, t, "ping", "meta table", scanInt, `select count(*) from meta`)
		return err
	})
}

// Close waits for running transactions to end and closes the database. What
// comes later fails.
func (s *Store) Close() error { return s.dialect.close() }

// Secret gives n random bytes that were minted once under this name and are kept
// in the database, so that every replica has the same. It fails if the name
// holds another number of bytes.
func (s *Store) Secret(ctx context.Context, name string, n int) ([]byte, error) {
	if s.random == nil {
		return nil, errors.New("mint secret: Config.Random must be set")
	}
	minted := make([]byte, n)
	if _, err := io.ReadFull(s.random, minted); err != nil {
		return nil, fmt.Errorf("mint secret: %w", err)
	}
	var kept []byte
	err := s.run(ctx, "store.secret", false, func(t *txn) error {
		if _, err := t.exec(ctx, "mint secret", `
			insert into meta (name, value) values ($1, $2)
			on conflict do nothing`, name, minted); err != nil {
			return err
		}
		var err error
		kept, err = one(ctx, t, "read secret", "secret", func(r row) (b []byte, err error) {
			err = r.Scan(&b)
			return bytes.Clone(b), err
		}, `select value from meta where name = $1`, name)
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(kept) != n {
		return nil, errors.New("read secret: the store keeps another size under this name")
	}
	return kept, nil
}

type brokerView struct{ store *Store }

var _ broker.Store = brokerView{}

func (v brokerView) Update(ctx context.Context, fn func(tx broker.Tx) error) error {
	return v.store.run(ctx, "store.update", false, func(t *txn) error { return fn(t) })
}

func (v brokerView) View(ctx context.Context, fn func(tx broker.Tx) error) error {
	return v.store.run(ctx, "store.view", true, func(t *txn) error { return fn(t) })
}

type rotationView struct{ store *Store }

var _ rotation.Store = rotationView{}

func (v rotationView) Update(ctx context.Context, fn func(tx rotation.Tx) error) error {
	return v.store.run(ctx, "store.update", false, func(t *txn) error { return fn(t) })
}

func (v rotationView) View(ctx context.Context, fn func(tx rotation.Tx) error) error {
	return v.store.run(ctx, "store.view", true, func(t *txn) error { return fn(t) })
}

// run runs fn in a transaction, again after a transient conflict, under one span
// that holds no values.
func (s *Store) run(ctx context.Context, name string, readOnly bool, fn func(*txn) error) error {
	ctx, span := s.tracer.Start(ctx, name)
	defer span.End()
	for attempt := 1; ; attempt++ {
		again, err := s.once(ctx, readOnly, fn)
		if err == nil {
			return nil
		}
		if !again || attempt == maxAttempts {
			span.SetStatus(codes.Error, "")
			return err
		}
		s.retries.Add(ctx, 1)
	}
}

// once runs fn in one transaction. An error means that nothing was stored, but
// for one: where the commit was asked for and the engine's answer did not come,
// nobody knows, and nothing is run again (unknownOutcome). The commit takes no
// context, so its answer is the engine's own.
func (s *Store) once(ctx context.Context, readOnly bool, fn func(*txn) error) (again bool, err error) {
	sess, err := s.dialect.begin(ctx, readOnly)
	if err != nil {
		c, err := s.translate(ctx, "begin transaction", err)
		return c == classTransient, err
	}
	t := &txn{store: s, session: sess, readOnly: readOnly}
	committing := false
	defer func() {
		t.broken = errEnded
		if !committing {
			sess.rollback()
		}
	}()
	now, err := s.dialect.now(ctx, sess)
	if err != nil {
		c, err := s.translate(ctx, "read the clock", err)
		return c == classTransient, err
	}
	t.now = now.UTC().Truncate(time.Microsecond)
	if err := fn(t); err != nil {
		return t.transient || t.overtaken && errors.Is(err, broker.ErrConflict), err
	}
	if t.broken != nil {
		return t.transient, t.broken
	}
	if err := ctx.Err(); err != nil {
		return false, err
	}
	committing = true
	if err := sess.commit(); err != nil {
		// The context is left out: what counts is the engine's answer.
		c, err := s.translate(context.WithoutCancel(ctx), "commit transaction", err)
		return c == classTransient, err
	}
	return false, nil
}
