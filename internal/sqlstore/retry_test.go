package sqlstore

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
)

var (
	errBusy = errors.New("busy")
	errDisk = errors.New("disk")
)

// scriptedEngine fails as its scripts say; an empty script succeeds.
type scriptedEngine struct {
	dialect
	begins, commits []error
	rollbacks       int
}

func next(script *[]error) (err error) {
	if len(*script) > 0 {
		err, *script = (*script)[0], (*script)[1:]
	}
	return err
}

func (e *scriptedEngine) begin(context.Context, bool) (session, error) {
	return scriptedSession{e}, next(&e.begins)
}

func (e *scriptedEngine) now(context.Context, session) (time.Time, error) {
	return time.UnixMicro(1), nil
}

func (e *scriptedEngine) classify(err error) (class, string) {
	switch {
	case errors.Is(err, errBusy):
		return classTransient, "busy"
	case errors.Is(err, errDisk):
		return classUnavailable, "disk"
	}
	return classOther, "other"
}

type scriptedSession struct{ e *scriptedEngine }

func (s scriptedSession) exec(context.Context, string, ...any) (int64, error) { return 1, nil }

func (s scriptedSession) query(context.Context, string, ...any) (rows, error) {
	return nil, errors.New("no query was scripted")
}

func (s scriptedSession) commit() error { return next(&s.e.commits) }
func (s scriptedSession) rollback()     { s.e.rollbacks++ }

func TestRetry(t *testing.T) {
	refused := errors.New("refused by the function")
	for what, c := range map[string]struct {
		engine    scriptedEngine
		fn        error
		runs      int
		rollbacks int
		want      error
	}{
		"success":                      {runs: 1},
		"begin was busy":               {engine: scriptedEngine{begins: []error{errBusy, errBusy}}, runs: 1},
		"commit was busy":              {engine: scriptedEngine{commits: []error{errBusy}}, runs: 2},
		"always busy":                  {engine: scriptedEngine{commits: []error{errBusy, errBusy, errBusy, errBusy, nil}}, runs: maxAttempts, want: broker.ErrUnavailable},
		"the disk failed at commit":    {engine: scriptedEngine{commits: []error{errDisk}}, runs: 1, want: broker.ErrUnavailable},
		"the disk failed at begin":     {engine: scriptedEngine{begins: []error{errDisk}}, want: broker.ErrUnavailable},
		"the function refused":         {fn: refused, runs: 1, rollbacks: 1, want: refused},
		"the function found a version": {fn: broker.ErrConflict, runs: 1, rollbacks: 1, want: broker.ErrConflict},
	} {
		s, err := newStore(&c.engine, Config{})
		if err != nil {
			t.Fatal(err)
		}
		runs := 0
		err = s.Broker().Update(t.Context(), func(broker.Tx) error { runs++; return c.fn })
		if !errors.Is(err, c.want) || (err != nil) != (c.want != nil) {
			t.Errorf("%s: got error %v, want %v", what, err, c.want)
		}
		if runs != c.runs || c.engine.rollbacks != c.rollbacks {
			t.Errorf("%s: %d runs and %d rollbacks, want %d and %d", what, runs, c.engine.rollbacks, c.runs, c.rollbacks)
		}
	}
}

// TestCommitIsTheTruth: a context that ends during the commit changes nothing
// about its answer.
func TestCommitIsTheTruth(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s, err := newStore(cancellingEngine{&scriptedEngine{}, cancel}, Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Broker().Update(ctx, func(broker.Tx) error { return nil }); err != nil {
		t.Errorf("committed, yet: %v", err)
	}
	if ctx.Err() == nil {
		t.Error("the context did not end")
	}
}

type cancellingEngine struct {
	*scriptedEngine
	cancel context.CancelFunc
}

func (e cancellingEngine) begin(context.Context, bool) (session, error) {
	return cancellingSession{scriptedSession{e.scriptedEngine}, e.cancel}, nil
}

type cancellingSession struct {
	scriptedSession
	cancel context.CancelFunc
}

func (s cancellingSession) commit() error {
	s.cancel()
	return s.scriptedSession.commit()
}
