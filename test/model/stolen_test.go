package model_test

import (
	"maps"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"pgregory.net/rapid"

	"github.com/keybroker/keybroker/internal/broker"
)

// stolen is what the keys' owners took away at KMS.
type stolen struct {
	ids map[string]bool // KMS grant ids
	// unasked are those that were recorded as live then, and that nobody has asked
	// for since: they must not be made again.
	unasked map[identity]int // the attempt
}

// An identity is what a KMS grant is for.
type identity struct {
	grant broker.GrantUID
	epoch broker.Epoch
	kind  broker.GrantKind
}

func newStolen() stolen { return stolen{map[string]bool{}, map[identity]int{}} }

func (s stolen) forbids(k broker.KMSGrant) bool {
	attempt, taken := s.unasked[identity{k.Grant, k.Epoch, k.Kind}]
	return taken && k.Attempt >= attempt
}

// asked: a person wants the grant back.
func (s stolen) asked(g broker.GrantUID) {
	for id := range s.unasked {
		if id.grant == g {
			delete(s.unasked, id)
		}
	}
}

// takeAway: a key's owner revokes one of our grants at KMS.
func (m *machine) takeAway(t *rapid.T) {
	now := m.look(t)
	if len(now.listed) == 0 {
		panic(nothing("no grants"))
	}
	m.checkCalls(t, now) // those from before
	g := now.listed[rapid.IntRange(0, len(now.listed)-1).Draw(t, "grant")]
	id := aws.ToString(g.GrantId)
	_, err := m.bench.Customer.RevokeGrant(m.ctx, &kms.RevokeGrantInput{KeyId: aws.String(string(g.key)), GrantId: g.GrantId})
	if err != nil && m.lingers > 0 { // it was retired, and lingers in listings
		panic(nothing("it is gone already"))
	}
	fatal(t, err)
	m.stolen.ids[id] = true
	if row, _ := now.kmsGrant(aws.ToString(g.Name)); row.State == broker.KMSGrantLive && row.KMSGrantID == id {
		m.stolen.unasked[identity{row.Grant, row.Epoch, row.Kind}] = row.Attempt
		if row.Worker {
			m.tally.met("worker's grant taken away")
		}
	}
}

// good says whether a service may count on its grant: the promise is made to
// those that are neither ended nor robbed.
func (m *machine) good(tn *tenant, h *held) bool {
	if h.ending || h.ended || tn.deleting || !m.now().Before(h.expires) {
		return false
	}
	return !m.robbed(tn, h.uid)
}

// robbed says whether a grant has ended, or lacks something on an open key,
// because the key's owner took it away.
func (m *machine) robbed(tn *tenant, g broker.GrantUID) bool {
	if m.grantNow(tn, g).State == broker.GrantRevokedByCustomer {
		return true
	}
	return slices.ContainsFunc(m.needs(tn, g), func(n need) bool { return n.robbed })
}

// mayBeDenied: something of the worker's grant was taken away, or made again so
// lately that KMS may not show it.
func (m *machine) mayBeDenied(tn *tenant) bool {
	return slices.ContainsFunc(m.needs(tn, m.before.of(tn).worker.UID), func(n need) bool {
		young := n.newest.Attempt > 1 && !m.now().After(n.newest.LiveTime.Add(visibility))
		return n.robbed || n.newest.State == broker.KMSGrantLive && young
	})
}

// leftOut says whether a grant was given without what it needs on a key that the
// domain has left, since that key could not be used, or refused it, then.
func (m *machine) leftOut(tn *tenant, h *held, epoch broker.Epoch) bool {
	key := m.before.of(tn).key(epoch).KMSKey
	return epoch != m.domainNow(tn.uid).Epoch && slices.ContainsFunc(m.needs(tn, h.uid), func(n need) bool {
		asked := n.newest.IntendTime
		return n.newest.Epoch == epoch && n.newest.State == broker.KMSGrantFailed &&
			(m.wasUnusable(asked, []broker.KeyARN{key}) || m.road.happened(denied, asked))
	})
}

// A need is a KMS grant that a grant needs on an open key.
type need struct {
	newest broker.KMSGrant // the last attempt
	// robbed: an attempt was taken away, and no later one is there in its stead.
	robbed bool
}

// needs gives the needs of a grant, as the database has them now.
func (m *machine) needs(tn *tenant, g broker.GrantUID) []need {
	var keys []broker.DomainKey
	var made []broker.KMSGrant
	err := m.bench.Store.Broker().View(m.ctx, func(tx broker.Tx) (err error) {
		if keys, err = tx.DomainKeys(m.ctx, tn.uid); err != nil {
			return err
		}
		made, err = tx.KMSGrants(m.ctx, tn.uid, g)
		return err
	})
	if err != nil {
		return nil
	}
	found := map[identity]need{}
	for _, k := range made { // by attempt
		key, _ := broker.KeyOfEpoch(keys, k.Epoch)
		open := key.State == broker.KeyPreparing || key.State == broker.KeyCurrent || key.State == broker.KeySuperseded && k.Kind == broker.Unwrap
		if !open {
			continue
		}
		id, stolen := identity{k.Grant, k.Epoch, k.Kind}, m.stolen.ids[k.KMSGrantID]
		found[id] = need{newest: k, robbed: stolen || found[id].robbed && k.State != broker.KMSGrantLive}
	}
	return slices.Collect(maps.Values(found))
}
