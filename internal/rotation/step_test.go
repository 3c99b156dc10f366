package rotation

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

// TestUnansweredRenewal: a renewal that a lost server does not answer is tried
// again while the lease still holds.
func TestUnansweredRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ttl = 9 * time.Second
		e := &Engine{cfg: Config{Logger: slog.New(slog.DiscardHandler)}}
		begun := time.Now()
		var renewed time.Duration
		first := true
		stop := e.keepAlive(t.Context(), ttl, func(ctx context.Context) error {
			if first {
				first = false
				<-ctx.Done()
				return ctx.Err()
			}
			if renewed == 0 {
				renewed = time.Since(begun)
			}
			return nil
		})
		time.Sleep(2 * ttl)
		stop()
		if renewed == 0 || renewed >= ttl {
			t.Errorf("renewed after %v of a lease of %v", renewed, ttl)
		}
	})
}
