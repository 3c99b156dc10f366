package model_test

import (
	"bytes"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"pgregory.net/rapid"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/test/harness"
)

func (m *machine) check(t *rapid.T) {
	m.checkRows(t)
	m.checkReads(t)
	m.checkCalls(t)
	other, err := m.bench.Broker.GetDataKey(m.ctx, harness.Caller, bystander, "only")
	fatal(t, err)
	if !bytes.Equal(m.decryptAsOwner(t, other), m.otherPlain) {
		t.Fatal("the bystander's data key changed")
	}
}

// checkRows is I1, I2 and I9: what was acknowledged is there, decrypts under
// exactly the key recorded for it, and is still the same.
func (m *machine) checkRows(t *rapid.T) {
	views, err := m.bench.Broker.ListDataKeys(m.ctx, harness.Caller, domain, broker.DataKeyCursor{}, 10000)
	fatal(t, err)
	found := map[broker.DataKeyID]bool{}
	for _, v := range views {
		found[v.ID] = true
		want, ok := m.plain[v.ID]
		got := m.decryptAsOwner(t, v)
		if ok && !bytes.Equal(got, want) {
			t.Fatalf("I9: the plaintext of data key %s changed", v.ID)
		}
		if m.safe[v.KMSKey] && v.KMSKey != m.present(t) {
			t.Fatalf("I6: data key %s is under %s, which a report called safe", v.ID, v.KMSKey)
		}
	}
	for id := range m.plain {
		if !found[id] {
			t.Fatalf("I2: acknowledged data key %s is gone", id)
		}
	}
}

func (m *machine) present(t *rapid.T) broker.KeyARN {
	d, _, err := m.bench.Broker.GetDomain(m.ctx, harness.Caller, domain)
	fatal(t, err)
	return d.KMSKey
}

// checkReads: whatever a service read within max_read_delay, it can unwrap.
func (m *machine) checkReads(t *rapid.T) {
	now := m.bench.Clock.Now()
	m.reads = slices.DeleteFunc(m.reads, func(r heldRead) bool { return now.After(r.until) })
	for _, r := range m.reads {
		if m.disabled[r.view.KMSKey] {
			continue
		}
		out, err := m.bench.Service.Decrypt(m.ctx, &kms.DecryptInput{CiphertextBlob: r.view.Ciphertext,
			EncryptionContext: r.view.EncryptionContext, GrantTokens: m.usable(t)})
		if err != nil {
			t.Fatalf("service cannot unwrap data key %s, read %s ago, under %s: %v", r.view.ID, readDelay-r.until.Sub(now), r.view.KMSKey, err)
		}
		if want := m.plain[r.view.ID]; want != nil && !bytes.Equal(out.Plaintext, want) {
			t.Fatalf("I9: data key %s unwraps to something else", r.view.ID)
		}
	}
}

// usable are the service's tokens: those of its last answer.
func (m *machine) usable(*rapid.T) []string { return m.tokens }

// checkCalls is I4: every KMS call of the broker that makes ciphertext or a
// grant carries the reserved pair of one of the domains, and every call that
// reads one too, the source side of an import excepted. Dry runs with a random
// value are the ownership probe.
func (m *machine) checkCalls(t *rapid.T) {
	own := map[string]bool{m.acme.Reserved.Value: true, m.other.Reserved.Value: true}
	for _, c := range m.bench.Calls() {
		if !strings.Contains(c.Principal, "keybroker-") || c.DryRun {
			continue
		}
		switch c.Operation {
		case "GenerateDataKeyWithoutPlaintext", "ReEncrypt":
			if !own[c.EncryptionContext[m.acme.Reserved.Key]] {
				t.Fatalf("I4: %s without the reserved pair", c.Operation)
			}
			imports := c.SourceKeyARN == string(m.legacy)
			if c.Operation == "ReEncrypt" && !imports && !own[c.SourceEncryptionContext[m.acme.Reserved.Key]] {
				t.Fatalf("I4: ReEncrypt from %s without the reserved pair", c.SourceKeyARN)
			}
		case "CreateGrant":
			if !own[c.Constraint.Subset[m.acme.Reserved.Key]] && !own[c.Constraint.Equals[m.acme.Reserved.Key]] {
				t.Fatalf("I4: CreateGrant %s without the reserved pair", c.GrantName)
			}
		case "GenerateDataKey", "Decrypt", "Encrypt":
			t.Fatalf("the broker called %s", c.Operation)
		}
	}
}

// drainOut lets the open jobs end: whatever happened, the newest change that was
// not taken back must succeed.
func (m *machine) drainOut(t *rapid.T) {
	m.calm(t)
	for _, id := range slices.Clone(m.jobs) {
		_, err := m.bench.Engine.ResumeJob(m.ctx, harness.Caller, rotation.JobAct{Domain: domain, Job: id})
		if err != nil && broker.ReasonOf(err) != broker.ReasonJobEnded {
			t.Fatal(err)
		}
	}
	for _, id := range slices.Clone(m.jobs) {
		view, err := m.bench.Finish(m.ctx, domain, id)
		fatal(t, err)
		if view.State == rotation.Failed && view.FailReason != broker.ReasonKeyUnchanged {
			t.Fatalf("the job did not end well: %s in %s: %s %s", view.State, view.Phase, view.FailReason, view.FailMessage)
		}
	}
	m.sawJobs(t)
	m.report(t)
}
