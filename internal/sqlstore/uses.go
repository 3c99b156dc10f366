package sqlstore

import (
	"cmp"
	"context"
	"slices"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
)

// UsesOfKey implements rotation.Tx, in the order of domain ids. Rows counts those
// of the epochs that rows may be under, and so reads the rows of each domain that
// has such an epoch with the key, as far as most goes. Of a domain whose epochs with the key are retired,
// or never became its key, it reads the abandoned rows only: a full pass found no
// other, and none comes after it, since stores and moves go to newer epochs.
func (t *txn) UsesOfKey(ctx context.Context, key broker.KeyARN, most int) ([]rotation.KeyUse, error) {
	uses := keyUses{}
	if err := t.usesByEpoch(ctx, key, most, uses); err != nil {
		return nil, err
	}
	for _, collect := range []func(context.Context, broker.KeyARN, keyUses) error{
		t.usesByChange, t.usesByGrant, t.usesByImport,
	} {
		if err := collect(ctx, key, uses); err != nil {
			return nil, err
		}
	}
	var found []rotation.KeyUse
	for _, u := range uses {
		if len(u.Epochs) > 0 || u.Preparing != "" || u.Grants > 0 || u.Rows > 0 || u.Abandoned > 0 || u.ImportSource || !u.RetireTime.IsZero() {
			found = append(found, *u)
		}
	}
	slices.SortFunc(found, func(a, b rotation.KeyUse) int { return cmp.Compare(a.DomainID, b.DomainID) })
	return found, nil
}

// keyUses are the domains that have to do with a key.
type keyUses map[broker.DomainUID]*rotation.KeyUse

func (u keyUses) of(uid broker.DomainUID, id broker.DomainID) *rotation.KeyUse {
	if u[uid] == nil {
		u[uid] = &rotation.KeyUse{DomainUID: uid, DomainID: id}
	}
	return u[uid]
}

// usesByEpoch adds epochs and, for each domain that has any, its rows.
func (t *txn) usesByEpoch(ctx context.Context, key broker.KeyARN, most int, uses keyUses) error {
	type epoch struct {
		uid   broker.DomainUID
		id    broker.DomainID
		state broker.DomainState
		key   broker.DomainKey
	}
	epochs, err := all(ctx, t, "list epochs of key", func(r row) (e epoch, err error) {
		err = r.Scan(&e.uid, &e.id, &e.state, &e.key.Epoch, &e.key.State, at{&e.key.RetireTime})
		return e, err
	}, `
		select domain_key.domain_uid, domain.domain_id, domain.state, domain_key.key_epoch, domain_key.state,
			domain_key.retire_time
		from domain_key
		join domain on domain.domain_uid = domain_key.domain_uid
		where domain_key.kms_key = $1
		order by domain_key.domain_uid, domain_key.key_epoch`, key)
	if err != nil {
		return err
	}
	var domains []broker.DomainUID
	mayHaveRows, deleted := map[broker.DomainUID][]broker.Epoch{}, map[broker.DomainUID]bool{}
	for _, e := range epochs {
		if len(domains) == 0 || domains[len(domains)-1] != e.uid {
			domains = append(domains, e.uid)
		}
		use := uses.of(e.uid, e.id)
		if e.key.State != broker.KeyRetired {
			use.Epochs = append(use.Epochs, e.key.Epoch)
			use.Current = use.Current || e.key.State == broker.KeyCurrent
		} else if e.key.RetireTime.After(use.RetireTime) {
			use.RetireTime = e.key.RetireTime
		}
		if e.key.Unretired() {
			mayHaveRows[e.uid] = append(mayHaveRows[e.uid], e.key.Epoch)
			use.Leaving = use.Leaving || e.key.State != broker.KeyCurrent
		}
		deleted[e.uid] = e.state == broker.DomainDeleted
	}
	for _, uid := range domains {
		use := uses[uid]
		if err = t.addAbandoned(ctx, key, use); err != nil {
			return err
		}
		if len(mayHaveRows[uid]) == 0 {
			continue
		}
		counts, read, err := t.countFirst(ctx, uid, most)
		if err != nil {
			return err
		}
		for _, epoch := range mayHaveRows[uid] {
			use.Rows += counts[epoch]
		}
		use.AtLeast = read > most
		use.Leaving = use.Leaving && (!deleted[uid] || use.AtLeast)
		most -= min(read, most)
	}
	return nil
}

// addAbandoned counts a domain's rows under a key that were given up, and names the
// first, by the index of those alone: the order is one that invites no planner to
// walk along the primary key.
func (t *txn) addAbandoned(ctx context.Context, key broker.KeyARN, use *rotation.KeyUse) error {
	_, err := all(ctx, t, "list abandoned rows of key", func(r row) (struct{}, error) {
		var id broker.DataKeyID
		err := r.Scan(&id, &use.Abandoned)
		use.FirstAbandoned = append(use.FirstAbandoned, id)
		return struct{}{}, err
	}, `
		select data_key_id, count(*) over ()
		from data_key
		where domain_uid = $1 and abandoned = true and key_epoch in (
			select key_epoch
			from domain_key
			where domain_uid = $1 and kms_key = $2)
		order by data_key_id || ''
		limit $3 + 0`, use.DomainUID, key, rotation.MostNamed)
	return err
}

// usesByChange adds the changes that prepare for the key.
func (t *txn) usesByChange(ctx context.Context, key broker.KeyARN, uses keyUses) error {
	_, err := all(ctx, t, "list changes to key", func(r row) (struct{}, error) {
		var uid broker.DomainUID
		var id broker.DomainID
		var job broker.JobID
		err := r.Scan(&uid, &id, &job)
		uses.of(uid, id).Preparing = job
		return struct{}{}, err
	}, `
		select domain_uid, domain_id, change_job
		from domain
		where change_key = $1 and change_job <> ''`, key)
	return err
}

// usesByGrant counts what KMS may hold on the key.
func (t *txn) usesByGrant(ctx context.Context, key broker.KeyARN, uses keyUses) error {
	_, err := all(ctx, t, "count grants of key", func(r row) (struct{}, error) {
		var uid broker.DomainUID
		var id broker.DomainID
		var grants, intents int64
		err := r.Scan(&uid, &id, &grants, &intents)
		use := uses.of(uid, id)
		use.Grants, use.Intents = grants, intents
		return struct{}{}, err
	}, `
		select kms_grant.domain_uid, domain.domain_id,
			count(*), count(case when kms_grant.state = 'INTENDED' then 1 end)
		from kms_grant
		join domain on domain.domain_uid = kms_grant.domain_uid
		where kms_grant.kms_key = $1 and `+openKMSGrant+`
		group by kms_grant.domain_uid, domain.domain_id`, key)
	return err
}

// usesByImport adds the domains that may import from the key: few have any
// import source, and those have an index of their own.
func (t *txn) usesByImport(ctx context.Context, key broker.KeyARN, uses keyUses) error {
	_, err := all(ctx, t, "list imports of key", func(r row) (struct{}, error) {
		var uid broker.DomainUID
		var id broker.DomainID
		var sources []string
		err := r.Scan(&uid, &id, fromJSON(&sources))
		if slices.Contains(sources, string(key)) {
			uses.of(uid, id).ImportSource = true
		}
		return struct{}{}, err
	}, `
		select domain_uid, domain_id, import_sources
		from domain
		where import_sources <> '[]'`)
	return err
}
