package rotation

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
)

// SettlementKind says whose word a settlement is.
type SettlementKind string

// The kinds of settlements.
const (
	Attested   SettlementKind = "ATTESTED"   // the service's, at the end of a pass
	Overridden SettlementKind = "OVERRIDDEN" // an operator's
)

// A Settlement is somebody's word that no wrapped data key made through a grant
// is left under any epoch of its domain below Epoch, which was the present one
// when it was given.
type Settlement struct {
	Domain broker.DomainUID
	Grant  broker.GrantUID
	Epoch  broker.Epoch
	Kind   SettlementKind
	Caller string
	// Pass and BeginTime are those of the pass that the service ended so, Items
	// how many keys it was answered as being under Epoch's key, GivenUp how many
	// it has given up. Absent if Overridden.
	Pass           string
	BeginTime      time.Time
	Items, GivenUp int64
	Reason         string // why it was Overridden
	Time           time.Time
}

// counts reports whether the word may be taken, if service grants let new
// wrapped keys appear under the older keys until then. A service that began to
// look before may have missed some, whatever it says after; an operator answers
// for himself.
func (s Settlement) counts(until time.Time) bool {
	return s.Kind == Overridden || !s.BeginTime.Before(until)
}

// A SelfInventory is what is known of the wrapped data keys that a service keeps
// itself, by one grant.
type SelfInventory struct {
	Domain broker.DomainID
	Grant  broker.Grant
	// Settled is the word that counts, nil if there is none; KMSKey is the key of
	// its epoch.
	Settled *Settlement
	KMSKey  broker.KeyARN
}

// An askedGrant is a grant of INVENTORY_SELF, live or ended, that has or had
// anything at KMS on some of a domain's keys: it may have made wrapped keys under
// them. newest is the newest of these.
type askedGrant struct {
	broker.Grant
	newest broker.Epoch
}

// selfGrantsOn gives those of a domain that were on one of the keys, which are by
// epoch.
func selfGrantsOn(ctx context.Context, tx Tx, d broker.DomainUID, keys []broker.DomainKey) ([]askedGrant, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	grants, err := tx.SelfGrantsOn(ctx, d, keys[0].Epoch)
	if err != nil {
		return nil, err
	}
	on := map[broker.GrantUID]askedGrant{}
	for _, g := range grants {
		if _, asked := broker.KeyOfEpoch(keys, g.Epoch); asked {
			on[g.UID] = askedGrant{Grant: g.Grant, newest: max(on[g.UID].newest, g.Epoch)}
		}
	}
	return slices.SortedFunc(maps.Values(on), func(a, b askedGrant) int { return cmp.Compare(a.ID, b.ID) }), nil
}

// selfInventories gives what is known of each grant of INVENTORY_SELF that was on
// one of the older keys, which are some of the domain's keys, by epoch. A word
// speaks of every epoch below its own, so the first that counts above the newest
// key of a grant settles it.
func (e *Engine) selfInventories(ctx context.Context, tx Tx, d broker.Domain, keys, older []broker.DomainKey) ([]SelfInventory, error) {
	grants, err := selfGrantsOn(ctx, tx, d.UID, older)
	if err != nil || len(grants) == 0 {
		return nil, err
	}
	words, err := e.words(ctx, tx, d.UID, older[0].Epoch+1)
	if err != nil {
		return nil, err
	}
	out := make([]SelfInventory, len(grants))
	for i, g := range grants {
		out[i] = SelfInventory{Domain: d.ID, Grant: g.Grant}
		w := slices.IndexFunc(words, func(s Settlement) bool { return s.Grant == g.UID && s.Epoch > g.newest })
		if w >= 0 {
			key, _ := broker.KeyOfEpoch(keys, words[w].Epoch)
			out[i].Settled, out[i].KMSKey = &words[w], key.KMSKey
		}
	}
	return out, nil
}

// words gives the settlements at an epoch and above that count, by epoch.
func (e *Engine) words(ctx context.Context, tx Tx, d broker.DomainUID, from broker.Epoch) ([]Settlement, error) {
	settled, err := tx.Settlements(ctx, d, from)
	if err != nil {
		return nil, err
	}
	until := map[broker.Epoch]time.Time{}
	words := make([]Settlement, 0, len(settled))
	for _, s := range settled {
		if _, known := until[s.Epoch]; !known {
			if until[s.Epoch], err = e.drained(ctx, tx, d, s.Epoch); err != nil {
				return nil, err
			}
		}
		if s.counts(until[s.Epoch]) {
			words = append(words, s)
		}
	}
	return words, nil
}

// replaced gives the keys below an epoch that were the domain's once: those about
// which services are asked. Also of one that is closed or retired: it was closed
// only once every word was given, but a word may be taken back.
func replaced(keys []broker.DomainKey, below broker.Epoch) []broker.DomainKey {
	return slices.DeleteFunc(slices.Clone(keys), func(k broker.DomainKey) bool {
		return k.Epoch >= below || k.State == broker.KeyPreparing || k.State == broker.KeyAbandoned
	})
}

// replacedUnretired gives those of them that something may still be moved from.
func replacedUnretired(keys []broker.DomainKey, below broker.Epoch) []broker.DomainKey {
	return slices.DeleteFunc(replaced(keys, below), func(k broker.DomainKey) bool { return k.State == broker.KeyRetired })
}

// unsettled gives those for which nobody has given a word that counts.
func unsettled(all []SelfInventory) []SelfInventory {
	return slices.DeleteFunc(slices.Clone(all), func(s SelfInventory) bool { return s.Settled != nil })
}

// named tells their grants, for people.
func named(all []SelfInventory) string {
	var names []string
	for _, s := range all[:min(len(all), MostNamed)] {
		names = append(names, broker.GrantName(s.Domain, s.Grant.ID))
	}
	return firstNames(names, int64(len(all)))
}
