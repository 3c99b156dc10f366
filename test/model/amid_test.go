package model_test

import (
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/keybroker/keybroker/test/harness"
)

// What comes in the middle of something: another call, a pause, a process's end.

// An errand is something that runs in a goroutine of its own, so that it can be
// stopped on its way, or its process end under it.
type errand struct {
	done   chan struct{}
	thrown any
}

func send(f func()) *errand {
	e := &errand{done: make(chan struct{})}
	go func() {
		defer close(e.done)
		defer func() { e.thrown = recover() }()
		f()
	}()
	return e
}

// wait waits for the errand's end, and throws on what it threw.
func (e *errand) wait() {
	<-e.done
	if e.thrown != nil {
		panic(e.thrown)
	}
}

// meanwhile stops a call at one of its KMS calls, before KMS has done the work or
// before its answer arrives, and lets something else happen. The process of the
// call may stand still as long; then the other replica serves.
func (m *machine) meanwhile(t *rapid.T) {
	calls := map[string]func(*rapid.T){"create": m.create, "import": m.importLegacy, "import own": m.importStraggler, "step": m.step,
		"other replica's step": m.otherReplica, "renew a grant": m.renewGrant}
	acts := map[string]func(*rapid.T){"step a lot": m.stepALot, "change key": m.changeKey, "delete": m.remove, "time": m.time,
		"pause": m.pause, "cancel": m.cancel, "create": m.create, "restart": m.restart}
	if m.storm {
		calls["create a grant"], calls["revoke a grant"], calls["sweep"], calls["sweep orphans"] = m.createGrant, m.revokeGrant, m.sweep, m.sweepOrphans
		calls["replace"], calls["side job"], calls["resume"], calls["delete a domain"] = m.replace, m.sideJob, m.resume, m.deleteDomain
		acts["revoke a grant"], acts["take a grant away"], acts["make a key unusable"] = m.revokeGrant, m.takeAway, m.makeUnusable
		acts["delete a domain"], acts["sweep"], acts["sweep orphans"], acts["renew a grant"] = m.deleteDomain, m.sweep, m.sweepOrphans, m.renewGrant
		acts["create a grant"], acts["acknowledge"], acts["rotate"] = m.createGrant, m.acknowledgeFailures, m.rotate
	}
	call := rapid.SampledFrom(names(calls)).Draw(t, "call")
	act := rapid.SampledFrom(names(acts)).Draw(t, "meanwhile")
	h := &hold{after: rapid.IntRange(0, 6).Draw(t, "after"), before: rapid.Bool().Draw(t, "done")}
	frozen := m.storm && rapid.Bool().Draw(t, "frozen")
	m.during(h, frozen, func() { calls[call](t) }, func() {
		if m.may(t, acts[act]) {
			m.tally.met("meanwhile " + act)
		}
	})
}

func names[F any](of map[string]F) []string {
	var all []string
	for name := range of {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

// during runs act while call is held, if it is.
func (m *machine) during(h *hold, frozen bool, call, act func()) {
	h.reached, h.release = make(chan struct{}), make(chan struct{})
	m.road.holdNext(h)
	first := m.bench.Replicas[0]
	e := send(call)
	defer e.wait()
	defer m.road.holdNext(nil)
	defer first.Thaw()
	select {
	case <-e.done:
		return
	case <-h.reached:
	}
	defer close(h.release)
	if frozen {
		first.Freeze()
		m.serving = 1
		defer func() { m.serving = 0 }()
	}
	act()
}

// points are all the places between an act at KMS and its commit, or around
// one, where a process may end.
func points() []string {
	return []string{"grant.intended", "grant.created", "retire.marked", "retire.asked", "datakey.generated", "import.reencrypted",
		"prepare.described", "prepare.granted", "switch.sampled", "switch.committed", "batch.reencrypted", "batch.committed",
		"verify.passed", "retire.retired", "retire.listed", "undo.retired", "delete.committed"}
}

// keeperPoints are those that only services come by which keep their own wrapped
// keys: TestKeeperModel of test/scenarios ends the process there.
func keeperPoints() []string {
	return []string{"items.reencrypted", "items.committed", "inventory.attested"}
}

// at is where a replica comes by a point.
func (m *machine) at(r *harness.Replica, point string) {
	if m.road.crashes(point) {
		m.crashed = true
		m.tally.met("crash at " + point)
		r.Kill()
		runtime.Goexit()
	}
}

// crash lets a process end at a point, in whatever reaches it first, and start
// again with nothing in memory. What was not acknowledged may be there or not;
// what was, is.
func (m *machine) crash(t *rapid.T) {
	point := rapid.SampledFrom(points()).Draw(t, "point")
	ways := map[string]func(*rapid.T){"step": m.stepALot, "run": m.run}
	switch room, _, _ := strings.Cut(point, "."); room {
	case "datakey":
		ways = map[string]func(*rapid.T){"create": m.create}
	case "import":
		ways = map[string]func(*rapid.T){"import": m.importLegacy, "import own": m.importStraggler}
	case "delete":
		ways = map[string]func(*rapid.T){"delete a domain": m.deleteDomain}
	case "grant":
		ways["create a grant"], ways["renew a grant"] = m.createGrant, m.renewGrant
	case "retire":
		ways["revoke a grant"], ways["sweep"], ways["sweep orphans"] = m.revokeGrant, m.sweep, m.sweepOrphans
	}
	way := rapid.SampledFrom(names(ways)).Draw(t, "way")
	m.road.armCrash(point)
	e := send(func() { ways[way](t) })
	defer m.road.armCrash("")
	e.wait()
	m.restart(t)
	m.bench.Clock.Advance(time.Minute) // the leases of the dead run out
}

// restart ends the replicas and loses everything that was in memory.
func (m *machine) restart(t *rapid.T) {
	m.crashed = true // for what is under way
	fatal(t, m.bench.Restart(m.cfg))
}

// TestEveryPointIsListed keeps the lists whole: a point that the sources name and
// no model crashes at fails.
func TestEveryPointIsListed(t *testing.T) {
	listed := append(points(), keeperPoints()...)
	named := regexp.MustCompile(`cfg\.At\("([a-z.]+)"\)`)
	found := map[string]bool{}
	for _, pattern := range []string{"../../internal/broker/*.go", "../../internal/rotation/*.go"} {
		files, err := filepath.Glob(pattern)
		fatal(t, err)
		for _, file := range files {
			src, err := os.ReadFile(file)
			fatal(t, err)
			for _, match := range named.FindAllStringSubmatch(string(src), -1) {
				found[match[1]] = true
				if !slices.Contains(listed, match[1]) {
					t.Errorf("%s: no model ever crashes at %s", file, match[1])
				}
			}
		}
	}
	for _, point := range listed {
		if !found[point] {
			t.Errorf("%s is in the list, and not in the sources", point)
		}
	}
}
