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
