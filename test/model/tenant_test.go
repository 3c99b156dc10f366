package model_test

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"pgregory.net/rapid"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/test/harness"
)

// A tenant is a domain, and what its owner and its services know.
type tenant struct {
	id       broker.DomainID
	uid      broker.DomainUID
	reserved broker.Pair
	worker   broker.GrantUID // the broker's own grant, of a deleted domain too
	// deleting: somebody asked for it; deleted: it is certain; gone: it was so when
	// the present action began.
	deleting, deleted, gone bool

	plain  map[broker.DataKeyID][]byte // acknowledged and not deleted: I2, I9
	proved map[broker.DataKeyID]broker.DataKey
	poison map[broker.DataKeyID]poison
	spoilt int // rows ever spoiled

	held       []*held
	reads      []heldRead
	stragglers []straggler
}

// GoString is how rapid shows what it drew.
func (tn *tenant) GoString() string { return string(tn.id) }

func newTenant(d broker.Domain) *tenant {
	return &tenant{id: d.ID, uid: d.UID, reserved: d.Reserved, plain: map[broker.DataKeyID][]byte{},
		proved: map[broker.DataKeyID]broker.DataKey{}, poison: map[broker.DataKeyID]poison{}}
}

// A held is a grant that a service has.
type held struct {
	id         broker.GrantID
	uid        broker.GrantUID
	role       string
	operations []string
	tokens     []string // of the last answer
	expires    time.Time
	ending     bool // somebody asked to revoke it
	ended      bool // it is revoked for certain
}

// GoString is how rapid shows what it drew.
func (h *held) GoString() string { return string(h.id) }

func (h *held) may(operation string) bool { return slices.Contains(h.operations, operation) }

// A heldRead is what a service read and may use for readDelay.
type heldRead struct {
	view  broker.DataKeyView
	plain []byte
	until time.Time
}

// A straggler is a data key that a service generated at KMS by its own wrap
// grant, and has storeDelay to import.
type straggler struct {
	key     broker.KeyARN
	context map[string]string
	blob    []byte
	plain   []byte
	until   time.Time
}

// A poison row is one that somebody damaged in the database.
type poison struct {
	blob  string
	since time.Time
}

// client is KMS in the role of whoever has the grant.
func (m *machine) client(h *held) *kms.Client {
	if h.role == harness.ReportsRole {
		return m.bench.Reports
	}
	return m.bench.Service
}

func (m *machine) now() time.Time { return m.bench.Clock.Now() }

// api is the replica that answers calls.
func (m *machine) api() *harness.Replica { return m.bench.Replicas[m.serving] }

// anyTenant draws a domain that is there and, if it is given, fit: the first one
// mostly, and in calm always.
func (m *machine) anyTenant(t *rapid.T, fit ...func(*tenant) bool) *tenant {
	all := m.tenants[:1]
	if m.storm {
		all = []*tenant{m.tenants[0], m.tenants[0], m.tenants[0], m.tenants[1], m.tenants[1], m.tenants[2]}
	}
	all = slices.DeleteFunc(slices.Clone(all), func(tn *tenant) bool {
		return tn.deleting || slices.ContainsFunc(fit, func(is func(*tenant) bool) bool { return !is(tn) })
	})
	if len(all) == 0 {
		panic(nothing("no domain is fit"))
	}
	return rapid.SampledFrom(all).Draw(t, "tenant")
}

// What a domain must have for some actions.
func hasRows(tn *tenant) bool       { return len(tn.plain) > 0 }
func hasGrants(tn *tenant) bool     { return len(tn.held) > 0 }
func hasPoison(tn *tenant) bool     { return len(tn.poison) > 0 }
func hasStragglers(tn *tenant) bool { return len(tn.stragglers) > 0 }

func (m *machine) tenantOf(uid broker.DomainUID) *tenant {
	for _, tn := range m.tenants {
		if tn.uid == uid {
			return tn
		}
	}
	return nil
}

func (m *machine) nextID() broker.DataKeyID {
	m.serial++
	// Ids spread over the key space, so that new ones fall before and behind cursors.
	return broker.DataKeyID(fmt.Sprintf("%c%d", 'a'+byte(m.serial*7%26), m.serial))
}

// refused says whether a call was refused, and accepts that only for a cause
// which the model knows of.
func (m *machine) refused(t *rapid.T, tn *tenant, err error, also ...broker.Reason) bool {
	t.Helper()
	if err == nil {
		if tn.gone {
			t.Fatalf("I14: %s was deleted, and a call on it was served", tn.id)
		}
		return false
	}
	if !m.excused(tn, err) && !slices.Contains(also, broker.ReasonOf(err)) {
		t.Fatalf("call failed: %s %v", broker.ReasonOf(err), err)
	}
	return true
}

func (m *machine) excused(tn *tenant, err error) bool {
	if m.crashed {
		return true
	}
	switch broker.ReasonOf(err) {
	case broker.ReasonDomainNotFound:
		return tn.deleting
	case broker.ReasonDomainPendingKey:
		return m.before.of(tn).domain.Epoch == 0
	case broker.ReasonKeyDisabled, broker.ReasonKeyStateInvalid:
		return m.wasUnusable(m.begun, m.keysOf(tn))
	case broker.ReasonKeyAccessDenied:
		return m.road.struck(denied) || m.mayBeDenied(tn)
	case broker.ReasonKeyPolicyMissing:
		return m.road.struck(denied)
	}
	passes := errors.Is(err, broker.ErrUnavailable) || errors.Is(err, broker.ErrExhausted)
	return passes && m.road.struckAny()
}

// keysOf gives the KMS keys that a domain has, had, or is going to have.
func (m *machine) keysOf(tn *tenant) []broker.KeyARN {
	keys := []broker.KeyARN{m.domainNow(tn.uid).KeyChange.TargetKey}
	_ = m.bench.Store.Broker().View(m.ctx, func(tx broker.Tx) error {
		epochs, err := tx.DomainKeys(m.ctx, tn.uid)
		for _, k := range epochs {
			keys = append(keys, k.KMSKey)
		}
		return err
	})
	return keys
}

func reveal(tokens []broker.Secret) []string {
	out := make([]string, len(tokens))
	for i, s := range tokens {
		out[i] = string(s)
	}
	return out
}
