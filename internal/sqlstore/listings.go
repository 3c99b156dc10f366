package sqlstore

import (
	"context"
	"slices"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
)

// ClaimListings implements broker.Tx.
func (t *txn) ClaimListings(ctx context.Context, before time.Time, limit int) ([]broker.KeyARN, error) {
	keys, err := all(ctx, t, "claim listings", func(r row) (key broker.KeyARN, err error) {
		err = r.Scan(&key)
		return key, err
	}, `
		update listed_key
		set list_time = $1
		where list_time <= $2 and kms_key in (
			select kms_key
			from listed_key
			where list_time <= $2
			order by list_time, kms_key
			limit $3 + 0)
		returning kms_key`, micros(t.now), micros(before), limit)
	slices.Sort(keys) // returning knows no order
	return keys, err
}

// ForgetListing implements broker.Tx.
func (t *txn) ForgetListing(ctx context.Context, key broker.KeyARN, until time.Time) error {
	_, err := t.exec(ctx, "forget listing", `
		delete from listed_key
		where kms_key = $1 and use_time <= $2
			and not exists (
				select 1
				from domain_key
				where domain_key.kms_key = $1 and domain_key.state not in ('RETIRED', 'ABANDONED'))
			and not exists (
				select 1
				from kms_grant
				where kms_grant.kms_key = $1 and `+openKMSGrant+`)`,
		key, micros(until))
	return err
}

// useKey notes that an epoch of a domain has begun to use its key, or changed its state.
func (t *txn) useKey(ctx context.Context, d broker.DomainUID, e broker.Epoch) error {
	_, err := t.exec(ctx, "note key in use", `
		insert into listed_key (kms_key, list_time, use_time)
		select kms_key, 0, $3
		from domain_key
		where domain_uid = $1 and key_epoch = $2
		on conflict (kms_key) do update
		set use_time = excluded.use_time`, d, e, micros(t.now))
	return err
}
