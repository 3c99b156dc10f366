package sqlstore

import (
	"context"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
)

const settlementColumns = `
	domain_uid, grant_uid, key_epoch, kind, caller, pass_id, begin_time, items, given_up, reason, settle_time`

func scanSettlement(r row) (s rotation.Settlement, err error) {
	err = r.Scan(&s.Domain, &s.Grant, &s.Epoch, &s.Kind, &s.Caller, &s.Pass, at{&s.BeginTime}, &s.Items, &s.GivenUp,
		&s.Reason, at{&s.Time})
	return s, err
}

// PutSettlement implements rotation.Tx.
func (t *txn) PutSettlement(ctx context.Context, s rotation.Settlement) error {
	_, err := t.exec(ctx, "store settlement", `
		insert into self_inventory (`+settlementColumns+`)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
		on conflict (domain_uid, grant_uid, key_epoch) do update
		set kind = excluded.kind, caller = excluded.caller, pass_id = excluded.pass_id, begin_time = excluded.begin_time,
			items = excluded.items, given_up = excluded.given_up, reason = excluded.reason, settle_time = excluded.settle_time`,
		s.Domain, s.Grant, s.Epoch, s.Kind, s.Caller, s.Pass, micros(s.BeginTime), s.Items, s.GivenUp, s.Reason, micros(s.Time))
	return err
}

// Settlements implements rotation.Tx.
func (t *txn) Settlements(ctx context.Context, d broker.DomainUID, from broker.Epoch) ([]rotation.Settlement, error) {
	return all(ctx, t, "list settlements", scanSettlement, `
		select `+settlementColumns+`
		from self_inventory
		where domain_uid = $1 and key_epoch >= $2
		order by key_epoch, grant_uid`, d, from)
}

// DeleteSettlement implements rotation.Tx.
func (t *txn) DeleteSettlement(ctx context.Context, s rotation.Settlement) (bool, error) {
	n, err := t.exec(ctx, "delete settlement", `
		delete from self_inventory
		where domain_uid = $1 and grant_uid = $2 and key_epoch = $3`, s.Domain, s.Grant, s.Epoch)
	return n > 0, err
}
