package pacer_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/keybroker/keybroker/internal/pacer"
)

// An act of the random walk below.
type act struct {
	what  string
	n     int
	which int
}

// TestProperties plays random acts, in virtual time, against the rules: never
// more in flight than the limit, tickets balance, who gives up leaves no trace,
// the rate is kept, nobody waits while there is room, and at the end everybody
// has had a turn.
func TestProperties(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		cfg := pacer.Config{
			InFlight: rapid.IntRange(1, 12).Draw(rt, "in flight"),
			Floor:    rapid.Float64Range(1, 20).Draw(rt, "floor"),
			Start:    rapid.Float64Range(20, 2000).Draw(rt, "start"),
			Quota:    known(rapid.SampledFrom([]float64{0, 50, 1000}).Draw(rt, "quota")),
		}
		acts := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) act {
			return act{
				what:  rapid.SampledFrom([]string{"foreground", "enter", "enter", "enter", "give up", "end", "end", "wait", "share"}).Draw(rt, "what"),
				n:     rapid.IntRange(1, 30).Draw(rt, "n"),
				which: rapid.IntRange(0, 1000).Draw(rt, "which"),
			}
		}), 1, 60).Draw(rt, "acts")
		var broken error
		synctest.Test(t, func(t *testing.T) {
			w := &walk{p: newPacer(t, cfg), cfg: cfg}
			for i, a := range acts {
				if broken = w.do(a); broken != nil {
					broken = fmt.Errorf("act %d, %+v: %w", i, a, broken)
					break
				}
			}
			if err := w.finish(); broken == nil {
				broken = err
			}
		})
		if broken != nil {
			rt.Fatal(broken)
		}
	})
}

// A walk is one play.
type walk struct {
	p   *pacer.Pacer
	cfg pacer.Config

	waiting  []*caller
	inFlight [2][]pacer.Ticket
	admitted int
}

// A caller waits for a background call.
type caller struct {
	cancel context.CancelFunc
	ticket chan pacer.Ticket // closed where it gave up
}

func (w *walk) do(a act) error {
	switch a.what {
	case "foreground":
		for range a.n {
			ticket, err := w.p.Acquire(context.Background(), budget, pacer.Foreground)
			if err != nil {
				return err
			}
			w.inFlight[pacer.Foreground] = append(w.inFlight[pacer.Foreground], ticket)
		}
	case "enter":
		for range a.n {
			w.enter(fmt.Sprint("flow ", a.which%4), float64(1+a.which%3))
		}
	case "give up":
		for i := 0; i < len(w.waiting) && i < a.n; i++ {
			w.waiting[(a.which+i)%len(w.waiting)].cancel()
		}
	case "end":
		class := pacer.Class(a.which % 2)
		for i := 0; i < a.n && len(w.inFlight[class]) > 0; i++ {
			w.end(class, (a.which+i)%len(w.inFlight[class]), pacer.Outcome((a.which/2)%3))
		}
	case "wait":
		time.Sleep(time.Duration(a.n*a.n) * time.Millisecond)
	case "share":
		w.p.SetShare(budget, pacer.Share{Replicas: 1 + a.which%3})
	}
	return w.look()
}

func (w *walk) enter(flow string, weight float64) {
	ctx, cancel := context.WithCancel(pacer.WithFlow(context.Background(), pacer.NewFlow(flow, weight)))
	c := &caller{cancel: cancel, ticket: make(chan pacer.Ticket, 1)}
	w.waiting = append(w.waiting, c)
	go func() {
		defer close(c.ticket)
		if ticket, err := w.p.Acquire(ctx, budget, pacer.Background); err == nil {
			c.ticket <- ticket
		}
	}()
	synctest.Wait() // one after the other
}

func (w *walk) end(class pacer.Class, i int, o pacer.Outcome) {
	list := w.inFlight[class]
	list[i].Release(o)
	w.inFlight[class] = append(list[:i:i], list[i+1:]...)
}

// look takes in who was admitted or gave up, and compares.
func (w *walk) look() error {
	synctest.Wait()
	still := w.waiting[:0]
	for _, c := range w.waiting {
		select {
		case ticket, in := <-c.ticket:
			if in {
				w.admitted++
				w.inFlight[pacer.Background] = append(w.inFlight[pacer.Background], ticket)
			}
			c.cancel()
		default:
			still = append(still, c)
		}
	}
	w.waiting = still
	s := soFar(w.p)
	switch {
	case s == pacer.State{}:
		return nil
	case s.Background > w.cfg.InFlight:
		return fmt.Errorf("%d calls in flight, the limit is %d", s.Background, w.cfg.InFlight)
	case s.Foreground != len(w.inFlight[0]) || s.Background != len(w.inFlight[1]) || s.Waiting != len(w.waiting):
		return fmt.Errorf("the pacer counts %+v, there are %d and %d in flight and %d waiting", s, len(w.inFlight[0]), len(w.inFlight[1]), len(w.waiting))
	case int(s.BackgroundCalls) != w.admitted:
		return fmt.Errorf("the pacer admitted %d calls, %d came back", s.BackgroundCalls, w.admitted)
	case s.Rate < w.cfg.Floor || s.Rate > max(s.Ceiling, w.cfg.Floor):
		return fmt.Errorf("the rate is outside its bounds: %+v", s)
	}
	return nil
}

// finish lets everything end: whoever waits is admitted as soon as there is a
// place and a token for it, so all are within a time that the floor bounds.
func (w *walk) finish() error {
	for len(w.waiting) > 0 || len(w.inFlight[0]) > 0 || len(w.inFlight[1]) > 0 {
		for class := range w.inFlight {
			for len(w.inFlight[class]) > 0 {
				w.end(pacer.Class(class), 0, pacer.Lost)
			}
		}
		waited := len(w.waiting)
		if err := w.look(); err != nil {
			return err
		}
		if waited == 0 || len(w.waiting) < waited {
			continue
		}
		// The floor's next token is due within 1/floor, and a timer by a little.
		time.Sleep(time.Duration(float64(time.Second)/w.cfg.Floor) + 2*time.Millisecond)
		if err := w.look(); err != nil {
			return err
		}
		if len(w.waiting) == waited {
			return fmt.Errorf("%d calls wait with nothing in flight: %+v", waited, soFar(w.p))
		}
	}
	if s := soFar(w.p); s.Foreground != 0 || s.Background != 0 || s.Waiting != 0 {
		return fmt.Errorf("left behind: %+v", s)
	}
	return nil
}

// TestKeepsTheRate: over any time from a start, no more is admitted than the
// rate allows, whoever comes and goes; and no less while somebody waits.
func TestKeepsTheRate(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		const quota = 1000
		steps := rapid.SliceOfN(rapid.IntRange(0, 40), 1, 40).Draw(rt, "calls that come every 20 ms")
		leave := rapid.IntRange(0, 30).Draw(rt, "ms that a call takes")
		var broken error
		synctest.Test(t, func(t *testing.T) {
			p := newPacer(t, pacer.Config{Quota: known(quota), InFlight: 1000})
			start, came := time.Now(), 0
			done := make(chan struct{})
			for _, n := range steps {
				for range n {
					came++
					go func() {
						ticket := acquire(t, p, pacer.Background, nil)
						time.Sleep(time.Duration(leave) * time.Millisecond)
						ticket.Release(pacer.Done)
						done <- struct{}{}
					}()
				}
				time.Sleep(20 * time.Millisecond)
				synctest.Wait()
				s, passed := soFar(p), time.Since(start).Seconds()
				// One token of the rate is there at first, and one of the floor may be
				// ahead of it.
				if most := quota*passed + 2; float64(s.BackgroundCalls) > most {
					broken = fmt.Errorf("%d calls admitted in %v s", s.BackgroundCalls, passed)
				}
				if s.Waiting != came-int(s.BackgroundCalls) {
					broken = fmt.Errorf("%d wait of %d that came and %d admitted", s.Waiting, came, s.BackgroundCalls)
				}
			}
			// Work-conserving: what is left takes no longer than the rate asks for.
			left := soFar(p)
			time.Sleep(time.Duration(float64(left.Waiting)/quota*float64(time.Second)) + 2*time.Millisecond)
			synctest.Wait()
			if s := soFar(p); s.Waiting > 0 {
				broken = fmt.Errorf("of %d calls that waited, %d still do", left.Waiting, s.Waiting)
			}
			for range came {
				<-done
			}
		})
		if broken != nil {
			rt.Fatal(broken)
		}
	})
}

// soFar gives the state of the one budget, which may not have been used yet.
func soFar(p *pacer.Pacer) pacer.State {
	if all := p.States(); len(all) > 0 {
		return all[0]
	}
	return pacer.State{}
}

// TestTurns: while a flow waits, no other gets ahead of it by more than one call
// beyond its share, however many it has waiting and whenever they came.
func TestTurns(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		flows := rapid.IntRange(2, 5).Draw(rt, "flows")
		weight := make([]float64, flows)
		for f := range weight {
			weight[f] = rapid.SampledFrom([]float64{0.5, 1, 1, 2, 4, 7}).Draw(rt, "weight")
		}
		// The calls in the order in which they come, some of them only after others
		// were admitted.
		come := rapid.SliceOfN(rapid.IntRange(0, flows-1), 1, 120).Draw(rt, "come")
		first := rapid.IntRange(1, len(come)).Draw(rt, "first")
		var broken error
		synctest.Test(t, func(t *testing.T) {
			p := newPacer(t, pacer.Config{InFlight: 1, Quota: known(1e9)})
			held := acquire(t, p, pacer.Background, nil)
			admitted := make(chan int)
			enter := func(f int) {
				go func() {
					ticket := acquire(t, p, pacer.Background, pacer.NewFlow(fmt.Sprint(f), weight[f]))
					admitted <- f
					ticket.Release(pacer.Lost)
				}()
				synctest.Wait()
			}
			waiting := make([]int, flows)
			ahead := make([][]int, flows) // [f][j]: calls of j since f's last, while f waits
			for f := range ahead {
				ahead[f] = make([]int, flows)
			}
			add := func(f int) {
				enter(f)
				if waiting[f]++; waiting[f] == 1 {
					clear(ahead[f])
				}
			}
			for _, f := range come[:first] {
				add(f)
			}
			held.Release(pacer.Lost)
			for n := range come {
				got := <-admitted
				waiting[got]--
				for f := range ahead {
					ahead[f][got]++
					if most := 1 + weight[got]/weight[f]; f != got && waiting[f] > 0 && float64(ahead[f][got]) > most {
						broken = fmt.Errorf("flow %d of weight %v had %d turns while %d of weight %v had none", got, weight[got], ahead[f][got], f, weight[f])
					}
				}
				clear(ahead[got])
				if first+n < len(come) {
					add(come[first+n])
				}
				synctest.Wait()
			}
		})
		if broken != nil {
			rt.Fatal(broken)
		}
	})
}
