//go:build unix

package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keybroker/keybroker/test/chaos/devserver"
)

// A point is a place that the sources name by a call of At: between an act at
// KMS and its commit, or beside a commit. Chance seldom strikes there.
type point struct {
	name string
	// most is how many hits to wait for, at most: one where a key change comes by
	// once, and a change takes ten seconds.
	most int
	// drive makes the calls that come by here where key changes, new data keys and
	// grants do not.
	drive func(*story, context.Context) error
}

const oftenHit = 5

// points come in the order in which a key change passes them, twice over, so that
// few changes serve them all: the one right after a point is often past when the
// process that mended the crash is killed for it. Those that need calls of their own come last.
func points() []point {
	return []point{
		{name: "prepare.described", most: 1},
		{name: "prepare.granted", most: 1},
		{name: "switch.sampled", most: 1},
		{name: "batch.reencrypted", most: oftenHit},
		{name: "datakey.generated", most: oftenHit},
		{name: "verify.passed", most: 1},
		{name: "retire.marked", most: 1},
		{name: "retire.asked", most: 1},
		{name: "grant.intended", most: oftenHit},
		{name: "grant.created", most: oftenHit},
		{name: "switch.committed", most: 1},
		{name: "batch.committed", most: oftenHit},
		{name: "retire.retired", most: 1},
		{name: "retire.listed", most: 1},
		{name: "undo.retired", most: 1, drive: (*story).takeChangeBack},
		{name: "import.reencrypted", most: oftenHit, drive: (*story).importKey},
		{name: "delete.committed", most: oftenHit, drive: (*story).deleteDomain},
	}
}

// plainPoints are passed by every key change of a domain with grants.
func plainPoints() []point {
	return slices.DeleteFunc(points(), func(p point) bool { return p.drive != nil })
}

// A point that is added to the sources is struck from then on.
func TestEveryPointIsStruck(t *testing.T) {
	root, err := devserver.Root()
	if err != nil {
		t.Fatal(err)
	}
	call := regexp.MustCompile(`\bcfg\.At\("([^"]*)"\)`)
	var named []string
	for _, room := range []string{"broker", "rotation"} {
		files, err := filepath.Glob(filepath.Join(root, "internal", room, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range call.FindAllStringSubmatch(string(text), -1) {
				named = append(named, m[1])
			}
		}
	}
	struck := keeperPoints()
	for _, p := range points() {
		struck = append(struck, p.name)
	}
	slices.Sort(named)
	slices.Sort(struck)
	if named = slices.Compact(named); !slices.Equal(named, struck) {
		t.Errorf("the sources name the points\n%q, and points() and keeperPoints() have\n%q", named, struck)
	}
}

// pointBound is how long a process may take to a point: a key change that has to
// end first, and the next one, on a busy machine.
const pointBound = 45 * time.Second

// pointCycle starts a process that kills itself at the next point, looks at what
// is left, and starts again. A point that is not reached in time is counted, and
// kill -9 takes its place.
func (s *story) pointCycle(ctx context.Context) error {
	p := s.points[s.pointCycles%len(s.points)]
	s.pointCycles++
	failpoint := fmt.Sprintf("%s:%d", p.name, 1+s.rng.IntN(p.most))
	r, err := s.sys.up(ctx)
	if err != nil {
		return err
	}
	if _, err := (killer{}).strike(ctx, r); err != nil {
		return err
	}
	if err := r.buried(); err != nil {
		return err
	}
	if r, err = s.sys.start(ctx, "KEYBROKER_FAILPOINT="+failpoint); err != nil {
		return err
	}
	until, stop := context.WithCancel(ctx)
	defer stop()
	driven := make(chan error, 1)
	go func() { driven <- s.drive(ctx, until, p) }()
	err = s.awaitPoint(ctx, r, p, failpoint)
	stop()
	if err == nil {
		r, err = s.start(ctx)
	}
	if err != nil {
		s.fail(err) // ends the calls that wait for a process
	}
	// A call that the crash cut off is repeated on the process of now.
	if err := errors.Join(err, <-driven); err != nil {
		return err
	}
	return s.recovered(ctx, r)
}

// awaitPoint waits until the process has ended at the point, and looks.
func (s *story) awaitPoint(ctx context.Context, r *running, p point, failpoint string) error {
	begun := time.Now()
	bound := time.NewTimer(pointBound)
	defer bound.Stop()
	counts, what := s.result.Points, "reached"
	select {
	case <-r.Done():
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-bound.C:
		counts, what = s.result.NotReached, "did not reach"
		if _, err := (killer{}).strike(ctx, r); err != nil {
			return err
		}
	}
	took := time.Since(begun)
	if err := r.buried(); err != nil {
		return err
	}
	left, err := s.lookAfterCrash(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", failpoint, err)
	}
	counts[p.name]++
	s.t.Logf("%s %s after %v, in %s, with %d rows to move", what, failpoint, took.Round(time.Millisecond), left.found(), left.pending)
	return nil
}

// drive keeps keys changing, or makes the point's own calls, until there is no
// more need. What is begun is ended, over the crash: only waiting stops at once.
func (s *story) drive(ctx, until context.Context, p point) error {
	s.work.burst(ctx, s.failed)
	for until.Err() == nil {
		if p.drive != nil {
			if err := p.drive(s, ctx); err != nil {
				return err
			}
			continue
		}
		if s.jobEnded {
			if err := s.changeKey(ctx); err != nil {
				return err
			}
		}
		if err := s.awaitJob(until); err != nil && until.Err() == nil {
			return err
		}
	}
	return nil
}
