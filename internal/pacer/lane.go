package pacer

import (
	"context"
	"math"
	"sync"
	"time"
)

// burst is how much of its rate a budget may save up while nobody calls: enough
// that a late timer or a pause of the collector costs nothing, and little beside
// a quota that KMS states per second.
const burst = 50 * time.Millisecond

// debt is how much of its rate foreground calls may take in advance: that long
// background calls wait after a burst of them, the floor excepted.
const debt = time.Second

// soonest is the shortest time that a timer is set to: runtimes round up to
// about as much, and what came due meanwhile is let in together.
const soonest = time.Millisecond

// A lane is one budget at work: two token buckets, a limit of calls in flight,
// the queue, and the control of the rate.
type lane struct {
	cfg   *Config
	quota float64 // requests a second; 0 if not known

	mu       sync.Mutex
	control  control
	share    Share
	tokens   float64 // of the rate: below 0 while foreground calls took too many
	spare    float64 // of the floor, at most 1
	filled   time.Time
	inFlight [classes]int
	queue    fairQueue
	wake     *time.Timer // while armed, it lets in who waits for a token
	armed    bool
	fore     meter
	latency  float64 // of answered calls, seconds, smoothed; 0 before the first

	calls, throttled, background uint64
}

func newLane(cfg *Config, quota float64) *lane {
	l := &lane{cfg: cfg, quota: quota, share: Share{Replicas: 1}, filled: cfg.Now()}
	l.fore = meter{begin: l.filled}
	l.control = newControl(l.filled, cfg.Floor, cfg.Start)
	if quota > 0 {
		l.control.scale, l.control.rate = quota*cfg.Ceiling, quota*cfg.Ceiling
	}
	l.control.ceiling = l.ceiling()
	l.tokens = 1
	return l
}

// A Ticket is the permission for one call. Release it exactly once.
type Ticket struct {
	lane  *lane
	flow  *Flow
	began time.Time
	round uint64
	class Class
}

// pass admits a foreground call, on credit if need be.
func (l *lane) pass() Ticket {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.refill()
	l.fore.add(now)
	l.tokens = max(l.tokens-1, -l.control.rate*debt.Seconds())
	l.inFlight[Foreground]++
	return Ticket{lane: l, began: now, round: l.control.round, class: Foreground}
}

// enter admits a background call when it may be made.
func (l *lane) enter(ctx context.Context, f *Flow) (Ticket, error) {
	t := Ticket{lane: l, flow: f, class: Background}
	l.mu.Lock()
	t.began = l.refill()
	if l.queue.length == 0 && l.takeToken() {
		t.round = l.control.round
		l.mu.Unlock()
		return t, nil
	}
	w := l.queue.push(f)
	l.admitWaiting() // sets the timer if need be
	l.mu.Unlock()

	select {
	case t.round = <-w.admitted:
		l.mu.Lock()
		l.queue.reuse(w)
		l.mu.Unlock()
		t.began = l.cfg.Now()
		return t, nil
	case <-ctx.Done():
		l.mu.Lock()
		defer l.mu.Unlock()
		select {
		case <-w.admitted: // in the same moment: hand place and token on
			l.inFlight[Background]--
			l.background--
			l.tokens++
			l.refill()
			l.admitWaiting()
		default:
			l.queue.remove(w)
		}
		l.queue.reuse(w)
		return Ticket{}, context.Cause(ctx)
	}
}

// Release ends the call and lets its outcome move the rate. The zero Ticket
// releases nothing.
func (t Ticket) Release(o Outcome) {
	if t.lane == nil {
		return
	}
	if t.flow != nil {
		t.flow.count(o)
	}
	t.lane.leave(t, o)
}

func (l *lane) leave(t Ticket, o Outcome) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.refill()
	l.inFlight[t.class]--
	if o != Lost {
		l.calls++
		if o == Throttled {
			l.throttled++
		} else {
			l.measure(now.Sub(t.began))
		}
		if t.round == l.control.round { // a call of before the last decrease says nothing about the rate since
			l.control.ceiling = l.ceiling()
			l.control.answer(now, o == Throttled)
			if t.round != l.control.round {
				l.tokens = min(l.tokens, 1) // saved up at a rate that was too high
			}
		}
	}
	l.admitWaiting()
}

// measure smooths over about the last 16 answers. A throttled call says nothing:
// it is refused before there is work.
func (l *lane) measure(took time.Duration) {
	if l.latency == 0 {
		l.latency = took.Seconds()
	}
	l.latency += (took.Seconds() - l.latency) / 16
}

// refill gives the tokens of the time that has passed.
func (l *lane) refill() time.Time {
	now := l.cfg.Now()
	if passed := now.Sub(l.filled).Seconds(); passed > 0 {
		l.tokens = min(l.most(), l.tokens+l.control.rate*passed)
		l.spare = min(1, l.spare+l.cfg.Floor*passed)
		l.filled = now
	}
	return now
}

func (l *lane) most() float64 { return max(1, l.control.rate*burst.Seconds()) }

// takeToken admits one background call if the limit and the rate allow it. Where
// the rate has no token left, the floor may have one; it is part of the rate.
func (l *lane) takeToken() bool {
	switch {
	case l.inFlight[Background] >= l.cfg.InFlight:
		return false
	case l.tokens >= 1:
	case l.spare >= 1:
		l.spare--
	default:
		l.control.waited = true
		return false
	}
	l.tokens--
	l.inFlight[Background]++
	l.background++
	return true
}

// admitWaiting lets in who may be let in, and sees to it that the rest is let in
// when tokens are due: those that wait for a place are let in by who leaves.
func (l *lane) admitWaiting() {
	for l.queue.length > 0 && l.takeToken() {
		l.queue.pop().admitted <- l.control.round
	}
	if l.queue.length == 0 || l.armed || l.inFlight[Background] >= l.cfg.InFlight {
		return
	}
	due := min((1-l.tokens)/l.control.rate, (1-l.spare)/l.cfg.Floor)
	wait := max(soonest, time.Duration(math.Ceil(due*float64(time.Second))))
	l.armed = true
	if l.wake == nil {
		l.wake = time.AfterFunc(wait, l.due)
	} else {
		l.wake.Reset(wait)
	}
}

func (l *lane) due() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.armed = false
	l.refill()
	l.admitWaiting()
}

// ceiling is what the quota allows this replica: its own foreground calls, and
// an equal part of what all foreground calls leave.
func (l *lane) ceiling() float64 {
	if l.quota == 0 {
		return math.Inf(1)
	}
	whole := l.quota * l.cfg.Ceiling
	if l.share.Replicas <= 1 && l.share.Elsewhere == 0 {
		return whole
	}
	own := l.fore.rate
	left := (whole - own - l.share.Elsewhere) / float64(max(1, l.share.Replicas))
	return own + max(l.cfg.Floor, left)
}

// divide changes the share. What was learnt about the whole still holds.
func (l *lane) divide(s Share) {
	s.Replicas = max(1, s.Replicas)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refill()
	l.control.stretch(float64(l.share.Replicas) / float64(s.Replicas))
	l.share = s
	l.control.ceiling = l.ceiling()
	l.control.rate = min(l.control.rate, l.control.ceiling)
	l.admitWaiting()
}

func (l *lane) state() State {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fore.roll(l.cfg.Now())
	return State{
		Rate: l.control.rate, Ceiling: l.control.ceiling, ForegroundRate: l.fore.rate,
		Latency:    time.Duration(l.latency * float64(time.Second)),
		Foreground: l.inFlight[Foreground], Background: l.inFlight[Background], Waiting: l.queue.length,
		Calls: l.calls, Throttled: l.throttled, BackgroundCalls: l.background,
	}
}

// A meter smooths events a second over about a second.
type meter struct {
	begin time.Time
	n     int
	rate  float64
}

const meterSpan = 250 * time.Millisecond

func (m *meter) add(now time.Time) {
	m.roll(now)
	m.n++
}

func (m *meter) roll(now time.Time) {
	span := now.Sub(m.begin)
	if span < meterSpan {
		return
	}
	old := math.Exp(-span.Seconds())
	m.rate = old*m.rate + (1-old)*float64(m.n)/span.Seconds()
	m.begin, m.n = now, 0
}
