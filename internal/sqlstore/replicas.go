package sqlstore

import (
	"context"
	"encoding/json"
	"time"

	"github.com/keybroker/keybroker/internal/rotation"
)

// storedBeat is the stored form of a rotation.Beat.
type storedBeat struct {
	Account    string  `json:"account"`
	Region     string  `json:"region"`
	Quota      string  `json:"quota"`
	Rate       float64 `json:"rate"`
	Capacity   float64 `json:"capacity"`
	Foreground float64 `json:"foreground"`
	Busy       bool    `json:"busy"`
}

// BeatReplica implements rotation.Tx. It waits for no other replica: what one of
// them is changing is not dead.
func (t *txn) BeatReplica(ctx context.Context, id string, budgets []rotation.Beat, ttl time.Duration) error {
	stored := make([]storedBeat, len(budgets))
	for i, b := range budgets {
		stored[i] = storedBeat(b)
	}
	text, err := json.Marshal(stored)
	if err != nil {
		return err // an infinite or undefined rate: a bug of ours
	}
	if _, err := t.exec(ctx, "beat replica", `
		insert into replica (replica_id, until_time, budgets)
		values ($1, $2, $3)
		on conflict (replica_id) do update
		set until_time = excluded.until_time, budgets = excluded.budgets`, id, micros(t.now.Add(ttl)), string(text)); err != nil {
		return err
	}
	_, err = t.exec(ctx, "forget dead replicas", `
		delete from replica
		where replica_id in (
			select replica_id
			from replica
			where until_time <= $1`+t.holding(skipping)+`
		)`, micros(t.now))
	return err
}

// ForgetReplica implements rotation.Tx.
func (t *txn) ForgetReplica(ctx context.Context, id string) error {
	_, err := t.exec(ctx, "forget replica", `
		delete from replica
		where replica_id = $1`, id)
	return err
}

// Replicas implements rotation.Tx.
func (t *txn) Replicas(ctx context.Context) ([]rotation.Replica, error) {
	return all(ctx, t, "list replicas", func(r row) (p rotation.Replica, err error) {
		var stored []storedBeat
		err = r.Scan(&p.ID, at{&p.Until}, fromJSON(&stored))
		for _, b := range stored {
			p.Budgets = append(p.Budgets, rotation.Beat(b))
		}
		return p, err
	}, `
		select replica_id, until_time, budgets
		from replica
		where until_time > $1
		order by replica_id`, micros(t.now))
}
