package brokertest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
)

var errOnPurpose = errors.New("on purpose")

// absent checks that a domain is not stored.
func (b *storeBench) absent(what string, id broker.DomainID) {
	b.t.Helper()
	b.refused(broker.ErrNotFound, what, func(ctx context.Context, tx rotation.Tx) error {
		_, err := tx.Domain(ctx, id)
		return err
	})
}

func testRollback(t *testing.T, b *storeBench) {
	ctx := t.Context()
	kept := b.domain("kept")
	err := b.broker.Update(ctx, func(tx broker.Tx) error {
		if err := tx.InsertDomain(ctx, newDomain("dropped", tx.Now())); err != nil {
			return err
		}
		kept := kept
		kept.DisplayName = "dropped"
		if err := tx.UpdateDomain(ctx, kept); err != nil {
			return err
		}
		if err := tx.InsertDataKey(ctx, newDataKey(kept.UID, "dropped", tx.Now())); err != nil {
			return err
		}
		if _, err := tx.Domain(ctx, "dropped"); err != nil {
			t.Errorf("a transaction does not see its own writes: %v", err)
		}
		return errOnPurpose
	})
	if !errors.Is(err, errOnPurpose) {
		t.Errorf("the function's error: got %v", err)
	}
	b.absent("a domain of a transaction that failed", "dropped")
	b.view(func(ctx context.Context, tx rotation.Tx) error {
		got, err := tx.Domain(ctx, "kept")
		equal(t, "a domain updated by a transaction that failed", got, kept)
		if err != nil {
			return err
		}
		keys, err := tx.ListDataKeys(ctx, kept.UID, "", 10)
		equal(t, "rows of a transaction that failed", len(keys), 0)
		return err
	})

	// A refusal inside a transaction spoils nothing: the function may go on.
	b.update(func(ctx context.Context, tx rotation.Tx) error {
		if err := tx.InsertDomain(ctx, newDomain("kept", tx.Now())); !errors.Is(err, broker.ErrAlreadyExists) {
			t.Errorf("a second insert: got %v", err)
		}
		return tx.InsertDomain(ctx, newDomain("after", tx.Now()))
	})
	b.view(func(ctx context.Context, tx rotation.Tx) error {
		_, err := tx.Domain(ctx, "after")
		return err
	})
}

func testPanic(t *testing.T, b *storeBench) {
	ctx := t.Context()
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic was swallowed")
			}
		}()
		_ = b.broker.Update(ctx, func(tx broker.Tx) error {
			if err := tx.InsertDomain(ctx, newDomain("dropped", tx.Now())); err != nil {
				return err
			}
			panic(errOnPurpose)
		})
	}()
	b.absent("a domain of a transaction that panicked", "dropped")
	b.domain("later")
}

func testCancel(t *testing.T, b *storeBench) {
	// Before: the function is not run, or its work is dropped.
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	err := b.broker.Update(ended, func(tx broker.Tx) error { return tx.InsertDomain(t.Context(), newDomain("before", tx.Now())) })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("a context that had ended: got %v", err)
	}
	b.absent("a domain of a context that had ended", "before")

	// Inside, also when the function looks away: an error means nothing stored.
	during, cancel := context.WithCancel(t.Context())
	err = b.broker.Update(during, func(tx broker.Tx) error {
		if err := tx.InsertDomain(during, newDomain("during", tx.Now())); err != nil {
			return err
		}
		cancel()
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("a context that ended inside: got %v", err)
	}
	b.absent("a domain of a context that ended inside", "during")

	// A verb called with a context that has ended says so.
	inner, cancel := context.WithCancel(t.Context())
	cancel()
	err = b.broker.Update(t.Context(), func(tx broker.Tx) error { return tx.InsertDomain(inner, newDomain("inner", tx.Now())) })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("a verb whose context had ended: got %v", err)
	}

	// Waiting for another's transaction ends with the context: on SQLite for the
	// one writer, on PostgreSQL for whoever holds the domain.
	held := b.domain("held")
	err = b.broker.Update(t.Context(), func(tx broker.Tx) error {
		if err := tx.LockDomain(t.Context(), held.UID, broker.Exclusive); err != nil {
			return err
		}
		waiting, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if err := b.broker.Update(waiting, func(tx broker.Tx) error {
			return tx.LockDomain(waiting, held.UID, broker.Shared)
		}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a wait that its context ended: got %v", err)
		}
		return nil
	})
	if err != nil {
		t.Errorf("the outer transaction: %v", err)
	}
	b.domain("usable-after-all")
}

func testSnapshot(t *testing.T, b *storeBench) {
	ctx := t.Context()
	d := b.domain("alpha")
	err := b.broker.View(ctx, func(tx broker.Tx) error {
		before, err := tx.Domain(ctx, "alpha")
		if err != nil {
			return err
		}
		updated := make(chan error, 1)
		go func() {
			updated <- b.broker.Update(ctx, func(tx broker.Tx) error {
				d := d
				d.DisplayName = "changed"
				if err := tx.UpdateDomain(ctx, d); err != nil {
					return err
				}
				return tx.InsertDomain(ctx, newDomain("beta", tx.Now()))
			})
		}()
		if err := <-updated; err != nil {
			return err
		}
		after, err := tx.Domain(ctx, "alpha")
		if err != nil {
			return err
		}
		equal(t, "a domain read twice in one view", after, before)
		if _, err := tx.Domain(ctx, "beta"); !errors.Is(err, broker.ErrNotFound) {
			t.Errorf("a view sees a domain stored after it began: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	b.view(func(ctx context.Context, tx rotation.Tx) error {
		got, err := tx.Domain(ctx, "alpha")
		equal(t, "the name in a later view", got.DisplayName, "changed")
		return err
	})
}

func testReadOnly(t *testing.T, b *storeBench) {
	ctx := t.Context()
	err := b.broker.View(ctx, func(tx broker.Tx) error { return tx.InsertDomain(ctx, newDomain("alpha", tx.Now())) })
	if err == nil {
		t.Error("a view may write")
	}
	b.absent("a domain stored in a view", "alpha")
}

// testConcurrent: 64 writers add 1 to one domain, each by a compare-and-swap
// that it repeats until it is through, and append a row.
func testConcurrent(t *testing.T, b *storeBench) {
	const writers = 64
	ctx := t.Context()
	d := b.domain("alpha")
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			for {
				err := b.broker.Update(ctx, func(tx broker.Tx) error {
					if err := tx.LockDomain(ctx, d.UID, broker.Shared); err != nil {
						return err
					}
					now, err := tx.Domain(ctx, "alpha")
					if err != nil {
						return err
					}
					now.LastEpoch++
					if err := tx.UpdateDomain(ctx, now); err != nil {
						return err
					}
					return tx.InsertDataKey(ctx, newDataKey(d.UID, broker.DataKeyID(rune('A'+i/26))+broker.DataKeyID(rune('a'+i%26)), tx.Now()))
				})
				if errors.Is(err, broker.ErrConflict) {
					continue
				}
				if err != nil {
					t.Errorf("writer %d: %v", i, err)
				}
				return
			}
		})
	}
	wg.Wait()
	b.view(func(ctx context.Context, tx rotation.Tx) error {
		got, err := tx.Domain(ctx, "alpha")
		equal(t, "additions", got.LastEpoch, d.LastEpoch+writers)
		equal(t, "versions", got.Version, d.Version+writers)
		if err != nil {
			return err
		}
		keys, err := tx.ListDataKeys(ctx, d.UID, "", 2*writers)
		equal(t, "rows", len(keys), writers)
		return err
	})
}

// testLockDomain: the switch gets through while 64 writers keep at it without a
// pause, and no writer that locked first and read after stores under the old
// epoch.
func testLockDomain(t *testing.T, b *storeBench) {
	const writers = 64
	ctx := t.Context()
	d := b.domain("alpha")
	write := func(id broker.DataKeyID, after bool) {
		err := b.broker.Update(ctx, func(tx broker.Tx) error {
			if _, err := tx.DomainByUID(ctx, d.UID); err != nil { // before the lock this says nothing
				return err
			}
			if err := tx.LockDomain(ctx, d.UID, broker.Shared); err != nil {
				return err
			}
			now, err := tx.Domain(ctx, "alpha")
			if err != nil {
				return err
			}
			if after && now.Epoch != 2 {
				t.Errorf("a writer read epoch %d after the switch", now.Epoch)
			}
			k := newDataKey(d.UID, id, tx.Now())
			k.Epoch = now.Epoch
			return tx.InsertDataKey(ctx, k)
		})
		if err != nil {
			t.Errorf("writer of %s: %v", id, err)
		}
	}
	switched := make(chan struct{})
	var writing, done sync.WaitGroup
	writing.Add(writers)
	for i := range writers {
		done.Go(func() {
			id := func(round int) broker.DataKeyID { return broker.DataKeyID(fmt.Sprintf("%d-%d", i, round)) }
			write(id(0), false)
			writing.Done()
			for round := 1; ; round++ {
				select {
				case <-switched:
					write(id(round), true)
					return
				default:
					write(id(round), false)
				}
			}
		})
	}
	writing.Wait()
	var before map[broker.Epoch]int64
	err := b.rotation.Update(ctx, func(tx rotation.Tx) error {
		if err := tx.LockDomain(ctx, d.UID, broker.Exclusive); err != nil {
			return err
		}
		now, err := tx.Domain(ctx, "alpha")
		if err != nil {
			return err
		}
		now.Epoch = 2
		if err := tx.UpdateDomain(ctx, now); err != nil {
			return err
		}
		before, _, err = tx.CountDataKeys(ctx, d.UID, 1e6)
		return err
	})
	close(switched)
	done.Wait()
	if err != nil {
		t.Fatalf("the switch: %v", err)
	}
	b.view(func(ctx context.Context, tx rotation.Tx) error {
		got, _, err := tx.CountDataKeys(ctx, d.UID, 1e6)
		equal(t, "rows under the old epoch, as the switch saw them", got[1], before[1])
		if got[2] < writers {
			t.Errorf("%d rows under the new epoch, want one of each writer at least", got[2])
		}
		return err
	})
}

func testClock(t *testing.T, b *storeBench) {
	for what, run := range map[string]func(context.Context, func(rotation.Tx) error) error{
		"Update": b.rotation.Update, "View": b.rotation.View,
	} {
		start := b.clock.Now()
		err := run(t.Context(), func(tx rotation.Tx) error {
			equal(t, what+": the time", tx.Now(), start)
			b.clock.Advance(time.Hour + time.Nanosecond)
			equal(t, what+": the time, an hour later", tx.Now(), start)
			if tx.Now().Location() != time.UTC {
				t.Errorf("%s: the time is in %s, not in UTC", what, tx.Now().Location())
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		b.clock.Advance(-time.Nanosecond)
	}
	b.clock.Advance(999 * time.Nanosecond)
	b.view(func(_ context.Context, tx rotation.Tx) error {
		if now := tx.Now(); now.Nanosecond()%1000 != 0 || now.After(b.clock.Now()) {
			t.Errorf("the time %v is not in whole microseconds, rounded down", now)
		}
		return nil
	})
}
