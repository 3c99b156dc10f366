package pacer_test

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/pacer"
)

// budget is the one that the tests use.
var budget = pacer.Budget{Account: "111122223333", Region: "us-east-1", Quota: "cryptographic"}

func newPacer(t testing.TB, cfg pacer.Config) *pacer.Pacer {
	t.Helper()
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	p, err := pacer.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// known tells the same quota for every budget.
func known(rate float64) func(pacer.Budget) float64 {
	return func(pacer.Budget) float64 { return rate }
}

func acquire(t testing.TB, p *pacer.Pacer, class pacer.Class, f *pacer.Flow) pacer.Ticket {
	t.Helper()
	ctx := context.Background()
	if f != nil {
		ctx = pacer.WithFlow(ctx, f)
	}
	ticket, err := p.Acquire(ctx, budget, class)
	if err != nil {
		t.Fatal(err)
	}
	return ticket
}

func state(t testing.TB, p *pacer.Pacer) pacer.State {
	t.Helper()
	all := p.States()
	if len(all) != 1 || all[0].Budget != budget {
		t.Fatalf("want the one budget, got %+v", all)
	}
	return all[0]
}

// A simKMS throttles by a token bucket and answers after about 8 ms.
type simKMS struct {
	mu     sync.Mutex
	rate   float64 // requests a second
	most   float64 // tokens that it saves up
	tokens float64
	at     time.Time
	refuse func() bool // says no although there are tokens

	served, throttled int
}

const latency = 8 * time.Millisecond

// newSimKMS is a KMS with a full bucket.
func newSimKMS(rate, most float64) *simKMS {
	return &simKMS{rate: rate, most: most, tokens: most, at: time.Now()}
}

func (k *simKMS) call() pacer.Outcome {
	k.mu.Lock()
	k.fill()
	over := k.tokens < 1 || (k.refuse != nil && k.refuse())
	if over {
		k.throttled++
	} else {
		k.tokens--
		k.served++
	}
	k.mu.Unlock()
	time.Sleep(latency*9/10 + rand.N(latency/5))
	if over {
		return pacer.Throttled
	}
	return pacer.Done
}

func (k *simKMS) fill() {
	now := time.Now()
	k.tokens = min(k.most, k.tokens+k.rate*now.Sub(k.at).Seconds())
	k.at = now
}

// change gives the KMS another quota, and a bucket of a second's worth.
func (k *simKMS) change(rate float64, refuse func() bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fill()
	k.rate, k.most, k.refuse = rate, rate, refuse
}

// span runs for a while of virtual time and gives what the KMS did meanwhile: the
// answers as a share of what the quota allows, and the share of the calls that it
// throttled.
func (k *simKMS) span(t *testing.T, what string, d time.Duration) (used, throttled float64) {
	t.Helper()
	k.mu.Lock()
	served, refused := k.served, k.throttled
	k.mu.Unlock()
	time.Sleep(d)
	k.mu.Lock()
	defer k.mu.Unlock()
	served, refused = k.served-served, k.throttled-refused
	used = float64(served) / (k.rate * d.Seconds())
	throttled = float64(refused) / float64(max(1, served+refused))
	t.Logf("%s: %.1f%% of the quota used, %.3f%% of %d calls throttled", what, 100*used, 100*throttled, served+refused)
	return used, throttled
}

// A crowd is workers that call without end.
type crowd struct {
	stop func()
	wg   sync.WaitGroup
}

func newCrowd(p *pacer.Pacer, k *simKMS, f *pacer.Flow, workers int) *crowd {
	ctx, cancel := context.WithCancel(pacer.WithFlow(context.Background(), f))
	c := &crowd{stop: cancel}
	for range workers {
		c.wg.Go(func() {
			for ctx.Err() == nil {
				ticket, err := p.Acquire(ctx, budget, pacer.Background)
				if err != nil {
					return
				}
				o := k.call()
				ticket.Release(o)
				if o == pacer.Throttled {
					pause(ctx, 25*time.Millisecond+rand.N(50*time.Millisecond))
				}
			}
		})
	}
	return c
}

func (c *crowd) end() {
	c.stop()
	c.wg.Wait()
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// callers makes foreground calls at a steady rate for a while, each tried again
// after some 50 ms where it was throttled, and gives how long each took.
func callers(p *pacer.Pacer, k *simKMS, rate float64, d time.Duration) []time.Duration {
	var mu sync.Mutex
	var took []time.Duration
	var wg sync.WaitGroup
	for range int(rate * d.Seconds()) {
		wg.Go(func() {
			start := time.Now()
			for {
				ticket, err := p.Acquire(context.Background(), budget, pacer.Foreground)
				if err != nil {
					panic(err)
				}
				o := k.call()
				ticket.Release(o)
				if o == pacer.Done {
					break
				}
				time.Sleep(rand.N(50 * time.Millisecond))
			}
			mu.Lock()
			took = append(took, time.Since(start))
			mu.Unlock()
		})
		time.Sleep(time.Duration(float64(time.Second) / rate))
	}
	wg.Wait()
	return took
}

func percentile(d []time.Duration, p float64) time.Duration {
	slices.Sort(d)
	return d[int(float64(len(d)-1)*p)]
}
