package demo

import (
	"context"
	"testing"
	"time"
)

func TestTallyAddsUpOverStarts(t *testing.T) {
	now := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	cfg := Config{Data: t.TempDir(), Now: func() time.Time { return now }, KMSCalls: func() int64 { return 7 }}
	for start := range 2 {
		tally, err := newTally(cfg)
		if err != nil {
			t.Fatal(err)
		}
		now = now.Add(3 * time.Second)
		tally.opened.Add(2)
		tally.readerErrors.Add(1)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := tally.keep(ctx); err != nil {
			t.Fatal(err)
		}
		n := int64(start + 1)
		if got, want := tally.sums(), (sums{Opened: 2 * n, ReaderErrors: n, KMSCalls: 7 * n, Seconds: 3 * float64(n)}); got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
}
