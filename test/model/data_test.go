package model_test

import (
	"bytes"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"pgregory.net/rapid"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/test/harness"
)

// What the owners of data do, and their services.

func (m *machine) create(t *rapid.T) {
	tn := m.anyTenant(t)
	id := m.nextID()
	in := broker.NewDataKey{Request: m.newRequest("CreateDataKey"), Domain: tn.id, ID: id, Context: broker.Context{"n": strconv.Itoa(m.serial)}}
	var made broker.DataKeyView
	ask := func(t *rapid.T) {
		m.storing[tn.reserved.Value] = true
		view, err := m.api().Broker.CreateDataKey(m.ctx, harness.Caller, in)
		if m.refused(t, tn, err, m.ifDeleted(tn, id)...) {
			return
		}
		if made.UID != "" && view.UID != made.UID || view.ID != id {
			t.Fatalf("I8: one request_id made %s %s and %s %s", id, made.UID, view.ID, view.UID)
		}
		made = view
		m.acknowledged(t, tn, view)
	}
	ask(t)
	m.remember(tn, "create", ask)
}

// ifDeleted: a repeat that made a data key finds it no more once it is deleted.
func (m *machine) ifDeleted(tn *tenant, id broker.DataKeyID) []broker.Reason {
	if _, there := tn.plain[id]; there {
		return nil
	}
	return []broker.Reason{broker.ReasonDataKeyNotFound, broker.ReasonDataKeyIDDeleted}
}

// acknowledged notes a data key that its owner knows to be there, with the
// plaintext that it has from the first.
func (m *machine) acknowledged(t *rapid.T, tn *tenant, view broker.DataKeyView) {
	if tn.deleted {
		t.Fatalf("I14: %s was deleted, and data key %s was stored", tn.id, view.ID)
	}
	if _, known := tn.plain[view.ID]; !known {
		tn.plain[view.ID] = m.decryptAsOwner(t, view)
	}
}

// decryptAsOwner is the judge: the key's owner decrypts a blob at KMS under
// exactly the key recorded for it.
func (m *machine) decryptAsOwner(t *rapid.T, view broker.DataKeyView) []byte {
	t.Helper()
	var out *kms.DecryptOutput
	m.asOwner(t, view.KMSKey, func() (err error) {
		out, err = m.bench.Customer.Decrypt(m.ctx, &kms.DecryptInput{CiphertextBlob: view.Ciphertext,
			KeyId: aws.String(string(view.KMSKey)), EncryptionContext: view.EncryptionContext})
		if err != nil {
			t.Fatalf("I1: data key %s does not decrypt under its recorded key %s: %v", view.ID, view.KMSKey, err)
		}
		return err
	})
	if got := aws.ToString(out.KeyMaterialId); got != view.KeyMaterialID && !unproven(view.DataKey) {
		t.Fatalf("I1: data key %s is under material %.8s, recorded %.8s", view.ID, got, view.KeyMaterialID)
	}
	return out.Plaintext
}

// unproven: the row was imported without a KMS call, and no job has read it yet.
func unproven(row broker.DataKey) bool { return row.KeyMaterialID == "" && row.KMSRequestID == "" }

// allowImport puts each tenant's import statement on the legacy key.
func (m *machine) allowImport(t *rapid.T) {
	present, err := m.bench.Customer.GetKeyPolicy(m.ctx, &kms.GetKeyPolicyInput{KeyId: aws.String(string(m.legacy))})
	fatal(t, err)
	document := aws.ToString(present.Policy)
	for _, tn := range m.tenants {
		policy, err := m.bench.Broker.GenerateKeyPolicy(m.ctx, harness.Caller, broker.KeyPolicyRequest{Domain: tn.id,
			Existing: document, Profile: broker.PolicyImportSource, ImportContext: broker.Context{"service": "legacy"}})
		fatal(t, err)
		document = policy.Document
	}
	_, err = m.bench.Customer.PutKeyPolicy(m.ctx, &kms.PutKeyPolicyInput{KeyId: aws.String(string(m.legacy)), Policy: aws.String(document)})
	fatal(t, err)
}

// legacyItem is a blob from before the broker.
func (m *machine) legacyItem(t *rapid.T, id broker.DataKeyID, plain []byte) broker.ImportItem {
	pairs := map[string]string{"service": "legacy", "record": string(id)}
	out, err := m.bench.Customer.Encrypt(m.ctx, &kms.EncryptInput{KeyId: aws.String(string(m.legacy)), Plaintext: plain, EncryptionContext: pairs})
	fatal(t, err)
	return broker.ImportItem{ID: id, Ciphertext: out.CiphertextBlob, SourceKey: m.legacy, SourceContext: pairs}
}

func (m *machine) importLegacy(t *rapid.T) {
	m.importSome(t, m.anyTenant(t), rapid.IntRange(1, 3).Draw(t, "items"))
}

func (m *machine) importSome(t *rapid.T, tn *tenant, n int) {
	in := broker.ImportDataKeys{Request: m.newRequest("ImportDataKeys"), Domain: tn.id}
	plain := map[broker.DataKeyID][]byte{}
	for range n {
		id := m.nextID()
		plain[id] = bytes.Repeat([]byte{byte(m.serial)}, 32)
		in.Items = append(in.Items, m.legacyItem(t, id, plain[id]))
	}
	m.imported(t, tn, in, plain)
}

// importUnproven has a tenant that never had but one key take in what its owner
// made under it with the pair: no KMS call is spent on it.
func (m *machine) importUnproven(t *rapid.T, tn *tenant) {
	id := m.nextID()
	plain := bytes.Repeat([]byte{byte(m.serial)}, 32)
	pairs := broker.Context{"made": "before"}.With(tn.reserved)
	out, err := m.bench.Customer.Encrypt(m.ctx, &kms.EncryptInput{KeyId: aws.String(string(m.keys[0])), Plaintext: plain, EncryptionContext: pairs})
	fatal(t, err)
	m.imported(t, tn, broker.ImportDataKeys{Request: m.newRequest("ImportDataKeys"), Domain: tn.id, AllowUnproven: true,
		Items: []broker.ImportItem{{ID: id, Ciphertext: out.CiphertextBlob, SourceKey: m.keys[0], SourceContext: pairs}}},
		map[broker.DataKeyID][]byte{id: plain})
}

// imported imports, and holds the broker to its promise that such blobs are
// taken.
func (m *machine) imported(t *rapid.T, tn *tenant, in broker.ImportDataKeys, plain map[broker.DataKeyID][]byte) {
	stored := map[broker.DataKeyID]broker.DataKeyUID{}
	reasons := map[broker.DataKeyID]broker.Reason{} // a repeat gives the first one again
	ask := func(t *rapid.T) {
		m.storing[tn.reserved.Value] = true
		results, err := m.api().Broker.ImportDataKeys(m.ctx, harness.Caller, in)
		if m.refused(t, tn, err) {
			return
		}
		for i, r := range results {
			id := in.Items[i].ID
			if m.refused(t, tn, r.Err, append(m.ifDeleted(tn, id), reasons[id])...) {
				reasons[id] = broker.ReasonOf(r.Err)
				continue
			}
			if tn.deleted {
				t.Fatalf("I14: %s was deleted, and data key %s was imported", tn.id, id)
			}
			if _, before := stored[id]; !before {
				stored[id] = r.Key.UID
				tn.plain[id] = plain[id]
			}
			if unproven(r.Key.DataKey) {
				m.tally.met("import unproven")
			}
			if reasons[id] != "" || stored[id] != r.Key.UID {
				t.Fatalf("I8: one request_id imported %s twice", id)
			}
		}
	}
	ask(t)
	m.remember(tn, "import", ask)
}

// generate: a service makes a data key at KMS by its own grant, behind the
// broker's back, under the key that the broker names to it.
func (m *machine) generate(t *rapid.T) {
	wraps := func(tn *tenant) int {
		return slices.IndexFunc(tn.held, func(h *held) bool { return m.good(tn, h) && h.may("GenerateDataKey") })
	}
	tn := m.anyTenant(t, func(tn *tenant) bool { return wraps(tn) >= 0 })
	i := wraps(tn)
	d, _, err := m.api().Broker.GetDomain(m.ctx, harness.Caller, tn.id)
	fatal(t, err)
	pairs := map[string]string{"made": "at KMS", d.Reserved.Key: d.Reserved.Value}
	out, err := m.client(tn.held[i]).GenerateDataKey(m.ctx, &kms.GenerateDataKeyInput{KeyId: aws.String(string(d.KMSKey)),
		KeySpec: types.DataKeySpecAes256, EncryptionContext: pairs, GrantTokens: tn.held[i].tokens})
	if err != nil && m.unusable[d.KMSKey] != "" {
		return
	}
	if err != nil {
		t.Fatalf("service cannot generate under the domain's present key: %v", err)
	}
	tn.stragglers = append(tn.stragglers, straggler{key: d.KMSKey, context: pairs, blob: out.CiphertextBlob, plain: out.Plaintext,
		until: m.now().Add(storeDelay)})
}

// importStraggler keeps the service's part of the contract: it imports within
// max_store_delay. The broker's part is that the import is then never refused.
func (m *machine) importStraggler(t *rapid.T) {
	tn := m.anyTenant(t, hasStragglers)
	i := rapid.IntRange(0, len(tn.stragglers)-1).Draw(t, "straggler")
	s := tn.stragglers[i]
	tn.stragglers = slices.Delete(tn.stragglers, i, i+1)
	if m.now().After(s.until) {
		return // the service broke the contract: nothing is promised
	}
	id := m.nextID()
	m.imported(t, tn, broker.ImportDataKeys{Request: m.newRequest("ImportDataKeys"), Domain: tn.id, AllowUnproven: rapid.Bool().Draw(t, "allow unproven"),
		Items: []broker.ImportItem{{ID: id, Ciphertext: s.blob, SourceKey: s.key, SourceContext: s.context}}},
		map[broker.DataKeyID][]byte{id: s.plain})
}

func (m *machine) anyID(t *rapid.T, tn *tenant) broker.DataKeyID {
	return rapid.SampledFrom(slices.Sorted(maps.Keys(tn.plain))).Draw(t, "id")
}

// read: a service reads a wrapped key; it may unwrap it at KMS by its own grant,
// now or any time within max_read_delay.
func (m *machine) read(t *rapid.T) {
	tn := m.anyTenant(t, hasRows)
	id := m.anyID(t, tn)
	view, err := m.api().Broker.GetDataKey(m.ctx, harness.Caller, tn.id, id)
	if err != nil {
		t.Fatalf("I2: acknowledged data key %s: %v", id, err)
	}
	if _, bad := tn.poison[id]; !bad {
		// As coarse as the database notes the move that may come next.
		read := m.now().Truncate(time.Microsecond)
		tn.reads = append(tn.reads, heldRead{view: view, plain: tn.plain[id], until: read.Add(readDelay)})
	}
}

func (m *machine) remove(t *rapid.T) {
	tn := m.anyTenant(t, hasRows)
	m.removeID(t, tn, m.anyID(t, tn))
}

func (m *machine) removeID(t *rapid.T, tn *tenant, id broker.DataKeyID) {
	fatal(t, m.api().Broker.DeleteDataKey(m.ctx, harness.Caller, broker.Request{}, tn.id, id, ""))
	delete(tn.plain, id)
	delete(tn.poison, id)
	tn.reads = slices.DeleteFunc(tn.reads, func(r heldRead) bool { return r.view.ID == id })
}

// reuseID: the id of a deleted data key is never given out again (I14).
func (m *machine) reuseID(t *rapid.T) {
	tn := m.anyTenant(t, hasRows)
	id := m.anyID(t, tn)
	m.removeID(t, tn, id)
	m.storing[tn.reserved.Value] = true
	_, err := m.api().Broker.CreateDataKey(m.ctx, harness.Caller, broker.NewDataKey{Domain: tn.id, ID: id})
	if err == nil || broker.ReasonOf(err) != broker.ReasonDataKeyIDDeleted && !m.excused(tn, err) {
		t.Fatalf("I14: the id of a deleted data key was answered %v", err)
	}
}
