package main

import (
	"context"
	"sync"
	"time"
)

// stopTime is how long a process may take to end, from the signal that asks it
// to: calls, engine, database and telemetry together. It is below a pod's
// terminationGracePeriodSeconds, 30 in the chart, so that nothing is killed.
const stopTime = 25 * time.Second

// The parts of that time by whose end something has to be over.
const (
	partWork     = 0.8 // calls and engine
	partDatabase = 0.9
	partAll      = 1.0
)

// An ending is the one deadline of all that a process does to end. It begins when
// the first of them asks. It is safe for concurrent use.
type ending struct {
	allowed time.Duration
	once    sync.Once
	begun   time.Time
}

// newEnding: 0 takes stopTime.
func newEnding(allowed time.Duration) *ending {
	if allowed == 0 {
		allowed = stopTime
	}
	return &ending{allowed: allowed}
}

// within gives a context for what has to be over by a part of the time. It does
// not end with ctx.
func (e *ending) within(ctx context.Context, part float64) (context.Context, context.CancelFunc) {
	e.once.Do(func() { e.begun = time.Now() })
	return context.WithDeadline(context.WithoutCancel(ctx), e.begun.Add(time.Duration(part*float64(e.allowed))))
}

// finish waits for f, as long as ctx lasts. What is left of f then goes on until
// the process ends.
func finish(ctx context.Context, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
