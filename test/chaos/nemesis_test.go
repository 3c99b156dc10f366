//go:build unix

package chaos_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"
)

// A nemesis does one kind of harm to a running system. It does not choose the
// moment: that is the schedule's part.
type nemesis interface {
	// strike returns when the harm is done. gone says that the process has ended,
	// so that another one has to be started on its data.
	strike(ctx context.Context, r *running) (gone bool, err error)
}

// newNemesis gives the nemesis of that name and, if it is their turn as well, the
// points at which the process is to kill itself: mix strikes in turn with them,
// point is them alone.
func newNemesis(name string, rng *rand.Rand, at []point) (nemesis, []point, error) {
	switch name {
	case "kill":
		return killer{}, nil, nil
	case "term":
		return terminator{}, nil, nil
	case "pause":
		return pauser{rng}, nil, nil
	case "point":
		return nil, at, nil
	case "mix":
		return killer{}, at, nil
	}
	return nil, nil, fmt.Errorf("there is no nemesis %q: kill, term, pause, point or mix", name)
}

// killer is kill -9: broker and embedded KMS end between two instructions.
type killer struct{}

func (killer) strike(_ context.Context, r *running) (bool, error) {
	r.expectHarm()
	return true, r.Kill()
}

// terminator asks for an orderly end, and insists on exit code 0.
type terminator struct{}

func (terminator) strike(ctx context.Context, r *running) (bool, error) {
	r.expectHarm()
	return true, r.Stop(ctx)
}

// pauser stops the process for longer than its leases last (3 s under --dev),
// and lets it go on as if nothing had been. Nobody takes its work meanwhile: the
// directory has room for one process. What is tested is that it notices.
type pauser struct{ rng *rand.Rand }

func (p pauser) strike(ctx context.Context, r *running) (bool, error) {
	if err := r.Signal(syscall.SIGSTOP); err != nil {
		return false, err
	}
	err := wait(ctx, between(p.rng, 3*time.Second, 5*time.Second))
	if contErr := r.Signal(syscall.SIGCONT); contErr != nil {
		return false, contErr
	}
	return false, err
}

// A moment is when to strike: in a phase of the job, or in a start of the
// server, after a random time. Time and not an event is what chance is about:
// whatever we could wait for is a place where the program is known to be.
type moment struct {
	phase string
	// spread is how long the phase takes, about: after the wait that the job tells
	// of, if it does.
	spread time.Duration
	// past is for a phase that is over before a watch shows it: the moment lies
	// after that wait in the phase before, not within it.
	past bool
}

// delay draws how long to wait in the phase, of which the job has told its wait.
func (m moment) delay(rng *rand.Rand, waits time.Duration) time.Duration {
	waits = max(0, waits)
	if m.past {
		return waits + between(rng, 0, m.spread)
	}
	return between(rng, 0, waits+m.spread)
}

// starting is the moment between exec and the first call that is served.
const starting = "STARTING"

// schedule gives n moments. Phases come in the order in which a job passes
// them, so that few jobs serve many cycles: a job takes ten seconds, most of
// them the waits that --dev has.
func schedule(n int) []moment {
	preparing, reencrypting := moment{phase: "PREPARING", spread: 1500 * time.Millisecond}, moment{phase: "REENCRYPTING", spread: 800 * time.Millisecond}
	draining, verifying := moment{phase: "DRAINING"}, moment{phase: "DRAINING", spread: 400 * time.Millisecond, past: true}
	retiring, start := moment{phase: "RETIRING", spread: 1500 * time.Millisecond}, moment{phase: starting}
	jobs := [][]moment{
		{preparing, reencrypting, draining, verifying, retiring},
		{preparing, reencrypting, start, reencrypting, retiring},
	}
	var all []moment
	for i := 0; len(all) < n; i++ {
		all = append(all, jobs[i%len(jobs)]...)
	}
	return all[:n]
}

func between(rng *rand.Rand, from, to time.Duration) time.Duration {
	if to <= from {
		return from
	}
	return from + time.Duration(rng.Int64N(int64(to-from)))
}

// wait is for moments that chance chooses, never for something to happen.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
