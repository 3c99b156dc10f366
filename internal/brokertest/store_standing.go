package brokertest

import (
	"context"
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
)

func testStanding(t *testing.T, b *storeBench) {
	standing := func(most int) (s rotation.Standing) {
		t.Helper()
		b.view(func(ctx context.Context, tx rotation.Tx) (err error) {
			s, err = tx.Standing(ctx, most)
			return err
		})
		return s
	}
	equal(t, "what stands open in an empty store", standing(10), rotation.Standing{})

	d := b.domain("alpha")
	now := b.clock.Now()
	b.job(d.UID, "runs", rotation.Running, rotation.Verifying)
	b.job(d.UID, "ended", rotation.Succeeded, rotation.Retiring)
	b.update(func(ctx context.Context, tx rotation.Tx) error {
		for _, id := range []broker.JobID{"blocked-1", "blocked-2"} {
			j := newJob(d.UID, id, now)
			j.State, j.Block = rotation.Blocked, rotation.Block{Reason: broker.ReasonKeyDisabled, Side: rotation.To, Since: now, NextProbe: now}
			if err := tx.InsertJob(ctx, j); err != nil {
				return err
			}
		}
		live, overdue, revoked := newGrant(d.UID, "live", now), newGrant(d.UID, "overdue", now), newGrant(d.UID, "revoked", now)
		overdue.ExpireTime, revoked.ExpireTime = now.Add(-time.Second), now.Add(-time.Second)
		revoked.State = broker.GrantRevoked
		for _, g := range []broker.Grant{live, overdue, revoked} {
			if err := tx.InsertGrant(ctx, g); err != nil {
				return err
			}
		}
		for i, state := range []broker.KMSGrantState{broker.KMSGrantIntended, broker.KMSGrantRetiring, broker.KMSGrantRetiring, broker.KMSGrantLive, broker.KMSGrantRetired} {
			k := newKMSGrant(live, 1, broker.Wrap, i, now)
			k.State = state
			if err := tx.InsertKMSGrant(ctx, k); err != nil {
				return err
			}
		}
		return nil
	})
	equal(t, "what stands open", standing(10), rotation.Standing{
		Jobs: []rotation.JobCount{
			{Kind: rotation.KindKeyChange, State: rotation.Blocked, Reason: broker.ReasonKeyDisabled, Jobs: 2},
			{Kind: rotation.KindKeyChange, State: rotation.Running, Jobs: 1},
		},
		OverdueGrants: 1, OpenIntents: 1, Retiring: 2,
	})
	few := standing(1)
	if len(few.Jobs) != 1 || few.Jobs[0].Jobs != 1 || few.OverdueGrants != 1 || few.OpenIntents+few.Retiring != 1 {
		t.Errorf("at most one of each: %+v", few)
	}
}
