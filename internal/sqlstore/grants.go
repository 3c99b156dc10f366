package sqlstore

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
)

const grantColumns = `
	domain_uid, grant_id, grant_uid, worker, grantee, operations, constraint_subset,
	constraint_equals, inventory, state, expire_time, version, create_time, update_time`

func grantFields(g *broker.Grant) []any {
	return []any{&g.Domain, &g.ID, &g.UID, &g.Worker, &g.Grantee, fromJSON(&g.Operations), fromJSON(&g.Constraint.Subset),
		fromJSON(&g.Constraint.Equals), &g.Inventory, &g.State, at{&g.ExpireTime}, &g.Version, at{&g.CreateTime}, at{&g.UpdateTime}}
}

func scanGrant(r row) (g broker.Grant, err error) {
	err = r.Scan(grantFields(&g)...)
	return g, err
}

// InsertGrant implements broker.Tx.
func (t *txn) InsertGrant(ctx context.Context, g broker.Grant) error {
	n, err := t.exec(ctx, "insert grant", `
		insert into domain_grant (`+grantColumns+`)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
		on conflict do nothing`,
		g.Domain, g.ID, g.UID, g.Worker, g.Grantee, listText(g.Operations), mapText(g.Constraint.Subset),
		mapText(g.Constraint.Equals), g.Inventory, g.State, micros(g.ExpireTime), g.Version, micros(g.CreateTime), micros(g.UpdateTime))
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

// GrantByUID implements broker.Tx. An Update holds the grant: whoever changes
// what KMS has of it reads it first.
func (t *txn) GrantByUID(ctx context.Context, d broker.DomainUID, uid broker.GrantUID) (broker.Grant, error) {
	return one(ctx, t, "read grant", "grant", scanGrant, `
		select `+grantColumns+`
		from domain_grant
		where domain_uid = $1 and grant_uid = $2`+t.holding(waiting), d, uid)
}

// UpdateGrant implements broker.Tx. It leaves alone what never changes: the ids,
// whose grant it is, who keeps its wrapped keys, and the time of creation.
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

// liveGrant is the condition of the index domain_grant_live.
const liveGrant = `domain_grant.state in ('CREATING', 'ACTIVE')`

// LiveGrants implements broker.Tx.
func (t *txn) LiveGrants(ctx context.Context, d broker.DomainUID) ([]broker.Grant, error) {
	return all(ctx, t, "list live grants", scanGrant, `
		select `+grantColumns+`
		from domain_grant
		where domain_uid = $1 and `+liveGrant+`
		order by grant_id`, d)
}

// ListGrants implements broker.Tx.
func (t *txn) ListGrants(ctx context.Context, d broker.DomainUID, after broker.GrantID, limit int) ([]broker.Grant, error) {
	return all(ctx, t, "list grants", scanGrant, `
		select `+grantColumns+`
		from domain_grant
		where domain_uid = $1 and grant_id > $2 and not worker
		order by grant_id
		limit $3 + 0`, d, after, limit)
}

// SelfGrants implements broker.Tx. It sorts by itself: for an order by, SQLite would
// walk all grants of the domain by their primary key.
func (t *txn) SelfGrants(ctx context.Context, d broker.DomainUID, grantee string) ([]broker.Grant, error) {
	grants, err := all(ctx, t, "list grants of self-kept inventories", scanGrant, `
		select `+grantColumns+`
		from domain_grant
		where domain_uid = $1 and inventory = 'SELF' and grantee = $2`, d, grantee)
	slices.SortFunc(grants, func(a, b broker.Grant) int { return cmp.Compare(a.ID, b.ID) })
	return grants, err
}

// SelfGrantsOn implements rotation.Tx, and sorts as SelfGrants does. By "cross join"
// SQLite looks at these grants first, and not at all that was on the keys.
func (t *txn) SelfGrantsOn(ctx context.Context, d broker.DomainUID, from broker.Epoch) ([]rotation.SelfGrant, error) {
	grants, err := all(ctx, t, "list grants of self-kept inventories by key", func(r row) (g rotation.SelfGrant, err error) {
		err = r.Scan(append(grantFields(&g.Grant), &g.Epoch)...)
		return g, err
	}, `
		select `+grantColumns+`, epoch
		from domain_grant
		cross join (
			select domain_uid as of_domain, grant_uid as of_grant, key_epoch as epoch
			from kms_grant
			where `+usedKMSGrant+`) as made
		where domain_uid = $1 and inventory = 'SELF' and epoch >= $2
			and of_domain = domain_uid and of_grant = grant_uid`, d, from)
	slices.SortFunc(grants, func(a, b rotation.SelfGrant) int {
		return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Epoch, b.Epoch))
	})
	return grants, err
}

// DueGrants implements broker.Tx. An Update holds them, and leaves out those that
// somebody else is at.
func (t *txn) DueGrants(ctx context.Context, limit int) ([]broker.Grant, error) {
	return all(ctx, t, "list due grants", scanGrant, `
		select `+grantColumns+`
		from domain_grant
		where state in ('CREATING', 'ACTIVE') and expire_time > 0 and expire_time <= $1
		order by expire_time, domain_uid, grant_id
		limit $2 + 0`+t.holding(skipping), micros(t.now), limit)
}

// UnmadeGrants implements broker.Tx, and holds as DueGrants does.
func (t *txn) UnmadeGrants(ctx context.Context, before time.Time, limit int) ([]broker.Grant, error) {
	return all(ctx, t, "list unmade grants", scanGrant, `
		select `+grantColumns+`
		from domain_grant
		where state = 'CREATING' and create_time <= $1
		order by create_time, domain_uid, grant_id
		limit $2 + 0`+t.holding(skipping), micros(before), limit)
}
