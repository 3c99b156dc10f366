package brokertest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
)

func testDomains(t *testing.T, b *storeBench) {
	now := b.clock.Now()
	d := newDomain("beta", now)
	d.State, d.InaccessibleSince = broker.DomainKeyInaccessible, now.Add(-time.Hour)
	d.KeyChange = broker.KeyChange{Job: "job-1", TargetKey: "arn:two", TargetEpoch: 2}
	d.LastEpoch = 2
	d.KeyAccounts = []string{"111122223333", "444455556666"}
	d.ImportSources = []string{"arn:legacy"}
	d.Labels = map[string]string{"team": `quotes " and <brackets>`, "empty": ""}
	b.update(func(ctx context.Context, tx rotation.Tx) error { return tx.InsertDomain(ctx, d) })

	read := func() (got broker.Domain) {
		t.Helper()
		b.view(func(ctx context.Context, tx rotation.Tx) (err error) {
			got, err = tx.Domain(ctx, "beta")
			return err
		})
		return got
	}
	equal(t, "domain as stored", read(), d)
	b.view(func(ctx context.Context, tx rotation.Tx) error {
		got, err := tx.DomainByUID(ctx, d.UID)
		equal(t, "domain by uid", got, d)
		return err
	})

	b.refused(broker.ErrAlreadyExists, "a second domain of the same id", func(ctx context.Context, tx rotation.Tx) error {
		again := newDomain("beta", now)
		again.UID = "another"
		return tx.InsertDomain(ctx, again)
	})
	b.refused(broker.ErrNotFound, "an absent id", func(ctx context.Context, tx rotation.Tx) error {
		_, err := tx.Domain(ctx, "absent")
		return err
	})
	b.refused(broker.ErrNotFound, "an absent uid", func(ctx context.Context, tx rotation.Tx) error {
		_, err := tx.DomainByUID(ctx, "absent")
		return err
	})

	b.clock.Advance(time.Minute)
	changed := newDomain("beta", now)
	changed.DisplayName, changed.Epoch, changed.LastEpoch = "renamed", 2, 3
	changed.KMSKey, changed.KMSKeyGiven = "arn:two", "alias/two"
	changed.Labels = map[string]string{"team": "b"}
	b.update(func(ctx context.Context, tx rotation.Tx) error { return tx.UpdateDomain(ctx, changed) })
	want := changed
	want.Version, want.UpdateTime = 2, b.clock.Now()
	equal(t, "domain after the update", read(), want)

	b.refused(broker.ErrConflict, "an update with an old version", func(ctx context.Context, tx rotation.Tx) error {
		return tx.UpdateDomain(ctx, changed)
	})
	b.refused(broker.ErrNotFound, "an update of an absent domain", func(ctx context.Context, tx rotation.Tx) error {
		return tx.UpdateDomain(ctx, newDomain("absent", now))
	})
	equal(t, "domain after refused updates", read(), want)

	for _, id := range []broker.DomainID{"gamma", "alpha", "b-1"} {
		b.domain(id)
	}
	for _, page := range []struct {
		after broker.DomainID
		limit int
		want  []broker.DomainID
	}{
		{"", 10, []broker.DomainID{"alpha", "b-1", "beta", "gamma"}},
		{"", 2, []broker.DomainID{"alpha", "b-1"}},
		{"b-1", 2, []broker.DomainID{"beta", "gamma"}},
		{"gamma", 2, nil},
	} {
		b.view(func(ctx context.Context, tx rotation.Tx) error {
			list, err := tx.ListDomains(ctx, page.after, page.limit)
			var ids []broker.DomainID
			for _, d := range list {
				ids = append(ids, d.ID)
			}
			equal(t, fmt.Sprintf("up to %d domains after %q", page.limit, page.after), ids, page.want)
			return err
		})
	}
}

func testDomainKeys(t *testing.T, b *storeBench) {
	d, other := b.domain("alpha"), b.domain("beta")
	now := b.clock.Now()
	first := broker.DomainKey{Domain: d.UID, Epoch: 1, KMSKey: "arn:one", State: broker.KeyCurrent, ActivateTime: now}
	tenth := broker.DomainKey{Domain: d.UID, Epoch: 10, KMSKey: "arn:one", State: broker.KeyPreparing}
	second := broker.DomainKey{Domain: d.UID, Epoch: 2, KMSKey: "arn:two", State: broker.KeyAbandoned}
	b.update(func(ctx context.Context, tx rotation.Tx) error {
		for _, k := range []broker.DomainKey{tenth, first, second, {Domain: other.UID, Epoch: 1, KMSKey: "arn:one", State: broker.KeyCurrent}} {
			if err := tx.InsertDomainKey(ctx, k); err != nil {
				return err
			}
		}
		return nil
	})
	b.refused(broker.ErrConflict, "an epoch given out twice", func(ctx context.Context, tx rotation.Tx) error {
		return tx.InsertDomainKey(ctx, broker.DomainKey{Domain: d.UID, Epoch: 2, KMSKey: "arn:three", State: broker.KeyPreparing})
	})
	b.refused(broker.ErrNotFound, "an update of an absent epoch", func(ctx context.Context, tx rotation.Tx) error {
		return tx.UpdateDomainKey(ctx, broker.DomainKey{Domain: d.UID, Epoch: 3, State: broker.KeyCurrent})
	})
	first.State, first.ReplaceTime, first.RetireTime = broker.KeyRetired, now.Add(time.Hour), now.Add(2*time.Hour)
	tenth.State, tenth.ActivateTime = broker.KeyCurrent, now.Add(time.Hour)
	b.update(func(ctx context.Context, tx rotation.Tx) error {
		if err := tx.UpdateDomainKey(ctx, first); err != nil {
			return err
		}
		return tx.UpdateDomainKey(ctx, tenth)
	})
	b.view(func(ctx context.Context, tx rotation.Tx) error {
		got, err := tx.DomainKeys(ctx, d.UID)
		equal(t, "keys by epoch", got, []broker.DomainKey{first, second, tenth})
		return err
	})
}

func testInaccessibleDomains(t *testing.T, b *storeBench) {
	for id, state := range map[broker.DomainID]broker.DomainState{"a": broker.DomainKeyInaccessible, "b": broker.DomainActive,
		"c": broker.DomainKeyInaccessible, "d": broker.DomainDeleted, "e": broker.DomainPendingKey, "f": broker.DomainKeyInaccessible} {
		d := newDomain(id, b.clock.Now())
		d.State = state
		b.update(func(ctx context.Context, tx rotation.Tx) error { return tx.InsertDomain(ctx, d) })
	}
	for _, page := range []struct {
		after broker.DomainUID
		limit int
		want  []broker.DomainID
	}{{"", 10, []broker.DomainID{"a", "c", "f"}}, {"", 2, []broker.DomainID{"a", "c"}}, {"uid-c", 2, []broker.DomainID{"f"}}, {"uid-f", 2, nil}} {
		b.view(func(ctx context.Context, tx rotation.Tx) error {
			list, err := tx.InaccessibleDomains(ctx, page.after, page.limit)
			var ids []broker.DomainID
			for _, d := range list {
				ids = append(ids, d.ID)
			}
			equal(t, fmt.Sprintf("up to %d inaccessible domains after %q", page.limit, page.after), ids, page.want)
			return err
		})
	}
}

// A domain that is deleted is done with when nothing of it can be under a key.
func testDeletedDomains(t *testing.T, b *storeBench) {
	now := b.clock.Now()
	for _, c := range []struct {
		id    broker.DomainID
		state broker.DomainState
		keys  []broker.KeyState
		grant broker.KMSGrantState
	}{
		{"a-alive", broker.DomainActive, []broker.KeyState{broker.KeyCurrent}, broker.KMSGrantLive},
		{"b-closed", broker.DomainDeleted, []broker.KeyState{broker.KeyRetired, broker.KeyClosed}, broker.KMSGrantRetired},
		{"c-done", broker.DomainDeleted, []broker.KeyState{broker.KeyRetired, broker.KeyAbandoned}, broker.KMSGrantRetired},
		{"d-granted", broker.DomainDeleted, []broker.KeyState{broker.KeyAbandoned}, broker.KMSGrantRetiring},
		{"e-asked", broker.DomainDeleted, []broker.KeyState{broker.KeyRetired}, broker.KMSGrantIntended},
		{"f-keyless", broker.DomainDeleted, nil, ""},
	} {
		d := newDomain(c.id, now)
		d.State = c.state
		b.update(func(ctx context.Context, tx rotation.Tx) error {
			err := tx.InsertDomain(ctx, d)
			for i, state := range c.keys {
				err = errors.Join(err, tx.InsertDomainKey(ctx, broker.DomainKey{Domain: d.UID, Epoch: broker.Epoch(i + 1), KMSKey: "arn:one", State: state}))
			}
			if c.grant == "" {
				return err
			}
			g := newGrant(d.UID, "g", now)
			k := newKMSGrant(g, 1, broker.Wrap, 1, now)
			k.State = c.grant
			return errors.Join(err, tx.InsertGrant(ctx, g), tx.InsertKMSGrant(ctx, k))
		})
	}
	for limit, want := range map[int][]broker.DomainID{10: {"b-closed", "d-granted", "e-asked"}, 1: {"b-closed"}} {
		b.view(func(ctx context.Context, tx rotation.Tx) error {
			list, err := tx.DeletedDomains(ctx, limit)
			var ids []broker.DomainID
			for _, d := range list {
				ids = append(ids, d.ID)
			}
			equal(t, fmt.Sprintf("up to %d deleted domains", limit), ids, want)
			return err
		})
	}
}

func testUsesOfKey(t *testing.T, b *storeBench) {
	const key, legacy = broker.KeyARN("arn:shared"), broker.KeyARN("arn:legacy_key")
	alpha, beta, gamma, delta := b.domain("alpha"), b.domain("beta"), b.domain("gamma"), b.domain("delta")
	b.domain("unrelated")
	importer := newDomain("importer", b.clock.Now())
	importer.ImportSources = []string{"arn:other", string(legacy)}
	near := newDomain("near", b.clock.Now())
	near.ImportSources = []string{"arn:legacyXkey"}
	now := b.clock.Now()
	b.update(func(ctx context.Context, tx rotation.Tx) error {
		for _, d := range []broker.Domain{importer, near} {
			if err := tx.InsertDomain(ctx, d); err != nil {
				return err
			}
		}
		// alpha: A, B, A again. gamma has left the key, and gave a row up under it;
		// delta has left it without a trace.
		for _, k := range []broker.DomainKey{
			{Domain: alpha.UID, Epoch: 1, KMSKey: key, State: broker.KeyRetired},
			{Domain: alpha.UID, Epoch: 2, KMSKey: "arn:other", State: broker.KeySuperseded},
			{Domain: alpha.UID, Epoch: 3, KMSKey: key, State: broker.KeyAbandoned},
			{Domain: alpha.UID, Epoch: 4, KMSKey: key, State: broker.KeyClosed},
			{Domain: alpha.UID, Epoch: 5, KMSKey: key, State: broker.KeyCurrent},
			{Domain: beta.UID, Epoch: 1, KMSKey: "arn:other", State: broker.KeyCurrent},
			{Domain: beta.UID, Epoch: 2, KMSKey: key, State: broker.KeyPreparing},
			{Domain: gamma.UID, Epoch: 1, KMSKey: key, State: broker.KeyRetired},
			{Domain: gamma.UID, Epoch: 2, KMSKey: "arn:other", State: broker.KeyCurrent},
			{Domain: delta.UID, Epoch: 1, KMSKey: key, State: broker.KeyRetired},
			{Domain: delta.UID, Epoch: 2, KMSKey: "arn:other", State: broker.KeyCurrent},
		} {
			if err := tx.InsertDomainKey(ctx, k); err != nil {
				return err
			}
		}
		for i, row := range []struct {
			domain    broker.DomainUID
			epoch     broker.Epoch
			abandoned bool
		}{
			{alpha.UID, 1, true}, {alpha.UID, 2, false}, {alpha.UID, 2, true}, {alpha.UID, 4, false}, {alpha.UID, 5, false}, {alpha.UID, 5, true},
			{beta.UID, 1, false}, {gamma.UID, 1, true}, {gamma.UID, 2, false}, {delta.UID, 2, false}, {delta.UID, 2, true},
		} {
			k := newDataKey(row.domain, broker.DataKeyID(fmt.Sprint("k", i)), now)
			k.Epoch, k.Abandoned = row.epoch, row.abandoned
			if err := tx.InsertDataKey(ctx, k); err != nil {
				return err
			}
		}
		d, err := tx.Domain(ctx, "beta")
		if err != nil {
			return err
		}
		d.KeyChange = broker.KeyChange{Job: "job-7", TargetKey: key, TargetEpoch: 2}
		if err := tx.UpdateDomain(ctx, d); err != nil {
			return err
		}
		g := newGrant(beta.UID, "g", now)
		if err := tx.InsertGrant(ctx, g); err != nil {
			return err
		}
		for i, state := range []broker.KMSGrantState{
			broker.KMSGrantIntended, broker.KMSGrantLive, broker.KMSGrantRetiring,
			broker.KMSGrantRetired, broker.KMSGrantFailed, broker.KMSGrantGone,
		} {
			k := newKMSGrant(g, 2, broker.Unwrap, i+1, now)
			k.State, k.KMSKey = state, key
			if err := tx.InsertKMSGrant(ctx, k); err != nil {
				return err
			}
		}
		return nil
	})
	b.view(func(ctx context.Context, tx rotation.Tx) error {
		got, err := tx.UsesOfKey(ctx, key, 100)
		equal(t, "uses of the key", got, []rotation.KeyUse{
			{DomainID: "alpha", DomainUID: alpha.UID, Epochs: []broker.Epoch{3, 4, 5}, Current: true, Leaving: true, Rows: 2, Abandoned: 2, FirstAbandoned: []broker.DataKeyID{"k0", "k5"}},
			{DomainID: "beta", DomainUID: beta.UID, Epochs: []broker.Epoch{2}, Preparing: "job-7", Grants: 3, Intents: 1},
			{DomainID: "gamma", DomainUID: gamma.UID, Abandoned: 1, FirstAbandoned: []broker.DataKeyID{"k7"}},
		})
		if err != nil {
			return err
		}
		got, err = tx.UsesOfKey(ctx, key, 2)
		equal(t, "uses of the key by two of alpha's six rows", got[:1], []rotation.KeyUse{
			{DomainID: "alpha", DomainUID: alpha.UID, Epochs: []broker.Epoch{3, 4, 5}, Current: true, Leaving: true, AtLeast: true, Abandoned: 2, FirstAbandoned: []broker.DataKeyID{"k0", "k5"}},
		})
		if err != nil {
			return err
		}
		for d, want := range map[broker.DomainUID]bool{alpha.UID: true, gamma.UID: false} { // gamma gave its one up
			has, err := tx.HasDataKeys(ctx, d, key)
			equal(t, "that a domain has rows under the key", has, want)
			if err != nil {
				return err
			}
		}
		got, err = tx.UsesOfKey(ctx, legacy, 100)
		equal(t, "uses of an import source", got, []rotation.KeyUse{
			{DomainID: "importer", DomainUID: importer.UID, ImportSource: true},
		})
		if err != nil {
			return err
		}
		got, err = tx.UsesOfKey(ctx, "arn:unknown", 100)
		equal(t, "uses of an unknown key", got, nil)
		return err
	})
}
