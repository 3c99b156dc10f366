package pacer

import (
	"context"
	"math"
	"sync/atomic"
)

// A Flow is the background calls of one tenant's job. Flows share a budget in
// proportion to their weights, whatever number of calls each has waiting.
type Flow struct {
	id               string
	weight           atomic.Uint64 // the bits of a float64
	calls, throttled atomic.Uint64
}

// NewFlow makes a flow. Flows of the same id share one turn; where their weights
// differ, the largest of the calls that wait counts. A weight that is not above 0 is 1.
func NewFlow(id string, weight float64) *Flow {
	f := &Flow{id: id}
	f.SetWeight(weight)
	return f
}

// SetWeight changes the flow's part, for calls that come to wait from now on.
func (f *Flow) SetWeight(weight float64) {
	if !(weight > 0) {
		weight = 1
	}
	f.weight.Store(math.Float64bits(weight))
}

// Counts gives the flow's answered calls so far, and those of them that KMS
// throttled.
func (f *Flow) Counts() (calls, throttled uint64) { return f.calls.Load(), f.throttled.Load() }

func (f *Flow) count(o Outcome) {
	switch o {
	case Throttled:
		f.throttled.Add(1)
		f.calls.Add(1)
	case Done:
		f.calls.Add(1)
	}
}

type flowKey struct{}

// WithFlow says that calls with this context are made for a flow: bulk work, to
// be paced, whichever adapter makes them.
func WithFlow(ctx context.Context, f *Flow) context.Context {
	return context.WithValue(ctx, flowKey{}, f)
}

// FlowOf gives the context's flow, nil if it has none.
func FlowOf(ctx context.Context) *Flow {
	f, _ := ctx.Value(flowKey{}).(*Flow)
	return f
}
