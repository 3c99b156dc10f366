package model_test

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"pgregory.net/rapid"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/test/harness"
)

// TestKeyChangeInAStorm is the same model in a world that misbehaves: the owner
// disables and enables keys, KMS throttles, a second replica takes shards over
// whose holder was paused, and jobs of every kind come and go.
func TestKeyChangeInAStorm(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMachine(t)
		m.storm = true
		defer m.close(t)
		actions := m.actions()
		maps.Copy(actions, map[string]func(*rapid.T){
			"disable a key":  m.disable,
			"enable a key":   m.enable,
			"throttle":       m.throttle,
			"take over":      m.takeOver,
			"other replica":  m.otherReplica,
			"retry requests": m.retryRequest,
			"stale etag":     m.staleEtag,
			"end and sweep":  m.sweep,
			"id again":       m.reuseID,
			"crash":          m.crash,
			"crash again":    m.crash,
		})
		t.Repeat(actions)
		m.drainOut(t)
		m.check(t)
		m.checkNoStrays(t)
	})
}

func (m *machine) setEnabled(t *rapid.T, key broker.KeyARN, enabled bool) {
	if enabled {
		_, err := m.bench.Customer.EnableKey(m.ctx, &kms.EnableKeyInput{KeyId: aws.String(string(key))})
		fatal(t, err)
		return
	}
	_, err := m.bench.Customer.DisableKey(m.ctx, &kms.DisableKeyInput{KeyId: aws.String(string(key))})
	fatal(t, err)
}

func (m *machine) disable(t *rapid.T) {
	key := rapid.SampledFrom(m.keys).Draw(t, "key")
	m.setEnabled(t, key, false)
	m.disabled[key] = true
}

func (m *machine) enable(t *rapid.T) {
	if len(m.disabled) == 0 {
		t.Skip("all are enabled")
	}
	key := rapid.SampledFrom(slices.Sorted(maps.Keys(m.disabled))).Draw(t, "key")
	m.setEnabled(t, key, true)
	delete(m.disabled, key)
}

func (m *machine) throttle(t *rapid.T) {
	m.wire.throttleNext(rapid.IntRange(1, 20).Draw(t, "calls"))
}

// reuseID: the id of a deleted data key is never given out again (I14).
func (m *machine) reuseID(t *rapid.T) {
	id := m.anyID(t)
	m.removeID(t, id)
	_, err := m.bench.Broker.CreateDataKey(m.ctx, harness.Caller, broker.NewDataKey{Domain: domain, ID: id})
	if err == nil || broker.ReasonOf(err) != broker.ReasonDataKeyIDDeleted && !m.gaveUp(t, err) {
		t.Fatalf("I14: the id of a deleted data key was answered %v", err)
	}
}

// points are all the places between an act at KMS and its commit, or around
// one, where the process may end.
func points() []string {
	return []string{"grant.intended", "grant.created", "retire.marked", "retire.asked", "datakey.generated", "import.reencrypted",
		"prepare.described", "prepare.granted", "switch.sampled", "switch.committed", "batch.reencrypted", "batch.committed",
		"verify.passed", "retire.retired", "retire.listed", "undo.retired"}
}

// crash lets the process end at a point, in whatever reaches it first, and
// start again with nothing in memory. What was not acknowledged may be there or
// not; what was, is.
func (m *machine) crash(t *rapid.T) {
	point := rapid.SampledFrom(points()).Draw(t, "point")
	m.wire.armCrash(point)
	func() {
		defer func() {
			if r := recover(); r != nil {
				if _, ours := r.(crash); !ours {
					panic(r)
				}
			}
		}()
		switch {
		case strings.HasPrefix(point, "datakey"):
			m.create(t)
		case strings.HasPrefix(point, "import"):
			m.importLegacy(t)
		default:
			for range 30 {
				if _, err := m.bench.Step(m.ctx); err != nil && !m.wire.tookHold() {
					t.Fatalf("step: %v", err)
				}
			}
		}
	}()
	m.wire.armCrash("")
	fatal(t, m.bench.Restart(m.cfg))
	m.bench.Clock.Advance(time.Minute) // the leases of the dead run out
	m.sawJobs(t)
}

// calm ends all faults.
func (m *machine) calm(t *rapid.T) {
	m.wire.loseNext(-1)
	m.wire.throttleNext(0)
	for key := range m.disabled {
		m.setEnabled(t, key, true)
	}
	clear(m.disabled)
}

// takeOver pauses a replica in the middle of a batch for longer than its lease,
// and lets the other one work; what the first then commits must write nothing
// that is stale (I11).
func (m *machine) takeOver(t *rapid.T) {
	steps := rapid.IntRange(1, 20).Draw(t, "steps")
	m.wire.amid("ReEncrypt", func() {
		m.bench.Clock.Advance(time.Minute)
		for range steps {
			if _, err := m.bench.StepWith(m.ctx, m.bench.Other); err != nil && !m.wire.tookHold() {
				t.Fatalf("step of the other replica: %v", err)
			}
		}
	})
	m.step(t)
	m.wire.amid("", nil)
}

func (m *machine) otherReplica(t *rapid.T) {
	for range rapid.IntRange(1, 10).Draw(t, "steps") {
		if _, err := m.bench.StepWith(m.ctx, m.bench.Other); err != nil && !m.wire.tookHold() {
			t.Fatalf("step of the other replica: %v", err)
		}
	}
	m.sawJobs(t)
}

// retryRequest makes a data key twice with one request_id: one effect, the same
// answer (I8).
func (m *machine) retryRequest(t *rapid.T) {
	r := broker.Request{Method: "CreateDataKey", ID: string(m.nextID())}
	in := broker.NewDataKey{Request: r, Domain: domain}
	before := m.count(t)
	first, err := m.bench.Broker.CreateDataKey(m.ctx, harness.Caller, in)
	if m.gaveUp(t, err) {
		if first, err = m.bench.Broker.CreateDataKey(m.ctx, harness.Caller, in); m.gaveUp(t, err) {
			return
		}
	}
	m.plain[first.ID] = m.decryptAsOwner(t, first)
	again, err := m.bench.Broker.CreateDataKey(m.ctx, harness.Caller, in)
	fatal(t, err)
	if again.ID != first.ID || m.count(t) != before+1 {
		t.Fatalf("I8: one request_id made %s and %s, %d rows more", first.ID, again.ID, m.count(t)-before)
	}
}

func (m *machine) count(t *rapid.T) int64 {
	var n int64
	for _, rows := range m.rowsByEpoch(t) {
		n += rows
	}
	return n
}

// staleEtag: a delete with another version's etag changes nothing (I13).
func (m *machine) staleEtag(t *rapid.T) {
	id := m.anyID(t)
	err := m.bench.Broker.DeleteDataKey(m.ctx, harness.Caller, broker.Request{}, domain, id, "stale")
	if broker.ReasonOf(err) != broker.ReasonEtagMismatch {
		t.Fatalf("I13: a stale etag was answered %v", err)
	}
}

func (m *machine) sweep(t *rapid.T) {
	if err := m.bench.Broker.Sweep(m.ctx); err != nil && !m.wire.tookHold() {
		t.Fatalf("sweep: %v", err)
	}
}

// checkNoStrays is I7 at the end: after the sweeps have had their time, every
// grant that KMS shows is one that the database holds as live, and the other way
// round.
func (m *machine) checkNoStrays(t *rapid.T) {
	for range 3 {
		m.bench.Clock.Advance(time.Hour)
		fatal(t, m.bench.Broker.Sweep(m.ctx))
	}
	live := map[string]bool{}
	fatal(t, m.bench.Store.Broker().View(m.ctx, func(tx broker.Tx) error {
		grants, err := tx.KMSGrants(m.ctx, m.acme.UID, "")
		for _, g := range grants {
			if g.MayExist() {
				live[g.Name] = true
			}
		}
		return err
	}))
	m.eachGrant(t, func(key broker.KeyARN, name string, _ broker.GrantNameParts) {
		if !live[name] {
			t.Fatalf("I7: KMS shows %s on %s, and the database holds no such grant", name, key)
		}
		delete(live, name)
	})
	for name := range live {
		t.Fatalf("I7: the database holds %s as live, and KMS does not show it", name)
	}
}

// TestEveryPointIsListed keeps the list whole: a point that the sources name and
// the model does not crash at fails. Deleting a domain ends the model.
func TestEveryPointIsListed(t *testing.T) {
	named := regexp.MustCompile(`cfg\.At\("([a-z.]+)"\)`)
	found := 0
	for _, pattern := range []string{"../../internal/broker/*.go", "../../internal/rotation/*.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			src, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, match := range named.FindAllStringSubmatch(string(src), -1) {
				found++
				if !slices.Contains(points(), match[1]) && match[1] != "delete.committed" {
					t.Errorf("%s: the model never crashes at %s", file, match[1])
				}
			}
		}
	}
	if found < len(points()) {
		t.Errorf("%d points in the sources, %d in the list", found, len(points()))
	}
}
