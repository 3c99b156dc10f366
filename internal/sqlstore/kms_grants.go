package sqlstore

import (
	"context"
	"math"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
)

const kmsGrantColumns = `
	domain_uid, grant_uid, key_epoch, kind, attempt, worker, name, kms_key,
	kms_grant_id, state, intend_time, live_time, end_time, next_try, miss_time`

func scanKMSGrant(r row) (g broker.KMSGrant, err error) {
	err = r.Scan(&g.Domain, &g.Grant, &g.Epoch, &g.Kind, &g.Attempt, &g.Worker, &g.Name, &g.KMSKey,
		&g.KMSGrantID, &g.State, at{&g.IntendTime}, at{&g.LiveTime}, at{&g.EndTime}, at{&g.NextTry}, at{&g.MissTime})
	return g, err
}

// InsertKMSGrant implements broker.Tx. An identity or a Name that was used
// already is broker.ErrConflict.
func (t *txn) InsertKMSGrant(ctx context.Context, g broker.KMSGrant) error {
	n, err := t.exec(ctx, "insert KMS grant", `
		insert into kms_grant (`+kmsGrantColumns+`)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
		on conflict do nothing`,
		g.Domain, g.Grant, g.Epoch, g.Kind, g.Attempt, g.Worker, g.Name, g.KMSKey,
		g.KMSGrantID, g.State, micros(g.IntendTime), micros(g.LiveTime), micros(g.EndTime),
		micros(g.NextTry), micros(g.MissTime))
	if err == nil && n == 0 {
		t.overtaken = true
		return conflict("a KMS grant of this name was intended already")
	}
	return err
}

// UpdateKMSGrant implements broker.Tx. Name and key never change.
func (t *txn) UpdateKMSGrant(ctx context.Context, g broker.KMSGrant) error {
	n, err := t.exec(ctx, "update KMS grant", `
		update kms_grant
		set kms_grant_id = $6, state = $7, intend_time = $8, live_time = $9, end_time = $10,
			next_try = $11, miss_time = $12
		where domain_uid = $1 and grant_uid = $2 and key_epoch = $3 and kind = $4 and attempt = $5`,
		g.Domain, g.Grant, g.Epoch, g.Kind, g.Attempt,
		g.KMSGrantID, g.State, micros(g.IntendTime), micros(g.LiveTime), micros(g.EndTime),
		micros(g.NextTry), micros(g.MissTime))
	if err == nil && n == 0 {
		return notFound("KMS grant")
	}
	return err
}

// KMSGrants implements broker.Tx. An Update holds them.
func (t *txn) KMSGrants(ctx context.Context, d broker.DomainUID, g broker.GrantUID) ([]broker.KMSGrant, error) {
	return all(ctx, t, "list KMS grants", scanKMSGrant, `
		select `+kmsGrantColumns+`
		from kms_grant
		where domain_uid = $1 and grant_uid = $2
		order by key_epoch, kind, attempt`+t.holding(waiting), d, g)
}

// The conditions of the indexes kms_grant_by_key, kms_grant_open and kms_grant_used.
// SQLite takes an index for a statement that says its condition word for word. The
// first two mean the same, broker.KMSGrant's MayExist: PostgreSQL, which sees that a
// domain has very many rows and not that nearly all of them have ended, would
// otherwise take the one for the other, and read what is open in all domains.
const (
	openKMSGrant = `kms_grant.state in ('INTENDED', 'LIVE', 'RETIRING')`
	leftKMSGrant = `kms_grant.state not in ('RETIRED', 'FAILED', 'GONE')`
	usedKMSGrant = `(kms_grant.state <> 'FAILED' or kms_grant.kms_grant_id <> '')`
)

// RecordedKMSGrants implements broker.Tx.
func (t *txn) RecordedKMSGrants(ctx context.Context, d broker.DomainUID, r broker.KMSGrantRange) ([]broker.KMSGrant, error) {
	return t.kmsGrantsIn(ctx, "list recorded KMS grants", `state <> 'INTENDED'`, d, r)
}

// KMSIntents implements broker.Tx.
func (t *txn) KMSIntents(ctx context.Context, d broker.DomainUID, r broker.KMSGrantRange) ([]broker.KMSGrant, error) {
	return t.kmsGrantsIn(ctx, "list intents", `state not in ('LIVE', 'RETIRING')`, d, r)
}

func (t *txn) kmsGrantsIn(ctx context.Context, op, state string, d broker.DomainUID, r broker.KMSGrantRange) ([]broker.KMSGrant, error) {
	if r.Below == 0 {
		r.Below = math.MaxInt64
	}
	ofKind, args := "", []any{d, r.From, r.Below}
	if r.Kind != "" {
		ofKind, args = ` and kind = $4`, append(args, r.Kind)
	}
	return all(ctx, t, op, scanKMSGrant, `
		select `+kmsGrantColumns+`
		from kms_grant
		where `+leftKMSGrant+` and `+state+` and domain_uid = $1 and key_epoch >= $2 and key_epoch < $3`+ofKind+`
		order by grant_uid, key_epoch, kind, attempt`, args...)
}

// FailedOn implements rotation.Tx.
func (t *txn) FailedOn(ctx context.Context, d broker.DomainUID, e broker.Epoch) ([]broker.GrantUID, error) {
	return all(ctx, t, "list grants that failed on a key", func(r row) (uid broker.GrantUID, err error) {
		err = r.Scan(&uid)
		return uid, err
	}, `
		select distinct grant_uid
		from kms_grant
		where state = 'FAILED' and domain_uid = $1 and key_epoch = $2 and grant_uid in (
			select grant_uid
			from domain_grant
			where domain_uid = $1 and `+liveGrant+`)
		order by grant_uid`, d, e)
}

// LastServiceWrap implements rotation.Tx.
func (t *txn) LastServiceWrap(ctx context.Context, d broker.DomainUID, e broker.Epoch) (time.Time, error) {
	const wraps = `domain_uid = $1 and key_epoch = $2 and kind = 'wrap' and not worker`
	return one(ctx, t, "read end of wrap grants", "end", scanTime, `
		select case
			when exists (select 1 from kms_grant where `+leftKMSGrant+` and `+wraps+`) then cast($3 as bigint)
			else coalesce((
				select end_time
				from kms_grant
				where `+usedKMSGrant+` and `+wraps+`
				order by end_time desc
				limit 1), 0)
		end`, d, e, micros(t.now))
}

// LastKMSGrantEnd implements rotation.Tx. The index is asked for each kind, which it
// has in front of the time.
func (t *txn) LastKMSGrantEnd(ctx context.Context, d broker.DomainUID, e broker.Epoch) (last time.Time, err error) {
	for _, kind := range []broker.GrantKind{broker.Wrap, broker.Unwrap} {
		ends, err := all(ctx, t, "read end of KMS grants", scanTime, `
			select end_time
			from kms_grant
			where `+usedKMSGrant+` and domain_uid = $1 and key_epoch = $2 and kind = $3
			order by end_time desc
			limit 1`, d, e, kind)
		if err != nil {
			return last, err
		}
		for _, end := range ends {
			if end.After(last) {
				last = end
			}
		}
	}
	return last, nil
}

// KMSGrantByName implements broker.Tx. An Update holds it.
func (t *txn) KMSGrantByName(ctx context.Context, name string) (broker.KMSGrant, error) {
	return one(ctx, t, "read KMS grant", "KMS grant", scanKMSGrant, `
		select `+kmsGrantColumns+`
		from kms_grant
		where name = $1`+t.holding(waiting), name)
}

// KMSGrantsOnKey implements broker.Tx.
func (t *txn) KMSGrantsOnKey(ctx context.Context, key broker.KeyARN) ([]broker.KMSGrant, error) {
	return all(ctx, t, "list KMS grants on key", scanKMSGrant, `
		select `+kmsGrantColumns+`
		from kms_grant
		where kms_key = $1 and `+openKMSGrant+`
		order by domain_uid, grant_uid, key_epoch, kind, attempt`, key)
}

// StaleKMSGrants implements broker.Tx. An Update holds them, and leaves out those
// that somebody else is at.
func (t *txn) StaleKMSGrants(ctx context.Context, limit int) ([]broker.KMSGrant, error) {
	return all(ctx, t, "list stale KMS grants", scanKMSGrant, `
		select `+kmsGrantColumns+`
		from kms_grant
		where state in ('INTENDED', 'RETIRING') and next_try <= $1
		order by next_try, domain_uid, grant_uid, key_epoch, kind, attempt
		limit $2 + 0`+t.holding(skipping), micros(t.now), limit)
}
