// Package pacer decides how many calls may be under way at KMS.
//
// What it does. A Pacer counts the calls in flight by class. Foreground calls,
// behind which somebody waits, always pass. Background calls, which are bulk
// work, share a limit that finds its own height: it rises by a step for each
// round of calls that KMS took while the limit was reached, and falls by a factor
// when KMS throttles anyone (additive increase, multiplicative decrease).
//
// Who may call it. The adapters that call KMS, around each attempt; metrics read
// Snapshot.
//
// What it never does. It starts no goroutine, reads no clock and retries nothing;
// how long to wait before a call is made again is its caller's affair.
package pacer

import (
	"context"
	"errors"
	"sync"
)

// Class says on whose behalf a call is made.
type Class uint8

// The classes of calls.
const (
	Foreground Class = iota // somebody waits for it: never queued
	Background              // bulk work: kept within the limit
	classes
)

// String names the class in metrics and spans.
func (c Class) String() string {
	switch c {
	case Foreground:
		return "foreground"
	case Background:
		return "background"
	}
	return "unknown"
}

// Outcome says what became of a call, as far as the pace is concerned.
type Outcome uint8

// The outcomes of a call.
const (
	Done      Outcome = iota // KMS answered, with success or a refusal
	Throttled                // KMS asked for fewer calls
	Lost                     // no answer, or the call was never sent: says nothing about the pace
)

// Config bounds the background limit. The zero value gives the defaults.
type Config struct {
	// Min and Max bound the number of background calls in flight; 1 and 256
	// where zero. 256 calls of 8 ms are 32,000 a second, above the request
	// quota of most Regions (AWS KMS Developer Guide, Request quotas).
	Min, Max int
	// Start is the limit before anything is known; 8 where zero.
	Start int
	// Increase is what a full round of good answers adds to the limit; 1 where
	// zero.
	Increase float64
	// Decrease is what one throttling leaves of the limit, between 0 and 1; 0.7
	// where zero: the same factor as that of CUBIC (RFC 9438, section 4.6).
	Decrease float64
}

func (c Config) withDefaults() Config {
	if c.Min == 0 {
		c.Min = 1
	}
	if c.Max == 0 {
		c.Max = max(256, c.Min)
	}
	if c.Start == 0 {
		c.Start = min(max(8, c.Min), c.Max)
	}
	if c.Increase == 0 {
		c.Increase = 1
	}
	if c.Decrease == 0 {
		c.Decrease = 0.7
	}
	return c
}

func (c Config) validate() error {
	switch {
	case c.Min < 1 || c.Max < c.Min:
		return errors.New("pacer: want 1 <= Min <= Max")
	case c.Start < c.Min || c.Start > c.Max:
		return errors.New("pacer: want Min <= Start <= Max")
	case !(c.Increase > 0):
		return errors.New("pacer: Increase must be above 0")
	case !(c.Decrease > 0 && c.Decrease < 1):
		return errors.New("pacer: Decrease must be between 0 and 1")
	}
	return nil
}

// Pacer is safe for concurrent use.
type Pacer struct {
	cfg Config

	mu       sync.Mutex
	limit    float64 // of background calls in flight
	inFlight [classes]int
	// round counts the decreases. Of the calls that were in flight together,
	// only the first to be throttled lowers the limit.
	round     uint64
	throttled uint64
	queue     waiters
}

// New makes a pacer. It fails on bounds that contradict each other.
func New(cfg Config) (*Pacer, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	return &Pacer{cfg: cfg, limit: float64(cfg.Start)}, nil
}

// A Ticket is the permission for one call. Release it exactly once.
type Ticket struct {
	pacer *Pacer
	round uint64
	class Class
}

// Acquire admits a call. A foreground call passes at once; a background call
// waits, first come first served, until fewer than the limit are in flight, or
// fails with the context's cause.
func (p *Pacer) Acquire(ctx context.Context, class Class) (Ticket, error) {
	p.mu.Lock()
	// Where there is room nobody waits: admitWaiting saw to that.
	if class == Foreground || p.free() {
		t := p.admit(class)
		p.mu.Unlock()
		return t, nil
	}
	w := p.queue.push()
	p.mu.Unlock()

	select {
	case round := <-w.admitted:
		p.mu.Lock()
		p.queue.reuse(w)
		p.mu.Unlock()
		return Ticket{pacer: p, round: round, class: class}, nil
	case <-ctx.Done():
		p.mu.Lock()
		defer p.mu.Unlock()
		select {
		case <-w.admitted: // admitted in the same moment: hand the place on
			p.inFlight[class]--
			p.admitWaiting()
		default:
			p.queue.remove(w)
		}
		p.queue.reuse(w)
		return Ticket{}, context.Cause(ctx)
	}
}

// Release ends the call and lets its outcome move the limit. The zero Ticket
// releases nothing.
func (t Ticket) Release(o Outcome) {
	if t.pacer == nil {
		return
	}
	t.pacer.release(t, o)
}

func (p *Pacer) release(t Ticket, o Outcome) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch o {
	case Throttled:
		p.throttled++
		if t.round == p.round {
			p.round++
			p.limit = max(float64(p.cfg.Min), p.limit*p.cfg.Decrease)
		}
	case Done:
		// A limit that nobody reached, or that the call was let in before, has
		// not been tried out: leave it.
		if t.class == Background && t.round == p.round && !p.free() {
			p.limit = min(float64(p.cfg.Max), p.limit+p.cfg.Increase/p.limit)
		}
	}
	p.inFlight[t.class]--
	p.admitWaiting()
}

// free reports whether one more background call is within the limit.
func (p *Pacer) free() bool { return p.inFlight[Background] < int(p.limit) }

func (p *Pacer) admit(class Class) Ticket {
	p.inFlight[class]++
	return Ticket{pacer: p, round: p.round, class: class}
}

func (p *Pacer) admitWaiting() {
	for p.free() {
		w := p.queue.pop()
		if w == nil {
			return
		}
		w.admitted <- p.admit(Background).round
	}
}

// Snapshot is the state of a Pacer at one moment, for metrics.
type Snapshot struct {
	Limit      float64 // background calls that may be in flight
	Foreground int     // calls in flight
	Background int     // calls in flight; above Limit for a while after a decrease
	Waiting    int     // background calls that wait to be admitted
	Throttled  uint64  // calls that KMS throttled, of either class, so far
}

// Snapshot gives the present state.
func (p *Pacer) Snapshot() Snapshot {
	p.mu.Lock()
	defer p.mu.Unlock()
	return Snapshot{
		Limit:      p.limit,
		Foreground: p.inFlight[Foreground],
		Background: p.inFlight[Background],
		Waiting:    p.queue.length,
		Throttled:  p.throttled,
	}
}
