package pacer

import (
	"math"
	"time"
)

// The law by which a rate moves. It is CUBIC's (RFC 9438) on a rate in place of
// a window, with the decrease of DCTCP (RFC 8257): by as much as was throttled,
// not by a fixed factor. KMS's quota is a rate, it says so by throttling and by
// nothing else, and it seldom changes; so the best place to be is just below the
// rate at which it throttled last, and the cheapest way to ask for more is to
// stay there for a while and then to try ever faster.
const (
	// A rate is judged by the answers of at least judgeTime and judgeAnswers, or
	// as soon as judgeThrottled of them are throttled.
	judgeTime      = 20 * time.Millisecond
	judgeAnswers   = 10
	judgeThrottled = 5
	// A decrease is by the share of the answers that were throttled, within these
	// bounds: one throttled call says that the rate is at the limit, and half of
	// them throttled says no more than that it is far above.
	leastCut, greatestCut = 0.02, 0.5
	// growth is the cubic's factor, a second³, relative to the scale: 2 % are won
	// back in 4.4 s, and beyond the plateau 3 % are tried after 5 s, 24 % after
	// 10 s, twice the rate after 16 s.
	growth = 1e-3
	// Before anything was throttled, the rate doubles this often.
	doubling = 100 * time.Millisecond
	// longestAge is what one judgement may add to the cubic's time: one that
	// spans an idle hour says nothing about that hour.
	longestAge = 5 * time.Second
)

// control is the rate of one budget, and what was learnt about it. The lane's
// mutex guards it.
type control struct {
	rate    float64 // calls a second
	floor   float64
	ceiling float64
	// scale is what growth is relative to, at least: the quota, or the start.
	scale float64

	plateau float64       // the rate at which throttling began last; 0: it never did
	dip     float64       // how far below the plateau the last decrease ended
	age     time.Duration // since then, as far as callers waited for the rate
	falling bool          // the last judgement was a decrease
	round   uint64        // counts the decreases

	begin           time.Time // of what is being judged
	done, throttled int
	waited          bool // a call waited for the rate
}

func newControl(now time.Time, floor, start float64) control {
	return control{rate: start, floor: floor, scale: start, ceiling: math.Inf(1), begin: now}
}

// answer counts an answer of KMS to a call that was admitted at this rate, and
// judges the rate when enough is known.
func (c *control) answer(now time.Time, throttled bool) {
	if throttled {
		c.throttled++
	} else {
		c.done++
	}
	span := now.Sub(c.begin)
	if c.done+c.throttled < judgeAnswers || (c.throttled < judgeThrottled && span < judgeTime) {
		return
	}
	switch {
	case c.throttled > 0:
		c.decrease()
	case c.waited && c.rate < c.ceiling:
		c.increase(span)
		fallthrough
	default:
		c.falling = false
	}
	c.rate = max(c.floor, min(c.rate, c.ceiling))
	c.begin, c.done, c.throttled, c.waited = now, 0, 0, false
}

// decrease begins a new round. While the rate falls, the plateau stays where
// throttling began: if the cause passes, the way back is known.
func (c *control) decrease() {
	if !c.falling {
		c.plateau = c.rate
	}
	share := float64(c.throttled-1) / float64(c.done+c.throttled)
	c.rate = max(c.floor, c.rate*(1-min(max(share, leastCut), greatestCut)))
	c.dip, c.age, c.falling = c.plateau-c.rate, 0, true
	c.round++
}

func (c *control) increase(span time.Duration) {
	if c.plateau == 0 {
		c.rate *= math.Exp2(min(1, span.Seconds()/doubling.Seconds()))
		return
	}
	c.age += min(span, longestAge)
	steep := growth * max(c.scale, c.plateau)
	t := c.age.Seconds() - math.Cbrt(c.dip/steep)
	c.rate = max(c.rate, c.plateau+steep*t*t*t)
}

// stretch scales what was learnt by a factor, for another share of the whole.
func (c *control) stretch(by float64) {
	c.rate = max(c.floor, c.rate*by)
	c.scale *= by
	c.plateau *= by
	c.dip *= by
}
