package rotation

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
)

// A passStore has a domain's rows and a job's failures, by id, and counts those that
// are read.
type passStore struct {
	brokenTx
	failures           []Failure
	read, readFailures int
}

func (s *passStore) View(_ context.Context, fn func(Tx) error) error   { return fn(s) }
func (s *passStore) Update(_ context.Context, fn func(Tx) error) error { return fn(s) }

func (s *passStore) DomainByUID(context.Context, broker.DomainUID) (broker.Domain, error) {
	return broker.Domain{}, nil
}

func (s *passStore) SampleBoundaries(context.Context, broker.DomainUID, int) ([]broker.DataKeyID, int64, error) {
	return nil, int64(len(s.rows)), nil
}

func (s *passStore) Failures(_ context.Context, _ JobRef, after broker.DataKeyID, limit int) ([]Failure, error) {
	from, found := slices.BinarySearchFunc(s.failures, after, func(f Failure, id broker.DataKeyID) int { return cmp.Compare(f.DataKey, id) })
	if found {
		from++
	}
	page := s.failures[from:min(from+limit, len(s.failures))]
	s.readFailures += len(page)
	return page, nil
}

func (s *passStore) DataKeys(_ context.Context, _ broker.DomainUID, ids []broker.DataKeyID) (rows []broker.DataKey, err error) {
	for _, row := range s.rows {
		if _, found := slices.BinarySearch(ids, row.ID); found {
			rows = append(rows, row)
		}
	}
	return rows, nil
}

// ListDataKeys wants ids that are their rows' places.
func (s *passStore) ListDataKeys(_ context.Context, _ broker.DomainUID, after broker.DataKeyID, limit int) ([]broker.DataKey, error) {
	from := 0
	if after != "" {
		if _, err := fmt.Sscanf(string(after), "row-%06d", &from); err != nil {
			return nil, err
		}
		from++
	}
	page := s.rows[from:min(from+limit, len(s.rows))]
	s.read += len(page)
	return append([]broker.DataKey(nil), page...), nil
}

// A throttlingWorker throttles a share of the calls, and counts those of each blob
// that it has answered.
type throttlingWorker struct {
	broker.Worker
	mu       sync.Mutex
	random   func() float64
	share    float64
	answered map[string]int
}

func (w *throttlingWorker) ReEncrypt(_ context.Context, r broker.ReEncrypt) (broker.ReEncrypted, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.random() < w.share {
		return broker.ReEncrypted{}, &broker.KMSError{Class: broker.KMSThrottled, Code: "ThrottlingException", Operation: "ReEncrypt"}
	}
	w.answered[string(r.Ciphertext)]++
	return broker.ReEncrypted{}, nil
}

// seededRandom gives the same numbers in every run, to several goroutines.
func seededRandom() func() float64 {
	var mu sync.Mutex
	random := rand.New(rand.NewPCG(1, 2))
	return func() float64 {
		mu.Lock()
		defer mu.Unlock()
		return random.Float64()
	}
}

// TestVerifyingEnds: however much KMS throttles, and though another engine takes
// every step, VERIFYING reads each row of the domain once, and KMS each row of one
// sample: a hundredth of all, as much of one part of the domain as of another.
func TestVerifyingEnds(t *testing.T) {
	const rows = 30_000
	for _, share := range []float64{0, 0.02, 0.5, 0.9} {
		t.Run(fmt.Sprintf("%g throttled", share), func(t *testing.T) {
			s := &passStore{}
			for i := range rows {
				id := fmt.Sprintf("row-%06d", i)
				s.rows = append(s.rows, broker.DataKey{ID: broker.DataKeyID(id), Ciphertext: broker.Secret(id), Epoch: 2, Version: 1})
			}
			random := seededRandom()
			w := &throttlingWorker{random: random, share: share, answered: map[string]int{}}
			j := Job{Kind: KindKeyChange, Phase: Verifying, State: Running, TargetEpoch: 2}
			steps, repeats := 0, 0
			for ; j.Phase == Verifying; steps++ {
				e := &Engine{store: s, worker: w, cfg: Config{CallsPerShard: 16, Rand: random, At: func(string) {}, Logger: slog.New(slog.DiscardHandler),
					Sleep: func(context.Context, time.Duration) error { return nil }}}
				next, err := e.verify(t.Context(), j)
				switch {
				case broker.ClassOf(err).Transient():
					repeats++
				case err != nil:
					t.Fatal(err)
				}
				if steps == 100 {
					t.Fatalf("%d steps, at row %d", steps, j.Verify.Seen)
				}
				j = next
			}
			// A step that KMS did not let end reads its part again.
			if most := rows + repeats*(sampleRounds*16*100+passPage); s.read > most || share < 0.9 && repeats > 0 {
				t.Errorf("%d rows were read in %d steps, of which %d were in vain; want at most %d", s.read, steps, repeats, most)
			}
			tenths, total := map[string]int{}, 0
			for id := range w.answered {
				tenths[id[:len("row-03")]] += 1
				total++
			}
			if j.VerifiedRows != rows/100 || total < rows/100 || repeats == 0 && total != rows/100 {
				t.Errorf("%d rows verified, KMS has read %d; want %d", j.VerifiedRows, total, rows/100)
			}
			for tenth, n := range tenths {
				if n < 100 || len(tenths) != 3 {
					t.Errorf("of %s…: %d rows are in the sample", tenth, n)
				}
			}
		})
	}
}

// TestVerifyingStepIsBounded: a step reads no more than its part, though KMS
// answers at once, so that other jobs have their turn.
func TestVerifyingStepIsBounded(t *testing.T) {
	s := &passStore{}
	for i := range 2 * passPages * passPage {
		s.rows = append(s.rows, broker.DataKey{ID: broker.DataKeyID(fmt.Sprintf("row-%06d", i)), Epoch: 2, Version: 1})
	}
	e := &Engine{store: s, cfg: Config{CallsPerShard: 1 << 20, Rand: seededRandom()}}
	part, err := e.passOn(t.Context(), Job{TargetEpoch: 2, Verify: Verification{Rows: int64(len(s.rows))}})
	if err != nil || s.read != passPages*passPage || part.end {
		t.Errorf("a step read %d rows, to the end: %v, %v", s.read, part.end, err)
	}
	if len(part.sample) != sampleMax/2 {
		t.Errorf("half of the domain has %d rows of the sample", len(part.sample))
	}
}

// TestVerifyingReadsFailuresWithTheirRows: a step reads the failures of its own part
// of the rows, however many there are in all, and the end reads them once more.
func TestVerifyingReadsFailuresWithTheirRows(t *testing.T) {
	const rows, every = 3 * passPages * passPage / 2, 10
	s := &passStore{}
	for i := range rows {
		row := broker.DataKey{ID: broker.DataKeyID(fmt.Sprintf("row-%06d", i)), Epoch: 2, Version: 1}
		if i%every == 0 {
			row.Epoch = 1
			s.failures = append(s.failures, Failure{DataKey: row.ID, Version: 1})
		}
		s.rows = append(s.rows, row)
	}
	s.failures = append(s.failures, Failure{DataKey: "row-999999", Version: 1}) // its row was deleted
	e := &Engine{store: s, worker: &throttlingWorker{random: seededRandom(), answered: map[string]int{}},
		cfg: Config{CallsPerShard: 1 << 20, Rand: seededRandom(), At: func(string) {}}}
	j := Job{Kind: KindKeyChange, Phase: Verifying, State: Running, TargetEpoch: 2}
	var h *hold
	for steps := 0; h == nil; steps++ {
		next, err := e.verify(t.Context(), j)
		if err != nil && !errors.As(err, &h) || steps == 5 {
			t.Fatalf("step %d: %v", steps, err)
		}
		j = next
	}
	if want := fmt.Sprintf("%d rows cannot be read", rows/every); h.State != Failed || !strings.HasPrefix(h.Message, want) {
		t.Errorf("verifying ends %s: %s; want %s", h.State, h.Message, want)
	}
	if most := 2 * len(s.failures); s.readFailures > most {
		t.Errorf("of %d failures %d were read, want %d at most", len(s.failures), s.readFailures, most)
	}
}

// TestVerifyingSeesALaterChange: the rows that a later change has moved are none of
// this job's business any more.
func TestVerifyingSeesALaterChange(t *testing.T) {
	s := &passStore{brokenTx: brokenTx{rows: []broker.DataKey{{ID: "row-000000", Epoch: 3}}}}
	e := &Engine{store: s, cfg: Config{CallsPerShard: 1, Rand: func() float64 { return 0 }}}
	if _, err := e.verify(t.Context(), Job{TargetEpoch: 2, Verify: Verification{Rows: 1}}); !errors.Is(err, broker.ErrConflict) {
		t.Errorf("a row of a later epoch: %v", err)
	}
}

// TestVerifyingReadsEnough: rows that their owner has given up take no place in the
// sample. A hundredth of the others is in it, at most a thousand, and at least twenty,
// or all of them if they are fewer.
func TestVerifyingReadsEnough(t *testing.T) {
	for _, c := range []struct{ rows, sound, want int }{
		{1000, 5, 5},
		{1000, 20, 20},
		{1000, 600, 20},
		{9000, 5000, 50},
		{150_000, 60_000, 600},
		{220_000, 110_000, 1000},
	} {
		s := &passStore{}
		for i := range c.rows {
			id := fmt.Sprintf("row-%06d", i)
			s.rows = append(s.rows, broker.DataKey{ID: broker.DataKeyID(id), Ciphertext: broker.Secret(id), Epoch: 2, Version: 1, Abandoned: i >= c.sound})
		}
		random := seededRandom()
		e := &Engine{store: s, worker: &throttlingWorker{random: random, answered: map[string]int{}},
			cfg: Config{CallsPerShard: 16, Rand: random, At: func(string) {}, Logger: slog.New(slog.DiscardHandler)}}
		j := Job{Kind: KindKeyChange, Phase: Verifying, State: Running, TargetEpoch: 2}
		var err error
		for steps := 0; j.Phase == Verifying; steps++ {
			if j, err = e.verify(t.Context(), j); err != nil || steps == 100 {
				t.Fatalf("%d steps: %v", steps, err)
			}
		}
		if int(j.VerifiedRows) != c.want {
			t.Errorf("of %d sound rows %d are verified, want %d", c.sound, j.VerifiedRows, c.want)
		}
	}
}
