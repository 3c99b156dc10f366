package brokertest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
)

// racers is how many transactions meet in each of the races below. On an engine
// with one writer they follow each other, and the same must come out.
const racers = 32

// race runs fn in a transaction of each racer's own, all at once, and gives the
// errors.
func (b *storeBench) race(fn func(ctx context.Context, tx rotation.Tx, racer int) error) []error {
	ctx := b.t.Context()
	errs := make([]error, racers)
	ready := make(chan struct{})
	var wg sync.WaitGroup
	for i := range racers {
		wg.Go(func() {
			<-ready
			errs[i] = b.rotation.Update(ctx, func(tx rotation.Tx) error { return fn(ctx, tx, i) })
		})
	}
	close(ready)
	wg.Wait()
	return errs
}

// wantOne wants one winner; the others must have failed as kind says.
func (b *storeBench) wantOne(what string, errs []error, kind error) {
	b.t.Helper()
	won := 0
	for _, err := range errs {
		switch {
		case err == nil:
			won++
		case !errors.Is(err, kind):
			b.t.Errorf("%s: a racer failed with %v, want %v", what, err, kind)
		}
	}
	if won != 1 {
		b.t.Errorf("%s: %d racers won, want 1", what, won)
	}
}

// testRaceForRow: of many who read a row in one version, one changes it: moves
// it, replaces it or deletes it.
func testRaceForRow(_ *testing.T, b *storeBench) {
	d := b.domain("alpha")
	for round, k := range b.dataKeys(d.UID, 5) {
		errs := b.race(func(ctx context.Context, tx rotation.Tx, racer int) error {
			switch racer % 3 {
			case 0:
				moved, err := tx.MoveDataKeys(ctx, d.UID, 2, []rotation.Move{{
					ID: k.ID, UID: k.UID, Version: k.Version, FromEpoch: k.Epoch, Ciphertext: broker.Secret(fmt.Sprint("moved by ", racer)),
				}})
				if err == nil && !moved[0] {
					return broker.ErrConflict
				}
				return err
			case 1:
				next := k
				next.Ciphertext = broker.Secret(fmt.Sprint("replaced by ", racer))
				return tx.ReplaceDataKey(ctx, next, k.Epoch)
			}
			if err := tx.DeleteDataKey(ctx, k); errors.Is(err, broker.ErrNotFound) {
				return broker.ErrConflict // somebody else deleted it
			} else if err != nil {
				return err
			}
			return nil
		})
		for i, err := range errs {
			if errors.Is(err, broker.ErrNotFound) { // somebody deleted what was to be replaced
				errs[i] = broker.ErrConflict
			}
		}
		b.wantOne(fmt.Sprintf("row %d", round), errs, broker.ErrConflict)
	}

	// Names and ids: one of many makes each.
	b.wantOne("a domain's id", b.race(func(ctx context.Context, tx rotation.Tx, racer int) error {
		beta := newDomain("beta", tx.Now())
		beta.UID = broker.DomainUID(fmt.Sprint("uid-", racer))
		return tx.InsertDomain(ctx, beta)
	}), broker.ErrAlreadyExists)
	b.wantOne("an epoch", b.race(func(ctx context.Context, tx rotation.Tx, racer int) error {
		return tx.InsertDomainKey(ctx, broker.DomainKey{Domain: d.UID, Epoch: 7, KMSKey: broker.KeyARN(fmt.Sprint("arn:", racer)), State: broker.KeyPreparing})
	}), broker.ErrConflict)
}

// testRaceToShred: whoever shreds a domain beside others is told of no row that they
// had before it, and each row leaves one tombstone.
func testRaceToShred(t *testing.T, b *storeBench) {
	const rows, page = 50, 7
	d := b.domain("alpha")
	keys := b.dataKeys(d.UID, rows)
	b.dataKeys(b.domain("beta").UID, rows)
	shredded := make([]int, racers)
	errs := b.race(func(ctx context.Context, tx rotation.Tx, racer int) error {
		shredded[racer] = 0
		for {
			n, err := tx.ShredDataKeys(ctx, d.UID, page)
			if shredded[racer] += n; err != nil || n == 0 {
				return err
			}
			if n > page {
				t.Errorf("%d rows at once, want %d at most", n, page)
			}
		}
	})
	total := 0
	for racer, err := range errs {
		if total += shredded[racer]; err != nil {
			t.Errorf("racer %d: %v", racer, err)
		}
	}
	equal(t, "rows shredded", total, rows)
	for _, k := range keys {
		b.refused(broker.ErrAlreadyExists, "the id of a shredded row", func(ctx context.Context, tx rotation.Tx) error {
			return tx.InsertDataKey(ctx, k)
		})
	}
	b.view(func(ctx context.Context, tx rotation.Tx) error {
		left, err := tx.ListDataKeys(ctx, d.UID, "", rows)
		equal(t, "rows left", len(left), 0)
		return err
	})
}

// testRaceForID: an id is never used again, also by whoever inserts it at the
// very moment of its deletion.
func testRaceForID(t *testing.T, b *storeBench) {
	d := b.domain("alpha")
	for _, k := range b.dataKeys(d.UID, 20) {
		errs := b.race(func(ctx context.Context, tx rotation.Tx, racer int) error {
			if racer == 0 {
				return tx.DeleteDataKey(ctx, k)
			}
			again := newDataKey(d.UID, k.ID, tx.Now())
			again.UID = broker.DataKeyUID(fmt.Sprint("again-", racer))
			err := tx.InsertDataKey(ctx, again)
			if !errors.Is(err, broker.ErrAlreadyExists) {
				return err
			}
			// A refusal spoils nothing: what else the transaction does is stored.
			return tx.Audit(ctx, broker.AuditEvent{Caller: "racer", Action: "refused", Outcome: broker.AuditRefused})
		})
		if err := errors.Join(errs...); err != nil {
			t.Error(err)
		}
		b.refused(broker.ErrNotFound, "a row of an id that was deleted", func(ctx context.Context, tx rotation.Tx) error {
			_, err := tx.DataKey(ctx, d.UID, k.ID)
			return err
		})
	}
}

// testRaceForIDs: of several who insert the same ids together, in whatever order,
// each id is taken by one, and nobody is refused a transaction.
func testRaceForIDs(t *testing.T, b *storeBench) {
	const rows = 50
	d := b.domain("alpha")
	var taken [racers][]broker.DataKeyID // of each racer's last run
	uid := func(racer int) broker.DataKeyUID { return broker.DataKeyUID(fmt.Sprint("racer-", racer)) }
	errs := b.race(func(ctx context.Context, tx rotation.Tx, racer int) error {
		keys := make([]broker.DataKey, rows)
		for i := range keys {
			keys[i] = newDataKey(d.UID, broker.DataKeyID(fmt.Sprintf("k%03d", (i+racer)%rows)), tx.Now())
			keys[i].UID = uid(racer)
		}
		if racer%2 == 1 {
			slices.Reverse(keys)
		}
		taken[racer] = nil
		there, err := tx.InsertDataKeys(ctx, keys)
		for i, err := range there {
			if err == nil {
				taken[racer] = append(taken[racer], keys[i].ID)
			}
		}
		return err
	})
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
	total := 0
	for racer, ids := range taken {
		total += len(ids)
		for _, id := range ids {
			equal(t, "whose row "+string(id)+" is", b.dataKey(d.UID, id).UID, uid(racer))
		}
	}
	equal(t, "ids taken", total, rows)
}

// testRaceForLease: a job's lease, a shard and a periodic task are one replica's
// at a time.
func testRaceForLease(t *testing.T, b *storeBench) {
	d := b.domain("alpha")
	j := b.job(d.UID, "job-1", rotation.Running, rotation.Reencrypting)
	for round := range 3 {
		errs := b.race(func(ctx context.Context, tx rotation.Tx, racer int) error {
			_, err := tx.LeaseJob(ctx, refOf(j), fmt.Sprint("replica-", racer), shardTTL)
			return err
		})
		b.wantOne(fmt.Sprintf("the job's lease, time %d", round), errs, broker.ErrConflict)
		b.clock.Advance(shardTTL)
	}
	b.view(func(ctx context.Context, tx rotation.Tx) error {
		got, err := tx.Job(ctx, refOf(j))
		equal(t, "the job's fence", got.Lease.Seq, 3)
		return err
	})

	const shards = 7
	b.shards(j, shards)
	var mu sync.Mutex
	owners := map[int][]int{}
	errs := b.race(func(ctx context.Context, tx rotation.Tx, racer int) error {
		s, _, err := tx.ClaimShard(ctx, fmt.Sprint("replica-", racer), shardTTL)
		if err == nil {
			mu.Lock()
			defer mu.Unlock()
			owners[racer] = append(owners[racer], s.Index) // the last is what was committed
		}
		return err
	})
	claimed := map[int]int{}
	for racer, err := range errs {
		switch {
		case err == nil:
			claimed[owners[racer][len(owners[racer])-1]]++
		case !errors.Is(err, broker.ErrNotFound):
			t.Errorf("claim: %v", err)
		}
	}
	if len(claimed) != shards {
		t.Errorf("%d shards were claimed, want %d: %v", len(claimed), shards, claimed)
	}
	for shard, n := range claimed {
		if n != 1 {
			t.Errorf("shard %d has %d owners", shard, n)
		}
	}

	b.wantOne("a periodic task", b.race(func(ctx context.Context, tx rotation.Tx, racer int) error {
		mine, err := tx.TakePeriodic(ctx, "expiry", fmt.Sprint("replica-", racer), time.Minute)
		if err == nil && !mine {
			return broker.ErrConflict
		}
		return err
	}), broker.ErrConflict)
}

// testRaceForRequest: of calls with one request id that come at once, one has an
// effect, and the others find its record.
func testRaceForRequest(t *testing.T, b *storeBench) {
	d := b.domain("alpha")
	for round := range 5 {
		key := broker.RequestKey{Caller: "alice", Method: "m", ID: fmt.Sprint("r-", round)}
		errs := b.race(func(ctx context.Context, tx rotation.Tx, racer int) error {
			if err := tx.LockDomain(ctx, d.UID, broker.Shared); err != nil {
				return err
			}
			_, err := tx.RequestRecord(ctx, key)
			if err == nil {
				return broker.ErrAlreadyExists
			}
			if !errors.Is(err, broker.ErrNotFound) {
				return err
			}
			if err := tx.InsertDataKey(ctx, newDataKey(d.UID, broker.DataKeyID(fmt.Sprintf("k-%d-%d", round, racer)), tx.Now())); err != nil {
				return err
			}
			return tx.PutRequestRecord(ctx, broker.RequestRecord{RequestKey: key, Resource: "the key", Done: true, Until: tx.Now().Add(time.Hour)})
		})
		b.wantOne(fmt.Sprintf("request %d", round), errs, broker.ErrAlreadyExists)
	}
	b.view(func(ctx context.Context, tx rotation.Tx) error {
		rows, err := tx.ListDataKeys(ctx, d.UID, "", 100)
		equal(t, "effects", len(rows), 5)
		return err
	})
}

// testRaceForGrant: what is read and then written back without a version is not
// changed by another in between: no addition is lost.
func testRaceForGrant(t *testing.T, b *storeBench) {
	d := b.domain("alpha")
	g := newGrant(d.UID, "g", b.clock.Now())
	k := newKMSGrant(g, 1, broker.Wrap, 1, b.clock.Now())
	b.update(func(ctx context.Context, tx rotation.Tx) error {
		if err := tx.InsertGrant(ctx, g); err != nil {
			return err
		}
		return tx.InsertKMSGrant(ctx, k)
	})
	errs := b.race(func(ctx context.Context, tx rotation.Tx, racer int) error {
		now, err := tx.GrantByUID(ctx, d.UID, g.UID)
		if err != nil {
			return err
		}
		made, err := tx.KMSGrants(ctx, d.UID, g.UID)
		if err != nil {
			return err
		}
		row := made[0]
		if racer%2 == 0 {
			if row, err = tx.KMSGrantByName(ctx, k.Name); err != nil {
				return err
			}
		}
		row.NextTry = row.NextTry.Add(time.Second)
		if err := tx.UpdateKMSGrant(ctx, row); err != nil {
			return err
		}
		now.ExpireTime = now.ExpireTime.Add(time.Second)
		return tx.UpdateGrant(ctx, now)
	})
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	b.view(func(ctx context.Context, tx rotation.Tx) error {
		row, err := tx.KMSGrantByName(ctx, k.Name)
		if err != nil {
			return err
		}
		equal(t, "additions to the KMS grant", row.NextTry.Sub(k.NextTry), racers*time.Second)
		now, err := tx.GrantByUID(ctx, d.UID, g.UID)
		equal(t, "additions to the grant", now.ExpireTime.Sub(g.ExpireTime), racers*time.Second)
		return err
	})

	// The next attempt of a grant is made by one; whoever was overtaken has looked
	// again, and found it.
	errs = b.race(func(ctx context.Context, tx rotation.Tx, _ int) error {
		made, err := tx.KMSGrants(ctx, d.UID, g.UID)
		if err != nil {
			return err
		}
		if len(made) > 1 {
			return broker.ErrAlreadyExists
		}
		return tx.InsertKMSGrant(ctx, newKMSGrant(g, 2, broker.Wrap, 1, tx.Now()))
	})
	b.wantOne("the next attempt", errs, broker.ErrAlreadyExists)
}

// testRaceForShards: while a job's shards are replaced, others claim the former
// ones. Whatever fence they got, the new shards begin above it.
func testRaceForShards(t *testing.T, b *storeBench) {
	j := b.job(b.domain("alpha").UID, "job-1", rotation.Running, rotation.Reencrypting)
	generation := func(n int) []rotation.Shard {
		return []rotation.Shard{{Domain: j.Domain, Job: j.ID, Index: 0, High: broker.DataKeyID(fmt.Sprint("generation-", n))}}
	}
	b.update(func(ctx context.Context, tx rotation.Tx) error { return tx.InsertShards(ctx, generation(0)) })
	for round := range 10 {
		var mu sync.Mutex
		claims := map[int]rotation.Shard{}
		errs := b.race(func(ctx context.Context, tx rotation.Tx, racer int) error {
			if racer == racers/2 {
				return tx.InsertShards(ctx, generation(round+1))
			}
			s, _, err := tx.ClaimShard(ctx, fmt.Sprint("replica-", racer), 0) // free again at once
			if err == nil {
				mu.Lock()
				defer mu.Unlock()
				claims[racer] = s
			}
			return err
		})
		former, first := generation(round)[0].High, int64(0)
		for racer, err := range errs {
			switch {
			case errors.Is(err, broker.ErrNotFound): // every shard that it saw was taken or replaced
			case err != nil:
				t.Errorf("racer %d: %v", racer, err)
			case claims[racer].High == former:
				first = max(first, claims[racer].Lease.Seq+1)
			}
		}
		got := b.readShards(j)
		if len(got) != 1 || got[0].High == former {
			t.Fatalf("round %d: the shards are not the new one: %+v", round, got)
		}
		for racer, s := range claims {
			if errs[racer] == nil && s.High != former && s.Lease.Seq <= first {
				t.Errorf("round %d: racer %d got fence %d of the new shard, and the former one gave out %d", round, racer, s.Lease.Seq, first-1)
			}
		}
		if got[0].Lease.Seq < first {
			t.Errorf("round %d: the new shard is at fence %d, and the former one gave out %d", round, got[0].Lease.Seq, first-1)
		}
	}
}

// testRaceForCounts: workers of one job count the rows that they moved, of the same
// key materials in any order. None of them meets another halfway, which would undo
// its batch.
func testRaceForCounts(t *testing.T, b *storeBench) {
	j := b.job(b.domain("alpha").UID, "job-1", rotation.Running, rotation.Reencrypting)
	const materials = 16
	var runs atomic.Int64
	errs := b.race(func(ctx context.Context, tx rotation.Tx, racer int) error {
		runs.Add(1)
		counts := make([]rotation.MaterialCount, materials)
		for i := range counts {
			n := i
			if racer%2 == 1 {
				n = materials - 1 - i
			}
			counts[i] = rotation.MaterialCount{SourceKey: "arn:one", SourceMaterial: fmt.Sprintf("m%02d", n), NewMaterial: "new", Rows: 1}
		}
		if err := tx.AddMoved(ctx, refOf(j), counts); err != nil {
			return err
		}
		return tx.TouchJob(ctx, refOf(j))
	})
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	if n := runs.Load(); n != racers {
		t.Errorf("%d transactions were run for %d racers: some were undone", n, racers)
	}
	b.view(func(ctx context.Context, tx rotation.Tx) error {
		got, err := tx.Moved(ctx, refOf(j))
		for _, c := range got {
			equal(t, "rows of "+c.SourceMaterial, c.Rows, racers)
		}
		equal(t, "materials", len(got), materials)
		return err
	})
}

// testRaceForBeats: replicas that wake together, all of whose words have run out,
// tell theirs and forget the others'. None waits for one that waits for it.
func testRaceForBeats(t *testing.T, b *storeBench) {
	for round := range 10 {
		var runs atomic.Int64
		errs := b.race(func(ctx context.Context, tx rotation.Tx, racer int) error {
			runs.Add(1)
			return tx.BeatReplica(ctx, fmt.Sprint("replica-", racer), nil, shardTTL)
		})
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
		if n := runs.Load(); n != racers {
			t.Errorf("round %d: %d transactions were run for %d replicas: some were undone", round, n, racers)
		}
		b.view(func(ctx context.Context, tx rotation.Tx) error {
			got, err := tx.Replicas(ctx)
			equal(t, fmt.Sprint("live replicas in round ", round), len(got), racers)
			return err
		})
		b.clock.Advance(shardTTL)
	}
}
