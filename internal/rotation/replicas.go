package rotation

import (
	"context"
	"time"

	"github.com/keybroker/keybroker/internal/pacer"
)

// A Replica is a process of this deployment that has called KMS of late.
type Replica struct {
	ID      string
	Until   time.Time // its word holds until then
	Budgets []Beat
}

// A Beat is what a replica says of one budget of KMS requests; see pacer.Budget.
type Beat struct {
	Account, Region, Quota string
	// Rate is the calls a second that the budget allows it, Capacity those of them
	// that its workers could make as fast as KMS answers now.
	Rate, Capacity float64
	// Foreground is its foreground calls a second.
	Foreground float64
	// Busy says that it makes background calls.
	Busy bool
}

func (b Beat) budget() pacer.Budget {
	return pacer.Budget{Account: b.Account, Region: b.Region, Quota: b.Quota}
}

// Heartbeat tells the other replicas what this one takes of KMS's budgets, and
// takes what they leave, until ctx is done. Run does it; a replica that only
// answers calls does it beside its server. A replica that made no call for a
// while says nothing, and one that dies is forgotten when its word has run out.
func (e *Engine) Heartbeat(ctx context.Context) {
	if e.cfg.Pacer == nil {
		return
	}
	h := heart{engine: e, before: map[pacer.Budget]pacer.State{}}
	for e.cfg.Sleep(ctx, e.cfg.LeaseTTL/3) == nil {
		if err := h.beat(ctx); err != nil {
			e.logFailure(ctx, "shares of the KMS budget not renewed", err)
		}
	}
	if h.told {
		ctx := context.WithoutCancel(ctx)
		err := e.store.Update(ctx, func(tx Tx) error { return tx.ForgetReplica(ctx, e.cfg.Owner) })
		if err != nil {
			e.cfg.Logger.WarnContext(ctx, "this replica's part of the KMS budget was not given back", "error", err)
		}
	}
}

// A heart is what a replica said last.
type heart struct {
	engine *Engine
	before map[pacer.Budget]pacer.State
	told   bool // others may believe that this replica takes something
}

func (h *heart) beat(ctx context.Context) error {
	beats := h.look()
	if len(beats) == 0 && !h.told {
		return nil
	}
	e := h.engine
	var replicas []Replica
	err := e.store.Update(ctx, func(tx Tx) (err error) {
		if err = tx.BeatReplica(ctx, e.cfg.Owner, beats, e.cfg.LeaseTTL); err != nil {
			return err
		}
		replicas, err = tx.Replicas(ctx)
		return err
	})
	if err != nil {
		return err
	}
	h.told = len(beats) > 0
	for budget, share := range shares(e.cfg.Owner, beats, replicas) {
		e.cfg.Pacer.SetShare(budget, share)
	}
	return nil
}

// look tells of the budgets that were used since it last looked.
func (h *heart) look() []Beat {
	var beats []Beat
	for _, s := range h.engine.cfg.Pacer.States() {
		was := h.before[s.Budget]
		h.before[s.Budget] = s
		busy := s.BackgroundCalls > was.BackgroundCalls || s.Background > 0 || s.Waiting > 0
		if !busy && s.Calls == was.Calls && s.Foreground == 0 {
			continue
		}
		beats = append(beats, Beat{Account: s.Budget.Account, Region: s.Budget.Region, Quota: s.Budget.Quota,
			Rate: s.Rate, Capacity: h.engine.capacity(s), Foreground: s.ForegroundRate, Busy: busy})
	}
	return beats
}

// capacity bounds what a budget allows by what the workers can do: each row that
// is at KMS takes as long as KMS's answer.
func (e *Engine) capacity(s pacer.State) float64 {
	latency := s.Latency
	if latency == 0 {
		latency = assumedLatency
	}
	return min(s.Rate, float64(e.cfg.Workers*e.cfg.CallsPerShard)/latency.Seconds())
}

// allowed sums up what the live replicas that move rows in a Region may take
// together, and what they could; 0 where there are none.
func (e *Engine) allowed(ctx context.Context, tx Tx, region string) (rate, capacity float64, err error) {
	replicas, err := tx.Replicas(ctx)
	if err != nil {
		return 0, 0, err
	}
	budget := e.cfg.RowBudget(region)
	for _, r := range replicas {
		for _, b := range r.Budgets {
			if b.Busy && b.budget() == budget {
				rate += b.Rate
				capacity += b.Capacity
			}
		}
	}
	return rate, capacity, nil
}

// assumedLatency is KMS's before it has answered; about what it takes within a
// Region.
const assumedLatency = 10 * time.Millisecond

// shares divides each budget that this replica or a live one uses: the replicas
// that are busy have equal parts of what all foreground calls leave. A replica
// counts itself as busy, so that it begins with a part and no more.
func shares(own string, beats []Beat, replicas []Replica) map[pacer.Budget]pacer.Share {
	out := map[pacer.Budget]pacer.Share{}
	for _, b := range beats {
		out[b.budget()] = pacer.Share{Replicas: 1}
	}
	for _, r := range replicas {
		if r.ID == own {
			continue
		}
		for _, b := range r.Budgets {
			s, ok := out[b.budget()]
			if !ok {
				s = pacer.Share{Replicas: 1}
			}
			if b.Busy {
				s.Replicas++
			}
			s.Elsewhere += b.Foreground
			out[b.budget()] = s
		}
	}
	return out
}
