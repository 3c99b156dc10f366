package brokertest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
)

const shardTTL = 10 * time.Second

// shards stores n empty shards of a job and gives them.
func (b *storeBench) shards(j rotation.Job, n int) []rotation.Shard {
	b.t.Helper()
	shards := make([]rotation.Shard, n)
	for i := range shards {
		shards[i] = rotation.Shard{Domain: j.Domain, Job: j.ID, Index: i}
		if i > 0 {
			shards[i].Low = broker.DataKeyID(fmt.Sprintf("k%03d", i))
			shards[i-1].High = shards[i].Low
		}
	}
	b.update(func(ctx context.Context, tx rotation.Tx) error { return tx.InsertShards(ctx, shards) })
	return shards
}

func (b *storeBench) readShards(j rotation.Job) (got []rotation.Shard) {
	b.t.Helper()
	b.view(func(ctx context.Context, tx rotation.Tx) (err error) {
		got, err = tx.Shards(ctx, refOf(j))
		return err
	})
	return got
}

// claim takes a shard; ok is false if none was free.
func (b *storeBench) claim(owner string) (s rotation.Shard, j rotation.Job, ok bool) {
	b.t.Helper()
	ctx := b.t.Context()
	err := b.rotation.Update(ctx, func(tx rotation.Tx) (err error) {
		s, j, err = tx.ClaimShard(ctx, owner, shardTTL)
		return err
	})
	if err != nil && !errors.Is(err, broker.ErrNotFound) {
		b.t.Fatalf("claim: %v", err)
	}
	return s, j, err == nil
}

func testShards(t *testing.T, b *storeBench) {
	d := b.domain("alpha")
	j := b.job(d.UID, "job-1", rotation.Running, rotation.Reencrypting)
	shards := b.shards(j, 12)
	equal(t, "shards by index", b.readShards(j), shards)
	progress := func(what string, want rotation.Progress) {
		t.Helper()
		b.view(func(ctx context.Context, tx rotation.Tx) error {
			got, err := tx.Progress(ctx, refOf(j))
			equal(t, what, got, want)
			return err
		})
	}
	progress("nothing done", rotation.Progress{Shards: 12})
	for i := range 2 {
		s, _, _ := b.claim("one")
		s.Done, s.Relabelled, s.Failed, s.Finished = int64(10+i), 2, 3, i == 0
		b.update(func(ctx context.Context, tx rotation.Tx) error {
			_, _, err := tx.CommitShard(ctx, s, shardTTL)
			return err
		})
	}
	progress("two shards at work", rotation.Progress{Shards: 12, FinishedShards: 1, Done: 21, Relabelled: 4, Failed: 6})
	b.view(func(ctx context.Context, tx rotation.Tx) error {
		got, err := tx.Progress(ctx, rotation.JobRef{Domain: d.UID, ID: "absent"})
		equal(t, "a job without shards", got, rotation.Progress{})
		return err
	})
}

// testReplacedShards: a worker of the former shards holds a fence that must mean
// nothing to the new ones, or two workers would write one shard.
func testReplacedShards(t *testing.T, b *storeBench) {
	j := b.job(b.domain("alpha").UID, "job-1", rotation.Running, rotation.Reencrypting)
	b.shards(j, 2)
	late, _, _ := b.claim("late")
	b.shards(j, 3)
	if got := b.readShards(j); len(got) != 3 {
		t.Fatalf("got %d shards, want the 3 new ones", len(got))
	}
	for range 3 {
		if _, _, ok := b.claim("new"); !ok {
			t.Fatal("a new shard could not be claimed")
		}
	}
	before := b.readShards(j)
	late.Cursor = "k999"
	b.refused(broker.ErrConflict, "a commit to a shard that was replaced", func(ctx context.Context, tx rotation.Tx) error {
		_, _, err := tx.CommitShard(ctx, late, shardTTL)
		return err
	})
	equal(t, "shards after a late commit", b.readShards(j), before)
}

func testClaimShard(t *testing.T, b *storeBench) {
	d := b.domain("alpha")
	for i, c := range []struct {
		state rotation.State
		phase rotation.Phase
	}{
		{rotation.Paused, rotation.Reencrypting},
		{rotation.Blocked, rotation.Reencrypting},
		{rotation.Failed, rotation.Reencrypting},
		{rotation.Superseded, rotation.Reencrypting},
		{rotation.Running, rotation.Preparing},
		{rotation.Running, rotation.Verifying},
	} {
		b.shards(b.job(d.UID, broker.JobID(fmt.Sprint("idle-", i)), c.state, c.phase), 1)
	}
	verify := newJob(d.UID, "idle-verify", b.clock.Now())
	verify.Kind, verify.Phase, verify.State = rotation.KindVerify, rotation.Preparing, rotation.Running
	b.update(func(ctx context.Context, tx rotation.Tx) error { return tx.InsertJob(ctx, verify) })
	b.shards(verify, 1)
	if s, _, ok := b.claim("one"); ok {
		t.Fatalf("claimed a shard of %s, which is not RUNNING in REENCRYPTING", s.Job)
	}
	j := b.job(d.UID, "job-1", rotation.Running, rotation.Reencrypting)
	want := b.shards(j, 2)
	for i := range want {
		want[i].Lease = rotation.Lease{Owner: "one", Seq: 1, Until: b.clock.Now().Add(shardTTL)}
		got, job, ok := b.claim("one")
		if !ok {
			t.Fatalf("shard %d could not be claimed", i)
		}
		equal(t, "the shard as claimed", got, want[i])
		equal(t, "its job", job, j)
	}
	equal(t, "shards as stored", b.readShards(j), want)
	if _, _, ok := b.claim("one"); ok {
		t.Error("claimed a shard under a live lease, though its own")
	}

	// One is released, the other runs out: only the second was left behind.
	b.update(func(ctx context.Context, tx rotation.Tx) error {
		_, _, err := tx.CommitShard(ctx, want[0], 0)
		return err
	})
	b.clock.Advance(shardTTL - time.Microsecond)
	released, _, ok := b.claim("two")
	if !ok || released.Index != 0 || released.Again || released.Lease.Seq != 2 {
		t.Errorf("after a release: got %+v, %v; want shard 0, not again, fence 2", released, ok)
	}
	if _, _, ok := b.claim("two"); ok {
		t.Error("claimed a shard whose lease had not run out")
	}
	b.clock.Advance(time.Microsecond)
	left, _, ok := b.claim("two")
	if !ok || left.Index != 1 || !left.Again || left.Lease.Seq != 2 {
		t.Errorf("after a lease ran out: got %+v, %v; want shard 1, again, fence 2", left, ok)
	}
	equal(t, "Again as stored", b.readShards(j)[1].Again, true)

	// A finished shard is nobody's.
	released.Finished = true
	b.update(func(ctx context.Context, tx rotation.Tx) error {
		_, _, err := tx.CommitShard(ctx, released, 0)
		return err
	})
	b.clock.Advance(time.Hour)
	if s, _, ok := b.claim("three"); !ok || s.Index != 1 {
		t.Errorf("got shard %d, %v; want the unfinished one", s.Index, ok)
	}
	if _, _, ok := b.claim("three"); ok {
		t.Error("claimed a finished shard")
	}
}

// testTakeVerifyShard: the cursor of a VERIFY job's shard is never ahead of what KMS
// has read, so whoever takes the shard over goes on there. What another release has
// asked for stands.
func testTakeVerifyShard(t *testing.T, b *storeBench) {
	j := newJob(b.domain("alpha").UID, "job-1", b.clock.Now())
	j.Kind, j.Phase, j.State = rotation.KindVerify, rotation.Verifying, rotation.Running
	b.update(func(ctx context.Context, tx rotation.Tx) error { return tx.InsertJob(ctx, j) })
	b.shards(j, 1)
	for seq, again := range []bool{false, true} {
		s, _, _ := b.claim("one")
		s.Cursor, s.Again = "k5", again
		b.update(func(ctx context.Context, tx rotation.Tx) error {
			_, _, err := tx.CommitShard(ctx, s, shardTTL)
			return err
		})
		b.clock.Advance(shardTTL)
		left, job, ok := b.claim("two")
		if !ok || left.Cursor != "k5" || left.Again != again || left.Lease.Seq != int64(2*seq+2) {
			t.Errorf("after a lease ran out: got %+v, %v; want the shard at its cursor, again: %v", left, ok, again)
		}
		equal(t, "its job", job, j)
		b.clock.Advance(shardTTL)
	}
}

func testCommitShard(t *testing.T, b *storeBench) {
	j := b.job(b.domain("alpha").UID, "job-1", rotation.Running, rotation.Reencrypting)
	b.shards(j, 2)
	s, _, _ := b.claim("one")
	untouched := b.readShards(j)[1]
	b.clock.Advance(time.Second)
	commit := func(s rotation.Shard, ttl time.Duration) {
		t.Helper()
		b.update(func(ctx context.Context, tx rotation.Tx) error {
			state, _, err := tx.CommitShard(ctx, s, ttl)
			equal(t, "the job's state", state, rotation.Running)
			return err
		})
	}
	s.Cursor, s.Again, s.Done, s.Relabelled, s.Failed = "k000x", true, 7, 2, 1
	commit(s, shardTTL)
	want := s
	want.Lease.Until = b.clock.Now().Add(shardTTL)
	equal(t, "shards after a commit", b.readShards(j), []rotation.Shard{want, untouched})

	late := s
	late.Cursor, late.Lease.Seq = "later", 2
	b.refused(broker.ErrConflict, "a commit with another fence", func(ctx context.Context, tx rotation.Tx) error {
		_, _, err := tx.CommitShard(ctx, late, shardTTL)
		return err
	})
	equal(t, "shards after a refused commit", b.readShards(j), []rotation.Shard{want, untouched})

	// A lease that ran out but was not taken over still holds.
	b.clock.Advance(time.Hour)
	s.Cursor = "k000y"
	commit(s, shardTTL)
	s.Finished, s.Again = true, false
	commit(s, 0)
	got := b.readShards(j)[0]
	if !got.Finished || got.Again || !got.Lease.Until.IsZero() || got.Lease.Seq != 1 {
		t.Errorf("after the last commit: %+v; want finished, not again, released, fence 1", got)
	}

	// Taken over: the former holder writes nothing, its rows included.
	k := b.dataKeys(j.Domain, 1)[0]
	former, _, _ := b.claim("one")
	b.clock.Advance(shardTTL)
	if _, _, ok := b.claim("two"); !ok {
		t.Fatal("no takeover")
	}
	before := b.readShards(j)
	b.refused(broker.ErrConflict, "a commit after a takeover", func(ctx context.Context, tx rotation.Tx) error {
		if _, err := tx.MoveDataKeys(ctx, j.Domain, 2, []rotation.Move{{
			ID: k.ID, UID: k.UID, Version: 1, FromEpoch: 1, Ciphertext: broker.Secret("late"),
		}}); err != nil {
			return err
		}
		_, _, err := tx.CommitShard(ctx, former, shardTTL)
		return err
	})
	equal(t, "shards after a takeover", b.readShards(j), before)
	equal(t, "a row moved by the former holder", b.dataKey(j.Domain, k.ID), k)
}

func testCommitShardByJobState(t *testing.T, b *storeBench) {
	d := b.domain("alpha")
	for _, c := range []struct {
		state  rotation.State
		stored bool
	}{
		{rotation.Running, true}, {rotation.Paused, true}, {rotation.Blocked, true},
		{rotation.Succeeded, false}, {rotation.Failed, false}, {rotation.Cancelled, false}, {rotation.Superseded, false},
	} {
		j := b.job(d.UID, broker.JobID("job-"+c.state), rotation.Running, rotation.Reencrypting)
		b.shards(j, 1)
		s, _, ok := b.claim("one")
		if !ok || s.Job != j.ID {
			t.Fatalf("claimed a shard of %q, want one of %q", s.Job, j.ID)
		}
		j.State = c.state
		b.update(func(ctx context.Context, tx rotation.Tx) error { return tx.UpdateJob(ctx, j) })
		s.Cursor = "k5"
		commit := func(ctx context.Context, tx rotation.Tx) error {
			state, _, err := tx.CommitShard(ctx, s, shardTTL)
			if err == nil && state != c.state {
				t.Errorf("%s: the commit tells %s", c.state, state)
			}
			return err
		}
		want := broker.DataKeyID("")
		if c.stored {
			b.update(commit)
			want = "k5"
		} else {
			b.refused(broker.ErrConflict, "a commit to a job that is "+string(c.state), commit)
		}
		equal(t, "cursor with the job "+string(c.state), b.readShards(j)[0].Cursor, want)
	}
	b.refused(broker.ErrNotFound, "a commit to an absent job", func(ctx context.Context, tx rotation.Tx) error {
		_, _, err := tx.CommitShard(ctx, rotation.Shard{Domain: d.UID, Job: "absent"}, shardTTL)
		return err
	})
}

func testRenewShard(t *testing.T, b *storeBench) {
	j := b.job(b.domain("alpha").UID, "job-1", rotation.Running, rotation.Reencrypting)
	b.shards(j, 1)
	s, _, _ := b.claim("one")
	renew := func(s rotation.Shard) func(context.Context, rotation.Tx) error {
		return func(ctx context.Context, tx rotation.Tx) error { return tx.RenewShard(ctx, s, shardTTL) }
	}
	b.clock.Advance(3 * time.Second)
	changed := s
	changed.Cursor, changed.Done, changed.Finished = "k9", 9, true
	b.update(renew(changed))
	want := s
	want.Lease.Until = b.clock.Now().Add(shardTTL)
	equal(t, "a renewal moves nothing but the time", b.readShards(j), []rotation.Shard{want})

	stale := s
	stale.Lease.Seq = 0
	b.refused(broker.ErrConflict, "a renewal with another fence", renew(stale))
	b.update(func(ctx context.Context, tx rotation.Tx) error {
		_, _, err := tx.CommitShard(ctx, s, 0)
		return err
	})
	b.refused(broker.ErrConflict, "a renewal after the release", renew(s))
	if _, _, ok := b.claim("two"); !ok {
		t.Error("a released shard could not be claimed at once")
	}
	b.refused(broker.ErrConflict, "a renewal after a takeover", renew(s))
}
