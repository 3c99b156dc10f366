package pacer_test

import (
	"math"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keybroker/keybroker/internal/pacer"
)

// The targets of docs/performance.md, in virtual time.
const (
	leastUsed     = 0.97
	mostThrottled = 0.01
)

func check(t *testing.T, what string, used, throttled float64) {
	t.Helper()
	if used < leastUsed || throttled > mostThrottled {
		t.Errorf("%s: used %.4f of the quota with %.4f throttled, want at least %v and at most %v", what, used, throttled, leastUsed, mostThrottled)
	}
}

// TestFindsTheQuota lets bulk work find a quota that it does not know, knows, or
// believes to be larger, at KMSs that save up more and less.
func TestFindsTheQuota(t *testing.T) {
	for _, c := range []struct {
		what    string
		rate    float64
		most    float64
		quota   float64 // as the pacer knows it
		workers int
	}{
		{"a second saved up", 2000, 2000, 0, 64},
		{"100 ms saved up", 2000, 200, 0, 64},
		{"10 ms saved up", 2000, 20, 0, 64},
		{"nothing saved up", 2000, 4, 0, 64},
		{"a known quota", 2000, 2000, 2000, 64},
		{"a quota believed larger", 2000, 2000, 10_000, 64},
		{"a large quota", 10_000, 10_000, 0, 200},
	} {
		t.Run(c.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newSimKMS(c.rate, c.most)
				p := newPacer(t, pacer.Config{Quota: known(c.quota)})
				work := newCrowd(p, k, nil, c.workers)
				defer work.end()
				used, throttled := k.span(t, "from the start", 20*time.Second)
				check(t, "from the start", used, throttled)
				used, throttled = k.span(t, "after that", 20*time.Second)
				check(t, "after that", used, throttled)
				if used > 1.001 {
					t.Errorf("the KMS is wrong: it served %.4f of its quota", used)
				}
			})
		})
	}
}

func TestCeiling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newSimKMS(2000, 2000)
		p := newPacer(t, pacer.Config{Quota: known(2000), Ceiling: 0.6})
		work := newCrowd(p, k, nil, 64)
		defer work.end()
		used, throttled := k.span(t, "at 60%", 10*time.Second)
		if math.Abs(used-0.6) > 0.005 || throttled > 0 {
			t.Errorf("used %.4f of the quota with %.4f throttled, want 0.6 and 0", used, throttled)
		}
	})
}

// TestChangingQuota: KMS's quota falls and rises under steady work.
func TestChangingQuota(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newSimKMS(2000, 2000)
		p := newPacer(t, pacer.Config{})
		work := newCrowd(p, k, nil, 64)
		defer work.end()
		check2 := func(what string, settle, d time.Duration) {
			t.Helper()
			k.span(t, what+", finding it", settle)
			used, throttled := k.span(t, what, d)
			check(t, what, used, throttled)
		}
		check2("2,000", time.Second, 10*time.Second)
		k.change(500, nil)
		check2("500", 2*time.Second, 20*time.Second)
		k.change(3000, nil) // six times as much: twice doubled, and half again
		check2("3,000", 25*time.Second, 20*time.Second)
		k.change(2000, nil)
		check2("2,000 again", 2*time.Second, 20*time.Second)
	})
}

// TestThrottledNineOfTen: nine of ten calls are throttled for a minute, at any
// rate. Few calls are lost to that, and what was known before is used after.
func TestThrottledNineOfTen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newSimKMS(2000, 2000)
		f := pacer.NewFlow("job", 1)
		work := newCrowd(newPacer(t, pacer.Config{}), k, f, 64)
		defer work.end()
		k.span(t, "before", 10*time.Second)
		calls, _ := f.Counts()
		k.change(2000, func() bool { return rand.N(10) > 0 })
		k.span(t, "nine of ten throttled", time.Minute)
		// At the floor, of 5 calls a second, that is 300 calls. Coming down takes
		// some more.
		now, _ := f.Counts()
		if now-calls > 600 {
			t.Errorf("%d calls were made in that minute", now-calls)
		}
		k.change(2000, nil)
		// The cubic is back where it was after 10 s (control.go), most of the way
		// after 5.
		if used, _ := k.span(t, "in the 10 s after", 10*time.Second); used < 0.5 {
			t.Errorf("used %.4f of the quota in the 10 s after it", used)
		}
		used, throttled := k.span(t, "after that", 20*time.Second)
		check(t, "after that", used, throttled)
	})
}

// TestForegroundComesAndGoes: foreground calls are as fast beside a job as
// without one, and bulk work takes what they leave, no more and no less.
func TestForegroundComesAndGoes(t *testing.T) {
	for _, quota := range []float64{0, 2000} {
		synctest.Test(t, func(t *testing.T) {
			k := newSimKMS(2000, 2000)
			p := newPacer(t, pacer.Config{Quota: known(quota)})
			alone := percentile(callers(p, k, 800, 10*time.Second), 0.99)
			work := newCrowd(p, k, nil, 64)
			defer work.end()
			k.span(t, "bulk work alone", 10*time.Second)
			for range 3 {
				var took []time.Duration
				done := make(chan struct{})
				go func() {
					took = callers(p, k, 800, 10*time.Second)
					close(done)
				}()
				used, throttled := k.span(t, "both", 10*time.Second)
				check(t, "both", used, throttled)
				<-done
				beside := percentile(took, 0.99)
				t.Logf("p99 of foreground calls: %v alone, %v beside a job", alone, beside)
				if float64(beside) > 1.2*float64(alone) {
					t.Errorf("p99 of foreground calls is %v beside a job, %v without", beside, alone)
				}
				used, throttled = k.span(t, "bulk work alone again", 10*time.Second)
				check(t, "alone again", used, throttled)
			}
		})
	}
}

// TestForegroundTakesAll: where foreground calls alone use the quota up, bulk
// work keeps its floor and no more.
func TestForegroundTakesAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newSimKMS(1000, 1000)
		p := newPacer(t, pacer.Config{Quota: known(1000), Floor: 20})
		f := pacer.NewFlow("job", 1)
		done := make(chan struct{})
		go func() { callers(p, k, 1000, 20*time.Second); close(done) }()
		time.Sleep(5 * time.Second)
		work := newCrowd(p, k, f, 64)
		time.Sleep(10 * time.Second)
		calls, _ := f.Counts()
		work.end()
		<-done
		if calls < 190 || calls > 260 {
			t.Errorf("bulk work made %d calls in 10 s, want about 200", calls)
		}
	})
}

// TestReplicasThatKnowNothing: two replicas whose share nobody told them find
// the quota together, and neither is left without.
func TestReplicasThatKnowNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newSimKMS(2000, 2000)
		var flows []*pacer.Flow
		for range 2 {
			f := pacer.NewFlow("job", 1)
			work := newCrowd(newPacer(t, pacer.Config{}), k, f, 64)
			defer work.end()
			flows = append(flows, f)
		}
		used, throttled := k.span(t, "two replicas", time.Minute)
		check(t, "two replicas", used, throttled)
		a, _ := flows[0].Counts()
		b, _ := flows[1].Counts()
		k.span(t, "two replicas that know", time.Minute)
		moreA, _ := flows[0].Counts()
		moreB, _ := flows[1].Counts()
		a, b = moreA-a, moreB-b
		if share := float64(min(a, b)) / float64(a+b); share < 0.25 {
			t.Errorf("one replica got %.2f of the calls", share)
		}
	})
}

// TestShares: replicas that know the quota and their share use it exactly, a
// share that becomes free at once, and leave foreground calls elsewhere alone.
func TestShares(t *testing.T) {
	for _, quota := range []float64{0, 2000} {
		synctest.Test(t, func(t *testing.T) {
			k := newSimKMS(2000, 2000)
			a, b := newPacer(t, pacer.Config{Quota: known(quota)}), newPacer(t, pacer.Config{Quota: known(quota)})
			fa, fb := pacer.NewFlow("job", 1), pacer.NewFlow("job", 1)
			workA := newCrowd(a, k, fa, 64)
			defer workA.end()
			k.span(t, "one replica", 10*time.Second)

			a.SetShare(budget, pacer.Share{Replicas: 2})
			b.SetShare(budget, pacer.Share{Replicas: 2})
			workB := newCrowd(b, k, fb, 64)
			k.span(t, "two, finding it", 10*time.Second)
			used, throttled := k.span(t, "two", 20*time.Second)
			check(t, "two", used, throttled)

			workB.end() // it died, and its lease ran out
			a.SetShare(budget, pacer.Share{Replicas: 1})
			k.span(t, "one left, finding it", 25*time.Second)
			used, throttled = k.span(t, "one left", 10*time.Second)
			check(t, "one left", used, throttled)

			if quota == 0 {
				return
			}
			a.SetShare(budget, pacer.Share{Replicas: 1, Elsewhere: 500})
			k.span(t, "500 calls/s elsewhere, finding it", time.Second)
			if used, _ := k.span(t, "500 calls/s elsewhere", 10*time.Second); math.Abs(used-0.75) > 0.01 {
				t.Errorf("used %.4f of the quota, want the 0.75 that are left", used)
			}
		})
	}
}
