package sqlstore

import (
	"context"
	"encoding/json"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
)

const dataKeyColumns = `
	domain_uid, data_key_id, data_key_uid, ciphertext, context, key_spec, key_epoch,
	key_material_id, kms_request_id, abandoned, version, create_time, update_time`

func scanDataKey(r row) (k broker.DataKey, err error) {
	err = r.Scan(&k.Domain, &k.ID, &k.UID, (*[]byte)(&k.Ciphertext), fromJSON(&k.Context), &k.KeySpec, &k.Epoch,
		&k.KeyMaterialID, &k.KMSRequestID, &k.Abandoned, &k.Version, at{&k.CreateTime}, at{&k.UpdateTime})
	return k, err
}

// dataKeyArgs are a row's values in the order of dataKeyColumns.
func dataKeyArgs(k broker.DataKey) []any {
	return []any{string(k.Domain), string(k.ID), string(k.UID), []byte(k.Ciphertext), mapText(k.Context), k.KeySpec, int64(k.Epoch),
		k.KeyMaterialID, k.KMSRequestID, k.Abandoned, k.Version, micros(k.CreateTime), micros(k.UpdateTime)}
}

// InsertDataKey implements broker.Tx.
func (t *txn) InsertDataKey(ctx context.Context, k broker.DataKey) error {
	there, err := t.InsertDataKeys(ctx, []broker.DataKey{k})
	if err != nil {
		return err
	}
	return there[0]
}

// insertion is what became of a new row.
type insertion int

const (
	inserted  insertion = iota
	idTaken             // a row has its id
	idDeleted           // a row had its id
)

// InsertDataKeys implements broker.Tx.
func (t *txn) InsertDataKeys(ctx context.Context, keys []broker.DataKey) ([]error, error) {
	if t.broken != nil || len(keys) == 0 {
		return nil, t.broken
	}
	ends, err := t.store.dialect.insertDataKeys(ctx, t.session, keys)
	if err != nil {
		return nil, t.fail(ctx, "insert data keys", err)
	}
	there := make([]error, len(keys))
	for i, end := range ends {
		switch end {
		case idTaken:
			there[i] = alreadyExists("data key")
		case idDeleted:
			there[i] = &broker.Error{Kind: broker.ErrAlreadyExists, Reason: broker.ReasonDataKeyIDDeleted,
				Detail: "a data key of this id was deleted, and ids are never used again: choose another"}
		}
	}
	return there, nil
}

// DataKey implements broker.Tx.
func (t *txn) DataKey(ctx context.Context, d broker.DomainUID, id broker.DataKeyID) (broker.DataKey, error) {
	return one(ctx, t, "read data key", "data key", scanDataKey, `
		select `+dataKeyColumns+`
		from data_key
		where domain_uid = $1 and data_key_id = $2`, d, id)
}

// DataKeys implements broker.Tx.
func (t *txn) DataKeys(ctx context.Context, d broker.DomainUID, ids []broker.DataKeyID) ([]broker.DataKey, error) {
	if len(ids) == 0 {
		return nil, t.broken
	}
	array, err := json.Marshal(ids)
	if err != nil {
		return nil, err
	}
	return all(ctx, t, "read data keys", scanDataKey, t.store.dialect.dataKeysOf(), d, string(array))
}

// ListDataKeys implements broker.Tx.
func (t *txn) ListDataKeys(ctx context.Context, d broker.DomainUID, after broker.DataKeyID, limit int) ([]broker.DataKey, error) {
	return all(ctx, t, "list data keys", scanDataKey, `
		select `+dataKeyColumns+`
		from data_key
		where domain_uid = $1 and data_key_id > $2
		order by data_key_id
		limit $3 + 0`, d, after, limit)
}

// ReplaceDataKey implements broker.Tx.
func (t *txn) ReplaceDataKey(ctx context.Context, k broker.DataKey, epoch broker.Epoch) error {
	n, err := t.exec(ctx, "replace data key", `
		update data_key
		set ciphertext = $6, context = $7, key_spec = $8, key_epoch = $9, key_material_id = $10,
			kms_request_id = $11, abandoned = false, version = version + 1, update_time = $12
		where domain_uid = $1 and data_key_id = $2 and data_key_uid = $3 and version = $4 and key_epoch = $5`,
		k.Domain, k.ID, k.UID, k.Version, epoch,
		[]byte(k.Ciphertext), mapText(k.Context), k.KeySpec, k.Epoch, k.KeyMaterialID,
		k.KMSRequestID, micros(t.now))
	if err != nil || n > 0 {
		return err
	}
	return t.absentOrChanged(ctx, "data key", dataKeyProbe, k.Domain, k.ID)
}

// dataKeyProbe finds a row by its id alone.
const dataKeyProbe = `
	select 1 from data_key where domain_uid = $1 and data_key_id = $2`

// DeleteDataKey implements broker.Tx.
func (t *txn) DeleteDataKey(ctx context.Context, k broker.DataKey) error {
	n, err := t.exec(ctx, "delete data key", `
		delete from data_key
		where domain_uid = $1 and data_key_id = $2 and data_key_uid = $3 and version = $4`,
		k.Domain, k.ID, k.UID, k.Version)
	if err != nil {
		return err
	}
	if n == 0 {
		return t.absentOrChanged(ctx, "data key", dataKeyProbe, k.Domain, k.ID)
	}
	_, err = t.exec(ctx, "insert tombstone", `
		insert into data_key_tombstone (domain_uid, data_key_id, data_key_uid, delete_time)
		values ($1, $2, $3, $4)`, k.Domain, k.ID, k.UID, micros(t.now))
	return err
}

// ShredDataKeys implements rotation.Tx.
func (t *txn) ShredDataKeys(ctx context.Context, d broker.DomainUID, limit int) (int, error) {
	if t.broken != nil {
		return 0, t.broken
	}
	n, err := t.store.dialect.shredDataKeys(ctx, t.session, d, micros(t.now), limit)
	if err != nil {
		return 0, t.fail(ctx, "shred data keys", err)
	}
	return int(n), nil
}

// MoveDataKeys implements rotation.Tx.
func (t *txn) MoveDataKeys(ctx context.Context, d broker.DomainUID, target broker.Epoch, moves []rotation.Move) ([]bool, error) {
	if t.broken != nil {
		return nil, t.broken
	}
	moved, err := t.store.dialect.moveDataKeys(ctx, t.session, moveBatch{
		domain: d, target: target, now: micros(t.now), moves: moves,
	})
	if err != nil {
		return nil, t.fail(ctx, "move data keys", err)
	}
	return moved, nil
}

// CountDataKeys implements rotation.Tx.
func (t *txn) CountDataKeys(ctx context.Context, d broker.DomainUID, most int) (byEpoch map[broker.Epoch]int64, whole bool, err error) {
	byEpoch, read, err := t.countFirst(ctx, d, most)
	return byEpoch, read <= most, err
}

// countFirst is CountDataKeys; read is how many rows it read, most and one more if
// there are so many.
func (t *txn) countFirst(ctx context.Context, d broker.DomainUID, most int) (byEpoch map[broker.Epoch]int64, read int, err error) {
	type count struct {
		epoch     broker.Epoch
		abandoned bool
		rows      int64
	}
	counts, err := all(ctx, t, "count data keys", func(r row) (c count, err error) {
		err = r.Scan(&c.epoch, &c.abandoned, &c.rows)
		return c, err
	}, `
		select key_epoch, abandoned, count(*)
		from (
			select key_epoch, abandoned
			from data_key
			where domain_uid = $1
			order by data_key_id
			limit $2 + 1
		) as first_rows
		group by key_epoch, abandoned`, d, most)
	if err != nil {
		return nil, 0, err
	}
	byEpoch = make(map[broker.Epoch]int64, len(counts))
	for _, c := range counts {
		read += int(c.rows)
		if !c.abandoned {
			byEpoch[c.epoch] = c.rows
		}
	}
	return byEpoch, read, nil
}
