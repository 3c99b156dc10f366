package sqlstore

import (
	"context"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
)

const grantColumns = `
	domain_uid, grant_id, grant_uid, worker, grantee, operations, constraint_subset,
	constraint_equals, state, expire_time, version, create_time, update_time`

func scanGrant(r row) (g broker.Grant, err error) {
	err = r.Scan(&g.Domain, &g.ID, &g.UID, &g.Worker, &g.Grantee, fromJSON(&g.Operations), fromJSON(&g.Constraint.Subset),
		fromJSON(&g.Constraint.Equals), &g.State, at{&g.ExpireTime}, &g.Version, at{&g.CreateTime}, at{&g.UpdateTime})
	return g, err
}

// InsertGrant implements broker.Tx.
func (t *txn) InsertGrant(ctx context.Context, g broker.Grant) error {
	n, err := t.exec(ctx, "insert grant", `
		insert into domain_grant (`+grantColumns+`)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
		on conflict do nothing`,
		g.Domain, g.ID, g.UID, g.Worker, g.Grantee, listText(g.Operations), mapText(g.Constraint.Subset),
		mapText(g.Constraint.Equals), g.State, micros(g.ExpireTime), g.Version, micros(g.CreateTime), micros(g.UpdateTime))
	if err == nil && n == 0 {
		return alreadyExists("grant")
	}
	return err
}

// Grant implements broker.Tx.
func (t *txn) Grant(ctx context.Context, d broker.DomainUID, id broker.GrantID) (broker.Grant, error) {
	return one(ctx, t, "read grant", "grant", scanGrant, `
		select `+grantColumns+`
		from domain_grant
		where domain_uid = $1 and grant_id = $2`, d, id)
}

// GrantByUID implements broker.Tx.
func (t *txn) GrantByUID(ctx context.Context, d broker.DomainUID, uid broker.GrantUID) (broker.Grant, error) {
	return one(ctx, t, "read grant", "grant", scanGrant, `
		select `+grantColumns+`
		from domain_grant
		where domain_uid = $1 and grant_uid = $2`, d, uid)
}

// UpdateGrant implements broker.Tx. It leaves alone what never changes: the ids,
// whose grant it is, and the time of creation.
func (t *txn) UpdateGrant(ctx context.Context, g broker.Grant) error {
	n, err := t.exec(ctx, "update grant", `
		update domain_grant
		set grantee = $4, operations = $5, constraint_subset = $6, constraint_equals = $7,
			state = $8, expire_time = $9, version = version + 1, update_time = $10
		where domain_uid = $1 and grant_uid = $2 and version = $3`,
		g.Domain, g.UID, g.Version, g.Grantee, listText(g.Operations), mapText(g.Constraint.Subset),
		mapText(g.Constraint.Equals), g.State, micros(g.ExpireTime), micros(t.now))
	if err != nil || n == 1 {
		return err
	}
	return t.absentOrChanged(ctx, "grant", `
		select 1 from domain_grant where domain_uid = $1 and grant_uid = $2`, g.Domain, g.UID)
}

// LiveGrants implements broker.Tx.
func (t *txn) LiveGrants(ctx context.Context, d broker.DomainUID) ([]broker.Grant, error) {
	return all(ctx, t, "list live grants", scanGrant, `
		select `+grantColumns+`
		from domain_grant
		where domain_uid = $1 and state in ('CREATING', 'ACTIVE')
		order by grant_id`, d)
}

// DueGrants implements broker.Tx.
func (t *txn) DueGrants(ctx context.Context, limit int) ([]broker.Grant, error) {
	return all(ctx, t, "list due grants", scanGrant, `
		select `+grantColumns+`
		from domain_grant
		where state in ('CREATING', 'ACTIVE') and expire_time > 0 and expire_time <= $1
		order by expire_time, domain_uid, grant_id
		limit $2`, micros(t.now), limit)
}

const kmsGrantColumns = `
	domain_uid, grant_uid, key_epoch, kind, attempt, worker, name, kms_key,
	kms_grant_id, state, intend_time, live_time, end_time`

func scanKMSGrant(r row) (g broker.KMSGrant, err error) {
	err = r.Scan(&g.Domain, &g.Grant, &g.Epoch, &g.Kind, &g.Attempt, &g.Worker, &g.Name, &g.KMSKey,
		&g.KMSGrantID, &g.State, at{&g.IntendTime}, at{&g.LiveTime}, at{&g.EndTime})
	return g, err
}

// InsertKMSGrant implements broker.Tx. An identity or a Name that was used
// already is broker.ErrConflict.
func (t *txn) InsertKMSGrant(ctx context.Context, g broker.KMSGrant) error {
	n, err := t.exec(ctx, "insert KMS grant", `
		insert into kms_grant (`+kmsGrantColumns+`)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
		on conflict do nothing`,
		g.Domain, g.Grant, g.Epoch, g.Kind, g.Attempt, g.Worker, g.Name, g.KMSKey,
		g.KMSGrantID, g.State, micros(g.IntendTime), micros(g.LiveTime), micros(g.EndTime))
	if err == nil && n == 0 {
		return conflict("a KMS grant of this name was intended already")
	}
	return err
}

// UpdateKMSGrant implements broker.Tx. Name and key never change.
func (t *txn) UpdateKMSGrant(ctx context.Context, g broker.KMSGrant) error {
	n, err := t.exec(ctx, "update KMS grant", `
		update kms_grant
		set kms_grant_id = $6, state = $7, intend_time = $8, live_time = $9, end_time = $10
		where domain_uid = $1 and grant_uid = $2 and key_epoch = $3 and kind = $4 and attempt = $5`,
		g.Domain, g.Grant, g.Epoch, g.Kind, g.Attempt,
		g.KMSGrantID, g.State, micros(g.IntendTime), micros(g.LiveTime), micros(g.EndTime))
	if err == nil && n == 0 {
		return notFound("KMS grant")
	}
	return err
}

// KMSGrants implements broker.Tx.
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
		order by key_epoch, kind, attempt`, d, g)
}

// StaleKMSGrants implements broker.Tx.
func (t *txn) StaleKMSGrants(ctx context.Context, until time.Time, limit int) ([]broker.KMSGrant, error) {
	return all(ctx, t, "list stale KMS grants", scanKMSGrant, `
		select `+kmsGrantColumns+`
		from kms_grant
		where state in ('INTENDED', 'RETIRING') and intend_time <= $1
		order by intend_time, domain_uid, grant_uid, key_epoch, kind, attempt
		limit $2`, micros(until), limit)
}
