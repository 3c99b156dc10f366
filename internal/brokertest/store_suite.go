package brokertest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
)

// RunStore runs the contract of broker.Store and rotation.Store against an
// engine. open gives an empty store, under both views, whose clock is now; it is
// closed by the test's own clean-up. An engine whose judge of time is its own
// clock (PostgreSQL) needs that clock replaced for this suite.
func RunStore(t *testing.T, open func(t *testing.T, now func() time.Time) (broker.Store, rotation.Store)) {
	t.Helper()
	for _, topic := range []struct {
		name string
		test func(*testing.T, *storeBench)
	}{
		{"Domains", testDomains},
		{"DomainKeys", testDomainKeys},
		{"InaccessibleDomains", testInaccessibleDomains},
		{"DeletedDomains", testDeletedDomains},
		{"DataKeys", testDataKeys},
		{"InsertDataKeys", testInsertDataKeys},
		{"Tombstones", testTombstones},
		{"ReplaceDataKey", testReplaceDataKey},
		{"Grants", testGrants},
		{"ListGrants", testListGrants},
		{"SelfGrants", testSelfGrants},
		{"DueGrants", testDueGrants},
		{"UnmadeGrants", testUnmadeGrants},
		{"KMSGrants", testKMSGrants},
		{"KMSGrantsInRange", testKMSGrantsInRange},
		{"KMSGrantsUnderEpoch", testKMSGrantsUnderEpoch},
		{"Listings", testListings},
		{"Requests", testRequests},
		{"ForgetRequests", testForgetRequests},
		{"Audit", testAudit},
		{"Jobs", testJobs},
		{"JobLists", testJobLists},
		{"DueJobs", testDueJobs},
		{"MovingJobs", testMovingJobs},
		{"JobLease", testJobLease},
		{"TouchJob", testTouchJob},
		{"Shards", testShards},
		{"ReplacedShards", testReplacedShards},
		{"ClaimShard", testClaimShard},
		{"TakeVerifyShard", testTakeVerifyShard},
		{"ClaimsAreFair", testClaimsAreFair},
		{"ShardWanted", testShardWanted},
		{"Shares", testShares},
		{"FreshJob", testFreshJob},
		{"Paces", testPaces},
		{"Replicas", testReplicas},
		{"CommitShard", testCommitShard},
		{"CommitShardByJobState", testCommitShardByJobState},
		{"RenewShard", testRenewShard},
		{"MoveDataKeys", testMoveDataKeys},
		{"PendingDataKeys", testPendingDataKeys},
		{"SampleBoundaries", testSampleBoundaries},
		{"Failures", testFailures},
		{"AbandonDataKey", testAbandonDataKey},
		{"Moved", testMoved},
		{"Settlements", testSettlements},
		{"UsesOfKey", testUsesOfKey},
		{"Standing", testStanding},
		{"Periodic", testPeriodic},
		{"Rollback", testRollback},
		{"Panic", testPanic},
		{"Cancel", testCancel},
		{"Snapshot", testSnapshot},
		{"ReadOnly", testReadOnly},
		{"Concurrent", testConcurrent},
		{"LockDomain", testLockDomain},
		{"RaceForRow", testRaceForRow},
		{"RaceToShred", testRaceToShred},
		{"RaceForID", testRaceForID},
		{"RaceForIDs", testRaceForIDs},
		{"RaceForLease", testRaceForLease},
		{"RaceForRequest", testRaceForRequest},
		{"RaceForGrant", testRaceForGrant},
		{"RaceForShards", testRaceForShards},
		{"RaceForCounts", testRaceForCounts},
		{"RaceForBeats", testRaceForBeats},
		{"Clock", testClock},
	} {
		t.Run(topic.name, func(t *testing.T) {
			clock := NewStoreClock()
			b := &storeBench{t: t, clock: clock}
			b.broker, b.rotation = open(t, clock.Now)
			topic.test(t, b)
		})
	}
}

// StoreClock is a clock that tests move by hand. It is safe for concurrent use.
type StoreClock struct {
	mu  sync.Mutex
	now time.Time
}

// NewStoreClock starts at a fixed time, in UTC.
func NewStoreClock() *StoreClock {
	return &StoreClock{now: time.Date(2031, 5, 6, 7, 8, 9, 123456000, time.UTC)}
}

// Now gives the time.
func (c *StoreClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Advance moves the time.
func (c *StoreClock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// storeBench is one topic's store.
type storeBench struct {
	t        *testing.T
	clock    *StoreClock
	broker   broker.Store
	rotation rotation.Store
}

// update runs fn and fails the test if it fails.
func (b *storeBench) update(fn func(ctx context.Context, tx rotation.Tx) error) {
	b.t.Helper()
	ctx := b.t.Context()
	if err := b.rotation.Update(ctx, func(tx rotation.Tx) error { return fn(ctx, tx) }); err != nil {
		b.t.Fatalf("Update: %v", err)
	}
}

// view runs fn and fails the test if it fails.
func (b *storeBench) view(fn func(ctx context.Context, tx rotation.Tx) error) {
	b.t.Helper()
	ctx := b.t.Context()
	if err := b.rotation.View(ctx, func(tx rotation.Tx) error { return fn(ctx, tx) }); err != nil {
		b.t.Fatalf("View: %v", err)
	}
}

// refused runs fn in a transaction of its own and wants an error of this kind.
func (b *storeBench) refused(kind error, what string, fn func(ctx context.Context, tx rotation.Tx) error) error {
	b.t.Helper()
	ctx := b.t.Context()
	err := b.rotation.Update(ctx, func(tx rotation.Tx) error { return fn(ctx, tx) })
	if !errors.Is(err, kind) {
		b.t.Errorf("%s: got error %v, want one that is %v", what, err, kind)
	}
	return err
}

// domain stores and gives a domain of this id; its uid is uid- and the id.
func (b *storeBench) domain(id broker.DomainID) broker.Domain {
	b.t.Helper()
	d := newDomain(id, b.clock.Now())
	b.update(func(ctx context.Context, tx rotation.Tx) error { return tx.InsertDomain(ctx, d) })
	return d
}

// job stores and gives a job, of a domain that exists.
func (b *storeBench) job(d broker.DomainUID, id broker.JobID, state rotation.State, phase rotation.Phase) rotation.Job {
	b.t.Helper()
	j := newJob(d, id, b.clock.Now())
	j.State, j.Phase = state, phase
	b.update(func(ctx context.Context, tx rotation.Tx) error { return tx.InsertJob(ctx, j) })
	return j
}

// dataKeys stores n rows of epoch 1, with ids k000, k001 …, and gives them.
func (b *storeBench) dataKeys(d broker.DomainUID, n int) []broker.DataKey {
	b.t.Helper()
	keys := make([]broker.DataKey, n)
	b.update(func(ctx context.Context, tx rotation.Tx) error {
		for i := range keys {
			keys[i] = newDataKey(d, broker.DataKeyID(fmt.Sprintf("k%03d", i)), b.clock.Now())
			if err := tx.InsertDataKey(ctx, keys[i]); err != nil {
				return err
			}
		}
		return nil
	})
	return keys
}

// dataKey reads a row.
func (b *storeBench) dataKey(d broker.DomainUID, id broker.DataKeyID) (k broker.DataKey) {
	b.t.Helper()
	b.view(func(ctx context.Context, tx rotation.Tx) (err error) {
		k, err = tx.DataKey(ctx, d, id)
		return err
	})
	return k
}

// equal compares what was read with what is wanted.
func equal[T any](t *testing.T, what string, got, want T) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func newDomain(id broker.DomainID, now time.Time) broker.Domain {
	return broker.Domain{
		ID: id, UID: broker.DomainUID("uid-" + id), DisplayName: "Dömain " + string(id), Region: "eu-west-1",
		State: broker.DomainActive, Reserved: broker.Pair{Key: "keybroker:domain", Value: "uid-" + string(id)},
		KMSKey: "arn:aws:kms:eu-west-1:111122223333:key/one", KMSKeyGiven: "alias/one", Epoch: 1, LastEpoch: 1,
		Version: 1, CreateTime: now, UpdateTime: now,
	}
}

func newDataKey(d broker.DomainUID, id broker.DataKeyID, now time.Time) broker.DataKey {
	return broker.DataKey{
		Domain: d, ID: id, UID: broker.DataKeyUID("uid-" + id), Ciphertext: broker.Secret("blob of " + id),
		Context: broker.Context{"tenant": "acmé", "a": "b"}, KeySpec: broker.DefaultKeySpec, Epoch: 1,
		KeyMaterialID: "material-1", KMSRequestID: "request-1", Version: 1, CreateTime: now, UpdateTime: now,
	}
}

func newJob(d broker.DomainUID, id broker.JobID, now time.Time) rotation.Job {
	return rotation.Job{
		Domain: d, ID: id, Kind: rotation.KindKeyChange, Phase: rotation.Preparing, State: rotation.Running,
		SourceEpoch: 1, TargetEpoch: 2,
		SourceKey: "arn:aws:kms:eu-west-1:111122223333:key/one", TargetKey: "arn:aws:kms:eu-west-1:111122223333:key/two",
		TargetGiven: "alias/two", Reason: "yearly", Caller: "tester", Priority: rotation.Normal, Version: 1, CreateTime: now, UpdateTime: now,
	}
}
