package scenarios_test

import (
	"context"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/test/harness"
)

// conveyor watches how far the calls of a job are ahead of its commits.
type conveyor struct {
	batch, rows int

	mu              sync.Mutex
	made, committed int           // calls, and rows in commits
	farthest        int           // calls ahead of commits
	overlapped      chan struct{} // closed when two batches have been at KMS
	hold, timedOut  bool
}

func (c *conveyor) wrap(road http.RoundTripper) http.RoundTripper {
	return roundTrip(func(r *http.Request) (*http.Response, error) {
		resp, err := road.RoundTrip(r)
		if err == nil && resp.StatusCode == http.StatusOK && r.Header.Get("X-Amz-Target") == "TrentService.ReEncrypt" {
			c.mu.Lock()
			if c.made++; c.made == 2*c.batch {
				close(c.overlapped)
			}
			if c.made <= c.rows { // what comes after is VERIFYING's sample
				c.farthest = max(c.farthest, c.made-c.committed)
			}
			c.mu.Unlock()
		}
		return resp, err
	})
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// at holds the first commit up until the batch behind it is at KMS.
func (c *conveyor) at(point string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch point {
	case "batch.committed":
		c.committed += c.batch
	case "batch.reencrypted":
		if c.hold {
			c.hold = false
			c.mu.Unlock()
			late := false
			select {
			case <-c.overlapped:
			case <-time.After(time.Minute):
				late = true
			}
			c.mu.Lock()
			c.timedOut = late
		}
	}
}

// TestBatchesOverlap: the rows of a batch are at KMS while the one before is
// committed, and never those of a third: that is what a crash may cost.
func TestBatchesOverlap(t *testing.T) {
	c := &conveyor{batch: 5, rows: 60, overlapped: make(chan struct{})}
	b := newBench(t, harness.Config{Shards: 1, BatchRows: c.batch, Poll: 50 * time.Millisecond, Transport: c.wrap, At: func(_ *harness.Replica, point string) { c.at(point) }})
	if _, _, err := b.Onboard(t.Context(), "acme"); err != nil {
		t.Fatal(err)
	}
	createKeys(t, b, "acme", c.rows)
	c.hold = true
	next := must[broker.KeyARN](t)(b.NewKey(t.Context(), "acme"))
	job := must[rotation.JobView](t)(b.ChangeKey(t.Context(), "acme", next))
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		_ = b.Engine.Run(ctx) // it ends with the context, or the context with it
		stop()
		close(ended)
	}()
	err := b.Engine.WatchJob(ctx, harness.Caller, "acme", job.ID, func(v rotation.JobView, _ bool) error {
		if v.Phase != rotation.Preparing && v.Phase != rotation.Reencrypting {
			stop()
			return context.Canceled
		}
		return nil
	})
	stop()
	<-ended
	view := must[rotation.JobView](t)(b.Engine.GetJob(t.Context(), harness.Caller, "acme", job.ID))
	if view.Progress.Done != int64(c.rows) || view.Progress.Failed != 0 {
		t.Fatalf("%d of %d rows moved: %v", view.Progress.Done, c.rows, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timedOut {
		t.Error("nothing was at KMS while a batch waited for its commit")
	}
	if c.farthest > 2*c.batch {
		t.Errorf("%d calls were ahead of the commits, want at most two batches of %d", c.farthest, c.batch)
	}
}
