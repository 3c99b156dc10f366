package broker_test

import (
	"context"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
)

// Replicas that sweep at the same time by accident take up different KMS grants,
// list each key once, and do nothing twice.
func TestSweepsAtTheSameTime(t *testing.T) {
	const grants = 60
	b, q, _ := newScale(t, grants, 0)
	b.plant("kb/test/NOBODYKNOWSTHISGRANTATALL0/unwrap/1/1")
	b.Calls()
	var wg sync.WaitGroup
	for range 4 {
		for _, sweep := range []func(context.Context) error{b.Broker.Sweep, b.Broker.SweepOrphans} {
			wg.Go(func() {
				if err := sweep(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	if q.calls != grants+1 {
		t.Errorf("%d RetireGrant calls for %d grants and an orphan", q.calls, grants)
	}
	if listings := b.operations()["ListGrants"]; listings != 1 {
		t.Errorf("the key was listed %d times", listings)
	}
	if n := b.count(`select count(*) from audit_event where action = 'grants.end'`); n != grants {
		t.Errorf("%d grants ended", n)
	}
	b.wantNoGrants(b.domain("acme").KMSKey)
}

// operations counts the broker's KMS calls since the last time it was asked.
func (b *bench) operations() map[string]int {
	n := map[string]int{}
	for _, c := range b.Calls() {
		n[c.Operation]++
	}
	return n
}

// A sweep that is stopped at any call leaves what the next one needs.
func TestStoppedSweep(t *testing.T) {
	for stop := range 6 {
		b := newActive(t)
		key := b.domain("acme").KMSKey
		for _, id := range []broker.GrantID{"a", "b"} {
			in := newGrant("")
			in.ID = id
			b.mustGrant(in)
		}
		b.Clock.Advance(time.Hour)
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		calls := 0
		b.road.set(func(_ string, send func() (*http.Response, error)) (*http.Response, error) {
			mu.Lock()
			defer mu.Unlock()
			if calls++; calls > stop {
				cancel()
				return nil, errLost
			}
			return send()
		})
		_ = b.Broker.Sweep(ctx)
		cancel()
		b.road.open()
		b.Clock.Advance(patience + time.Second)
		b.sweep()
		b.wantNoGrants(key)
		if n := b.count(`select count(*) from audit_event where action = 'kms.RetireGrant' and outcome = 'DONE'`); n != 4 {
			t.Errorf("stopped at call %d: %d KMS grants retired", stop, n)
		}
	}
}
