package sqlstore

import (
	"context"

	"github.com/keybroker/keybroker/internal/broker"
)

const domainColumns = `
	domain_uid, domain_id, display_name, region, state, inaccessible_since,
	reserved_key, reserved_value, kms_key, kms_key_given, key_epoch, last_epoch,
	change_job, change_key, change_epoch, key_accounts, import_sources, labels,
	version, create_time, update_time`

func scanDomain(r row) (d broker.Domain, err error) {
	err = r.Scan(
		&d.UID, &d.ID, &d.DisplayName, &d.Region, &d.State, at{&d.InaccessibleSince},
		&d.Reserved.Key, &d.Reserved.Value, &d.KMSKey, &d.KMSKeyGiven, &d.Epoch, &d.LastEpoch,
		&d.KeyChange.Job, &d.KeyChange.TargetKey, &d.KeyChange.TargetEpoch,
		fromJSON(&d.KeyAccounts), fromJSON(&d.ImportSources), fromJSON(&d.Labels),
		&d.Version, at{&d.CreateTime}, at{&d.UpdateTime})
	return d, err
}

// InsertDomain implements broker.Tx.
func (t *txn) InsertDomain(ctx context.Context, d broker.Domain) error {
	n, err := t.exec(ctx, "insert domain", `
		insert into domain (`+domainColumns+`)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21)
		on conflict do nothing`,
		d.UID, d.ID, d.DisplayName, d.Region, d.State, micros(d.InaccessibleSince),
		d.Reserved.Key, d.Reserved.Value, d.KMSKey, d.KMSKeyGiven, d.Epoch, d.LastEpoch,
		d.KeyChange.Job, d.KeyChange.TargetKey, d.KeyChange.TargetEpoch,
		listText(d.KeyAccounts), listText(d.ImportSources), mapText(d.Labels),
		d.Version, micros(d.CreateTime), micros(d.UpdateTime))
	if err == nil && n == 0 {
		return alreadyExists("domain")
	}
	return err
}

// Domain implements broker.Tx.
func (t *txn) Domain(ctx context.Context, id broker.DomainID) (broker.Domain, error) {
	return one(ctx, t, "read domain", "domain", scanDomain, `
		select `+domainColumns+`
		from domain
		where domain_id = $1 and state <> 'DELETED'`, id)
}

// DomainByUID implements broker.Tx.
func (t *txn) DomainByUID(ctx context.Context, uid broker.DomainUID) (broker.Domain, error) {
	return one(ctx, t, "read domain", "domain", scanDomain, `
		select `+domainColumns+`
		from domain
		where domain_uid = $1`, uid)
}

// ListDomains implements broker.Tx.
func (t *txn) ListDomains(ctx context.Context, after broker.DomainID, limit int) ([]broker.Domain, error) {
	return all(ctx, t, "list domains", scanDomain, `
		select `+domainColumns+`
		from domain
		where domain_id > $1 and state <> 'DELETED'
		order by domain_id
		limit $2 + 0`, after, limit)
}

// InaccessibleDomains implements broker.Tx.
func (t *txn) InaccessibleDomains(ctx context.Context, after broker.DomainUID, limit int) ([]broker.Domain, error) {
	return all(ctx, t, "list inaccessible domains", scanDomain, `
		select `+domainColumns+`
		from domain
		where domain_uid > $1 and state = 'KEY_INACCESSIBLE'
		order by domain_uid
		limit $2 + 0`, after, limit)
}

// DeletedDomains implements rotation.Tx.
func (t *txn) DeletedDomains(ctx context.Context, limit int) ([]broker.Domain, error) {
	return all(ctx, t, "list deleted domains", scanDomain, `
		select `+domainColumns+`
		from domain
		where state = 'DELETED' and (
			exists (
				select 1
				from domain_key
				where domain_key.domain_uid = domain.domain_uid and domain_key.state not in ('RETIRED', 'ABANDONED'))
			or exists (
				select 1
				from kms_grant
				where kms_grant.domain_uid = domain.domain_uid and `+leftKMSGrant+`))
		order by domain_uid
		limit $1 + 0`, limit)
}

// UpdateDomain implements broker.Tx. It leaves alone what never changes: the
// ids, the reserved pair and the time of creation.
func (t *txn) UpdateDomain(ctx context.Context, d broker.Domain) error {
	n, err := t.exec(ctx, "update domain", `
		update domain
		set display_name = $3, region = $4, state = $5, inaccessible_since = $6,
			kms_key = $7, kms_key_given = $8, key_epoch = $9, last_epoch = $10,
			change_job = $11, change_key = $12, change_epoch = $13,
			key_accounts = $14, import_sources = $15, labels = $16,
			version = version + 1, update_time = $17
		where domain_uid = $1 and version = $2`,
		d.UID, d.Version, d.DisplayName, d.Region, d.State, micros(d.InaccessibleSince),
		d.KMSKey, d.KMSKeyGiven, d.Epoch, d.LastEpoch,
		d.KeyChange.Job, d.KeyChange.TargetKey, d.KeyChange.TargetEpoch,
		listText(d.KeyAccounts), listText(d.ImportSources), mapText(d.Labels), micros(t.now))
	if err != nil || n == 1 {
		return err
	}
	return t.absentOrChanged(ctx, "domain", `select 1 from domain where domain_uid = $1`, d.UID)
}

// absentOrChanged tells why a compare-and-swap changed no row: probe finds the
// row by its key alone.
func (t *txn) absentOrChanged(ctx context.Context, what, probe string, key ...any) error {
	there, err := exists(ctx, t, "read "+what, probe, key...)
	if err != nil {
		return err
	}
	if there {
		t.overtaken = true
		return changed(what)
	}
	return notFound(what)
}

const domainKeyColumns = `
	domain_uid, key_epoch, kms_key, state, activate_time, replace_time, retire_time`

func scanDomainKey(r row) (k broker.DomainKey, err error) {
	err = r.Scan(&k.Domain, &k.Epoch, &k.KMSKey, &k.State,
		at{&k.ActivateTime}, at{&k.ReplaceTime}, at{&k.RetireTime})
	return k, err
}

// InsertDomainKey implements broker.Tx. An epoch that the domain had already is
// broker.ErrConflict.
func (t *txn) InsertDomainKey(ctx context.Context, k broker.DomainKey) error {
	n, err := t.exec(ctx, "insert domain key", `
		insert into domain_key (`+domainKeyColumns+`)
		values ($1, $2, $3, $4, $5, $6, $7)
		on conflict do nothing`,
		k.Domain, k.Epoch, k.KMSKey, k.State, micros(k.ActivateTime), micros(k.ReplaceTime), micros(k.RetireTime))
	if err == nil && n == 0 {
		return conflict("the domain had a key of this epoch already")
	}
	if err != nil {
		return err
	}
	return t.useKey(ctx, k.Domain, k.Epoch)
}

// UpdateDomainKey implements broker.Tx. The ARN of an epoch never changes.
func (t *txn) UpdateDomainKey(ctx context.Context, k broker.DomainKey) error {
	n, err := t.exec(ctx, "update domain key", `
		update domain_key
		set state = $3, activate_time = $4, replace_time = $5, retire_time = $6
		where domain_uid = $1 and key_epoch = $2`,
		k.Domain, k.Epoch, k.State, micros(k.ActivateTime), micros(k.ReplaceTime), micros(k.RetireTime))
	if err == nil && n == 0 {
		return notFound("domain key")
	}
	if err != nil {
		return err
	}
	return t.useKey(ctx, k.Domain, k.Epoch)
}

// DomainKeys implements broker.Tx.
func (t *txn) DomainKeys(ctx context.Context, d broker.DomainUID) ([]broker.DomainKey, error) {
	return all(ctx, t, "list domain keys", scanDomainKey, `
		select `+domainKeyColumns+`
		from domain_key
		where domain_uid = $1
		order by key_epoch`, d)
}
