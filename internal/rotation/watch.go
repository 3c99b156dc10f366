package rotation

import (
	"context"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
)

// heartbeat is how often a watch speaks when nothing changes (the API's promise).
const heartbeat = 15 * time.Second

// coalesce is how long changes may gather before they are told together; ours.
const coalesce = 50 * time.Millisecond

// WatchJob sends the job as it is, then again after each change (several may
// come as one), and a heartbeat every 15 s. It returns nil after it has sent a
// final state, or the error of send or ctx.
func (e *Engine) WatchJob(ctx context.Context, caller broker.Caller, d broker.DomainID, id broker.JobID, send func(v JobView, heartbeat bool) error) error {
	var sent JobView
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	poll := time.NewTicker(e.cfg.Poll)
	defer poll.Stop()
	for first := true; ; first = false {
		changed := e.changed.wait()
		view, err := e.GetJob(ctx, caller, d, id)
		if err != nil {
			return err
		}
		if first || view.Version != sent.Version || view.Progress != sent.Progress {
			if err := send(view, false); err != nil {
				return err
			}
			sent = view
			beat.Reset(heartbeat)
		}
		if !view.Open() {
			return nil
		}
		select {
		case <-changed:
			if err := e.cfg.Sleep(ctx, coalesce); err != nil {
				return err
			}
		case <-poll.C: // another replica may have changed it
		case <-beat.C:
			if err := send(view, true); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
