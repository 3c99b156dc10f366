package pacer_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/keybroker/keybroker/internal/pacer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newPacer(t testing.TB, cfg pacer.Config) *pacer.Pacer {
	t.Helper()
	p, err := pacer.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func acquire(t testing.TB, p *pacer.Pacer, class pacer.Class) pacer.Ticket {
	t.Helper()
	ticket, err := p.Acquire(context.Background(), class)
	if err != nil {
		t.Fatal(err)
	}
	return ticket
}

func TestConfigContradictions(t *testing.T) {
	for _, cfg := range []pacer.Config{
		{Min: -1}, {Min: 9, Max: 8}, {Max: 8, Start: 9}, {Min: 3, Start: 2}, {Increase: -1}, {Decrease: 1}, {Decrease: -0.5},
	} {
		if _, err := pacer.New(cfg); err == nil {
			t.Errorf("%+v was accepted", cfg)
		}
	}
	for _, cfg := range []pacer.Config{{}, {Min: 300}, {Max: 2}} {
		newPacer(t, cfg)
	}
}

func TestForegroundNeverWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPacer(t, pacer.Config{Max: 1})
		held := acquire(t, p, pacer.Background)
		go func() { acquire(t, p, pacer.Background).Release(pacer.Done) }()
		synctest.Wait()
		for range 100 {
			acquire(t, p, pacer.Foreground) // would deadlock the bubble
		}
		want := pacer.Snapshot{Limit: 1, Foreground: 100, Background: 1, Waiting: 1}
		if got := p.Snapshot(); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
		held.Release(pacer.Done)
		synctest.Wait()
		if got := p.Snapshot(); got.Background != 0 || got.Waiting != 0 {
			t.Errorf("the waiting call did not run: %+v", got)
		}
	})
}

func TestFirstComeFirstServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPacer(t, pacer.Config{Max: 1})
		held := acquire(t, p, pacer.Background)
		var order []int
		for i := range 5 {
			go func() {
				ticket := acquire(t, p, pacer.Background)
				order = append(order, i) // one at a time: the limit is 1
				ticket.Release(pacer.Done)
			}()
			synctest.Wait()
		}
		held.Release(pacer.Done)
		synctest.Wait()
		for i, got := range order {
			if got != i {
				t.Fatalf("served in the order %v", order)
			}
		}
	})
}

func TestGivingUpLeavesNothingBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPacer(t, pacer.Config{Max: 1})
		held := acquire(t, p, pacer.Background)
		impatient := errors.New("impatient")
		ctx, cancel := context.WithCancelCause(t.Context())
		failed := make(chan error, 1)
		go func() { _, err := p.Acquire(ctx, pacer.Background); failed <- err }()
		synctest.Wait()
		patient := make(chan pacer.Ticket, 1)
		go func() { patient <- acquire(t, p, pacer.Background) }()
		synctest.Wait()
		cancel(impatient)
		if err := <-failed; !errors.Is(err, impatient) {
			t.Errorf("got %v, want the context's cause", err)
		}
		held.Release(pacer.Done)
		(<-patient).Release(pacer.Done)
		if got := p.Snapshot(); got.Background != 0 || got.Waiting != 0 {
			t.Errorf("left behind: %+v", got)
		}
	})
}

// TestCancelAgainstAdmission lets both happen in the same moment, many times: no
// place may be lost.
func TestCancelAgainstAdmission(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPacer(t, pacer.Config{Max: 1})
		for range 200 {
			held := acquire(t, p, pacer.Background)
			ctx, cancel := context.WithCancel(t.Context())
			in := make(chan bool, 1)
			go func() {
				ticket, err := p.Acquire(ctx, pacer.Background)
				ticket.Release(pacer.Lost)
				in <- err == nil
			}()
			synctest.Wait()
			behind := make(chan pacer.Ticket, 1)
			go func() { behind <- acquire(t, p, pacer.Background) }()
			synctest.Wait()
			cancel() // wakes the first, which may find itself admitted
			held.Release(pacer.Lost)
			if <-in {
				t.Fatal("got in after its context had ended")
			}
			(<-behind).Release(pacer.Lost)
			if got := p.Snapshot(); got.Background != 0 || got.Waiting != 0 {
				t.Fatalf("a place was lost: %+v", got)
			}
		}
	})
}

func TestOneDecreasePerRound(t *testing.T) {
	p := newPacer(t, pacer.Config{Start: 10, Decrease: 0.5})
	var together []pacer.Ticket
	for range 10 {
		together = append(together, acquire(t, p, pacer.Background))
	}
	for _, ticket := range together {
		ticket.Release(pacer.Throttled)
	}
	if got := p.Snapshot(); got.Limit != 5 || got.Throttled != 10 {
		t.Errorf("after one round: %+v, want limit 5, 10 throttled", got)
	}
	acquire(t, p, pacer.Foreground).Release(pacer.Throttled)
	if got := p.Snapshot().Limit; got != 2.5 {
		t.Errorf("a throttled foreground call left limit %v, want 2.5", got)
	}
	before, beside := acquire(t, p, pacer.Background), acquire(t, p, pacer.Background)
	before.Release(pacer.Throttled)
	acquire(t, p, pacer.Foreground).Release(pacer.Done)
	beside.Release(pacer.Done) // let in before the decrease
	if got := p.Snapshot().Limit; got != 1.25 {
		t.Errorf("a call of the round before moved the limit to %v, want 1.25", got)
	}
}

func TestLimitRisesOnlyWhereReached(t *testing.T) {
	p := newPacer(t, pacer.Config{Start: 4})
	for range 1000 {
		acquire(t, p, pacer.Background).Release(pacer.Done)
	}
	if got := p.Snapshot().Limit; got != 4 {
		t.Errorf("one call at a time moved the limit to %v", got)
	}
	round := func() {
		var together []pacer.Ticket
		for range 4 {
			together = append(together, acquire(t, p, pacer.Background))
		}
		for _, ticket := range together {
			ticket.Release(pacer.Lost)
		}
	}
	round()
	if got := p.Snapshot().Limit; got != 4 {
		t.Errorf("lost calls moved the limit to %v", got)
	}
}

// TestFindsTheQuota lets 64 workers share a server that takes 40 calls at once.
func TestFindsTheQuota(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const quota, workers, calls = 40, 64, 400
		p := newPacer(t, pacer.Config{})
		busy, served, throttled := 0, 0, 0
		done := make(chan struct{})
		places := make(chan struct{}, 1) // a mutex that synctest sees as blocking
		for range workers {
			go func() {
				defer func() { done <- struct{}{} }()
				for range calls {
					ticket := acquire(t, p, pacer.Background)
					places <- struct{}{}
					busy++
					over := busy > quota
					<-places
					time.Sleep(8 * time.Millisecond)
					places <- struct{}{}
					busy--
					if over {
						throttled++
					} else {
						served++
					}
					<-places
					if over {
						ticket.Release(pacer.Throttled)
					} else {
						ticket.Release(pacer.Done)
					}
				}
			}()
		}
		start := time.Now()
		for range workers {
			<-done
		}
		rate := float64(served) / time.Since(start).Seconds() / (quota / 0.008)
		share := float64(throttled) / float64(served+throttled)
		t.Logf("%.0f%% of the quota used, %.2f%% of the calls throttled", 100*rate, 100*share)
		if rate < 0.75 || share > 0.05 {
			t.Errorf("used %.2f of the quota with %.4f throttled", rate, share)
		}
	})
}

// TestBounds plays random calls against the rules: what is in flight was within
// the limit when it was let in, and the limit stays within its bounds.
func TestBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := pacer.Config{
			Min: rapid.IntRange(1, 4).Draw(t, "min"), Increase: rapid.Float64Range(0.1, 3).Draw(t, "increase"),
			Decrease: rapid.Float64Range(0.1, 0.9).Draw(t, "decrease"),
		}
		cfg.Max = cfg.Min + rapid.IntRange(0, 12).Draw(t, "room")
		cfg.Start = rapid.IntRange(cfg.Min, cfg.Max).Draw(t, "start")
		p, err := pacer.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		over, cancel := context.WithCancel(context.Background())
		cancel()
		var inFlight [2][]pacer.Ticket
		t.Repeat(map[string]func(*rapid.T){
			"acquire": func(t *rapid.T) {
				class := pacer.Class(rapid.IntRange(0, 1).Draw(t, "class"))
				before := p.Snapshot()
				ticket, err := p.Acquire(over, class) // whoever must wait gives up
				switch full := before.Background >= int(before.Limit); {
				case class == pacer.Background && full:
					if err == nil {
						t.Fatalf("let in beyond the limit: %+v", before)
					}
				case err != nil:
					t.Fatalf("not let in: %+v", before)
				default:
					inFlight[class] = append(inFlight[class], ticket)
				}
			},
			"release": func(t *rapid.T) {
				class := rapid.IntRange(0, 1).Draw(t, "class")
				if len(inFlight[class]) == 0 {
					t.Skip()
				}
				i := rapid.IntRange(0, len(inFlight[class])-1).Draw(t, "which")
				inFlight[class][i].Release(pacer.Outcome(rapid.IntRange(0, 2).Draw(t, "outcome")))
				inFlight[class] = append(inFlight[class][:i], inFlight[class][i+1:]...)
			},
			"": func(t *rapid.T) {
				s := p.Snapshot()
				if s.Limit < float64(cfg.Min) || s.Limit > float64(cfg.Max) {
					t.Fatalf("limit %v outside [%d,%d]", s.Limit, cfg.Min, cfg.Max)
				}
				if s.Foreground != len(inFlight[0]) || s.Background != len(inFlight[1]) || s.Waiting != 0 {
					t.Fatalf("got %+v, want %d and %d in flight", s, len(inFlight[0]), len(inFlight[1]))
				}
			},
		})
	})
}

func TestNoAllocation(t *testing.T) {
	p := newPacer(t, pacer.Config{})
	if n := testing.AllocsPerRun(100, func() { acquire(t, p, pacer.Background).Release(pacer.Done) }); n != 0 {
		t.Errorf("%v allocations a call", n)
	}
}

func BenchmarkAcquire(b *testing.B) {
	p := newPacer(b, pacer.Config{})
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			acquire(b, p, pacer.Background).Release(pacer.Done)
		}
	})
}
