package rotation

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
)

// A taskStore keeps one periodic task, by the bubble's clock.
type taskStore struct {
	Store
	Tx
	mu    sync.Mutex
	owner string
	taken time.Time
}

func (s *taskStore) Update(_ context.Context, fn func(Tx) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fn(s)
}

func (s *taskStore) TakePeriodic(_ context.Context, _, owner string, every time.Duration) (bool, error) {
	if time.Since(s.taken) < every {
		return false, nil
	}
	s.owner, s.taken = owner, time.Now()
	return true, nil
}

func (s *taskStore) RenewPeriodic(_ context.Context, _, owner string) error {
	if s.owner != owner {
		return broker.ErrConflict
	}
	s.taken = time.Now()
	return nil
}

// TestLongTasksRunOnce: a periodic task that takes longer than its period is on one
// replica at a time all the same, and goes on being done.
func TestLongTasksRunOnce(t *testing.T) {
	const every = 10 * time.Second
	synctest.Test(t, func(t *testing.T) {
		s := &taskStore{}
		ctx, stop := context.WithTimeout(t.Context(), time.Hour)
		defer stop()
		var replicas sync.WaitGroup
		var mu sync.Mutex
		under, most, runs := 0, 0, 0
		for _, owner := range []string{"one", "two", "three"} {
			e := &Engine{store: s, cfg: Config{Owner: owner, Sleep: sleep, Observe: NoObserver{}, Logger: slog.New(slog.DiscardHandler)}}
			replicas.Go(func() {
				e.Periodic(ctx, "task", every, func(ctx context.Context) error {
					mu.Lock()
					under++
					most, runs = max(most, under), runs+1
					mu.Unlock()
					err := sleep(ctx, 5*every)
					mu.Lock()
					under--
					mu.Unlock()
					return err
				})
			})
		}
		replicas.Wait()
		if most != 1 || runs < 50 {
			t.Errorf("%d replicas at a time, %d times in an hour", most, runs)
		}
	})
}

// lostLeases counts the leases that are told as lost.
type lostLeases struct {
	NoObserver
	n int
}

func (l *lostLeases) LeaseLost() { l.n++ }

// TestATaskThatIsTakenOverIsCalledOff: a replica that slept finds it with another.
func TestATaskThatIsTakenOverIsCalledOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &taskStore{owner: "another", taken: time.Now()}
		lost := &lostLeases{}
		e := &Engine{store: s, cfg: Config{Owner: "one", Observe: lost, Logger: slog.New(slog.DiscardHandler)}}
		err := e.runPeriodic(t.Context(), "task", 10*time.Second, func(ctx context.Context) error { return sleep(ctx, time.Hour) })
		if !errors.Is(err, context.Canceled) || lost.n != 1 {
			t.Errorf("the task ended with %v, and %d leases are told as lost", err, lost.n)
		}
	})
}

// outcomes are those of a task's runs, as they are told.
type outcomes struct {
	NoObserver
	errs []error
}

func (o *outcomes) Periodic(_ string, err error) { o.errs = append(o.errs, err) }

// TestARefusalIsNoFailure: a task that keys' owners refused parts is not logged as
// one that failed.
func TestARefusalIsNoFailure(t *testing.T) {
	denied := &broker.KMSError{Class: broker.KMSDenied, Code: "AccessDeniedException"}
	for level, given := range map[string]error{"WARN": fmt.Errorf("list: %w", denied), "ERROR": errors.New("the database is away")} {
		synctest.Test(t, func(t *testing.T) {
			var log bytes.Buffer
			seen := &outcomes{}
			e := &Engine{store: &taskStore{}, cfg: Config{Owner: "one", Sleep: sleep, Observe: seen, Logger: slog.New(slog.NewTextHandler(&log, nil))}}
			ctx, stop := context.WithTimeout(t.Context(), 15*time.Second)
			defer stop()
			e.Periodic(ctx, "task", 10*time.Second, func(context.Context) error { return given })
			if len(seen.errs) != 1 || !errors.Is(seen.errs[0], given) {
				t.Errorf("told of %v, want once of %v", seen.errs, given)
			}
			if line := log.String(); strings.Count(line, "level=") != 1 || !strings.Contains(line, "level="+level) {
				t.Errorf("want one line of %s, got %s", level, line)
			}
		})
	}
}
