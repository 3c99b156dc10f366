package rotation

import (
	"context"
	"fmt"
	"slices"
	"strings"
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

// selfGrantsOn gives a domain's grants of INVENTORY_SELF, live or ended, that
// have or had anything at KMS on one of the keys: they may have made wrapped
// keys under it.
func selfGrantsOn(ctx context.Context, tx Tx, d broker.DomainUID, keys []broker.DomainKey) ([]broker.Grant, error) {
	grants, err := tx.SelfGrants(ctx, d)
	if err != nil {
		return nil, err
	}
	var on []broker.Grant
	for _, g := range grants {
		made, err := tx.KMSGrants(ctx, d, g.UID)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(made, func(k broker.KMSGrant) bool {
			_, ok := broker.KeyOfEpoch(keys, k.Epoch)
			return ok && k.MayHaveExisted()
		}) {
			on = append(on, g)
		}
	}
	return on, nil
}

// selfInventories gives what is known, at target, of each grant of INVENTORY_SELF
// that was on one of the older keys.
func (e *Engine) selfInventories(ctx context.Context, tx Tx, d broker.Domain, target broker.DomainKey, older []broker.DomainKey) ([]SelfInventory, error) {
	grants, err := selfGrantsOn(ctx, tx, d.UID, older)
	if err != nil || len(grants) == 0 {
		return nil, err
	}
	words, err := e.words(ctx, tx, d.UID, target.Epoch)
	if err != nil {
		return nil, err
	}
	out := make([]SelfInventory, len(grants))
	for i, g := range grants {
		out[i] = SelfInventory{Domain: d.ID, Grant: g}
		if word, ok := words[g.UID]; ok {
			out[i].Settled, out[i].KMSKey = &word, target.KMSKey
		}
	}
	return out, nil
}

// words gives the settlements at an epoch that count, by grant.
func (e *Engine) words(ctx context.Context, tx Tx, d broker.DomainUID, target broker.Epoch) (map[broker.GrantUID]Settlement, error) {
	settled, err := tx.Settlements(ctx, d, target)
	if err != nil {
		return nil, err
	}
	until, err := e.drained(ctx, tx, d, target)
	if err != nil {
		return nil, err
	}
	words := make(map[broker.GrantUID]Settlement, len(settled))
	for _, s := range settled {
		if s.counts(until) {
			words[s.Grant] = s
		}
	}
	return words, nil
}

// superseded gives the keys below an epoch that were replaced and are not closed:
// those about which a settlement is asked for. A key is closed only once every
// word is given.
func superseded(keys []broker.DomainKey, below broker.Epoch) []broker.DomainKey {
	return slices.DeleteFunc(slices.Clone(keys), func(k broker.DomainKey) bool {
		return k.Epoch >= below || k.State != broker.KeySuperseded
	})
}

// unsettled gives those for which nobody has given a word that counts.
func unsettled(all []SelfInventory) []SelfInventory {
	return slices.DeleteFunc(slices.Clone(all), func(s SelfInventory) bool { return s.Settled != nil })
}

// named tells their grants, for people: the first few by name.
func named(all []SelfInventory) string {
	const most = 5
	var names []string
	for _, s := range all[:min(len(all), most)] {
		names = append(names, broker.GrantName(s.Domain, s.Grant.ID))
	}
	if more := len(all) - most; more > 0 {
		names = append(names, fmt.Sprintf("%d more", more))
	}
	return strings.Join(names, ", ")
}
