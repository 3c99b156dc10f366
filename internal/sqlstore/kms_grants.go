package sqlstore

import (
	"context"

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

// KMSGrants implements broker.Tx. An Update holds those of one grant.
func (t *txn) KMSGrants(ctx context.Context, d broker.DomainUID, g broker.GrantUID) ([]broker.KMSGrant, error) {
	if g == "" {
		return all(ctx, t, "list KMS grants", scanKMSGrant, `
			select `+kmsGrantColumns+`
			from kms_grant
			where domain_uid = $1
			order by grant_uid, key_epoch, kind, attempt`, d)
	}
	return all(ctx, t, "list KMS grants", scanKMSGrant, `
		select `+kmsGrantColumns+`
		from kms_grant
		where domain_uid = $1 and grant_uid = $2
		order by key_epoch, kind, attempt`+t.holding(waiting), d, g)
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
		where kms_key = $1 and state in ('INTENDED', 'LIVE', 'RETIRING')
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
