package demo

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// A pace says how busy the service is.
type pace struct {
	writeEvery, readEvery time.Duration
	files, writes, reads  int // at most
}

// livelyPace is enough to notice an outage of a tenth of a second.
func livelyPace() pace {
	return pace{writeEvery: 50 * time.Millisecond, readEvery: 10 * time.Millisecond, files: maxFiles, writes: math.MaxInt, reads: math.MaxInt}
}

// gentlePace is for a KMS that somebody pays for, and a change that waits for
// grants to spread, 10 minutes and more.
func gentlePace() pace {
	return pace{writeEvery: 30 * time.Second, readEvery: 4 * time.Second, files: 20, writes: 25, reads: 200}
}

// MaxCalls says how often a run on keys of the customer's own calls KMS at most
// while all goes well: a data key is made, moved and verified, three calls; one
// that is used is also unwrapped to seal and to compare. To that come the reads,
// and what the two changes ask: probes, grants, and a look every few seconds
// whether KMS shows them.
func MaxCalls(keys int) int {
	const changes = 400
	p := gentlePace()
	return 3*keys + 5*(p.files+p.writes) + p.reads + changes
}

const addedPrefix = "added-"

// traffic is a writer and a reader at work.
type traffic struct {
	cancel context.CancelFunc
	group  *errgroup.Group

	mu  sync.Mutex
	ids []string // of the files on the shelf
	trafficStats
}

type trafficStats struct{ added, opened, failures int }

// startTraffic adds files and opens files until stop.
func (r *run) startTraffic(ctx context.Context) (*traffic, error) {
	ids, err := r.shelf.list()
	if err != nil {
		return nil, err
	}
	t := &traffic{ids: ids}
	ctx, t.cancel = context.WithCancel(ctx)
	t.group, ctx = errgroup.WithContext(ctx)
	t.group.Go(func() error { return r.write(ctx, t) })
	t.group.Go(func() error { return r.read(ctx, t) })
	return t, nil
}

// stop ends the traffic and gives what it did. The error is the writer's: an
// acknowledged write that fails is no noise.
func (t *traffic) stop() (trafficStats, error) {
	t.cancel()
	err := t.group.Wait()
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.trafficStats, err
}

// write adds files, numbered on from those that earlier starts added.
func (r *run) write(ctx context.Context, t *traffic) error {
	n := 0
	for _, id := range t.known() {
		if strings.HasPrefix(id, addedPrefix) {
			n++
		}
	}
	for pause(ctx, r.pace.writeEvery) == nil {
		if n >= r.pace.writes {
			continue
		}
		n++
		id := fmt.Sprintf("%s%06d", addedPrefix, n)
		content := addedContent(id)
		// A file that was begun is finished, whoever ends the traffic: else its data
		// key would stay in the inventory without one.
		if err := r.seal(context.WithoutCancel(ctx), label{ID: id, SHA256: digest(content)}, content); err != nil {
			if ctx.Err() != nil {
				return nil // this one is written again by the next start
			}
			return fmt.Errorf("add %s: %w", id, err)
		}
		t.mu.Lock()
		t.ids = append(t.ids, id)
		t.added++
		t.mu.Unlock()
	}
	return nil
}

// addedContent is what the writer writes, and what must come back.
func addedContent(id string) []byte {
	return []byte(strings.Repeat("written by the demo's writer during the key change: "+id+"\n", 64))
}

// read opens one file after the other, again and again.
func (r *run) read(ctx context.Context, t *traffic) error {
	for i := 0; pause(ctx, r.pace.readEvery) == nil; i++ {
		ids := t.known()
		if len(ids) == 0 || i >= r.pace.reads {
			continue
		}
		err := r.openOne(ctx, ids[i%len(ids)])
		if ctx.Err() != nil {
			return nil
		}
		t.mu.Lock()
		t.opened++
		r.tally.opened.Add(1)
		if err != nil {
			t.failures++
			r.tally.readerErrors.Add(1)
		}
		first := err != nil && t.failures == 1
		t.mu.Unlock()
		if first {
			r.story.say("service", "could not open a file: %v", err)
		}
	}
	return nil
}

func (t *traffic) known() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ids // appended to only: what is in it does not change
}

var errDiffers = errors.New("the opened file differs from what was sealed")

// openOne opens a file and holds it against its label.
func (r *run) openOne(ctx context.Context, id string) error {
	l, envelope, err := r.shelf.get(id)
	if err != nil {
		return err
	}
	content, err := r.sealer.Open(ctx, envelope, []byte(id))
	if err != nil {
		return err
	}
	if digest(content) != l.SHA256 {
		return errDiffers
	}
	return nil
}
