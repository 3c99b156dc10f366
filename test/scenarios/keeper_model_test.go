package scenarios_test

import (
	"bytes"
	"context"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"pgregory.net/rapid"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/localkms"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/test/harness"
)

// The windows of the model, small enough that a walk crosses them often. A grant
// that is retired works on for a while, as at AWS.
const (
	keeperVisibility = 10 * time.Second
	keeperRetired    = 6 * time.Second
	keeperStore      = 200 * time.Second
	keeperRead       = 30 * time.Second
)

// TestKeeperModel lets a service that keeps its own wrapped keys, and keeps to the
// contract, live through key changes: it generates keys, also under a key that it
// has not noticed to be replaced, stores them in time, makes passes, loses
// receipts, renews its grant, and attests when it has looked through all that it
// has. Whatever the order, and whatever crashes: each key that it has opens at KMS,
// by its own role, under the key that it has recorded, to what it was; and no key
// that a report calls safe is needed by any of them.
func TestKeeperModel(t *testing.T) {
	met := map[string]int{}
	// What no walk came by is looked for again: the walks are drawn.
	for range 3 {
		walkAsKeepers(t, met)
		if len(notMet(met)) == 0 {
			break
		}
	}
	t.Logf("met: %v", met)
	for _, what := range notMet(met) {
		t.Errorf("no walk ever came by this: %s", what)
	}
}

// notMet names what the walks are for and have not come by.
func notMet(met map[string]int) []string {
	return slices.DeleteFunc([]string{"switched over", "moved", "unchanged", "attested", "attested again", "too early", string(rotation.Succeeded),
		"called safe", "crash at items.reencrypted", "crash at items.committed", "crash at inventory.attested"},
		func(what string) bool { return met[what] > 0 })
}

func walkAsKeepers(t *testing.T, met map[string]int) {
	rapid.Check(t, func(t *rapid.T) {
		m := newKeeperModel(t, met)
		defer m.close(t)
		t.Repeat(map[string]func(*rapid.T){
			"generate":          m.generate,
			"generate late":     m.generateLate,
			"store":             m.put,
			"store more":        m.put,
			"begin a pass":      m.begin,
			"begin again":       m.begin,
			"resume":            m.resume,
			"items":             m.items,
			"more items":        m.items,
			"all items":         m.allItems,
			"attest":            m.attest,
			"new grant":         m.newGrant,
			"change key":        m.changeKey,
			"switch over":       m.switchOver,
			"work":              m.work,
			"work on":           m.workOn,
			"work on more":      m.workOn,
			"time":              m.time,
			"crash":             m.crash,
			"lose answers":      m.loseAnswers,
			"attest by the way": m.conclude,
			"":                  m.check,
		})
		m.drainOut(t)
		m.check(t)
	})
}

// A keptKey is a wrapped key as the service has it.
type keptKey struct {
	blob    broker.Secret
	context broker.Context
	key     broker.KeyARN
	plain   []byte
	until   time.Time // before it is stored: when that must have happened
}

type keeperModel struct {
	ctx    context.Context
	cfg    harness.Config
	b      *harness.Bench
	domain broker.Domain
	keys   []broker.KeyARN // the customer's
	grant  broker.GrantID
	tokens []string
	noted  broker.KeyARN // the domain's key when the service last looked

	serial int
	hand   []keptKey          // generated, not stored
	stored map[string]keptKey // by the service's own id
	pass   *rotation.Pass
	todo   []string // ids that the pass has no receipt for
	jobs   []broker.JobID
	dieAt  string // the point at which the process ends next
	met    map[string]int
}

// crashed is what is thrown where the process ends.
type crashed string

func newKeeperModel(t *rapid.T, met map[string]int) *keeperModel {
	dir, err := os.MkdirTemp("", "keeper")
	noErr(t, err)
	m := &keeperModel{ctx: context.Background(), stored: map[string]keptKey{}, met: met}
	m.cfg = harness.Config{Dir: dir, GrantDelay: time.Second, At: func(_ *harness.Replica, point string) { m.at(point) },
		Windows: broker.Windows{GrantVisibility: keeperVisibility, MaxStoreDelay: keeperStore, MaxReadDelay: keeperRead}}
	m.b, err = harness.New(m.ctx, m.cfg)
	noErr(t, err)
	m.faults(t, 0)
	var first broker.KeyARN
	m.domain, first, err = m.b.Onboard(m.ctx, "acme")
	noErr(t, err)
	m.keys, m.noted = []broker.KeyARN{first}, first
	for range 2 {
		key, err := m.b.NewKey(m.ctx, "acme")
		noErr(t, err)
		m.keys = append(m.keys, key)
	}
	m.newGrant(t)
	return m
}

func noErr(t *rapid.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (m *keeperModel) close(t *rapid.T) {
	noErr(t, m.b.Close())
	noErr(t, os.RemoveAll(m.cfg.Dir))
}

func (m *keeperModel) at(point string) {
	if m.dieAt == point {
		m.dieAt = ""
		m.met["crash at "+point]++
		panic(crashed(point))
	}
}

// faults sets how many of the answers to ReEncrypt are lost.
func (m *keeperModel) faults(t *rapid.T, lost float64) {
	noErr(t, m.b.KMS.SetFaults(localkms.Faults{Seed: uint64(m.serial), RetireDelay: keeperRetired,
		LostAnswers: map[string]float64{"ReEncrypt": lost}}))
}

func (m *keeperModel) changeKey(t *rapid.T) {
	target := rapid.SampledFrom(m.keys).Draw(t, "target")
	view, err := m.b.ChangeKey(m.ctx, "acme", target)
	if broker.ReasonOf(err) == broker.ReasonKeyUnchanged {
		return
	}
	noErr(t, err)
	if !slices.Contains(m.jobs, view.ID) {
		m.jobs = append(m.jobs, view.ID)
	}
}

// switchOver changes the key while keys under the old one are in hand, and stops
// after the switch.
func (m *keeperModel) switchOver(t *rapid.T) {
	m.generate(t)
	m.changeKey(t)
	for range 60 {
		d, _, err := m.b.Broker.GetDomain(m.ctx, harness.Caller, "acme")
		noErr(t, err)
		if d.KMSKey != m.noted {
			m.met["switched over"]++
			return
		}
		moved, err := m.b.Step(m.ctx)
		noErr(t, err)
		if !moved {
			m.b.Clock.Advance(time.Second)
		}
	}
}

func (m *keeperModel) work(t *rapid.T) {
	for range rapid.IntRange(1, 10).Draw(t, "steps") {
		_, err := m.b.Step(m.ctx)
		noErr(t, err)
	}
}

// workOn lets the jobs go through every wait up to a length.
func (m *keeperModel) workOn(t *rapid.T) {
	longest := rapid.SampledFrom([]time.Duration{0, keeperVisibility, keeperRead, keeperStore + keeperVisibility}).Draw(t, "longest wait")
	for range rapid.IntRange(5, 40).Draw(t, "steps") {
		moved, err := m.b.Step(m.ctx)
		noErr(t, err)
		if moved {
			continue
		}
		wait := m.shortestWait(t)
		if wait == 0 || wait > longest {
			return
		}
		m.b.Clock.Advance(wait)
	}
}

// shortestWait is what the first of the open jobs waits for; 0 if none does.
func (m *keeperModel) shortestWait(t *rapid.T) (shortest time.Duration) {
	for _, id := range m.jobs {
		view, err := m.b.Engine.GetJob(m.ctx, harness.Caller, "acme", id)
		noErr(t, err)
		if wait := view.WaitUntil.Sub(m.b.Clock.Now()); view.Open() && wait > 0 && (shortest == 0 || wait < shortest) {
			shortest = wait
		}
	}
	return shortest
}

func (m *keeperModel) time(t *rapid.T) {
	ds := []time.Duration{time.Second, keeperRetired, keeperVisibility, keeperRead, keeperStore / 2, keeperStore + keeperVisibility}
	m.b.Clock.Advance(rapid.SampledFrom(ds).Draw(t, "duration"))
}

func (m *keeperModel) loseAnswers(t *rapid.T) {
	m.faults(t, rapid.SampledFrom([]float64{0, 0.3}).Draw(t, "lost"))
}

// crash lets the process end while the service talks to it.
func (m *keeperModel) crash(t *rapid.T) {
	m.dieAt = rapid.SampledFrom([]string{"items.reencrypted", "items.committed", "inventory.attested"}).Draw(t, "point")
	func() {
		defer func() {
			if r := recover(); r != nil {
				if _, ours := r.(crashed); !ours {
					panic(r)
				}
			}
		}()
		m.conclude(t)
	}()
	m.dieAt = ""
	noErr(t, m.b.Restart(m.cfg))
	m.b.Clock.Advance(time.Minute) // the leases of the dead run out
}

// check holds what the service has, and what the reports say, against KMS.
func (m *keeperModel) check(t *rapid.T) {
	m.hand = slices.DeleteFunc(m.hand, func(k keptKey) bool { return !m.b.Clock.Now().Before(k.until) })
	for id, k := range m.stored {
		m.opens(t, id, k)
	}
	for _, k := range m.hand {
		m.opens(t, "a key in hand", k)
	}
	for _, id := range m.jobs {
		report, err := m.b.Engine.RetirementReport(m.ctx, harness.Caller, "acme", id)
		noErr(t, err)
		for _, verdict := range report.Keys {
			if verdict.Safe {
				m.checkSafe(t, verdict.Key)
			}
		}
	}
}

func (m *keeperModel) opens(t *rapid.T, what string, k keptKey) {
	out, err := m.b.Service.Decrypt(m.ctx, &kms.DecryptInput{CiphertextBlob: k.blob, KeyId: aws.String(string(k.key)), EncryptionContext: k.context, GrantTokens: m.tokens})
	if err != nil {
		t.Fatalf("service cannot unwrap %s under %s: %v", what, k.key, err)
	}
	if !bytes.Equal(out.Plaintext, k.plain) {
		t.Fatalf("I9: %s is another key now", what)
	}
}

// checkSafe is I6 for the keys that the service has.
func (m *keeperModel) checkSafe(t *rapid.T, key broker.KeyARN) {
	m.met["called safe"]++
	for id, k := range m.stored {
		if k.key == key {
			t.Fatalf("I6: %s is called safe, and the service has %s under it", key, id)
		}
	}
	for _, k := range m.hand {
		if k.key == key {
			t.Fatalf("I6: %s is called safe, and the service may yet store a key under it", key)
		}
	}
}

// drainOut lets every job end: the service does its part.
func (m *keeperModel) drainOut(t *rapid.T) {
	m.faults(t, 0)
	for _, id := range m.jobs {
		for n := 0; ; n++ {
			view, err := m.b.Engine.GetJob(m.ctx, harness.Caller, "acme", id)
			noErr(t, err)
			if !view.Open() {
				m.met[string(view.State)]++
				if view.State == rotation.Failed && view.FailReason != broker.ReasonKeyUnchanged {
					t.Fatalf("job failed: %s %s", view.FailReason, view.FailMessage)
				}
				break
			}
			if n > 300 {
				t.Fatalf("job is still %s in %s: block %+v, waits for %q", view.State, view.Phase, view.Block, view.WaitMessage)
			}
			moved, err := m.b.Step(m.ctx)
			noErr(t, err)
			switch wait := m.shortestWait(t); {
			case moved:
			case view.State == rotation.Blocked:
				if view.Block.Reason != broker.ReasonSelfInventory {
					t.Fatalf("job blocked: %+v", view.Block)
				}
				m.conclude(t)
			case wait > 0:
				m.b.Clock.Advance(wait)
			default:
				m.b.Clock.Advance(keeperVisibility / 4)
			}
			m.check(t)
		}
	}
}
