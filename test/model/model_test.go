// Package model_test holds the property test of the key change: the real
// service on localkms and SQLite, under random sequences of calls, batches,
// crashes, lost answers and time, against a model that knows every data key's
// plaintext.
package model_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"pgregory.net/rapid"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/test/harness"
)

// The windows of the model, small enough that a walk crosses them often.
const (
	visibility = 10 * time.Second
	grantDelay = 5 * time.Second // below visibility, as the deployment promises
	storeDelay = 200 * time.Second
	readDelay  = 30 * time.Second
)

const (
	domain    broker.DomainID = "acme"
	bystander broker.DomainID = "other" // shares acme's first key, and must notice nothing
)

// A machine is the system under test and the model beside it.
type machine struct {
	ctx   context.Context
	cfg   harness.Config
	bench *harness.Bench
	wire  *faults

	acme, other broker.Domain
	legacy      broker.KeyARN
	keys        []broker.KeyARN // the customer's; a change goes to any of them
	jobs        []broker.JobID  // those that have not been seen to end, oldest first

	plain      map[broker.DataKeyID][]byte // acknowledged and not deleted: I2, I9
	otherPlain []byte
	serial     int
	tokens     []string
	grant      broker.GrantID
	operations []string
	reads      []heldRead
	stragglers []straggler
	safe       map[broker.KeyARN]bool // keys that a report called safe since they were last used
	done       map[broker.JobID]int64 // rows that a job said it has moved
	storm      bool                   // the world misbehaves: see storm_test.go
	disabled   map[broker.KeyARN]bool // by their owner
}

// A heldRead is what a service read and may use for readDelay.
type heldRead struct {
	view  broker.DataKeyView
	until time.Time
}

// A straggler is a data key that the service generated at KMS by its own wrap
// grant, and has storeDelay to import.
type straggler struct {
	key     broker.KeyARN
	context map[string]string
	blob    []byte
	plain   []byte
	until   time.Time
}

func TestKeyChangeModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMachine(t)
		defer m.close(t)
		t.Repeat(m.actions())
		m.drainOut(t)
		m.check(t)
	})
}

func (m *machine) actions() map[string]func(*rapid.T) {
	return map[string]func(*rapid.T){
		"create":         m.create,
		"import legacy":  m.importLegacy,
		"generate":       m.generate,
		"import own":     m.importStraggler,
		"read":           m.read,
		"delete":         m.remove,
		"change key":     m.changeKey,
		"pause":          m.pause,
		"resume":         m.resume,
		"cancel":         m.cancel,
		"create amid":    m.createAmid,
		"import amid":    m.importAmid,
		"delete amid":    m.deleteAmid,
		"step":           m.step,
		"step a lot":     m.stepALot,
		"work on":        m.workOn,
		"work on more":   m.workOn,
		"time":           m.time,
		"renew":          m.renew,
		"restart":        m.restart,
		"lose an answer": m.loseAnswer,
		"report":         m.report,
		"":               m.check,
	}
}

func newMachine(t *rapid.T) *machine {
	dir, err := os.MkdirTemp("", "model")
	fatal(t, err)
	wire := &faults{}
	m := &machine{ctx: context.Background(), wire: wire, plain: map[broker.DataKeyID][]byte{}, safe: map[broker.KeyARN]bool{}, disabled: map[broker.KeyARN]bool{}, done: map[broker.JobID]int64{},
		cfg: harness.Config{Dir: dir, GrantDelay: grantDelay, BatchRows: 3, Shards: 2, Transport: wire.wrap, At: wire.at,
			Windows: broker.Windows{GrantVisibility: visibility, MaxStoreDelay: storeDelay, MaxReadDelay: readDelay}}}
	m.bench, err = harness.New(m.ctx, m.cfg)
	fatal(t, err)
	out, err := m.bench.Customer.CreateKey(m.ctx, &kms.CreateKeyInput{})
	fatal(t, err)
	m.legacy = broker.KeyARN(aws.ToString(out.KeyMetadata.Arn))
	m.acme, err = m.bench.NewDomain(m.ctx, domain, string(m.legacy))
	fatal(t, err)
	m.other, err = m.bench.NewDomain(m.ctx, bystander)
	fatal(t, err)
	m.allowImport(t)
	for range 3 {
		key, err := m.bench.NewKey(m.ctx, domain, bystander)
		fatal(t, err)
		m.keys = append(m.keys, key)
	}
	for _, id := range []broker.DomainID{domain, bystander} {
		job, err := m.bench.ChangeKey(m.ctx, id, m.keys[0])
		fatal(t, err)
		view, err := m.bench.Finish(m.ctx, id, job.ID)
		fatal(t, err)
		if view.State != rotation.Succeeded {
			t.Fatalf("first key of %s: %s, %s", id, view.State, view.FailMessage)
		}
	}
	m.acme, _, err = m.bench.Broker.GetDomain(m.ctx, harness.Caller, domain)
	fatal(t, err)
	m.otherPlain = m.otherKey(t)
	// A service that cannot wrap has nothing on its way, so nothing drains.
	m.operations = []string{"Decrypt"}
	if rapid.Bool().Draw(t, "service wraps") {
		m.operations = append(m.operations, "GenerateDataKey")
	}
	made, err := m.bench.Broker.CreateGrant(m.ctx, harness.Caller, broker.NewGrant{Domain: domain, Grantee: harness.ServiceRole,
		Operations: m.operations, TTL: 300 * 24 * time.Hour})
	fatal(t, err)
	m.grant, m.tokens = made.ID, reveal(made.Tokens)
	return m
}

func (m *machine) close(t *rapid.T) {
	fatal(t, m.bench.Close())
	fatal(t, os.RemoveAll(m.cfg.Dir))
}

func fatal(t interface{ Fatal(...any) }, err error) {
	if err != nil {
		t.Fatal(err)
	}
}

func reveal(tokens []broker.Secret) []string {
	out := make([]string, len(tokens))
	for i, s := range tokens {
		out[i] = string(s)
	}
	return out
}

// allowImport puts the import statement on the legacy key.
func (m *machine) allowImport(t *rapid.T) {
	present, err := m.bench.Customer.GetKeyPolicy(m.ctx, &kms.GetKeyPolicyInput{KeyId: aws.String(string(m.legacy))})
	fatal(t, err)
	policy, err := m.bench.Broker.GenerateKeyPolicy(m.ctx, harness.Caller, broker.KeyPolicyRequest{Domain: domain,
		Existing: aws.ToString(present.Policy), Profile: broker.PolicyImportSource, ImportContext: broker.Context{"service": "legacy"}})
	fatal(t, err)
	_, err = m.bench.Customer.PutKeyPolicy(m.ctx, &kms.PutKeyPolicyInput{KeyId: aws.String(string(m.legacy)), Policy: aws.String(policy.Document)})
	fatal(t, err)
}

func (m *machine) otherKey(t *rapid.T) []byte {
	view, err := m.bench.Broker.CreateDataKey(m.ctx, harness.Caller, broker.NewDataKey{Domain: bystander, ID: "only"})
	fatal(t, err)
	return m.decryptAsOwner(t, view)
}

// decryptAsOwner is the judge: the key's owner decrypts a blob at KMS under
// exactly the key recorded for it.
func (m *machine) decryptAsOwner(t *rapid.T, view broker.DataKeyView) []byte {
	if m.disabled[view.KMSKey] { // the owner may look for a moment
		m.setEnabled(t, view.KMSKey, true)
		defer m.setEnabled(t, view.KMSKey, false)
	}
	out, err := m.bench.Customer.Decrypt(m.ctx, &kms.DecryptInput{CiphertextBlob: view.Ciphertext,
		KeyId: aws.String(string(view.KMSKey)), EncryptionContext: view.EncryptionContext})
	if err != nil {
		t.Fatalf("I1: data key %s does not decrypt under its recorded key %s: %v", view.ID, view.KMSKey, err)
	}
	return out.Plaintext
}

// --- actions: the owner of data ---

func (m *machine) nextID() broker.DataKeyID {
	m.serial++
	// Ids spread over the key space, so that new ones fall before and behind cursors.
	return broker.DataKeyID(fmt.Sprintf("%c%d", 'a'+byte(m.serial*7%26), m.serial))
}

func (m *machine) create(t *rapid.T) {
	id := m.nextID()
	view, err := m.bench.Broker.CreateDataKey(m.ctx, harness.Caller, broker.NewDataKey{Domain: domain, ID: id,
		Context: broker.Context{"n": strconv.Itoa(m.serial)}})
	if m.gaveUp(t, err) {
		return
	}
	m.plain[id] = m.decryptAsOwner(t, view)
}

// gaveUp accepts that a call failed for a lost answer, and nothing else.
func (m *machine) gaveUp(t *rapid.T, err error) bool {
	if err == nil {
		return false
	}
	if m.wire.tookHold() && (errors.Is(err, broker.ErrUnavailable) || errors.Is(err, broker.ErrExhausted)) {
		return true
	}
	if m.storm && len(m.disabled) > 0 && broker.ReasonOf(err) == broker.ReasonKeyDisabled {
		return true
	}
	t.Fatalf("call failed: %v", err)
	return true
}

func (m *machine) importLegacy(t *rapid.T) {
	in := broker.ImportDataKeys{Domain: domain}
	plain := map[broker.DataKeyID][]byte{}
	for range rapid.IntRange(1, 3).Draw(t, "items") {
		id := m.nextID()
		pairs := map[string]string{"service": "legacy", "record": string(id)}
		plain[id] = bytes.Repeat([]byte{byte(m.serial)}, 32)
		out, err := m.bench.Customer.Encrypt(m.ctx, &kms.EncryptInput{KeyId: aws.String(string(m.legacy)), Plaintext: plain[id], EncryptionContext: pairs})
		fatal(t, err)
		in.Items = append(in.Items, broker.ImportItem{ID: id, Ciphertext: out.CiphertextBlob, SourceKey: m.legacy, SourceContext: pairs})
	}
	m.imported(t, in, plain)
}

func (m *machine) imported(t *rapid.T, in broker.ImportDataKeys, plain map[broker.DataKeyID][]byte) {
	results, err := m.bench.Broker.ImportDataKeys(m.ctx, harness.Caller, in)
	if m.gaveUp(t, err) {
		return
	}
	for i, r := range results {
		if m.storm && len(m.disabled) > 0 && broker.ReasonOf(r.Err) == broker.ReasonKeyDisabled {
			delete(plain, in.Items[i].ID)
			continue
		}
		if r.Err != nil {
			t.Fatalf("import of %s under %s refused: %v", in.Items[i].ID, in.Items[i].SourceKey, r.Err)
		}
	}
	maps.Copy(m.plain, plain)
}

// generate: the service makes a data key at KMS by its own grant, behind the
// broker's back, under the key that the broker names to it.
func (m *machine) generate(t *rapid.T) {
	if len(m.operations) < 2 {
		t.Skip("the service cannot wrap")
	}
	d, _, err := m.bench.Broker.GetDomain(m.ctx, harness.Caller, domain)
	fatal(t, err)
	pairs := map[string]string{"made": "at KMS", d.Reserved.Key: d.Reserved.Value}
	out, err := m.bench.Service.GenerateDataKey(m.ctx, &kms.GenerateDataKeyInput{KeyId: aws.String(string(d.KMSKey)),
		KeySpec: types.DataKeySpecAes256, EncryptionContext: pairs, GrantTokens: m.tokens})
	if err != nil && m.disabled[d.KMSKey] {
		return
	}
	if err != nil {
		t.Fatalf("service cannot generate under the domain's present key: %v", err)
	}
	m.stragglers = append(m.stragglers, straggler{key: d.KMSKey, context: pairs, blob: out.CiphertextBlob, plain: out.Plaintext,
		until: m.bench.Clock.Now().Add(storeDelay)})
}

// importStraggler keeps the service's part of the contract: it imports within
// max_store_delay. The broker's part is that the import is then never refused.
func (m *machine) importStraggler(t *rapid.T) {
	if len(m.stragglers) == 0 {
		t.Skip("nothing to import")
	}
	i := rapid.IntRange(0, len(m.stragglers)-1).Draw(t, "straggler")
	s := m.stragglers[i]
	m.stragglers = slices.Delete(m.stragglers, i, i+1)
	if m.bench.Clock.Now().After(s.until) {
		return // the service broke the contract: nothing is promised
	}
	id := m.nextID()
	m.imported(t, broker.ImportDataKeys{Domain: domain, Items: []broker.ImportItem{{ID: id, Ciphertext: s.blob, SourceKey: s.key, SourceContext: s.context}}},
		map[broker.DataKeyID][]byte{id: s.plain})
}

func (m *machine) anyID(t *rapid.T) broker.DataKeyID {
	if len(m.plain) == 0 {
		t.Skip("no data keys")
	}
	return rapid.SampledFrom(slices.Sorted(maps.Keys(m.plain))).Draw(t, "id")
}

// read: a service reads a wrapped key and unwraps it at KMS by its own grant,
// now or any time within max_read_delay.
func (m *machine) read(t *rapid.T) {
	id := m.anyID(t)
	view, err := m.bench.Broker.GetDataKey(m.ctx, harness.Caller, domain, id)
	if err != nil {
		t.Fatalf("I2: acknowledged data key %s: %v", id, err)
	}
	m.reads = append(m.reads, heldRead{view: view, until: m.bench.Clock.Now().Add(readDelay)})
}

func (m *machine) remove(t *rapid.T) {
	m.removeID(t, m.anyID(t))
}

func (m *machine) removeID(t *rapid.T, id broker.DataKeyID) {
	fatal(t, m.bench.Broker.DeleteDataKey(m.ctx, harness.Caller, broker.Request{}, domain, id, ""))
	delete(m.plain, id)
	m.reads = slices.DeleteFunc(m.reads, func(r heldRead) bool { return r.view.ID == id })
}

func (m *machine) renew(t *rapid.T) {
	view, err := m.bench.Broker.RenewGrant(m.ctx, harness.Caller, broker.RenewGrant{Domain: domain, ID: m.grant, TTL: 300 * 24 * time.Hour, Reason: "model"})
	if m.gaveUp(t, err) {
		return
	}
	m.tokens = reveal(view.Tokens)
}

// --- actions: the owner of the key, the engine, the world ---

// changeKey: to any key, at any time. A change in PREPARING gives way; the
// present key takes it back.
func (m *machine) changeKey(t *rapid.T) {
	d, _, err := m.bench.Broker.GetDomain(m.ctx, harness.Caller, domain)
	fatal(t, err)
	target := rapid.SampledFrom(m.keys).Draw(t, "target")
	view, err := m.bench.ChangeKey(m.ctx, domain, target)
	if target == d.KMSKey && broker.ReasonOf(err) == broker.ReasonKeyUnchanged {
		return
	}
	if err != nil {
		t.Fatalf("change to %s: %v", target, err)
	}
	if !slices.Contains(m.jobs, view.ID) {
		m.jobs = append(m.jobs, view.ID)
	}
	delete(m.safe, target)
}

// act calls a verb on one of the open jobs; refusals must be one of reasons.
func (m *machine) act(t *rapid.T, verb func(context.Context, broker.Caller, rotation.JobAct) (rotation.JobView, error), reasons ...broker.Reason) {
	if len(m.jobs) == 0 {
		t.Skip("no job")
	}
	id := rapid.SampledFrom(m.jobs).Draw(t, "job")
	_, err := verb(m.ctx, harness.Caller, rotation.JobAct{Domain: domain, Job: id, Reason: "model"})
	if err != nil && !slices.Contains(reasons, broker.ReasonOf(err)) {
		t.Fatalf("verb on job %s: %v", id, err)
	}
}

func (m *machine) pause(t *rapid.T) {
	m.act(t, m.bench.Engine.PauseJob, broker.ReasonJobEnded)
}

func (m *machine) resume(t *rapid.T) {
	m.act(t, m.bench.Engine.ResumeJob, broker.ReasonJobEnded)
}

func (m *machine) cancel(t *rapid.T) {
	m.act(t, m.bench.Engine.CancelJob, broker.ReasonJobEnded, broker.ReasonJobNotCancellable)
}

func (m *machine) step(t *rapid.T) {
	_, err := m.bench.Step(m.ctx)
	if err != nil && !m.wire.tookHold() {
		t.Fatalf("step: %v", err)
	}
	m.sawJobs(t)
}

func (m *machine) stepALot(t *rapid.T) {
	for range rapid.IntRange(5, 40).Draw(t, "steps") {
		m.step(t)
	}
}

// workOn lets the job go on through every wait up to a length.
func (m *machine) workOn(t *rapid.T) {
	longest := rapid.SampledFrom([]time.Duration{0, visibility, readDelay, storeDelay + visibility}).Draw(t, "longest wait")
	for range rapid.IntRange(5, 60).Draw(t, "steps") {
		moved, err := m.bench.Step(m.ctx)
		if err != nil && !m.wire.tookHold() {
			t.Fatalf("step: %v", err)
		}
		m.sawJobs(t)
		if len(m.jobs) == 0 || moved {
			continue
		}
		wait := m.nextWait(t)
		if wait > longest {
			return
		}
		m.bench.Clock.Advance(max(wait, 0))
	}
}

// nextWait gives the shortest time that an open job waits for, 0 if none does.
func (m *machine) nextWait(t *rapid.T) time.Duration {
	shortest := time.Duration(0)
	for _, id := range m.jobs {
		view, err := m.bench.Engine.GetJob(m.ctx, harness.Caller, domain, id)
		fatal(t, err)
		if wait := view.WaitUntil.Sub(m.bench.Clock.Now()); wait > 0 && (shortest == 0 || wait < shortest) {
			shortest = wait
		}
	}
	return shortest
}

// createAmid and importAmid let the engine work between KMS's answer to a
// foreground call and the store of what it brought.
func (m *machine) createAmid(t *rapid.T) {
	m.amid(t, "GenerateDataKeyWithoutPlaintext")
	m.create(t)
	m.wire.amid("", nil)
}

func (m *machine) importAmid(t *rapid.T) {
	m.amid(t, "ReEncrypt")
	m.importLegacy(t)
	m.wire.amid("", nil)
}

func (m *machine) amid(t *rapid.T, operation string) {
	steps := rapid.IntRange(1, 30).Draw(t, "steps")
	pause := rapid.SampledFrom([]time.Duration{0, visibility}).Draw(t, "pause")
	m.wire.amid(operation, func() {
		m.bench.Clock.Advance(pause)
		for range steps {
			if _, err := m.bench.Step(m.ctx); err != nil && !m.wire.tookHold() {
				t.Fatalf("step amid %s: %v", operation, err)
			}
		}
	})
}

// deleteAmid deletes a row between the answer to its ReEncrypt, or another's,
// and the commit of the batch.
func (m *machine) deleteAmid(t *rapid.T) {
	id := m.anyID(t)
	done := false
	m.wire.amid("ReEncrypt", func() {
		fatal(t, m.bench.Broker.DeleteDataKey(m.ctx, harness.Caller, broker.Request{}, domain, id, ""))
		done = true
	})
	m.step(t)
	m.wire.amid("", nil)
	if done {
		delete(m.plain, id)
		m.reads = slices.DeleteFunc(m.reads, func(r heldRead) bool { return r.view.ID == id })
	}
}

func (m *machine) time(t *rapid.T) {
	ds := []time.Duration{time.Second, grantDelay, visibility, visibility, readDelay, readDelay, visibility + storeDelay}
	m.bench.Clock.Advance(rapid.SampledFrom(ds).Draw(t, "duration"))
}

// restart loses everything that was in memory.
func (m *machine) restart(t *rapid.T) { fatal(t, m.bench.Restart(m.cfg)) }

func (m *machine) loseAnswer(t *rapid.T) { m.wire.loseNext(rapid.IntRange(0, 6).Draw(t, "after")) }

// sawJobs notes which jobs have ended, and holds each end against what it
// promises.
func (m *machine) sawJobs(t *rapid.T) {
	m.jobs = slices.DeleteFunc(m.jobs, func(id broker.JobID) bool {
		view, err := m.bench.Engine.GetJob(m.ctx, harness.Caller, domain, id)
		fatal(t, err)
		if done := view.Progress.Done; done < m.done[id] {
			t.Fatalf("I10: job %s went back from %d rows to %d", id, m.done[id], done)
		}
		m.done[id] = view.Progress.Done
		switch view.State {
		case rotation.Blocked:
			if m.storm {
				break
			}
			t.Fatalf("job blocked although nothing is wrong: %+v", view.Block)
		case rotation.Failed:
			if view.FailReason != broker.ReasonKeyUnchanged && !(m.storm && view.FailReason == broker.ReasonKeyDisabled && view.Phase == rotation.Preparing) {
				t.Fatalf("job failed: %s %s", view.FailReason, view.FailMessage)
			}
			m.checkUndone(t, view)
		case rotation.Cancelled, rotation.Superseded:
			if view.Phase == rotation.Preparing {
				m.checkUndone(t, view)
			}
		case rotation.Succeeded:
			m.checkSucceeded(t, view)
		}
		return !view.Open()
	})
}

// checkUndone: a change that ended before its switch left nothing at KMS (I7).
func (m *machine) checkUndone(t *rapid.T, view rotation.JobView) {
	m.eachGrant(t, func(key broker.KeyARN, name string, parts broker.GrantNameParts) {
		if parts.Epoch == view.TargetEpoch {
			t.Fatalf("I7: job %s is %s, and KMS shows its grant %s on %s", view.ID, view.State, name, key)
		}
	})
}

// eachGrant gives the domain's grants as KMS lists them to the keys' owner.
func (m *machine) eachGrant(t *rapid.T, see func(broker.KeyARN, string, broker.GrantNameParts)) {
	for _, key := range m.keys {
		names, err := m.bench.GrantsAt(m.ctx, key, m.acme)
		fatal(t, err)
		for _, name := range names {
			parts, ok := m.bench.Broker.ParseKMSGrantName(name)
			if !ok {
				t.Fatalf("KMS shows a grant %q that is no Name of ours", name)
			}
			see(key, name, parts)
		}
	}
}

// checkSucceeded is I3: no row and no live grant of this domain is left below
// the target, as the database and KMS themselves show.
func (m *machine) checkSucceeded(t *rapid.T, view rotation.JobView) {
	counts := m.rowsByEpoch(t)
	for e, n := range counts {
		if e < view.TargetEpoch && n > 0 {
			t.Fatalf("I3: job succeeded with %d rows under epoch %d", n, e)
		}
	}
	m.eachGrant(t, func(key broker.KeyARN, name string, parts broker.GrantNameParts) {
		if parts.Epoch < view.TargetEpoch {
			t.Fatalf("I3: job to epoch %d succeeded, and KMS shows %s on %s", view.TargetEpoch, name, key)
		}
	})
}

func (m *machine) rowsByEpoch(t *rapid.T) map[broker.Epoch]int64 {
	var counts map[broker.Epoch]int64
	fatal(t, m.bench.Store.Rotation().View(m.ctx, func(tx rotation.Tx) (err error) {
		counts, err = tx.CountDataKeys(m.ctx, m.acme.UID)
		return err
	}))
	return counts
}

// report is I6: a key that a report calls safe is needed by nothing, and the
// report of a job that is still open calls none safe.
func (m *machine) report(t *rapid.T) {
	var jobs []rotation.Job
	fatal(t, m.bench.Store.Rotation().View(m.ctx, func(tx rotation.Tx) (err error) {
		jobs, err = tx.ListJobs(m.ctx, m.acme.UID, "", 1000)
		return err
	}))
	for _, j := range jobs {
		report, err := m.bench.Engine.RetirementReport(m.ctx, harness.Caller, domain, j.ID)
		if broker.ReasonOf(err) == broker.ReasonReportNotFound {
			continue
		}
		fatal(t, err)
		for _, k := range report.Keys {
			if !k.Safe {
				continue
			}
			if j.Open() {
				t.Fatalf("I6: the report of a job in %s %s calls %s safe", j.Phase, j.State, k.Key)
			}
			m.checkSafe(t, k.Key)
		}
	}
}

func (m *machine) checkSafe(t *rapid.T, key broker.KeyARN) {
	for _, d := range []broker.Domain{m.acme, m.other} {
		names, err := m.bench.GrantsAt(m.ctx, key, d)
		fatal(t, err)
		if len(names) > 0 {
			t.Fatalf("I6: %s is called safe, and %s has grants on it: %v", key, d.ID, names)
		}
		now, _, err := m.bench.Broker.GetDomain(m.ctx, harness.Caller, d.ID)
		fatal(t, err)
		if now.KMSKey == key {
			t.Fatalf("I6: %s is called safe, and it is the key of %s", key, d.ID)
		}
	}
	m.safe[key] = true
}
