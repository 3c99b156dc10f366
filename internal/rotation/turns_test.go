package rotation

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/pacer"
)

// An askedStore stores nothing. Each commit takes a while; it notes when somebody
// asks whether the worker is wanted elsewhere, and whether that was in a commit.
type askedStore struct {
	Store
	rows   []broker.DataKey
	now    time.Time
	took   time.Duration
	wanted bool
	asked  []time.Duration // since the beginning
	inside bool            // it was asked in the commit
	ttls   []time.Duration // of the commits
}

type askedTx struct {
	brokenTx
	*askedStore
	writes bool
}

func (s *askedStore) View(_ context.Context, fn func(Tx) error) error {
	return fn(askedTx{brokenTx: brokenTx{rows: s.rows}, askedStore: s})
}

func (s *askedStore) Update(_ context.Context, fn func(Tx) error) error {
	s.now = s.now.Add(s.took)
	return fn(askedTx{brokenTx: brokenTx{rows: s.rows}, askedStore: s, writes: true})
}

// Now is told to writers only: readers run beside them.
func (t askedTx) Now() time.Time {
	if t.writes {
		return t.now
	}
	return time.Time{}
}

func (t askedTx) MoveDataKeys(_ context.Context, _ broker.DomainUID, _ broker.Epoch, moves []Move) ([]bool, error) {
	return slices.Repeat([]bool{true}, len(moves)), nil
}
func (askedTx) AddMoved(context.Context, JobRef, []MaterialCount) error { return nil }
func (askedTx) TouchJob(context.Context, JobRef) error                  { return nil }
func (askedTx) Audit(context.Context, broker.AuditEvent) error          { return nil }

func (t askedTx) CommitShard(_ context.Context, _ Shard, ttl time.Duration) (State, Priority, error) {
	t.ttls = append(t.ttls, ttl)
	return Running, Normal, nil
}

func (t askedTx) ShardWanted(context.Context, JobRef) (bool, error) {
	t.askedStore.asked = append(t.askedStore.asked, t.now.Sub(time.Time{}))
	t.askedStore.inside = t.askedStore.inside || t.writes
	return t.wanted, nil
}

// TestAWorkerAsksOnceInATurn: that question looks at every job that is at work, so
// it is not for every batch, and no commit waits for it.
func TestAWorkerAsksOnceInATurn(t *testing.T) {
	const key = broker.KeyARN("arn:aws:kms:us-east-1:111122223333:key/target")
	var rows []broker.DataKey
	for i := range 40 {
		rows = append(rows, broker.DataKey{ID: broker.DataKeyID(fmt.Sprintf("row-%02d", i)), Epoch: 1, KeyMaterialID: "material"})
	}
	work := func(s *askedStore) bool {
		t.Helper()
		s.rows = rows
		e := &Engine{store: s, changed: newNotifier(), work: newNotifier(), cfg: Config{Owner: "one", BatchRows: 2, BatchTime: time.Minute, CallsPerShard: 4, LeaseTTL: time.Minute,
			NewID: func() string { return "id" }, At: func(string) {}, Observe: NoObserver{}, Logger: slog.New(slog.DiscardHandler)}}
		w := &shardWork{engine: e, job: Job{Kind: KindKeyChange, TargetKey: key, TargetEpoch: 2}, flow: pacer.NewFlow("job", 1),
			plan: plan{keys: []broker.DomainKey{{Epoch: 1, KMSKey: key}}}}
		goOn, err := w.sweep(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		return goOn
	}

	// 20 commits of 300 ms, and an empty one.
	s := &askedStore{took: 300 * time.Millisecond}
	work(s)
	want := []time.Duration{1200 * time.Millisecond, 2400 * time.Millisecond, 3600 * time.Millisecond, 4800 * time.Millisecond, 6000 * time.Millisecond}
	if !slices.Equal(s.asked, want) || s.inside {
		t.Errorf("asked at %v, in a commit: %v; want at %v", s.asked, s.inside, want)
	}

	// Who is wanted gives the lease back with the batch that is under way.
	s = &askedStore{took: 300 * time.Millisecond, wanted: true}
	goOn := work(s)
	if n := len(s.ttls); goOn || n < 4 || n > 7 || s.ttls[n-1] != 0 || slices.Contains(s.ttls[:n-1], 0) || len(s.asked) != 1 {
		t.Errorf("wanted after 4 commits: went on %v, asked %d times, leases %v", goOn, len(s.asked), s.ttls)
	}
}
