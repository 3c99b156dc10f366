package model_test

import (
	"bytes"
	"context"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"pgregory.net/rapid"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/localkms"
	"github.com/keybroker/keybroker/test/harness"
)

// check holds what is there after an action against every invariant, and against
// what was there before.
func (m *machine) check(t *rapid.T) {
	now := m.look(t)
	for _, tn := range m.tenants {
		before, after := m.before.of(tn), now.of(tn)
		m.noteEnds(t, tn, after)
		m.checkRows(t, tn, before, after)
		m.checkDomain(t, tn, before, after)
		m.checkJobs(t, tn, before, after)
		m.checkGrants(t, tn, after)
		m.checkReads(t, tn)
	}
	m.checkListed(t, now)
	m.checkSafe(t, now)
	m.checkCalls(t, now)
	m.before = now
}

// checkRows is I1, I2, I9 and I14: what was acknowledged is there, decrypts under
// exactly the key recorded for it, and is still the same.
func (m *machine) checkRows(t *rapid.T, tn *tenant, before, after *domainState) {
	for id := range tn.plain {
		if _, there := after.row(id); !there && !tn.deleting {
			t.Fatalf("I2: acknowledged data key %s is gone", id)
		}
	}
	for _, row := range after.rows {
		if was, there := before.row(row.ID); there {
			if was.UID != row.UID {
				t.Fatalf("I14: the id of data key %s stands for another one now", row.ID)
			}
			if row.Version < was.Version || row.Epoch < was.Epoch {
				t.Fatalf("I2: data key %s went back from version %d in epoch %d to %d in %d", row.ID, was.Version, was.Epoch, row.Version, row.Epoch)
			}
		}
		key := after.key(row.Epoch)
		if p, bad := tn.poison[row.ID]; bad && string(row.Ciphertext) == p.blob {
			continue // nobody can read it, and nobody made anything else of it
		} else if bad {
			t.Fatalf("I1: data key %s was damaged, and became something else", row.ID)
		}
		if row.Abandoned {
			t.Fatalf("I2: data key %s was given up, and is whole", row.ID)
		}
		m.prove(t, tn, key.KMSKey, row)
	}
}

// prove has the row's key's owner decrypt it, once for each form of the row.
func (m *machine) prove(t *rapid.T, tn *tenant, key broker.KeyARN, row broker.DataKey) {
	if was, ok := tn.proved[row.ID]; ok && was.UID == row.UID && was.Epoch == row.Epoch && bytes.Equal(was.Ciphertext, row.Ciphertext) &&
		maps.Equal(was.Context, row.Context) && was.KeyMaterialID == row.KeyMaterialID {
		return
	}
	got := m.decryptAsOwner(t, broker.DataKeyView{DataKey: row, DomainID: tn.id, KMSKey: key, EncryptionContext: row.Context.With(tn.reserved)})
	if want, ok := tn.plain[row.ID]; ok && !bytes.Equal(got, want) {
		t.Fatalf("I9: the plaintext of data key %s changed", row.ID)
	}
	tn.proved[row.ID] = row
}

// checkReads: whatever a service read within max_read_delay, it can unwrap.
func (m *machine) checkReads(t *rapid.T, tn *tenant) {
	now := m.now()
	tn.reads = slices.DeleteFunc(tn.reads, func(r heldRead) bool { return !now.Before(r.until) })
	if tn.deleting || len(tn.reads) == 0 {
		return
	}
	for _, h := range tn.held {
		if !m.good(tn, h) || !h.may("Decrypt") {
			continue
		}
		for _, r := range tn.reads {
			if m.unusable[r.view.KMSKey] != "" || m.leftOut(tn, h, r.view.Epoch) {
				continue
			}
			out, err := m.client(h).Decrypt(m.ctx, &kms.DecryptInput{CiphertextBlob: r.view.Ciphertext,
				EncryptionContext: r.view.EncryptionContext, GrantTokens: h.tokens})
			if err != nil {
				t.Fatalf("service cannot unwrap data key %s, read %s ago, under %s by %s: %v", r.view.ID, readDelay-r.until.Sub(now), r.view.KMSKey, h.id, err)
			}
			if !bytes.Equal(out.Plaintext, r.plain) {
				t.Fatalf("I9: data key %s unwraps to something else", r.view.ID)
			}
		}
	}
}

// A watch looks on as KMS is called. A violation waits there for the next check.
type watch struct {
	store broker.Store

	mu    sync.Mutex
	wrong []string
}

// call is I7's first half: whoever asks KMS for a grant has committed before that
// he will.
func (w *watch) call(c localkms.Call) {
	if c.Operation != "CreateGrant" || c.Principal != harness.RegistrarRole || c.DryRun || c.ErrorCode != "" {
		return
	}
	var row broker.KMSGrant
	err := w.store.View(context.Background(), func(tx broker.Tx) (err error) {
		row, err = tx.KMSGrantByName(context.Background(), c.GrantName)
		return err
	})
	if err != nil || row.KMSKey != broker.KeyARN(c.KeyARN) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.wrong = append(w.wrong, "I7: CreateGrant "+c.GrantName+" without an intent")
	}
}

// checkCalls is I4: every KMS call of the broker that makes ciphertext or a grant
// carries the reserved pair of the one domain it is for, and every call that
// reads one too, the source side of an import excepted. What it is for is told by
// the grant's row, by who stored something in the action, and of a job's
// ReEncrypt by its source, which KMS reads under no other pair; checkRows proves
// what came of it. Dry runs with a random value are the ownership probe.
func (m *machine) checkCalls(t *rapid.T, now *state) {
	m.watched.mu.Lock()
	wrong := m.watched.wrong
	m.watched.mu.Unlock()
	if len(wrong) > 0 {
		t.Fatal(strings.Join(wrong, "\n"))
	}
	for _, c := range m.bench.Calls() {
		if c.Principal != harness.RegistrarRole && c.Principal != harness.WorkerRole {
			continue
		}
		switch c.Operation {
		case "GenerateDataKey", "Decrypt", "Encrypt":
			t.Fatalf("the broker called %s", c.Operation)
		case "GenerateDataKeyWithoutPlaintext", "ReEncrypt":
			if !c.DryRun {
				m.checkPairs(t, c)
			}
		case "CreateGrant":
			if !c.DryRun && c.ErrorCode == "" {
				m.checkGrantCall(t, now, c)
			}
		}
	}
}

func (m *machine) checkPairs(t *rapid.T, c localkms.Call) {
	key := m.tenants[0].reserved.Key
	value := c.EncryptionContext[key]
	if !slices.ContainsFunc(m.tenants, func(tn *tenant) bool { return tn.reserved.Value == value }) {
		t.Fatalf("I4: %s without the reserved pair", c.Operation)
	}
	stores := c.Operation == "GenerateDataKeyWithoutPlaintext" || c.SourceKeyARN == string(m.legacy)
	if stores && !m.storing[value] {
		t.Fatalf("I4: %s with the reserved pair of %q, which stores nothing", c.Operation, value)
	}
	if source := c.SourceEncryptionContext[key]; !stores && source != value {
		t.Fatalf("I4: ReEncrypt from %s with the reserved pair of %q", c.SourceKeyARN, source)
	}
}

// checkGrantCall also sees that nothing is made again which the customer took
// away, until somebody asks for it.
func (m *machine) checkGrantCall(t *rapid.T, now *state, c localkms.Call) {
	row, known := now.kmsGrant(c.GrantName)
	tn := m.tenantOf(row.Domain)
	if !known || tn == nil {
		t.Fatalf("I7: CreateGrant %q is of no domain", c.GrantName)
	}
	pairs := c.Constraint.Subset
	if len(pairs) == 0 {
		pairs = c.Constraint.Equals
	}
	if pairs[tn.reserved.Key] != tn.reserved.Value {
		t.Fatalf("I4: CreateGrant %s without the reserved pair of %s", c.GrantName, tn.id)
	}
	if m.stolen.forbids(row) {
		t.Fatalf("%s was made again unasked: the customer took it away", c.GrantName)
	}
}
