package brokertest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
)

func testDataKeys(t *testing.T, b *storeBench) {
	d, other := b.domain("alpha"), b.domain("beta")
	b.refused(broker.ErrNotFound, "an absent data key", func(ctx context.Context, tx rotation.Tx) error {
		_, err := tx.DataKey(ctx, d.UID, "absent")
		return err
	})
	k := newDataKey(d.UID, "Key_1.x", b.clock.Now())
	b.update(func(ctx context.Context, tx rotation.Tx) error { return tx.InsertDataKey(ctx, k) })
	equal(t, "data key as stored", b.dataKey(d.UID, "Key_1.x"), k)

	err := b.refused(broker.ErrAlreadyExists, "a second row of the same id", func(ctx context.Context, tx rotation.Tx) error {
		again := newDataKey(d.UID, "Key_1.x", b.clock.Now())
		again.UID = "another"
		return tx.InsertDataKey(ctx, again)
	})
	if reason := broker.ReasonOf(err); reason == broker.ReasonDataKeyIDDeleted {
		t.Errorf("a second row of the same id: the reason is %s, but the id lives", reason)
	}
	b.update(func(ctx context.Context, tx rotation.Tx) error {
		return tx.InsertDataKey(ctx, newDataKey(other.UID, "Key_1.x", b.clock.Now()))
	})

	// Order is that of bytes, whatever the engine's collation: capitals first.
	for _, id := range []broker.DataKeyID{"b", "B", "a-1", "a.1", "a_1", "a1", "10", "9"} {
		b.update(func(ctx context.Context, tx rotation.Tx) error {
			return tx.InsertDataKey(ctx, newDataKey(d.UID, id, b.clock.Now()))
		})
	}
	for _, page := range []struct {
		after broker.DataKeyID
		limit int
		want  []broker.DataKeyID
	}{
		{"", 100, []broker.DataKeyID{"10", "9", "B", "Key_1.x", "a-1", "a.1", "a1", "a_1", "b"}},
		{"9", 3, []broker.DataKeyID{"B", "Key_1.x", "a-1"}},
		{"b", 3, nil},
	} {
		b.view(func(ctx context.Context, tx rotation.Tx) error {
			list, err := tx.ListDataKeys(ctx, d.UID, page.after, page.limit)
			equal(t, fmt.Sprintf("up to %d rows after %q", page.limit, page.after), idsOf(list), page.want)
			return err
		})
	}

	for _, wanted := range []struct{ ids, found []broker.DataKeyID }{
		{[]broker.DataKeyID{"b", "absent", "B", "Key_1.x"}, []broker.DataKeyID{"B", "Key_1.x", "b"}},
		{[]broker.DataKeyID{"absent"}, nil},
		{nil, nil},
	} {
		b.view(func(ctx context.Context, tx rotation.Tx) error {
			rows, err := tx.DataKeys(ctx, d.UID, wanted.ids)
			for _, row := range rows {
				equal(t, "a row among others", row, b.dataKey(d.UID, row.ID))
			}
			slices.SortFunc(rows, func(a, b broker.DataKey) int { return strings.Compare(string(a.ID), string(b.ID)) })
			equal(t, fmt.Sprintf("the rows of %v", wanted.ids), idsOf(rows), wanted.found)
			return err
		})
	}

	b.update(func(ctx context.Context, tx rotation.Tx) error {
		late := newDataKey(d.UID, "z", b.clock.Now())
		late.Epoch = 3
		return tx.InsertDataKey(ctx, late)
	})
	b.view(func(ctx context.Context, tx rotation.Tx) error {
		for most, want := range map[int]map[broker.Epoch]int64{100: {1: 9, 3: 1}, 10: {1: 9, 3: 1}, 8: {1: 9}, 0: {1: 1}} {
			got, whole, err := tx.CountDataKeys(ctx, d.UID, most)
			equal(t, fmt.Sprintf("rows by epoch among the first %d and one", most), got, want)
			equal(t, "that these are all", whole, most >= 10)
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// testInsertDataKeys: of rows that are stored together each stands for itself.
func testInsertDataKeys(t *testing.T, b *storeBench) {
	d, other := b.domain("alpha"), b.domain("beta")
	old := b.dataKeys(d.UID, 2) // k000 and k001
	b.dataKeys(other.UID, 9)
	b.update(func(ctx context.Context, tx rotation.Tx) error { return tx.DeleteDataKey(ctx, old[1]) })

	var keys []broker.DataKey
	for _, id := range []broker.DataKeyID{"z", "k001", "a", "k000", "B", "k002"} {
		k := newDataKey(d.UID, id, b.clock.Now())
		k.UID, k.Ciphertext, k.Context = "together-"+k.UID, broker.Secret("together "+id), broker.Context{"id": string(id)}
		keys = append(keys, k)
	}
	keys[0].KeySpec, keys[0].Epoch, keys[0].Version, keys[0].Abandoned = "AES_128", 7, 3, true
	keys[2].Context, keys[2].KeyMaterialID, keys[2].KMSRequestID = nil, "", ""
	keys[4].Ciphertext, keys[4].UpdateTime = make(broker.Secret, 6144), b.clock.Now().Add(time.Hour)
	var there []error
	b.update(func(ctx context.Context, tx rotation.Tx) (err error) {
		there, err = tx.InsertDataKeys(ctx, keys)
		return err
	})
	if len(there) != len(keys) {
		t.Fatalf("%d answers to %d rows", len(there), len(keys))
	}
	for i, k := range keys {
		switch k.ID {
		case "k000":
			if !errors.Is(there[i], broker.ErrAlreadyExists) || broker.ReasonOf(there[i]) == broker.ReasonDataKeyIDDeleted {
				t.Errorf("an id that lives: %v", there[i])
			}
			equal(t, "the row that was there", b.dataKey(d.UID, k.ID), old[0])
		case "k001":
			if !errors.Is(there[i], broker.ErrAlreadyExists) || broker.ReasonOf(there[i]) != broker.ReasonDataKeyIDDeleted {
				t.Errorf("an id that was deleted: %v", there[i])
			}
			b.refused(broker.ErrNotFound, "a row of a deleted id", func(ctx context.Context, tx rotation.Tx) error {
				_, err := tx.DataKey(ctx, d.UID, k.ID)
				return err
			})
		default:
			if there[i] != nil {
				t.Errorf("%s: %v", k.ID, there[i])
			}
			equal(t, "a row of several", b.dataKey(d.UID, k.ID), k)
		}
	}
	b.update(func(ctx context.Context, tx rotation.Tx) error {
		there, err := tx.InsertDataKeys(ctx, nil)
		if len(there) != 0 {
			t.Errorf("no rows: %d answers", len(there))
		}
		return err
	})
	b.refused(broker.ErrConflict, "rows beside what fails", func(ctx context.Context, tx rotation.Tx) error {
		if _, err := tx.InsertDataKeys(ctx, []broker.DataKey{newDataKey(d.UID, "undone", b.clock.Now())}); err != nil {
			return err
		}
		return broker.ErrConflict
	})
	b.refused(broker.ErrNotFound, "a row of a transaction that failed", func(ctx context.Context, tx rotation.Tx) error {
		_, err := tx.DataKey(ctx, d.UID, "undone")
		return err
	})
}

func idsOf(keys []broker.DataKey) (ids []broker.DataKeyID) {
	for _, k := range keys {
		ids = append(ids, k.ID)
	}
	return ids
}

func testTombstones(t *testing.T, b *storeBench) {
	d, other := b.domain("alpha"), b.domain("beta")
	k := b.dataKeys(d.UID, 1)[0]
	remove := func(k broker.DataKey) func(context.Context, rotation.Tx) error {
		return func(ctx context.Context, tx rotation.Tx) error { return tx.DeleteDataKey(ctx, k) }
	}
	stale := k
	stale.Version = 2
	b.refused(broker.ErrConflict, "a delete with another version", remove(stale))
	stale = k
	stale.UID = "another"
	b.refused(broker.ErrConflict, "a delete with another uid", remove(stale))
	stale = k
	stale.ID = "absent"
	b.refused(broker.ErrNotFound, "a delete of an absent row", remove(stale))
	equal(t, "the row after refused deletes", b.dataKey(d.UID, k.ID), k)

	b.update(remove(k))
	b.refused(broker.ErrNotFound, "a deleted row", func(ctx context.Context, tx rotation.Tx) error {
		_, err := tx.DataKey(ctx, d.UID, k.ID)
		return err
	})
	b.refused(broker.ErrNotFound, "a second delete", remove(k))
	err := b.refused(broker.ErrAlreadyExists, "a deleted id", func(ctx context.Context, tx rotation.Tx) error {
		again := newDataKey(d.UID, k.ID, b.clock.Now())
		again.UID = "another"
		return tx.InsertDataKey(ctx, again)
	})
	equal(t, "reason of a deleted id", broker.ReasonOf(err), broker.ReasonDataKeyIDDeleted)
	b.update(func(ctx context.Context, tx rotation.Tx) error {
		return tx.InsertDataKey(ctx, newDataKey(other.UID, k.ID, b.clock.Now()))
	})
}

// testReplaceDataKey: whoever replaces a row has read it as it is, and what was
// said of the old blob (that KMS cannot read it, that it was given up) is not
// said of the new one.
func testReplaceDataKey(t *testing.T, b *storeBench) {
	d, other := b.domain("alpha"), b.domain("beta")
	k, twin := b.dataKeys(d.UID, 1)[0], b.dataKeys(other.UID, 1)[0]
	failed := rotation.Failure{Domain: d.UID, Job: "job-1", DataKey: k.ID, UID: k.UID, Version: k.Version, Class: broker.KMSInvalidCiphertext, Time: b.clock.Now()}
	b.job(d.UID, "job-1", rotation.Running, rotation.Reencrypting)
	b.update(func(ctx context.Context, tx rotation.Tx) error {
		if err := tx.AddFailures(ctx, []rotation.Failure{failed}); err != nil {
			return err
		}
		_, err := tx.AbandonDataKey(ctx, failed)
		return err
	})
	k = b.dataKey(d.UID, k.ID)
	if !k.Abandoned {
		t.Fatal("the row was not abandoned")
	}
	b.view(func(ctx context.Context, tx rotation.Tx) error {
		counts, _, err := tx.CountDataKeys(ctx, d.UID, 100)
		equal(t, "rows counted, the abandoned one left out", len(counts), 0)
		return err
	})
	created := k.CreateTime
	b.clock.Advance(time.Minute)
	next := k
	next.Ciphertext, next.Context, next.KeySpec = broker.Secret("another blob"), broker.Context{"tenant": "acmé"}, "AES_128"
	next.Epoch, next.KeyMaterialID, next.KMSRequestID = 2, "material-2", "request-2"
	next.CreateTime, next.UpdateTime = b.clock.Now(), time.Time{} // neither is taken

	replace := func(k broker.DataKey, epoch broker.Epoch) func(context.Context, rotation.Tx) error {
		return func(ctx context.Context, tx rotation.Tx) error { return tx.ReplaceDataKey(ctx, k, epoch) }
	}
	stale := next
	stale.Version++
	b.refused(broker.ErrConflict, "another version", replace(stale, 1))
	stale = next
	stale.UID = "another"
	b.refused(broker.ErrConflict, "another uid", replace(stale, 1))
	b.refused(broker.ErrConflict, "another epoch", replace(next, 2))
	stale = next
	stale.ID = "absent"
	b.refused(broker.ErrNotFound, "an absent row", replace(stale, 1))
	equal(t, "the row after what was refused", b.dataKey(d.UID, k.ID), k)

	b.update(replace(next, 1))
	want := next
	want.Version, want.Abandoned, want.CreateTime, want.UpdateTime = k.Version+1, false, created, b.clock.Now()
	equal(t, "the row as replaced", b.dataKey(d.UID, k.ID), want)
	equal(t, "a row of the same id in another domain", b.dataKey(other.UID, twin.ID), twin)
	b.refused(broker.ErrConflict, "the same again", replace(next, 1))
	b.update(func(ctx context.Context, tx rotation.Tx) error {
		pending, err := tx.PendingDataKeys(ctx, rotation.Shard{Domain: d.UID, Job: "job-1"}, 3, 10)
		equal(t, "rows for the job that had failed on it", idsOf(pending), []broker.DataKeyID{k.ID})
		if err != nil {
			return err
		}
		marked, err := tx.AbandonDataKey(ctx, failed)
		equal(t, "giving the old blob up marks the new one", marked, false)
		return err
	})
}

// testAbandonDataKey: a row that was given up has a new version, and nothing moves it
// any more: no job that has it at KMS, and none that reads it later.
func testAbandonDataKey(t *testing.T, b *storeBench) {
	d := b.domain("alpha")
	k := b.dataKeys(d.UID, 1)[0]
	failures := make([]rotation.Failure, 2)
	for i := range failures {
		j := b.job(d.UID, broker.JobID(fmt.Sprint("job-", i)), rotation.Running, rotation.Reencrypting)
		failures[i] = rotation.Failure{Domain: d.UID, Job: j.ID, DataKey: k.ID, UID: k.UID, Version: k.Version, Class: broker.KMSInvalidCiphertext, Time: b.clock.Now()}
	}
	b.update(func(ctx context.Context, tx rotation.Tx) error { return tx.AddFailures(ctx, failures) })
	b.clock.Advance(time.Minute)
	want := k
	want.Abandoned, want.Version, want.UpdateTime = true, k.Version+1, b.clock.Now()
	for _, f := range failures { // it stands in two jobs, and is given up in both
		b.update(func(ctx context.Context, tx rotation.Tx) error {
			marked, err := tx.AbandonDataKey(ctx, f)
			equal(t, "that the row was given up in "+string(f.Job), marked, true)
			return err
		})
		equal(t, "the row after "+string(f.Job), b.dataKey(d.UID, k.ID), want)
		b.view(func(ctx context.Context, tx rotation.Tx) error {
			recorded, err := tx.Failures(ctx, rotation.JobRef{Domain: d.UID, ID: f.Job}, "", 10)
			if err == nil && (len(recorded) != 1 || !recorded[0].Acknowledged) {
				t.Errorf("the failure of %s is not acknowledged: %+v", f.Job, recorded)
			}
			return err
		})
		b.clock.Advance(time.Minute)
	}
	for _, version := range []int64{k.Version, want.Version} {
		b.update(func(ctx context.Context, tx rotation.Tx) error {
			moved, err := tx.MoveDataKeys(ctx, d.UID, 2, []rotation.Move{{ID: k.ID, UID: k.UID, Version: version, FromEpoch: k.Epoch, Ciphertext: broker.Secret("moved")}})
			equal(t, fmt.Sprint("a move of version ", version), moved, []bool{false})
			return err
		})
	}
	equal(t, "the row after the moves", b.dataKey(d.UID, k.ID), want)
}

func testMoveDataKeys(t *testing.T, b *storeBench) {
	d, other := b.domain("alpha"), b.domain("beta")
	keys := b.dataKeys(d.UID, 6)
	twin := b.dataKeys(other.UID, 1)[0]
	b.clock.Advance(time.Minute)

	moves := make([]rotation.Move, 0, 8)
	for _, k := range keys {
		moves = append(moves, rotation.Move{
			ID: k.ID, UID: k.UID, Version: k.Version, FromEpoch: k.Epoch,
			Ciphertext: broker.Secret("moved " + k.ID), KeyMaterialID: "material-2", KMSRequestID: "request-2",
		})
	}
	moves[1].UID = "another row of this id"
	moves[2].Version = 7
	moves[3].FromEpoch = 2
	absent := moves[0]
	absent.ID = "absent"
	moves = append(moves, absent, moves[0]) // the last is a second try of the first
	want := []bool{true, false, false, false, true, true, false, false}
	b.update(func(ctx context.Context, tx rotation.Tx) error {
		got, err := tx.MoveDataKeys(ctx, d.UID, 5, moves)
		equal(t, "which rows were as they had been read", got, want)
		return err
	})
	for i, k := range keys {
		wantRow, why := k, "a row that was not as it had been read"
		if want[i] {
			why = "a moved row"
			wantRow.Ciphertext, wantRow.KeyMaterialID, wantRow.KMSRequestID = broker.Secret("moved "+k.ID), "material-2", "request-2"
			wantRow.Epoch, wantRow.Version, wantRow.UpdateTime = 5, 2, b.clock.Now()
		}
		equal(t, why, b.dataKey(d.UID, k.ID), wantRow)
	}
	equal(t, "a row of the same id in another domain", b.dataKey(other.UID, twin.ID), twin)
	b.update(func(ctx context.Context, tx rotation.Tx) error {
		got, err := tx.MoveDataKeys(ctx, d.UID, 5, nil)
		if len(got) != 0 {
			t.Errorf("no moves: got %d answers", len(got))
		}
		return err
	})
}

func testPendingDataKeys(t *testing.T, b *storeBench) {
	d := b.domain("alpha")
	j := b.job(d.UID, "job-1", rotation.Running, rotation.Reencrypting)
	b.job(d.UID, "job-2", rotation.Running, rotation.Reencrypting)
	keys := b.dataKeys(d.UID, 10)
	b.dataKeys(b.domain("beta").UID, 10)
	b.update(func(ctx context.Context, tx rotation.Tx) error {
		_, err := tx.MoveDataKeys(ctx, d.UID, 2, []rotation.Move{{
			ID: "k004", UID: keys[4].UID, Version: 1, FromEpoch: 1, Ciphertext: broker.Secret("x"),
		}})
		return err
	})
	pending := func(what string, s rotation.Shard, target broker.Epoch, limit int, want ...broker.DataKeyID) {
		t.Helper()
		s.Domain, s.Job = d.UID, j.ID
		b.view(func(ctx context.Context, tx rotation.Tx) error {
			got, err := tx.PendingDataKeys(ctx, s, target, limit)
			equal(t, what, idsOf(got), want)
			return err
		})
	}
	pending("an open shard", rotation.Shard{}, 2, 100, "k000", "k001", "k002", "k003", "k005", "k006", "k007", "k008", "k009")
	pending("a limit", rotation.Shard{}, 2, 3, "k000", "k001", "k002")
	pending("low is left out, high is in", rotation.Shard{Low: "k002", High: "k005"}, 2, 100, "k003", "k005")
	pending("open above", rotation.Shard{Low: "k007"}, 2, 100, "k008", "k009")
	pending("a cursor", rotation.Shard{Low: "k001", High: "k007", Cursor: "k005"}, 2, 100, "k006", "k007")
	pending("a cursor below the range", rotation.Shard{Low: "k007", Cursor: "k001"}, 2, 100, "k008", "k009")
	pending("a cursor at the end", rotation.Shard{High: "k005", Cursor: "k005"}, 2, 100)
	pending("nothing below the first epoch", rotation.Shard{}, 1, 100)
	pending("a later target", rotation.Shard{Low: "k003", High: "k004"}, 3, 100, "k004")

	failure := rotation.Failure{Domain: d.UID, Job: j.ID, DataKey: "k001", UID: keys[1].UID, Version: 1, Class: broker.KMSIncorrectKey, Time: b.clock.Now()}
	foreign := rotation.Failure{Domain: d.UID, Job: "job-2", DataKey: "k000", UID: keys[0].UID, Version: 1, Class: broker.KMSIncorrectKey, Time: b.clock.Now()}
	replaced := rotation.Failure{Domain: d.UID, Job: j.ID, DataKey: "k002", UID: "a row before", Version: 1, Class: broker.KMSIncorrectKey, Time: b.clock.Now()}
	b.update(func(ctx context.Context, tx rotation.Tx) error {
		return tx.AddFailures(ctx, []rotation.Failure{failure, foreign, replaced})
	})
	pending("recorded failures of this job, row and version are left out", rotation.Shard{High: "k003"}, 2, 100, "k000", "k002", "k003")
	b.update(func(ctx context.Context, tx rotation.Tx) error { // a version that changed is tried again
		_, err := tx.MoveDataKeys(ctx, d.UID, 1, []rotation.Move{{
			ID: "k001", UID: keys[1].UID, Version: 1, FromEpoch: 1, Ciphertext: broker.Secret("mended"),
		}})
		return err
	})
	pending("a failed row in a new version", rotation.Shard{High: "k003"}, 2, 100, "k000", "k001", "k002", "k003")

	b.view(func(ctx context.Context, tx rotation.Tx) error {
		got, err := tx.PendingDataKeys(ctx, rotation.Shard{Domain: d.UID, Job: j.ID, Low: "k002"}, 2, 1)
		equal(t, "a pending row, whole", got, []broker.DataKey{keys[3]})
		return err
	})
}

func testSampleBoundaries(t *testing.T, b *storeBench) {
	d := b.domain("alpha")
	sample := func(uid broker.DomainUID, n int) (bounds []broker.DataKeyID, rows int64) {
		t.Helper()
		b.view(func(ctx context.Context, tx rotation.Tx) (err error) {
			bounds, rows, err = tx.SampleBoundaries(ctx, uid, n)
			return err
		})
		return bounds, rows
	}
	if bounds, rows := sample(d.UID, 4); len(bounds) != 0 || rows != 0 {
		t.Errorf("an empty domain: got %d bounds and %d rows", len(bounds), rows)
	}
	const total = 103
	keys := b.dataKeys(d.UID, total)
	for _, n := range []int{1, 2, 3, 7, 16, total, 500} {
		bounds, rows := sample(d.UID, n)
		equal(t, fmt.Sprintf("rows seen for %d ranges", n), rows, total)
		if want := min(n, total) - 1; len(bounds) != want {
			t.Errorf("%d ranges: got %d inner bounds, want %d", n, len(bounds), want)
		}
		sizes := make([]int, len(bounds)+1)
		for _, k := range keys {
			i := 0
			for i < len(bounds) && k.ID > bounds[i] {
				i++
			}
			sizes[i]++
		}
		for i, size := range sizes {
			if low, high := total/n, total/n+1; size < low || size > high {
				t.Errorf("%d ranges: range %d has %d rows, want %d or %d", n, i, size, low, high)
			}
		}
	}
}
