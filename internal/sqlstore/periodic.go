package sqlstore

import (
	"context"
	"time"
)

// TakePeriodic implements rotation.Tx.
func (t *txn) TakePeriodic(ctx context.Context, name, owner string, every time.Duration) (bool, error) {
	n, err := t.exec(ctx, "take periodic task", `
		insert into periodic (name, owner, take_time)
		values ($1, $2, $3)
		on conflict (name) do update
		set owner = excluded.owner, take_time = excluded.take_time
		where periodic.take_time <= $4`, name, owner, micros(t.now), micros(t.now.Add(-every)))
	return n == 1, err
}

// RenewPeriodic implements rotation.Tx.
func (t *txn) RenewPeriodic(ctx context.Context, name, owner string) error {
	n, err := t.exec(ctx, "renew periodic task", `
		update periodic
		set take_time = $3
		where name = $1 and owner = $2`, name, owner, micros(t.now))
	if err == nil && n == 0 {
		return conflict("another replica has taken the periodic task")
	}
	return err
}
