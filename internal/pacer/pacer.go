// Package pacer decides when a call to KMS may be made.
//
// What it does. KMS allows the account that calls it so many requests a second
// in each Region. A Pacer keeps one budget for each such quota. Foreground
// calls, behind which somebody waits, always pass and are counted; background
// calls, which are bulk work, share what is left, within a limit of calls in
// flight, fairly among the jobs that make them. The rate is KMS's quota where it
// is known, and finds its own height below that: it rises slowly near the rate
// at which KMS throttled last, faster away from it, and falls by as much as KMS
// throttles.
//
// Who may call it. The adapters that call KMS, around each attempt; rotation
// says for which job calls are made (WithFlow) and reads a job's counts; cmd
// says how many replicas share a budget (Share); metrics read States.
//
// What it never does. It starts no goroutine of its own: while calls wait, a
// timer lets them in. It reads no clock but the given one, calls nobody and
// retries nothing; how long to wait before a call is made again is its caller's
// affair.
package pacer

import (
	"context"
	"errors"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Class says on whose behalf a call is made.
type Class uint8

// The classes of calls.
const (
	Foreground Class = iota // somebody waits for it: never queued
	Background              // bulk work: kept within the budget
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

// A Budget names one request quota of KMS: those of an account in a Region. KMS
// charges the account of the caller, also for keys of other accounts (AWS KMS
// Developer Guide, Request quotas).
type Budget struct {
	Account string
	Region  string
	Quota   string // what shares the quota; the adapter's own names
}

func (b Budget) compare(other Budget) int {
	return strings.Compare(b.Region+" "+b.Quota+" "+b.Account, other.Region+" "+other.Quota+" "+other.Account)
}

// Config bounds the budgets. Now is needed; the zero value of any other field
// takes its default.
type Config struct {
	Now func() time.Time
	// Quota tells the requests a second that KMS allows within a budget, 0 where
	// that is not known. Nil knows none.
	Quota func(Budget) float64
	// Ceiling is the share of a known quota that background and foreground
	// together may take before background calls wait, above 0 and at most 1.
	// Default 1.
	Ceiling float64
	// Floor is what background calls get a second although foreground calls take
	// all the rest, and the least that throttling leaves. Default 5.
	Floor float64
	// Start is the rate a second to begin with where the quota is not known.
	// Default 1,000: a tenth of the smallest quota that AWS gives a Region for
	// symmetric cryptographic operations.
	Start float64
	// InFlight bounds the background calls of a budget at a time. Default 256: at
	// 8 ms each that is 32,000 a second.
	InFlight int
}

func (c Config) withDefaults() Config {
	if c.Quota == nil {
		c.Quota = func(Budget) float64 { return 0 }
	}
	setDefault(&c.Ceiling, 1)
	setDefault(&c.Floor, 5)
	setDefault(&c.Start, 1000)
	setDefault(&c.InFlight, 256)
	return c
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func (c Config) validate() error {
	switch {
	case c.Now == nil:
		return errors.New("pacer: Now must be set")
	case !(c.Ceiling > 0 && c.Ceiling <= 1):
		return errors.New("pacer: Ceiling must be above 0 and at most 1")
	case !(c.Floor > 0):
		return errors.New("pacer: Floor must be above 0")
	case !(c.Start >= c.Floor) || math.IsInf(c.Start, 1):
		return errors.New("pacer: Start must be at least Floor, and finite")
	case c.InFlight < 1:
		return errors.New("pacer: InFlight must be above 0")
	}
	return nil
}

// Pacer is safe for concurrent use.
type Pacer struct {
	cfg Config

	lanes atomic.Pointer[map[Budget]*lane] // copied on write
	mu    sync.Mutex                       // held to write lanes
}

// New makes a pacer. It fails on bounds that make no sense.
func New(cfg Config) (*Pacer, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	p := &Pacer{cfg: cfg}
	p.lanes.Store(&map[Budget]*lane{})
	return p, nil
}

// Acquire admits a call. A foreground call passes at once. A background call
// waits until the budget has room for it and its flow, that of the context, has
// its turn; or it fails with the context's cause.
//
// Budgets are kept for good, so their number should be bounded by the caller.
func (p *Pacer) Acquire(ctx context.Context, b Budget, class Class) (Ticket, error) {
	l := p.lane(b)
	if class == Foreground {
		return l.pass(), nil
	}
	return l.enter(ctx, FlowOf(ctx))
}

func (p *Pacer) lane(b Budget) *lane {
	if l, ok := (*p.lanes.Load())[b]; ok {
		return l
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	known := *p.lanes.Load()
	if l, ok := known[b]; ok {
		return l
	}
	l := newLane(&p.cfg, p.cfg.Quota(b))
	grown := maps.Clone(known)
	grown[b] = l
	p.lanes.Store(&grown)
	return l
}

// Share tells how a budget is shared with other replicas of this program, from
// now on.
type Share struct {
	// Replicas is the number of replicas with background calls, this one among
	// them. Less than 1 is 1.
	Replicas int
	// Elsewhere is the foreground calls a second of the other replicas.
	Elsewhere float64
}

// SetShare divides a budget. A budget that nobody has divided is this replica's
// own.
func (p *Pacer) SetShare(b Budget, s Share) { p.lane(b).divide(s) }

// A State is what a budget is doing at one moment, for metrics and for whoever
// divides budgets.
type State struct {
	Budget Budget
	// Rate is the calls a second, of both classes, beyond which background calls
	// wait. Ceiling is its upper bound, +Inf where no quota is known.
	Rate, Ceiling float64
	// ForegroundRate is foreground calls a second, smoothed over about a second.
	ForegroundRate float64
	// Latency is how long KMS takes to answer, smoothed; 0 before the first answer.
	Latency    time.Duration
	Foreground int // calls in flight
	Background int // calls in flight
	Waiting    int // background calls that wait to be admitted
	// Calls and Throttled count answers so far, BackgroundCalls admissions.
	Calls, Throttled, BackgroundCalls uint64
}

// Expect gives a budget's state or, for one that was not used yet, that in which
// it would begin.
func (p *Pacer) Expect(b Budget) State {
	l, ok := (*p.lanes.Load())[b]
	if !ok {
		l = newLane(&p.cfg, p.cfg.Quota(b))
	}
	s := l.state()
	s.Budget = b
	return s
}

// States gives every budget that was used, in a fixed order.
func (p *Pacer) States() []State {
	lanes := *p.lanes.Load()
	states := make([]State, 0, len(lanes))
	for _, b := range slices.SortedFunc(maps.Keys(lanes), Budget.compare) {
		s := lanes[b].state()
		s.Budget = b
		states = append(states, s)
	}
	return states
}
