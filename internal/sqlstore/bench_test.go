package sqlstore_test

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/internal/sqlstore"
)

// benchStore opens a store with one domain and a job in REENCRYPTING.
func benchStore(b *testing.B) (*sqlstore.Store, rotation.Shard) {
	b.Helper()
	s := open(b, dbPath(b), time.Now)
	return s, benchJob(b, s)
}

// benchJob makes a domain and a job in REENCRYPTING, and claims its shard.
func benchJob(b testing.TB, s *sqlstore.Store) rotation.Shard {
	b.Helper()
	shard := rotation.Shard{Domain: "u1", Job: "j1"}
	err := s.Rotation().Update(b.Context(), func(tx rotation.Tx) error {
		if err := tx.InsertDomain(b.Context(), broker.Domain{UID: "u1", ID: "d1", State: broker.DomainActive, Epoch: 1, LastEpoch: 2, Version: 1}); err != nil {
			return err
		}
		if err := tx.InsertJob(b.Context(), rotation.Job{Domain: "u1", ID: "j1", Kind: rotation.KindKeyChange, Priority: rotation.Normal,
			Phase: rotation.Reencrypting, State: rotation.Running, TargetEpoch: 2, Version: 1}); err != nil {
			return err
		}
		if err := tx.InsertShards(b.Context(), []rotation.Shard{shard}); err != nil {
			return err
		}
		claimed, _, err := tx.ClaimShard(b.Context(), "bench", time.Hour)
		shard = claimed
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	return shard
}

func benchKey(i int) broker.DataKey {
	return broker.DataKey{
		Domain: "u1", ID: broker.DataKeyID(fmt.Sprintf("key-%09d", i)), UID: broker.DataKeyUID(fmt.Sprintf("01JQ00000000000000%08d", i)),
		Ciphertext: make([]byte, 184), Context: broker.Context{"tenant": "acme", "purpose": "recordings"},
		KeySpec: "AES_256", Epoch: 1, KeyMaterialID: "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
		KMSRequestID: "11111111-2222-3333-4444-555555555555", Version: 1, CreateTime: time.UnixMicro(1), UpdateTime: time.UnixMicro(1),
	}
}

// cpu gives the processor time that this process has used: the one figure that
// a busy machine and its disk leave mostly alone.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// report gives rows per second and processor time per row.
func report(b *testing.B, rows int, before time.Duration) {
	b.Helper()
	b.ReportMetric(float64(rows)/b.Elapsed().Seconds(), "rows/s")
	b.ReportMetric(float64((cpu(b)-before).Nanoseconds())/1e3/float64(rows), "cpu-µs/row")
}

// BenchmarkMove is a worker's commit: 250 rows moved and the shard's progress,
// in one durable transaction.
func BenchmarkMove(b *testing.B) {
	const rows, batch = 100_000, 250
	s, shard := benchStore(b)
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	keys := make([]broker.DataKey, rows)
	for from := 0; from < rows; from += 10_000 {
		if err := s.Broker().Update(ctx, func(tx broker.Tx) error {
			for i := from; i < from+10_000; i++ {
				keys[i] = benchKey(i)
				if err := tx.InsertDataKey(ctx, keys[i]); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			b.Fatal(err)
		}
	}
	blob := make([]byte, 184)
	next, version, moved, before := 0, int64(1), 0, cpu(b)
	for b.Loop() {
		moves := make([]rotation.Move, batch)
		for i := range moves {
			k := keys[next+i]
			moves[i] = rotation.Move{ID: k.ID, UID: k.UID, Version: version, FromEpoch: broker.Epoch(version), Ciphertext: blob,
				KeyMaterialID: k.KeyMaterialID, KMSRequestID: k.KMSRequestID}
		}
		err := s.Rotation().Update(ctx, func(tx rotation.Tx) error {
			ok, err := tx.MoveDataKeys(ctx, "u1", broker.Epoch(version+1), moves)
			if err != nil {
				return err
			}
			for i := range ok {
				if !ok[i] {
					return fmt.Errorf("row %d was not as it had been read", i)
				}
			}
			shard.Cursor, shard.Done = moves[batch-1].ID, shard.Done+batch
			_, _, err = tx.CommitShard(ctx, shard, time.Hour)
			return err
		})
		if err != nil {
			b.Fatal(err)
		}
		moved += batch
		if next += batch; next == rows {
			next, version = 0, version+1
		}
	}
	report(b, moved, before)
}

// BenchmarkPending is a worker's reads of a stretch, in pages of 250 rows: where all
// rows are pending, and where one in 2,000 is. A row counts whether it is or not.
func BenchmarkPending(b *testing.B) {
	const rows, batch = 10_000, 250
	for name, every := range map[string]int{"all": 1, "few": 2000} {
		for engine, open := range engines() {
			b.Run(name+"/"+engine, func(b *testing.B) {
				s := open(b)
				shard := benchJob(b, s)
				ctx, cancel := context.WithCancel(b.Context())
				defer cancel()
				keys := make([]broker.DataKey, rows)
				for i := range keys {
					if keys[i] = benchKey(i); i%every > 0 {
						keys[i].Epoch = 2
					}
				}
				if err := s.Broker().Update(ctx, func(tx broker.Tx) error {
					there, err := tx.InsertDataKeys(ctx, keys)
					return errors.Join(append(there, err)...)
				}); err != nil {
					b.Fatal(err)
				}
				part, pages, found, before := shard, 0, 0, cpu(b)
				for b.Loop() {
					err := s.Rotation().View(ctx, func(tx rotation.Tx) (err error) {
						if part.Cursor == "" {
							if part, err = tx.Stretch(ctx, shard); err != nil {
								return err
							}
						}
						keys, err := tx.PendingDataKeys(ctx, part, 2, batch)
						if pages, found = pages+1, found+len(keys); len(keys) == batch {
							part.Cursor = keys[batch-1].ID
						} else {
							part.Cursor = ""
						}
						return err
					})
					if err != nil {
						b.Fatal(err)
					}
				}
				report(b, found*every, before)
			})
		}
	}
}

// BenchmarkImport is the store's part of a full call of ImportDataKeys: 500 new
// rows in one transaction. PostgreSQL works in a process of its own, whose time is
// not in cpu-µs/row.
func BenchmarkImport(b *testing.B) {
	const batch = 500
	for engine, open := range engines() {
		b.Run(engine, func(b *testing.B) {
			s := open(b)
			ctx, cancel := context.WithCancel(b.Context())
			defer cancel()
			if err := s.Broker().Update(ctx, func(tx broker.Tx) error {
				return tx.InsertDomain(ctx, broker.Domain{UID: "u1", ID: "d1", State: broker.DomainActive, Epoch: 1, LastEpoch: 1, Version: 1})
			}); err != nil {
				b.Fatal(err)
			}
			next, before := 0, cpu(b)
			for b.Loop() {
				keys := make([]broker.DataKey, batch)
				for i := range keys {
					keys[i] = benchKey(next + i)
				}
				next += batch
				err := s.Broker().Update(ctx, func(tx broker.Tx) error {
					there, err := tx.InsertDataKeys(ctx, keys)
					return errors.Join(append(there, err)...)
				})
				if err != nil {
					b.Fatal(err)
				}
			}
			report(b, next, before)
		})
	}
}

// engines opens an empty store of each.
func engines() map[string]func(b *testing.B) *sqlstore.Store {
	return map[string]func(b *testing.B) *sqlstore.Store{
		"sqlite":   func(b *testing.B) *sqlstore.Store { return open(b, dbPath(b), time.Now) },
		"postgres": func(b *testing.B) *sqlstore.Store { return openPostgres(b, nil) },
	}
}

// BenchmarkCreateDataKey is the store's part of CreateDataKey: five verbs in one
// durable transaction.
func BenchmarkCreateDataKey(b *testing.B) {
	s, _ := benchStore(b)
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	i, before := 0, cpu(b)
	for b.Loop() {
		k := benchKey(i)
		i++
		err := s.Broker().Update(ctx, func(tx broker.Tx) error {
			if err := tx.LockDomain(ctx, "u1", broker.Shared); err != nil {
				return err
			}
			if _, err := tx.Domain(ctx, "d1"); err != nil {
				return err
			}
			if err := tx.InsertDataKey(ctx, k); err != nil {
				return err
			}
			if err := tx.PutRequestRecord(ctx, broker.RequestRecord{
				RequestKey: broker.RequestKey{Caller: "bench", Method: "/keybroker.v1.DataKeyService/CreateDataKey", ID: string(k.UID)},
				Resource:   "domains/d1/dataKeys/" + string(k.ID), Done: true, Until: tx.Now().Add(24 * time.Hour),
			}); err != nil {
				return err
			}
			return tx.Audit(ctx, broker.AuditEvent{Caller: "bench", Action: "dataKeys.create", Domain: "u1",
				Resource: "domains/d1/dataKeys/" + string(k.ID), Outcome: broker.AuditDone, RequestID: string(k.UID)})
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	report(b, i, before)
}
