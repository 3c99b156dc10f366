package pacer_test

import (
	"context"
	"errors"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/keybroker/keybroker/internal/pacer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConfigContradictions(t *testing.T) {
	if _, err := pacer.New(pacer.Config{}); err == nil {
		t.Error("a pacer without a clock was made")
	}
	for _, cfg := range []pacer.Config{
		{Ceiling: -0.1}, {Ceiling: 1.1}, {Ceiling: math.NaN()}, {Floor: -1}, {Floor: 10, Start: 9}, {Start: math.Inf(1)}, {InFlight: -1},
	} {
		cfg.Now = time.Now
		if _, err := pacer.New(cfg); err == nil {
			t.Errorf("%+v was accepted", cfg)
		}
	}
}

func TestForegroundNeverWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPacer(t, pacer.Config{InFlight: 1, Quota: known(10)})
		held := acquire(t, p, pacer.Background, nil)
		go func() { acquire(t, p, pacer.Background, nil).Release(pacer.Done) }()
		synctest.Wait()
		for range 100 {
			acquire(t, p, pacer.Foreground, nil) // would deadlock the bubble
		}
		if s := state(t, p); s.Foreground != 100 || s.Background != 1 || s.Waiting != 1 {
			t.Errorf("got %+v, want 100 foreground calls, 1 in the background and 1 waiting", s)
		}
		held.Release(pacer.Done)
		time.Sleep(time.Second) // the floor: the foreground took the rate's tokens
		synctest.Wait()
		if s := state(t, p); s.Background != 0 || s.Waiting != 0 {
			t.Errorf("the waiting call did not run: %+v", s)
		}
	})
}

func TestFirstComeFirstServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPacer(t, pacer.Config{InFlight: 1, Quota: known(1e6)})
		held := acquire(t, p, pacer.Background, nil)
		var order []int
		for i := range 5 {
			go func() {
				ticket := acquire(t, p, pacer.Background, nil)
				order = append(order, i) // one at a time: the limit is 1
				ticket.Release(pacer.Done)
			}()
			synctest.Wait()
		}
		held.Release(pacer.Done)
		time.Sleep(time.Second)
		synctest.Wait()
		for i, got := range order {
			if got != i {
				t.Fatalf("served in the order %v", order)
			}
		}
		if len(order) != 5 {
			t.Errorf("served %v, want all of 5", order)
		}
	})
}

// TestBudgetsAreApart: one quota's throttling and waiting is not another's.
func TestBudgetsAreApart(t *testing.T) {
	p := newPacer(t, pacer.Config{InFlight: 1, Quota: func(b pacer.Budget) float64 { return map[string]float64{"cryptographic": 2000}[b.Quota] }})
	grants, elsewhere := budget, budget
	grants.Quota, elsewhere.Region = "CreateGrant", "eu-west-1"
	for _, b := range []pacer.Budget{budget, grants, elsewhere} {
		if _, err := p.Acquire(t.Context(), b, pacer.Background); err != nil { // held: a second one would wait
			t.Fatal(err)
		}
	}
	for range 100 {
		ticket, err := p.Acquire(t.Context(), grants, pacer.Foreground)
		if err != nil {
			t.Fatal(err)
		}
		ticket.Release(pacer.Throttled)
	}
	states := p.States()
	if len(states) != 3 || states[0].Budget != elsewhere || states[1].Budget != grants || states[2].Budget != budget {
		t.Fatalf("got %+v", states)
	}
	if states[1].Throttled != 100 || states[1].Rate >= 1000 {
		t.Errorf("100 throttled calls left %+v", states[1])
	}
	for _, s := range []pacer.State{states[0], states[2]} {
		if s.Throttled != 0 || s.Background != 1 || s.Rate < 1000 {
			t.Errorf("another budget noticed: %+v", s)
		}
	}
}

func TestGivingUpLeavesNothingBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPacer(t, pacer.Config{InFlight: 1})
		held := acquire(t, p, pacer.Background, nil)
		impatient := errors.New("impatient")
		ctx, cancel := context.WithCancelCause(t.Context())
		failed := make(chan error, 1)
		go func() { _, err := p.Acquire(ctx, budget, pacer.Background); failed <- err }()
		synctest.Wait()
		patient := make(chan pacer.Ticket, 1)
		go func() { patient <- acquire(t, p, pacer.Background, nil) }()
		synctest.Wait()
		cancel(impatient)
		if err := <-failed; !errors.Is(err, impatient) {
			t.Errorf("got %v, want the context's cause", err)
		}
		held.Release(pacer.Done)
		(<-patient).Release(pacer.Done)
		if s := state(t, p); s.Background != 0 || s.Waiting != 0 || s.BackgroundCalls != 2 {
			t.Errorf("left behind: %+v", s)
		}
	})
}

// TestCancelAgainstAdmission lets both happen in the same moment, many times: no
// place and no token may be lost.
func TestCancelAgainstAdmission(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPacer(t, pacer.Config{InFlight: 1, Quota: known(1e9)})
		for range 200 {
			held := acquire(t, p, pacer.Background, nil)
			ctx, cancel := context.WithCancel(t.Context())
			in := make(chan bool, 1)
			go func() {
				ticket, err := p.Acquire(ctx, budget, pacer.Background)
				ticket.Release(pacer.Lost)
				in <- err == nil
			}()
			synctest.Wait()
			behind := make(chan pacer.Ticket, 1)
			go func() { behind <- acquire(t, p, pacer.Background, nil) }()
			synctest.Wait()
			cancel() // wakes the first, which may find itself admitted
			held.Release(pacer.Lost)
			if <-in {
				t.Fatal("got in after its context had ended")
			}
			(<-behind).Release(pacer.Lost)
			if s := state(t, p); s.Background != 0 || s.Waiting != 0 {
				t.Fatalf("a place was lost: %+v", s)
			}
		}
	})
}

// TestOneDecreasePerRound: what was under way together is judged once.
func TestOneDecreasePerRound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPacer(t, pacer.Config{Start: 1000})
		var together []pacer.Ticket
		for range 100 {
			together = append(together, acquire(t, p, pacer.Foreground, nil))
		}
		for _, ticket := range together {
			ticket.Release(pacer.Throttled)
		}
		if s := state(t, p); s.Rate != 500 || s.Throttled != 100 {
			t.Errorf("after one round: %+v, want half the rate and 100 throttled", s)
		}
	})
}

func TestRateRisesOnlyWhereReached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPacer(t, pacer.Config{Start: 1000})
		for range 1000 {
			ticket := acquire(t, p, pacer.Background, nil)
			time.Sleep(latency)
			ticket.Release(pacer.Done)
		}
		if s := state(t, p); s.Rate != 1000 {
			t.Errorf("125 calls a second moved a rate of 1,000 to %v", s.Rate)
		}
		for range 1000 {
			acquire(t, p, pacer.Foreground, nil).Release(pacer.Lost)
		}
		if s := state(t, p); s.Rate != 1000 || s.Calls != 1000 {
			t.Errorf("lost calls count: %+v", s)
		}
	})
}

func TestNoAllocation(t *testing.T) {
	p := newPacer(t, pacer.Config{Quota: known(1e9)})
	ctx := pacer.WithFlow(t.Context(), pacer.NewFlow("job", 1))
	if n := testing.AllocsPerRun(100, func() {
		ticket, err := p.Acquire(ctx, budget, pacer.Background)
		if err != nil {
			t.Fatal(err)
		}
		ticket.Release(pacer.Done)
	}); n != 0 {
		t.Errorf("%v allocations a call", n)
	}
}

func BenchmarkAcquire(b *testing.B) {
	p := newPacer(b, pacer.Config{Quota: known(1e9)})
	ctx := pacer.WithFlow(b.Context(), pacer.NewFlow("job", 1))
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			ticket, err := p.Acquire(ctx, budget, pacer.Background)
			if err != nil {
				b.Fatal(err)
			}
			ticket.Release(pacer.Done)
		}
	})
}
