package sqlstore_test

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/internal/sqlstore"
)

// fill gives the domain n rows at epoch 2, but for those that are named, which are at
// epoch 1. An id is the row's place, from 1 on.
func fill(t *testing.T, s *sqlstore.Store, n int, pending ...string) {
	t.Helper()
	insertDomain(t, s)
	keys := make([]broker.DataKey, n)
	for i := range keys {
		id := fmt.Sprintf("%05d", i+1)
		keys[i] = broker.DataKey{Domain: "u", ID: broker.DataKeyID(id), UID: broker.DataKeyUID(id), Ciphertext: []byte("x"), Epoch: 2, Version: 1}
		if slices.Contains(pending, id) {
			keys[i].Epoch = 1
		}
	}
	if err := s.Broker().Update(t.Context(), func(tx broker.Tx) error {
		there, err := tx.InsertDataKeys(t.Context(), keys)
		return errors.Join(append(there, err)...)
	}); err != nil {
		t.Fatal(err)
	}
}

// TestStretches: whatever few rows a job has to find among however many, no
// statement looks at more than it may, and none of them is passed over.
func TestStretches(t *testing.T) {
	const rows = 47
	for name, pending := range map[string][]string{
		"none": nil, "the first": {"00001"}, "the last": {"00047"}, "some": {"00010", "00011", "00020", "00021", "00040"},
	} {
		for engine, s := range map[string]*sqlstore.Store{"sqlite": open(t, dbPath(t), time.Now), "postgres": openPostgres(t, nil)} {
			fill(t, s, rows, pending...)
			for _, atOnce := range []int{1, 2, 7, 10, rows - 1, rows, rows + 1} {
				s.ReadAtOnce(atOnce)
				for _, limit := range []int{1, 2, 3, 100} {
					what := fmt.Sprintf("%s: %s of %d rows, %d at once, limit %d", engine, name, rows, atOnce, limit)
					if got := walkPending(t, s, what, atOnce, limit); !slices.Equal(got, pending) {
						t.Errorf("%s: found %v", what, got)
					}
				}
			}
		}
	}
}

// walkPending gives the rows below epoch 2, page by page and stretch by stretch.
// Their ids are their places.
func walkPending(t *testing.T, s *sqlstore.Store, what string, atOnce, limit int) (ids []string) {
	t.Helper()
	place := func(id broker.DataKeyID) int {
		n, err := strconv.Atoi(string(id))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	rest := rotation.Shard{Domain: "u", Job: "j"}
	for {
		var part rotation.Shard
		if err := s.Rotation().View(t.Context(), func(tx rotation.Tx) (err error) {
			part, err = tx.Stretch(t.Context(), rest)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if part.High != rest.High {
			if rows := place(part.High) - place(max(rest.Cursor, "0")); rows != atOnce {
				t.Fatalf("%s: a stretch of %d rows from %q on", what, rows, rest.Cursor)
			}
		}
		rest.Cursor = part.High
		for full := true; full; {
			if err := s.Rotation().View(t.Context(), func(tx rotation.Tx) error {
				page, err := tx.PendingDataKeys(t.Context(), part, 2, limit)
				for _, k := range page {
					ids, part.Cursor = append(ids, string(k.ID)), k.ID
				}
				full = len(page) == limit
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
		if part.High == rest.High && rest.Cursor == "" {
			return ids
		}
	}
}

// TestOneRowOfMany: PostgreSQL reads no more for a statement than a stretch.
func TestOneRowOfMany(t *testing.T) {
	const d, atOnce = "u", 100
	url := postgresURL(t)
	s := reopenPostgres(t, url, nil)
	fill(t, s, 20_000, "19999")
	execPostgres(t, url, `vacuum analyze data_key`)
	s.ReadAtOnce(atOnce)
	recorded, statements := s.Recorded()
	if err := recorded.Rotation().View(t.Context(), func(tx rotation.Tx) error {
		part, err := tx.Stretch(t.Context(), rotation.Shard{Domain: d, Job: "j"})
		if err != nil {
			return err
		}
		if _, err := tx.PendingDataKeys(t.Context(), part, 2, 10); err != nil {
			return err
		}
		if _, err := tx.MaterialDataKeys(t.Context(), part, 1, "other", time.UnixMicro(1), 10); err != nil {
			return err
		}
		if _, err := tx.HasDataKeys(t.Context(), d, "arn:1"); err != nil {
			return err
		}
		bounds, rows, err := tx.SampleBoundaries(t.Context(), d, 4)
		if want := []broker.DataKeyID{"05000", "10000", "15000"}; rows != 20_000 || !slices.Equal(bounds, want) {
			t.Errorf("%d rows with bounds %v, want 20000 with %v", rows, bounds, want)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	seen := 0
	for text, args := range statements() {
		seen++
		for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
			// The domain fills 200 blocks, and 100 rows 2 of them; a
			// stretch's failures are none.
			if blocks, plan := runOnPostgres(t, url, mode, text, args); blocks > 20 {
				t.Errorf("%s reads %d blocks: %s", mode, blocks, plan)
			}
		}
	}
	if seen != 6 {
		t.Errorf("%d statements, want 6", seen)
	}
}

// TestWholeDomainInStretches: what looks at a whole domain or job goes on behind
// each stretch.
func TestWholeDomainInStretches(t *testing.T) {
	const rows, atOnce = 7, 2
	ref := rotation.JobRef{Domain: "u", ID: "j"}
	for engine, s := range map[string]*sqlstore.Store{"sqlite": open(t, dbPath(t), time.Now), "postgres": openPostgres(t, nil)} {
		fill(t, s, rows, "00006")
		s.ReadAtOnce(atOnce)
		ctx := t.Context()
		var left []string
		if err := s.Rotation().Update(ctx, func(tx rotation.Tx) error {
			for epoch, key := range []broker.KeyARN{1: "arn:1", 2: "arn:2", 3: "arn:3"} {
				if err := tx.InsertDomainKey(ctx, broker.DomainKey{Domain: "u", Epoch: broker.Epoch(epoch), KMSKey: key, State: broker.KeyCurrent}); err != nil {
					return err
				}
				has, err := tx.HasDataKeys(ctx, "u", key)
				if want := epoch == 1 || epoch == 2; err != nil || has != want {
					t.Errorf("%s: rows under %q: %v, %v; want %v", engine, key, has, err, want)
				}
			}
			if err := tx.InsertJob(ctx, rotation.Job{Domain: ref.Domain, ID: ref.ID, Kind: rotation.KindKeyChange, Priority: rotation.Normal,
				Phase: rotation.Reencrypting, State: rotation.Running, Version: 1}); err != nil {
				return err
			}
			var failures []rotation.Failure
			for i := range rows {
				id := fmt.Sprintf("%05d", i+1)
				failures = append(failures, rotation.Failure{Domain: "u", Job: ref.ID, DataKey: broker.DataKeyID(id), UID: broker.DataKeyUID(id), Version: 1})
			}
			if err := tx.AddFailures(ctx, failures); err != nil {
				return err
			}
			if err := tx.DeleteFailures(ctx, ref, 1); err != nil {
				return err
			}
			kept, err := tx.Failures(ctx, ref, "", rows)
			for _, f := range kept {
				left = append(left, string(f.DataKey))
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if want := []string{"00006"}; !slices.Equal(left, want) {
			t.Errorf("%s: the failures %v are left, want %v", engine, left, want)
		}
	}
}
