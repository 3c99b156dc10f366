package rotation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/pacer"
)

// A verifyStore has the rows and the one shard of a VERIFY job.
type verifyStore struct {
	brokenTx
	shard    Shard
	released bool
	job      Job
	failures []Failure
}

func (s *verifyStore) View(_ context.Context, fn func(Tx) error) error   { return fn(s) }
func (s *verifyStore) Update(_ context.Context, fn func(Tx) error) error { return fn(s) }

func (s *verifyStore) ShardDataKeys(_ context.Context, shard Shard, limit int) ([]broker.DataKey, error) {
	return s.PendingDataKeys(context.Background(), shard, 0, limit)
}

func (s *verifyStore) AddFailures(_ context.Context, f []Failure) error {
	s.failures = append(s.failures, f...)
	return nil
}

func (s *verifyStore) CommitShard(_ context.Context, shard Shard, ttl time.Duration) (State, Priority, error) {
	s.shard, s.released = shard, ttl == 0
	return s.job.State, Normal, nil
}

func (s *verifyStore) Job(context.Context, JobRef) (Job, error) { return s.job, nil }
func (s *verifyStore) UpdateJob(_ context.Context, j Job) error { s.job = j; return nil }

func (s *verifyStore) Audit(context.Context, broker.AuditEvent) error { return nil }

// A verifyWorker throttles calls at random, cannot read some blobs, and denies one
// of them once.
type verifyWorker struct {
	throttlingWorker
	damaged, denied map[string]bool
}

func (w *verifyWorker) ReEncrypt(ctx context.Context, r broker.ReEncrypt) (broker.ReEncrypted, error) {
	made, err := w.throttlingWorker.ReEncrypt(ctx, r)
	if err != nil {
		return made, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	blob := string(r.Ciphertext)
	if w.denied[blob] {
		delete(w.denied, blob)
		return made, &broker.KMSError{Class: broker.KMSDenied, Code: "AccessDeniedException", Operation: "ReEncrypt", Key: r.SourceKey}
	}
	if w.damaged[blob] {
		return made, &broker.KMSError{Class: broker.KMSInvalidCiphertext, Code: "InvalidCiphertextException", Operation: "ReEncrypt", Key: r.SourceKey}
	}
	return made, nil
}

// verifyBench is a VERIFY job over rows row-0000 and so on. No row is tried twice in
// one batch, as if its time were always up.
func verifyBench(rows int, throttled float64) (s *verifyStore, w *verifyWorker, work func() *shardWork) {
	const key = broker.KeyARN("arn:aws:kms:us-east-1:111122223333:key/present")
	s = &verifyStore{job: Job{ID: "job", Kind: KindVerify, Phase: Verifying, State: Running, SourceEpoch: 1, TargetEpoch: 1, SourceKey: key, TargetKey: key}}
	for i := range rows {
		id := fmt.Sprintf("row-%04d", i)
		s.rows = append(s.rows, broker.DataKey{ID: broker.DataKeyID(id), Ciphertext: broker.Secret(id), Epoch: 1, Version: 1})
	}
	w = &verifyWorker{throttlingWorker: throttlingWorker{random: seededRandom(), share: throttled, answered: map[string]int{}},
		damaged: map[string]bool{}, denied: map[string]bool{}}
	e := &Engine{store: s, worker: w, changed: newNotifier(), work: newNotifier(),
		cfg: Config{Owner: "one", BatchRows: 20, BatchTime: time.Minute, CallsPerShard: 4, LeaseTTL: time.Minute, Rand: seededRandom(),
			Sleep: func(context.Context, time.Duration) error { return context.DeadlineExceeded },
			NewID: func() string { return "id" }, At: func(string) {}, Observe: NoObserver{}, Logger: slog.New(slog.DiscardHandler)}}
	return s, w, func() *shardWork {
		return &shardWork{engine: e, shard: s.shard, job: s.job, flow: pacer.NewFlow("job", 1), plan: plan{keys: []broker.DomainKey{{Epoch: 1, KMSKey: key}}}}
	}
}

// TestVerifyJobReadsEachRowOnce: nothing but the shard's cursor says which rows of a
// VERIFY job KMS has read. So the cursor stops before a row that KMS throttled to the
// end of its batch, and what was read behind it is neither asked for nor counted
// twice: also where KMS throttles every second call, the job ends after one pass.
func TestVerifyJobReadsEachRowOnce(t *testing.T) {
	const rows = 500
	for _, share := range []float64{0, 0.002, 0.1, 0.5} {
		t.Run(fmt.Sprintf("%g throttled", share), func(t *testing.T) {
			s, kms, work := verifyBench(rows, share)
			kms.damaged["row-0007"], kms.damaged["row-0499"] = true, true
			w := work()
			for sweeps := 0; !s.shard.Finished; sweeps++ {
				if sweeps > rows {
					t.Fatalf("not at its end after %d sweeps: %+v", sweeps, s.shard)
				}
				if _, err := w.sweep(t.Context(), 0); err != nil {
					t.Fatal(err)
				}
			}
			for _, row := range s.rows {
				if n := kms.answered[string(row.Ciphertext)]; n != 1 {
					t.Errorf("KMS was asked to read %s %d times", row.ID, n)
				}
			}
			if s.shard.Done != rows-2 || s.shard.Failed != 2 || len(s.failures) != 2 {
				t.Errorf("%d rows were read and %d failed, recorded are %v; want %d and 2", s.shard.Done, s.shard.Failed, s.failures, rows-2)
			}
		})
	}
}

// TestVerifyJobGoesOnBehindABlock: a refusal in the middle of the rows blocks the job
// before that row. Whoever takes the shard up reads it, and all behind it, and none
// before it.
func TestVerifyJobGoesOnBehindABlock(t *testing.T) {
	const rows = 100
	s, kms, work := verifyBench(rows, 0)
	kms.denied["row-0050"] = true
	goOn, err := work().sweep(t.Context(), 0)
	if goOn || err != nil || s.job.State != Blocked || !s.released {
		t.Fatalf("went on: %v, %v; the job is %s, the shard released: %v", goOn, err, s.job.State, s.released)
	}
	if s.shard.Cursor != "row-0049" || s.shard.Done != 50 || s.shard.Again || s.shard.Finished {
		t.Errorf("the shard after the refusal: %+v, want its cursor at row-0049 and 50 rows", s.shard)
	}
	s.job.State = Running
	if _, err := work().sweep(t.Context(), 0); err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if !s.shard.Finished || s.shard.Done != rows || s.shard.Failed != 0 {
		t.Errorf("at the end: %+v, want %d rows", s.shard, rows)
	}
	for i, row := range s.rows[:50] {
		if n := kms.answered[string(row.Ciphertext)]; n != 1 {
			t.Errorf("KMS was asked to read row %d, before the refusal, %d times", i, n)
		}
	}
}
