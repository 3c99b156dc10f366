package brokertest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
)

// runningJob is a job of a domain of its own that wants workers for n shards.
func (b *storeBench) runningJob(domain broker.DomainID, n int, p rotation.Priority) rotation.Job {
	b.t.Helper()
	j := newJob(b.domain(domain).UID, "job-1", b.clock.Now())
	j.Phase, j.Priority = rotation.Reencrypting, p
	b.update(func(ctx context.Context, tx rotation.Tx) error { return tx.InsertJob(ctx, j) })
	b.shards(j, n)
	return j
}

// commitShard gives the lease back where ttl is 0.
func (b *storeBench) commitShard(s rotation.Shard, ttl time.Duration) {
	b.t.Helper()
	b.update(func(ctx context.Context, tx rotation.Tx) error {
		_, _, err := tx.CommitShard(ctx, s, ttl)
		return err
	})
}

func (b *storeBench) wanted(j rotation.Job) (wanted bool) {
	b.t.Helper()
	b.update(func(ctx context.Context, tx rotation.Tx) (err error) {
		wanted, err = tx.ShardWanted(ctx, refOf(j))
		return err
	})
	return wanted
}

// testClaimsAreFair: a job with many shards, the oldest at that, leaves workers to
// the others, by priority; and those who wait longest come first.
func testClaimsAreFair(t *testing.T, b *storeBench) {
	large := b.runningJob("large", 16, rotation.Normal)
	b.clock.Advance(time.Second)
	small := b.runningJob("small", 2, rotation.Normal)
	b.clock.Advance(time.Second)
	urgent := b.runningJob("urgent", 16, rotation.High)
	claims := func(n int) map[broker.DomainUID]int {
		got := map[broker.DomainUID]int{}
		for range n {
			s, _, ok := b.claim("one")
			if !ok {
				t.Fatal("no shard was free")
			}
			got[s.Domain]++
		}
		return got
	}
	// A High job has four parts: 4 workers of 6.
	equal(t, "6 claims", claims(6), map[broker.DomainUID]int{large.Domain: 1, small.Domain: 1, urgent.Domain: 4})
	equal(t, "6 more", claims(6), map[broker.DomainUID]int{large.Domain: 1, small.Domain: 1, urgent.Domain: 4})
	// The small job has no more shards.
	equal(t, "5 more", claims(5), map[broker.DomainUID]int{large.Domain: 1, urgent.Domain: 4})

	// Leases that ran out count for nobody.
	b.clock.Advance(2 * shardTTL)
	equal(t, "6 after all ran out", claims(6), map[broker.DomainUID]int{large.Domain: 1, small.Domain: 1, urgent.Domain: 4})
}

// testShardWanted: a worker lets its shard go when a job would have less with it
// than its own has.
func testShardWanted(t *testing.T, b *storeBench) {
	large := b.runningJob("large", 16, rotation.Normal)
	var held []rotation.Shard
	for range 2 {
		s, _, _ := b.claim("one")
		held = append(held, s)
	}
	if b.wanted(large) {
		t.Error("wanted with no other job")
	}
	b.clock.Advance(time.Second)
	small := b.runningJob("small", 1, rotation.Normal)
	if !b.wanted(large) {
		t.Error("not wanted, though another job has no worker")
	}
	b.commitShard(held[0], 0)
	s, _, _ := b.claim("one")
	equal(t, "who gets the worker", s.Domain, small.Domain)
	if b.wanted(large) || b.wanted(small) {
		t.Error("wanted, though each has one worker")
	}
	// One worker, two jobs, turn by turn: who moved longest ago comes first.
	b.commitShard(held[1], 0)
	b.commitShard(s, 0)
	for i := range 4 {
		b.clock.Advance(time.Second)
		s, j, _ := b.claim("one")
		want := large.Domain
		if i%2 == 1 {
			want = small.Domain
		}
		equal(t, fmt.Sprint("turn ", i), s.Domain, want)
		s.Pace.Time = b.clock.Now()
		if !b.wanted(j) {
			t.Errorf("turn %d: not wanted", i)
		}
		b.commitShard(s, 0)
	}
	// Of transactions that run side by side, one may see what a later one has stored:
	// nobody has waited for less than no time.
	last, _, _ := b.claim("one")
	last.Pace.Time = b.clock.Now().Add(rotation.Turn)
	b.commitShard(last, 0)
	s, _, _ = b.claim("one")
	equal(t, "beside a job that was worked on later than now", s.Domain, small.Domain)
	if b.wanted(small) {
		t.Error("wanted by a job that has waited for less than no time")
	}
	b.clock.Advance(2 * rotation.Turn)
	s.Pace.Time = b.clock.Now()
	b.commitShard(s, 0)
	// A job that is paused wants nobody.
	j := b.readJob(small)
	j.State = rotation.Paused
	s, _, _ = b.claim("one")
	b.update(func(ctx context.Context, tx rotation.Tx) error { return tx.UpdateJob(ctx, j) })
	if s.Domain != large.Domain || b.wanted(large) {
		t.Errorf("wanted by a paused job, or the shard is of %s", s.Domain)
	}
}

func testPaces(t *testing.T, b *storeBench) {
	j := b.runningJob("alpha", 3, rotation.Normal)
	paces := func() (got []rotation.Pace) {
		b.view(func(ctx context.Context, tx rotation.Tx) (err error) {
			got, err = tx.Paces(ctx, refOf(j))
			return err
		})
		return got
	}
	if got := paces(); len(got) != 0 {
		t.Errorf("nothing moved, got %+v", got)
	}
	s, _, _ := b.claim("one")
	s.Pace = rotation.Pace{Rows: 1234.567, Calls: 1300, Throttled: 0.001, Time: b.clock.Now()}
	b.commitShard(s, shardTTL)
	equal(t, "paces", paces(), []rotation.Pace{s.Pace})
	got := b.readShards(j)[0]
	equal(t, "the pace with its shard", got.Pace, s.Pace)
}

func testReplicas(t *testing.T, b *storeBench) {
	beats := []rotation.Beat{
		{Account: "111122223333", Region: "us-east-1", Quota: "cryptographic", Rate: 1999.5, Capacity: 800, Foreground: 12.25, Busy: true},
		{Account: "111122223333", Region: "us-east-1", Quota: "CreateGrant", Rate: 45},
	}
	beat := func(id string, budgets []rotation.Beat) {
		t.Helper()
		b.update(func(ctx context.Context, tx rotation.Tx) error { return tx.BeatReplica(ctx, id, budgets, shardTTL) })
	}
	live := func(what string, want ...rotation.Replica) {
		t.Helper()
		b.view(func(ctx context.Context, tx rotation.Tx) error {
			got, err := tx.Replicas(ctx)
			equal(t, what, got, want)
			return err
		})
	}
	live("nobody")
	beat("two", beats)
	first := rotation.Replica{ID: "two", Until: b.clock.Now().Add(shardTTL), Budgets: beats}
	b.clock.Advance(time.Second)
	beat("one", nil)
	second := rotation.Replica{ID: "one", Until: b.clock.Now().Add(shardTTL)}
	live("both, by id", second, first)
	b.clock.Advance(shardTTL - time.Second)
	live("after the first has run out", second)
	beat("one", beats[:1])
	second.Until, second.Budgets = b.clock.Now().Add(shardTTL), beats[:1]
	live("after another beat", second)
	b.update(func(ctx context.Context, tx rotation.Tx) error { return tx.ForgetReplica(ctx, "one") })
	live("after it was forgotten")
}
