package scenarios_test

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"pgregory.net/rapid"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/test/harness"
)

// What the service of TestKeeperModel does: it makes keys, and passes over them.

// generate makes a key under the domain's present key.
func (m *keeperModel) generate(t *rapid.T) {
	d, _, err := m.b.Broker.GetDomain(m.ctx, harness.Caller, "acme")
	noErr(t, err)
	m.noted = d.KMSKey
	for range rapid.IntRange(1, 3).Draw(t, "keys") {
		if err := m.generateUnder(d.KMSKey); err != nil {
			t.Fatalf("the service cannot generate under the present key: %v", err)
		}
	}
}

// generateLate makes one under the key that the service knows of, which KMS may
// refuse by now.
func (m *keeperModel) generateLate(t *rapid.T) {
	if err := m.generateUnder(m.noted); err != nil {
		m.generate(t)
	}
}

func (m *keeperModel) generateUnder(key broker.KeyARN) error {
	m.serial++
	pairs := broker.Context{"n": fmt.Sprint(m.serial)}.With(m.domain.Reserved)
	out, err := m.b.Service.GenerateDataKey(m.ctx, &kms.GenerateDataKeyInput{KeyId: aws.String(string(key)), KeySpec: types.DataKeySpecAes256,
		EncryptionContext: pairs, GrantTokens: m.tokens})
	if err != nil {
		return err
	}
	m.hand = append(m.hand, keptKey{blob: out.CiphertextBlob, context: pairs, key: key, plain: out.Plaintext, until: m.b.Clock.Now().Add(keeperStore)})
	return nil
}

// put stores a key that was generated in time; the contract forbids it later.
func (m *keeperModel) put(t *rapid.T) {
	if len(m.hand) == 0 {
		t.Skip("nothing in hand")
	}
	i := rapid.IntRange(0, len(m.hand)-1).Draw(t, "key in hand")
	k := m.hand[i]
	m.hand = slices.Delete(m.hand, i, i+1)
	if m.b.Clock.Now().Before(k.until) {
		m.serial++
		m.stored[fmt.Sprintf("k%04d", m.serial)] = k
	}
}

// newGrant replaces the service's grant by another one. Both speak for its keys.
func (m *keeperModel) newGrant(t *rapid.T) {
	made, err := m.b.Broker.CreateGrant(m.ctx, harness.Caller, broker.NewGrant{Domain: "acme", Grantee: harness.ServiceRole,
		Operations: []string{"Decrypt", "GenerateDataKey"}, Inventory: broker.InventorySelf, TTL: 300 * 24 * time.Hour})
	noErr(t, err)
	if m.grant != "" {
		_, err := m.b.Broker.RevokeGrant(m.ctx, harness.Caller, broker.RevokeGrant{Domain: "acme", ID: m.grant})
		noErr(t, err)
	}
	m.grant, m.tokens = made.ID, nil
	for _, token := range made.Tokens {
		m.tokens = append(m.tokens, string(token))
	}
}

func (m *keeperModel) open(resume *rotation.Pass) (rotation.PassView, error) {
	return m.b.Engine.OpenPass(m.ctx, harness.Caller, rotation.OpenPass{Domain: "acme", Owner: rotation.PassOwner{Grantee: harness.ServiceRole}, Resume: resume})
}

// begin starts a pass, and then looks at what is stored.
func (m *keeperModel) begin(t *rapid.T) {
	view, err := m.open(nil)
	noErr(t, err)
	m.pass, m.todo = &view.Pass, slices.Sorted(maps.Keys(m.stored))
}

// resume goes on with a pass over another stream.
func (m *keeperModel) resume(t *rapid.T) {
	if m.pass == nil {
		t.Skip("no pass")
	}
	_, err := m.open(m.pass)
	m.mayBeOutdated(t, err)
}

// mayBeOutdated lets a pass go whose domain has another key now.
func (m *keeperModel) mayBeOutdated(t *rapid.T, err error) {
	if broker.ReasonOf(err) == broker.ReasonKeyChangedMeanwhile {
		m.met["outdated"]++
		m.pass = nil
		return
	}
	noErr(t, err)
}

func (m *keeperModel) items(t *rapid.T) {
	if m.pass == nil || len(m.todo) == 0 {
		t.Skip("nothing to move")
	}
	m.move(t, rapid.IntRange(1, 4).Draw(t, "items"), rapid.Bool().Draw(t, "receipts arrive"))
}

func (m *keeperModel) allItems(t *rapid.T) {
	for tries := 0; m.pass != nil && len(m.todo) > 0 && tries < 20; tries++ {
		m.move(t, 4, true)
	}
}

// move sends some items. Receipts that do not arrive leave the service, and its
// token, as they were.
func (m *keeperModel) move(t *rapid.T, n int, arrive bool) {
	ids := m.todo[:min(n, len(m.todo))]
	var items []rotation.PassItem
	for _, id := range ids {
		k := m.stored[id]
		item := rotation.PassItem{ID: id, Ciphertext: k.blob, Context: k.context}
		if rapid.Bool().Draw(t, "names the key") {
			item.KMSKey = k.key
		}
		items = append(items, item)
	}
	receipts, err := m.b.Engine.ReencryptItems(m.ctx, harness.Caller, *m.pass, items)
	noErr(t, err)
	if !arrive {
		return
	}
	var left []string
	for i, r := range receipts {
		if r.Item != ids[i] {
			t.Fatalf("the receipt of %s came in the place of that of %s", r.Item, ids[i])
		}
		if broker.ReasonOf(r.Err) == broker.ReasonKMSUnavailable {
			left = append(left, r.Item)
			continue
		}
		if r.Err != nil {
			t.Fatalf("a key that the service has under %s cannot be moved: %v", m.stored[r.Item].key, r.Err)
		}
		m.met[map[bool]string{true: "unchanged", false: "moved"}[r.Unchanged]]++
		k := m.stored[r.Item] // the service is alone: what it sent is what it has
		k.blob, k.key = r.Ciphertext, r.KMSKey
		m.stored[r.Item] = k
	}
	next := m.pass.With(receipts)
	m.pass, m.todo = &next, append(left, m.todo[len(ids):]...)
}

// attest gives the service's word, if it has looked through everything.
func (m *keeperModel) attest(t *rapid.T) {
	if m.pass == nil || len(m.todo) > 0 {
		t.Skip("nothing to say")
	}
	settled, err := m.b.Engine.Attest(m.ctx, harness.Caller, *m.pass, 0)
	if broker.ReasonOf(err) == broker.ReasonAttestationTooEarly {
		m.met["too early"]++
		m.pass = nil
		return
	}
	m.mayBeOutdated(t, err)
	if err == nil {
		m.met["attested"]++
	}
	for _, s := range settled {
		if s.Settled.Pass == m.pass.ID && s.Settled.Items != m.pass.Items {
			t.Fatalf("attested for %d keys, and %d have receipts", s.Settled.Items, m.pass.Items)
		}
	}
	if err == nil && rapid.Bool().Draw(t, "the answer was lost") {
		again, err := m.b.Engine.Attest(m.ctx, harness.Caller, *m.pass, 0)
		noErr(t, err)
		m.met["attested again"]++
		if len(again) != len(settled) || *again[0].Settled != *settled[0].Settled {
			t.Fatalf("attested %+v, and again %+v", settled[0].Settled, again[0].Settled)
		}
	}
	m.pass = nil
}

// conclude makes a whole pass. What is stored behind its back it does not see.
func (m *keeperModel) conclude(t *rapid.T) {
	m.begin(t)
	if len(m.hand) > 0 && rapid.Bool().Draw(t, "stored behind its back") {
		m.put(t)
	}
	m.allItems(t)
	if m.pass != nil && len(m.todo) == 0 {
		m.attest(t)
	}
}
