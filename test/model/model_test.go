// Package model_test holds the property test of the key change: the real
// service on localkms and SQLite, under random sequences of calls, steps,
// crashes, faults and time, against a model that knows every data key's
// plaintext and what became of every grant.
package model_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
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

// TestMain sets how far the walks go: what two quiet cores do in less than a
// minute. Flags on the command line count more.
func TestMain(m *testing.M) {
	for name, value := range map[string]string{"rapid.checks": "30", "rapid.steps": "60"} {
		if err := flag.Set(name, value); err != nil {
			panic(err)
		}
	}
	m.Run()
}

// TestKeyChangeModel walks in a world where only answers get lost and processes
// end: nothing may ever fail or block.
func TestKeyChangeModel(t *testing.T) { walk(t, false) }

// TestKeyChangeInAStorm walks in a world that misbehaves: KMS is slow, refuses,
// throttles and forgets, customers disable keys and take grants away, rows are
// damaged, domains go, and processes end wherever they can.
func TestKeyChangeInAStorm(t *testing.T) { walk(t, true) }

func walk(t *testing.T, storm bool) {
	t.Parallel()
	tally := newTally()
	// What no walk came by is looked for again: the walks are drawn.
	for range 3 {
		walkOften(t, storm, tally)
		if len(tally.missing(storm)) == 0 {
			break
		}
	}
	tally.log(t)
	for _, what := range tally.missing(storm) {
		t.Errorf("in %d walks there never was %s", tally.walks, what)
	}
}

func walkOften(t *testing.T, storm bool, tally *tally) {
	rapid.Check(t, func(t *rapid.T) {
		rapid.SyncTest(t, func(t *rapid.T) { // a bubble, where time is the walk's own
			m := newMachine(t, storm, tally)
			defer m.close(t)
			m.settleIn(t)
			tally.walked()
			t.Repeat(m.table(t))
			m.rest(t)
		})
	})
}

// A machine is the system under test and the model beside it.
type machine struct {
	ctx   context.Context
	end   context.CancelFunc
	cfg   harness.Config
	bench *harness.Bench
	road  *road
	storm bool
	tally *tally

	// Of the present action: when it began, the replica that answers calls, whether
	// one has ended, which jobs somebody resumed, and the values of the reserved
	// pairs of those who had data keys made or imported.
	begun   time.Time
	serving int
	crashed bool
	resumed map[broker.JobID]bool
	storing map[string]bool

	tenants   []*tenant
	keys      []broker.KeyARN // the customers'; a change goes to any of them
	legacy    broker.KeyARN
	foreign   map[string]bool             // KMS grant ids that are none of ours
	unusable  map[broker.KeyARN]string    // and how
	mended    map[broker.KeyARN]time.Time // when they became usable again, the last time
	lingers   time.Duration               // how long KMS may show what was retired
	materials map[broker.KeyARN][]string  // a key's material ids, oldest first
	stolen    stolen
	planted   time.Time // when the foreign grants were made

	serial   int
	requests []request
	safe     map[broker.KeyARN]time.Time // when a report called them safe
	before   *state                      // what was there after the last action
	watched  watch
}

// An action is one thing that may happen; the weight says how often.
type action struct {
	name   string
	weight int
	do     func(*rapid.T)
}

func (m *machine) calmActions() []action {
	return []action{
		{"create", 1, m.create},
		{"import legacy", 1, m.importLegacy},
		{"generate", 1, m.generate},
		{"import own", 1, m.importStraggler},
		{"read", 1, m.read},
		{"delete", 1, m.remove},
		{"change key", 2, m.changeKey},
		{"pause", 1, m.pause},
		{"resume", 1, m.resume},
		{"cancel", 1, m.cancel},
		{"step", 1, m.step},
		{"step a lot", 3, m.stepALot},
		{"work on", 5, m.workOn},
		{"run", 1, m.run},
		{"other replica", 1, m.otherReplica},
		{"time", 2, m.time},
		{"renew a grant", 1, m.renewGrant},
		{"restart", 1, m.restart},
		{"lose an answer", 1, m.loseAnswer},
		{"meanwhile", 3, m.meanwhile},
		{"report", 1, m.report},
	}
}

func (m *machine) stormActions() []action {
	return []action{
		{"make a key unusable", 2, m.makeUnusable},
		{"make a key usable", 2, m.makeUsable},
		{"rotate a key's material", 1, m.rotate},
		{"take a grant away", 2, m.takeAway},
		{"create a grant", 2, m.createGrant},
		{"revoke a grant", 1, m.revokeGrant},
		{"sweep", 1, m.sweep},
		{"sweep orphans", 2, m.sweepOrphans},
		{"material or verify job", 2, m.sideJob},
		{"resume a failed job", 1, m.resume},
		{"spoil a row", 1, m.spoil},
		{"spoil many rows", 1, m.spoilMany},
		{"replace a spoiled row", 1, m.replace},
		{"acknowledge", 1, m.acknowledgeFailures},
		{"delete a domain", 1, m.deleteDomain},
		{"repeat a request", 2, m.repeatRequest},
		{"stale etag", 1, m.staleEtag},
		{"id again", 1, m.reuseID},
		{"mishap", 3, m.mishap},
		{"hide grants", 1, m.hideGrants},
		{"take over", 2, m.takeOver},
		{"crash", 4, m.crash},
		{"more meanwhile", 3, m.meanwhile},
	}
}

// table is the actions as rapid draws them.
func (m *machine) table(t *rapid.T) map[string]func(*rapid.T) {
	actions := m.calmActions()
	if m.storm {
		// Each walk has its own part of the storm, so that none drowns in it. A draw
		// for each: one number would leave most of its upper bits unset.
		for _, a := range m.stormActions() {
			if rapid.Bool().Draw(t, a.name) {
				actions = append(actions, a)
			}
		}
	}
	table := map[string]func(*rapid.T){"": m.check}
	for _, a := range actions {
		for i := range a.weight {
			name := a.name
			if i > 0 {
				name = fmt.Sprintf("%s (%d)", a.name, i+1)
			}
			table[name] = func(t *rapid.T) {
				m.begin()
				if m.may(t, a.do) {
					m.tally.acted(a.name)
				}
			}
		}
	}
	return table
}

// nothing is thrown by an action for which there is nothing to do. To rapid it is
// an action like others: those that it has to reject would soon end the walk.
type nothing string

// may acts, unless there is nothing to do.
func (m *machine) may(t *rapid.T, do func(*rapid.T)) (acted bool) {
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(nothing); !ok {
				panic(r)
			}
		}
	}()
	do(t)
	return true
}

// begin forgets what befell the last action.
func (m *machine) begin() {
	m.serving, m.crashed, m.resumed = 0, false, map[broker.JobID]bool{}
	m.begun, m.storing = m.now(), map[string]bool{}
	m.road.begin()
	for _, tn := range m.tenants {
		tn.gone = tn.deleted
	}
}

func newMachine(t *rapid.T, storm bool, tally *tally) *machine {
	dir, err := os.MkdirTemp("", "model")
	fatal(t, err)
	m := &machine{road: newRoad(), storm: storm, tally: tally, foreign: map[string]bool{}, unusable: map[broker.KeyARN]string{}, mended: map[broker.KeyARN]time.Time{},
		materials: map[broker.KeyARN][]string{}, stolen: newStolen(), safe: map[broker.KeyARN]time.Time{}, before: &state{}}
	m.ctx, m.end = context.WithCancel(context.Background())
	m.cfg = harness.Config{Dir: dir, Bubble: true, GrantDelay: grantDelay, BatchRows: 3, Shards: 3, RowsPerShard: 4,
		Transport: m.road.wrap, At: m.at, Observe: m.watched.call,
		Windows: broker.Windows{GrantVisibility: visibility, MaxStoreDelay: storeDelay, MaxReadDelay: readDelay}}
	if m.bench, err = harness.New(m.ctx, m.cfg); err != nil {
		m.end()
		t.Fatal(errors.Join(err, os.RemoveAll(dir)))
	}
	m.watched.store = m.bench.Store.Broker()
	m.begin()
	return m
}

// settleIn makes keys and domains: acme and other are tenants with their first
// key, the same one; later has none yet. In calm only acme acts.
func (m *machine) settleIn(t *rapid.T) {
	out, err := m.bench.Customer.CreateKey(m.ctx, &kms.CreateKeyInput{})
	fatal(t, err)
	m.legacy = broker.KeyARN(aws.ToString(out.KeyMetadata.Arn))
	ids := []broker.DomainID{"acme", "other", "later"}
	for _, id := range ids {
		d, err := m.bench.NewDomain(m.ctx, id, string(m.legacy))
		fatal(t, err)
		m.tenants = append(m.tenants, newTenant(d))
	}
	m.allowImport(t)
	for range 3 {
		key, err := m.bench.NewKey(m.ctx, ids...)
		fatal(t, err)
		m.keys = append(m.keys, key)
		m.noteMaterial(t, key)
		m.plantForeign(t, key)
	}
	for _, tn := range m.tenants[:2] {
		job, err := m.bench.ChangeKey(m.ctx, tn.id, m.keys[0])
		fatal(t, err)
		view, err := m.bench.Finish(m.ctx, tn.id, job.ID)
		fatal(t, err)
		if view.State != rotation.Succeeded {
			t.Fatalf("first key of %s: %s, %s", tn.id, view.State, view.FailMessage)
		}
		m.storing[tn.reserved.Value] = true
		made, err := m.bench.Broker.CreateDataKey(m.ctx, harness.Caller, broker.NewDataKey{Domain: tn.id, ID: "first"})
		fatal(t, err)
		m.acknowledged(t, tn, made)
	}
	m.importSome(t, m.tenants[0], 5)
	m.importUnproven(t, m.tenants[0])
	m.firstGrant(t, m.tenants[0])
}

// close ends what the walk has left, and says what that was if it failed.
func (m *machine) close(t *rapid.T) {
	if t.Failed() {
		m.describe(t)
	}
	m.end()
	for _, r := range m.bench.Replicas {
		r.Kill()
	}
	if err := errors.Join(m.bench.Close(), os.RemoveAll(m.cfg.Dir)); err != nil {
		t.Error(err)
	}
}

func fatal(t interface {
	Helper()
	Fatal(...any)
}, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
