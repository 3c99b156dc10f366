package sqlstore

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/keybroker/keybroker/internal/broker"
)

// OpenPostgres opens the vault in a PostgreSQL database, 14 or newer, whose
// schema MigratePostgres has made. The URL is libpq's (postgres://…, with
// several hosts for a fail-over, sslmode, and so on) and pgxpool's (pool_…); it
// may hold a password, which no error shows.
//
// Config.Now is nil in production: the database's clock is the one judge of time
// for all replicas.
//
// It fails with a *SchemaError if this program cannot run on the schema.
func OpenPostgres(ctx context.Context, url string, cfg Config) (*Store, error) {
	config, err := postgresConfig(url)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if cfg.DatabaseURL != nil {
		config.BeforeConnect = cfg.takeCredentials()
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", withoutURL(err))
	}
	if err := checkPostgres(ctx, pool); err != nil {
		pool.Close()
		return nil, fmt.Errorf("open store: %w", err)
	}
	lax, err := laxSettings(ctx, pool)
	if err != nil {
		pool.Close()
		return nil, fmt.Errorf("open store: read the server's settings: %w", err)
	}
	store, err := newStore(&postgresDialect{pool: pool, clock: cfg.Now, begins: beginTime, answers: answerTime}, cfg)
	if err != nil {
		pool.Close()
		return nil, err
	}
	for _, name := range lax {
		store.log.WarnContext(ctx, "the database may lose acknowledged data keys when its machine fails: turn the setting on", "setting", name)
	}
	return store, nil
}

// postgresDialect runs transactions side by side, at READ COMMITTED: the domain
// lock, held rows and compare-and-swaps do what one writer does on SQLite.
type postgresDialect struct {
	pool   *pgxpool.Pool
	closed atomic.Bool
	// clock replaces the database's, in tests; nil elsewhere.
	clock func() time.Time
	// begins and answers are beginTime and answerTime, but in tests.
	begins, answers time.Duration
}

var _ dialect = (*postgresDialect)(nil)

// The first words of a transaction, with the clock in the same round trip.
const (
	clockText  = `select (extract(epoch from clock_timestamp()) * 1000000)::bigint`
	beginWrite = `begin isolation level read committed read write; ` + clockText
	beginRead  = `begin isolation level repeatable read read only; ` + clockText
)

// begin finds out whether the pool's connection still leads anywhere. Where it
// does not, a server has been restarted or is gone, most likely: the others are
// dropped too, and the caller begins again on a new one. A caller who leaves before
// that is known leaves the question behind: he says nothing about the connection,
// and whoever comes next must not each wait on another that is as dead.
func (e *postgresDialect) begin(ctx context.Context, readOnly bool) (session, error) {
	text := beginWrite
	if readOnly {
		text = beginRead
	}
	conn, err := e.pool.Acquire(ctx)
	if err != nil && e.closed.Load() {
		return nil, errClosed
	}
	if err != nil {
		return nil, err
	}
	s := &postgresSession{dialect: e, conn: conn}
	answer := make(chan error, 1)
	go func() { answer <- s.begin(text) }()
	select {
	case err := <-answer:
		if err != nil {
			s.release()
			return nil, err
		}
		return s, nil
	case <-ctx.Done():
		go func() {
			if err := <-answer; err != nil {
				s.release()
				return
			}
			s.rollback()
		}()
		return nil, ctx.Err()
	}
}

// readClock reads the second of two answers, which the simple protocol gives as text.
func readClock(results []*pgconn.Result) (time.Time, error) {
	if len(results) != 2 || len(results[1].Rows) != 1 {
		return time.Time{}, errors.New("the clock gave no row")
	}
	us, err := strconv.ParseInt(string(results[1].Rows[0][0]), 10, 64)
	return time.UnixMicro(us), err
}

func (e *postgresDialect) now(_ context.Context, s session) (time.Time, error) {
	if e.clock != nil {
		return e.clock(), nil
	}
	return s.(*postgresSession).began, nil
}

func (e *postgresDialect) later(ctx context.Context, s session) (now time.Time, err error) {
	if e.clock != nil {
		return e.clock(), nil
	}
	clock, err := s.query(ctx, clockText)
	if err != nil {
		return time.Time{}, err
	}
	defer clock.Close() //nolint:errcheck // Err has said it
	for clock.Next() {
		if err := clock.Scan(at{&now}); err != nil {
			return time.Time{}, err
		}
	}
	return now, clock.Err()
}

// lock takes an advisory lock of the transaction on a hash of the name. A waiting
// exclusive lock goes before the shared ones that come after it, so that a switch
// is not starved (a row lock would be). Two names of one hash only wait for each
// other needlessly. The statements after it see what its former holders committed:
// at READ COMMITTED each has a snapshot of its own.
func (e *postgresDialect) lock(ctx context.Context, s session, name string, mode broker.LockMode) error {
	query := `select pg_advisory_xact_lock_shared($1)`
	if mode == broker.Exclusive {
		query = `select pg_advisory_xact_lock($1)`
	}
	_, err := s.exec(ctx, query, lockKey(name))
	return err
}

func lockKey(name string) int64 {
	sum := sha256.Sum256([]byte(name))
	return int64(binary.BigEndian.Uint64(sum[:8]))
}

func (e *postgresDialect) holding(h hold) string {
	if h == skipping {
		return "\n\t\tfor no key update skip locked"
	}
	return "\n\t\tfor no key update"
}

// dataKeysOf has "offset 0" for the reason that moveDistinct has it.
func (e *postgresDialect) dataKeysOf() string {
	return `
		select found.*
		from json_array_elements_text($2::json) as wanted (id)
		cross join lateral (
			select ` + dataKeyColumns + `
			from data_key
			where domain_uid = $1 and data_key_id = wanted.id
			offset 0) as found`
}

// insertDataKeys sends the rows as arrays, in the order of their ids: two calls
// with the same ids wait for each other in the same order.
//
// Tombstones are looked for after, in the same round trip: the insert has waited
// for whoever was deleting a row of such an id, and the next statement sees what he
// left.
func (e *postgresDialect) insertDataKeys(ctx context.Context, s session, keys []broker.DataKey) ([]insertion, error) {
	domain, places := string(keys[0].Domain), make(map[string]int, len(keys))
	ends := make([]insertion, len(keys))
	for i, k := range keys {
		places[string(k.ID)], ends[i] = i, idTaken
	}
	var batch pgx.Batch
	batch.Queue(`
		insert into data_key (`+dataKeyColumns+`)
		select $1, fresh.*
		from unnest($2::text[], $3::text[], $4::bytea[], $5::text[], $6::text[], $7::bigint[],
			$8::text[], $9::text[], $10::boolean[], $11::bigint[], $12::bigint[], $13::bigint[]) as fresh
		on conflict do nothing
		returning data_key_id`, dataKeyArrays(keys)...)
	batch.Queue(`
		select id
		from unnest($2::text[]) as id
		where (
			select true
			from data_key_tombstone
			where domain_uid = $1 and data_key_id = id)`, domain, slices.Collect(maps.Keys(places)))
	answers, err := s.(batchSession).texts(ctx, &batch)
	if err != nil {
		return nil, err
	}
	fresh, deleted := answers[0], answers[1]
	for _, id := range fresh {
		ends[places[id]] = inserted
	}
	for _, id := range deleted {
		ends[places[id]] = idDeleted
		if _, err := s.exec(ctx, `
			delete from data_key
			where domain_uid = $1 and data_key_id = $2`, domain, id); err != nil {
			return nil, err
		}
	}
	return ends, nil
}

// dataKeyArrays are the domain and the columns of rows, by id.
func dataKeyArrays(keys []broker.DataKey) []any {
	n := len(keys)
	ids, uids, ciphertexts, contexts, specs := make([]string, n), make([]string, n), make([][]byte, n), make([]string, n), make([]string, n)
	epochs, materials, requests := make([]int64, n), make([]string, n), make([]string, n)
	abandoned, versions, created, updated := make([]bool, n), make([]int64, n), make([]int64, n), make([]int64, n)
	byID := slices.SortedFunc(slices.Values(keys), func(a, b broker.DataKey) int { return strings.Compare(string(a.ID), string(b.ID)) })
	for i, k := range byID {
		ids[i], uids[i], ciphertexts[i], contexts[i], specs[i] = string(k.ID), string(k.UID), k.Ciphertext, mapText(k.Context), k.KeySpec
		epochs[i], materials[i], requests[i] = int64(k.Epoch), k.KeyMaterialID, k.KMSRequestID
		abandoned[i], versions[i], created[i], updated[i] = k.Abandoned, k.Version, micros(k.CreateTime), micros(k.UpdateTime)
	}
	return []any{string(keys[0].Domain), ids, uids, ciphertexts, contexts, specs, epochs, materials, requests, abandoned, versions, created, updated}
}

// moveDataKeys sends a batch as arrays, in one statement. An id that comes twice
// in a batch is moved in the order given, so its second move is in a statement of
// its own.
func (e *postgresDialect) moveDataKeys(ctx context.Context, s session, b moveBatch) ([]bool, error) {
	moved := make([]bool, len(b.moves))
	for from := 0; from < len(b.moves); {
		to := from
		seen := make(map[broker.DataKeyID]bool, len(b.moves)-from)
		for to < len(b.moves) && !seen[b.moves[to].ID] {
			seen[b.moves[to].ID] = true
			to++
		}
		if err := e.moveDistinct(ctx, s, b, from, to, moved); err != nil {
			return nil, err
		}
		from = to
	}
	return moved, nil
}

// moveDistinct moves b.moves[from:to], whose ids differ, and notes which were as
// they had been read.
//
// "offset 0" has PostgreSQL look each row up by its whole key, whatever it believes
// of the domain's size. A plain join is planned for an average domain, if the table
// has been analyzed at all: it reads the whole of a small domain rather than look up
// a batch, and does so in a domain of a million rows too.
func (e *postgresDialect) moveDistinct(ctx context.Context, s session, b moveBatch, from, to int, moved []bool) error {
	n := to - from
	ids, uids := make([]string, n), make([]string, n)
	versions, epochs := make([]int64, n), make([]int64, n)
	ciphertexts := make([][]byte, n)
	materials, requests := make([]string, n), make([]string, n)
	for i, m := range b.moves[from:to] {
		ids[i], uids[i], versions[i], epochs[i] = string(m.ID), string(m.UID), m.Version, int64(m.FromEpoch)
		ciphertexts[i], materials[i], requests[i] = m.Ciphertext, m.KeyMaterialID, m.KMSRequestID
	}
	places, err := s.query(ctx, `
		update data_key
		set ciphertext = move.ciphertext, key_material_id = move.key_material_id, kms_request_id = move.kms_request_id,
			key_epoch = $2, version = data_key.version + 1, update_time = $3
		from unnest($4::text[], $5::text[], $6::bigint[], $7::bigint[], $8::bytea[], $9::text[], $10::text[]) with ordinality
			as move (id, uid, version, epoch, ciphertext, key_material_id, kms_request_id, place)
		cross join lateral (
			select ctid
			from data_key
			where domain_uid = $1 and data_key_id = move.id
			offset 0) as found
		where data_key.ctid = found.ctid`+bulkMoveMatches+`
		returning move.place`,
		string(b.domain), int64(b.target), b.now, ids, uids, versions, epochs, ciphertexts, materials, requests)
	if err != nil {
		return err
	}
	defer places.Close() //nolint:errcheck // Err has said it
	for places.Next() {
		var place int
		if err := places.Scan(&place); err != nil {
			return err
		}
		moved[from+place-1] = true
	}
	return places.Err()
}

// shredDataKeys is one statement, whose rows are held from the moment that it reads
// them: somebody else who shreds the same domain takes others. By an array of places
// PostgreSQL cannot but look each row up; a join with them it might make by reading
// the whole table.
func (e *postgresDialect) shredDataKeys(ctx context.Context, s session, d broker.DomainUID, now int64, limit int) (int64, error) {
	return s.exec(ctx, `
		with gone as (
			delete from data_key
			where ctid = any (array (
				select ctid
				from data_key
				where domain_uid = $1 and data_key_id > ''
				order by data_key_id
				limit $2 + 0
				for update skip locked))
			returning domain_uid, data_key_id, data_key_uid)
		insert into data_key_tombstone (domain_uid, data_key_id, data_key_uid, delete_time)
		select domain_uid, data_key_id, data_key_uid, $3::bigint
		from gone`, string(d), limit, now)
}

// close waits for transactions to end.
func (e *postgresDialect) close() error {
	e.closed.Store(true)
	e.pool.Close()
	return nil
}
