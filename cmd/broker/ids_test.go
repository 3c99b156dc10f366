package main

import (
	"strings"
	"sync"
	"testing"
	"time"
)

func TestIDsSortByTimeAlsoWhenTheClockStepsBack(t *testing.T) {
	now := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	steps := []time.Duration{0, 0, time.Millisecond, 0, -time.Hour, 0, 2 * time.Hour}
	g := newIDs(func() time.Time {
		if len(steps) > 0 {
			now, steps = now.Add(steps[0]), steps[1:]
		}
		return now
	})
	last := ""
	for range 10_000 {
		id := g.next()
		if len(id) != 26 || strings.Trim(id, "0123456789abcdefghjkmnpqrstvwxyz") != "" {
			t.Fatalf("%q is no id", id)
		}
		if id <= last {
			t.Fatalf("%s does not sort after %s", id, last)
		}
		last = id
	}
}

func TestIDsCarryIntoTheTime(t *testing.T) {
	g := newIDs(func() time.Time { return time.UnixMilli(5) })
	first := g.next()
	for i := range g.chance {
		g.chance[i] = 0xff
	}
	if second := g.next(); second <= first || g.millis != 6 {
		t.Errorf("%s after %s, at %d ms", second, first, g.millis)
	}
}

func TestIDsDifferAcrossGoroutines(t *testing.T) {
	g := newIDs(time.Now)
	var mu sync.Mutex
	var wg sync.WaitGroup
	seen := map[string]bool{}
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				id := g.next()
				mu.Lock()
				seen[id] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(seen) != 8000 {
		t.Errorf("%d different ids of 8000", len(seen))
	}
}
