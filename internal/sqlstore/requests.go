package sqlstore

import (
	"context"
	"crypto/sha256"
	"errors"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
)

// RequestRecord implements broker.Tx. An Update holds the request, whether there
// is a record or not: of two calls with one id the second reads what the first
// has left.
func (t *txn) RequestRecord(ctx context.Context, k broker.RequestKey) (broker.RequestRecord, error) {
	if !t.readOnly {
		name := "request\x00" + k.Caller + "\x00" + k.Method + "\x00" + k.ID
		if err := t.lock(ctx, "lock request", name, broker.Exclusive); err != nil {
			return broker.RequestRecord{}, err
		}
	}
	return one(ctx, t, "read request", "request", func(r row) (broker.RequestRecord, error) {
		rec := broker.RequestRecord{RequestKey: k}
		var hash []byte
		if err := r.Scan(&hash, &rec.Resource, &rec.Done, at{&rec.Until}); err != nil {
			return rec, err
		}
		if copy(rec.Hash[:], hash) != sha256.Size {
			return rec, errors.New("a stored hash has another size")
		}
		return rec, nil
	}, `
		select hash, resource, done, until_time
		from request
		where caller = $1 and method = $2 and request_id = $3`, k.Caller, k.Method, k.ID)
}

// PutRequestRecord implements broker.Tx.
func (t *txn) PutRequestRecord(ctx context.Context, r broker.RequestRecord) error {
	_, err := t.exec(ctx, "store request", `
		insert into request (caller, method, request_id, hash, resource, done, until_time)
		values ($1, $2, $3, $4, $5, $6, $7)
		on conflict (caller, method, request_id) do update
		set hash = excluded.hash, resource = excluded.resource, done = excluded.done, until_time = excluded.until_time`,
		r.Caller, r.Method, r.ID, r.Hash[:], r.Resource, r.Done, micros(r.Until))
	return err
}

// ForgetRequests implements broker.Tx. It leaves to other transactions what they
// are forgetting.
func (t *txn) ForgetRequests(ctx context.Context, before time.Time, limit int) (int, error) {
	n, err := t.exec(ctx, "forget requests", `
		delete from request
		where (caller, method, request_id) in (
			select caller, method, request_id
			from request
			where until_time <= $1 and (done or until_time <= $2)
			order by until_time
			limit $3 + 0`+t.holding(skipping)+`
		)`, micros(t.now), micros(before), limit)
	return int(n), err
}

// Audit implements broker.Tx.
func (t *txn) Audit(ctx context.Context, e broker.AuditEvent) error {
	_, err := t.exec(ctx, "append audit event", `
		insert into audit_event (event_time, caller, action, domain_uid, resource, outcome, request_id, kms_request_id, detail)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
		micros(t.now), e.Caller, e.Action, e.Domain, e.Resource, e.Outcome, e.RequestID, e.KMSRequestID, mapText(e.Detail))
	return err
}
