package pacer_test

import (
	"context"
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keybroker/keybroker/internal/pacer"
)

// run makes so many calls for a flow, from some workers, and gives how long they
// took together.
func run(p *pacer.Pacer, k *simKMS, f *pacer.Flow, workers, calls int) time.Duration {
	start := time.Now()
	ctx := pacer.WithFlow(context.Background(), f)
	left := make(chan struct{}, calls)
	for range calls {
		left <- struct{}{}
	}
	close(left)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range left {
				ticket, err := p.Acquire(ctx, budget, pacer.Background)
				if err != nil {
					panic(err)
				}
				ticket.Release(k.call())
			}
		})
	}
	wg.Wait()
	return time.Since(start)
}

// TestSmallJobBesideLarge: 100 calls beside a job of 1,000,000 rows with as many
// calls waiting as it likes.
func TestSmallJobBesideLarge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const quota = 2000
		k := newSimKMS(quota, quota)
		p := newPacer(t, pacer.Config{Quota: known(quota)})
		large := newCrowd(p, k, pacer.NewFlow("large", 1), 500)
		defer large.end()
		time.Sleep(10 * time.Second)
		for i := range 5 {
			took := run(p, k, pacer.NewFlow("small", 1), 16, 100)
			// Half of the budget is its fair share, and the first and the last call
			// take their time.
			fair := time.Duration(100.0/(quota/2)*float64(time.Second)) + 2*latency
			t.Logf("round %d: %v, at its fair share %v", i, took, fair)
			if took > 2*fair {
				t.Errorf("a job of 100 calls took %v beside a large one; at its fair share it would take %v", took, fair)
			}
			time.Sleep(time.Second)
		}
	})
}

// TestWeights: flows share the budget by weight, not by how many calls they have
// waiting; what one leaves is the others'.
func TestWeights(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const quota = 2000
		k := newSimKMS(quota, quota)
		p := newPacer(t, pacer.Config{Quota: known(quota)})
		flows := []*pacer.Flow{pacer.NewFlow("many", 1), pacer.NewFlow("urgent", 4), pacer.NewFlow("few", 1), pacer.NewFlow("slow", 1)}
		var crowds []*crowd
		for i, workers := range []int{200, 50, 50, 1} { // one worker makes 125 calls a second, less than its share
			crowds = append(crowds, newCrowd(p, k, flows[i], workers))
		}
		expect := func(want ...float64) {
			t.Helper()
			const d = 20
			time.Sleep(2 * time.Second)
			var before []uint64
			for _, f := range flows {
				n, _ := f.Counts()
				before = append(before, n)
			}
			time.Sleep(d * time.Second)
			for i, f := range flows {
				n, _ := f.Counts()
				if got := float64(n-before[i]) / d; math.Abs(got-want[i]) > 0.05*quota/10 {
					t.Errorf("flow %d made %.0f calls/s, want %.0f", i, got, want[i])
				}
			}
		}
		// The slow one waits for its turn as well as for its answer.
		const slow = 115
		expect((quota-slow)/6., 4*(quota-slow)/6., (quota-slow)/6., slow)
		crowds[1].end()
		expect((quota-slow)/2., 0, (quota-slow)/2., slow)
		for _, i := range []int{0, 2, 3} {
			crowds[i].end()
		}
		if s := state(t, p); s.Background != 0 || s.Waiting != 0 {
			t.Errorf("left behind: %+v", s)
		}
	})
}

// TestSameID: flows of one id stand in one line.
func TestSameID(t *testing.T) {
	for name, test := range map[string]struct {
		weight float64 // of the first of two flows of one id; the second's is 1
		want   float64 // the share of a flow of another id, of weight 1
	}{
		"shards of one job": {1, 0.5},
		// What a tenant does beside its job of high priority, with as many calls, shares
		// the job's part, and makes it no smaller.
		"beside a job of high priority": {4, 0.2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newSimKMS(2000, 2000)
				p := newPacer(t, pacer.Config{Quota: known(2000)})
				flows := []*pacer.Flow{pacer.NewFlow("one", test.weight), pacer.NewFlow("one", 1), pacer.NewFlow("other", 1)}
				for _, f := range flows {
					defer newCrowd(p, k, f, 50).end()
				}
				time.Sleep(10 * time.Second)
				a, _ := flows[0].Counts()
				b, _ := flows[1].Counts()
				c, _ := flows[2].Counts()
				if share := float64(c) / float64(a+b+c); math.Abs(share-test.want) > 0.02 {
					t.Errorf("the other flow got %.3f of the calls, want %.1f", share, test.want)
				}
			})
		})
	}
}
