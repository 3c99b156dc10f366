package rotation

import (
	"math"
	"time"
)

// Priority is how large a job's part of the KMS budget and of the workers is.
type Priority string

// The priorities.
const (
	Normal Priority = "NORMAL"
	// High is for a key that may be in the wrong hands: its job gets
	// highPart times the part of another, and the others go on.
	High Priority = "HIGH"
)

// highPart is how many parts a job of High priority gets. With one other job,
// that is four fifths of the budget; ours.
const highPart = 4

// Turn is how long a worker stays with a shard before it looks whether another
// job has a better claim to it, and the measure of how long a job without any
// worker has waited; ours.
const Turn = time.Second

func (p Priority) orNormal() Priority {
	if p == "" {
		return Normal
	}
	return p
}

// part is a job's part, as a weight.
func (p Priority) part() float64 {
	if p == High {
		return highPart
	}
	return 1
}

// A Pace is how fast a shard or a job moves: events a second, smoothed over about
// half a minute, as of Time.
type Pace struct {
	Rows      float64 // settled: moved, verified or failed
	Calls     float64 // answered by KMS
	Throttled float64 // of those
	Time      time.Time
}

// paceSpan is how long an event counts: to a third after that time, to a
// twentieth after three times of it.
const paceSpan = 30 * time.Second

// fade gives the pace at a later time, if nothing happened since.
func (p Pace) fade(now time.Time) Pace {
	f := 1.0
	if passed := now.Sub(p.Time); passed > 0 {
		f = math.Exp(-passed.Seconds() / paceSpan.Seconds())
	}
	return Pace{Rows: p.Rows * f, Calls: p.Calls * f, Throttled: p.Throttled * f, Time: now}
}

// add counts events of now.
func (p Pace) add(now time.Time, rows, calls, throttled uint64) Pace {
	p = p.fade(now)
	each := 1 / paceSpan.Seconds()
	p.Rows += float64(rows) * each
	p.Calls += float64(calls) * each
	p.Throttled += float64(throttled) * each
	return p
}

// sumPaces gives the pace of a job from that of its shards. One that began a
// short while ago has had no time to come up to its speed in the smoothing, which
// is made up for.
func sumPaces(shards []Pace, began, now time.Time) Pace {
	sum := Pace{Time: now}
	age := now.Sub(began)
	if age <= 0 {
		return sum
	}
	grown := 1 - math.Exp(-age.Seconds()/paceSpan.Seconds())
	for _, s := range shards {
		s = s.fade(now)
		sum.Rows += s.Rows / grown
		sum.Calls += s.Calls / grown
		sum.Throttled += s.Throttled / grown
	}
	return sum
}
