package rotation

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/pacer"
)

// A brokenStore has rows to read, and commits nothing.
type brokenStore struct{ rows []broker.DataKey }

var errBroken = errors.New("the disk is full")

func (s brokenStore) View(_ context.Context, fn func(Tx) error) error {
	return fn(brokenTx{rows: s.rows})
}
func (brokenStore) Update(context.Context, func(Tx) error) error { return errBroken }

type brokenTx struct {
	Tx
	rows []broker.DataKey
}

func (brokenTx) Now() time.Time { return time.Time{} }

func (brokenTx) Stretch(_ context.Context, s Shard) (Shard, error) { return s, nil }

func (t brokenTx) PendingDataKeys(_ context.Context, s Shard, _ broker.Epoch, limit int) ([]broker.DataKey, error) {
	for i, row := range t.rows {
		if row.ID > s.Cursor {
			return t.rows[i:min(i+limit, len(t.rows))], nil
		}
	}
	return nil, nil
}

// TestAFailedCommitIsTold: however far the reading and the calls are, a commit
// that fails ends the sweep, and its error is the sweep's.
func TestAFailedCommitIsTold(t *testing.T) {
	const key = broker.KeyARN("arn:aws:kms:us-east-1:111122223333:key/target")
	var rows []broker.DataKey
	for i := range 40 {
		rows = append(rows, broker.DataKey{ID: broker.DataKeyID(fmt.Sprintf("row-%02d", i)), Epoch: 1, KeyMaterialID: "material"})
	}
	for _, batch := range []int{1, 7, 40, 100} {
		e := &Engine{store: brokenStore{rows}, cfg: Config{BatchRows: batch, BatchTime: time.Minute, CallsPerShard: 4, At: func(string) {}}}
		// Rows of an older epoch with the target's ARN need no call.
		w := &shardWork{engine: e, job: Job{Kind: KindKeyChange, TargetKey: key, TargetEpoch: 2}, flow: pacer.NewFlow("job", 1),
			plan: plan{keys: []broker.DomainKey{{Epoch: 1, KMSKey: key}}}}
		for range 100 {
			if goOn, err := w.sweep(t.Context(), 0); goOn || !errors.Is(err, errBroken) {
				t.Fatalf("batches of %d: %v, %v", batch, goOn, err)
			}
		}
	}
}

// A stretchTx has rows of which some are pending, and lets at most stretch of them
// be looked at at once.
type stretchTx struct {
	Tx
	t       *testing.T
	rows    []broker.DataKey
	stretch int
}

func (s stretchTx) View(_ context.Context, fn func(Tx) error) error { return fn(s) }
func (stretchTx) Update(context.Context, func(Tx) error) error      { return errBroken }
func (stretchTx) Now() time.Time                                    { return time.Time{} }

func (s stretchTx) within(shard Shard) (rows []broker.DataKey) {
	for _, row := range s.rows {
		if row.ID > shard.Cursor && (shard.High == "" || row.ID <= shard.High) {
			rows = append(rows, row)
		}
	}
	return rows
}

func (s stretchTx) Stretch(_ context.Context, shard Shard) (Shard, error) {
	if rows := s.within(shard); len(rows) >= s.stretch {
		shard.High = rows[s.stretch-1].ID
	}
	return shard, nil
}

func (s stretchTx) PendingDataKeys(_ context.Context, shard Shard, target broker.Epoch, limit int) (pending []broker.DataKey, _ error) {
	rows := s.within(shard)
	if len(rows) > s.stretch {
		s.t.Errorf("%d rows are looked at beyond %q, want %d at most", len(rows), shard.Cursor, s.stretch)
	}
	for _, row := range rows {
		if row.Epoch < target && len(pending) < limit {
			pending = append(pending, row)
		}
	}
	return pending, nil
}

// TestReadersGoOn: a page without a row is not the end where rows are left to look at.
func TestReadersGoOn(t *testing.T) {
	const all = 30
	for _, every := range []int{1, 2, 7, 30, 31} {
		var rows []broker.DataKey
		want := 0
		for i := range all {
			row := broker.DataKey{ID: broker.DataKeyID(fmt.Sprintf("row-%02d", i)), Epoch: 2}
			if (i+1)%every == 0 {
				row.Epoch = 1
				want++
			}
			rows = append(rows, row)
		}
		for _, stretch := range []int{1, 3, 10, 29, 30, 31} {
			for _, limit := range []int{1, 3, 10, 40} {
				w := &shardWork{engine: &Engine{store: stretchTx{t: t, rows: rows, stretch: stretch}, cfg: Config{BatchRows: limit}},
					job: Job{Kind: KindKeyChange, TargetEpoch: 2}}
				got := 0
				for r := (reader{work: w}); ; {
					p := r.page(t.Context())
					if got += len(p.rows); p.err != nil || p.end || len(p.rows) == 0 {
						break
					}
				}
				if got != want {
					t.Errorf("one of %d rows pending, stretches of %d, pages of %d: read %d, want %d", every, stretch, limit, got, want)
				}
			}
		}
	}
}
