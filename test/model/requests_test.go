package model_test

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	"pgregory.net/rapid"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/test/harness"
)

// A request is a call that may be repeated with its request_id.
type request struct {
	tenant *tenant
	name   string
	ask    func(*rapid.T)
	made   time.Time
}

const (
	requestMemory  = 24 * time.Hour // what the API promises
	requestsToKeep = 8
)

func (m *machine) newRequest(method string) broker.Request {
	m.serial++
	id := fmt.Sprintf("request-%d", m.serial)
	return broker.Request{Method: method, ID: id, Hash: sha256.Sum256([]byte(id))}
}

func (m *machine) remember(tn *tenant, name string, ask func(*rapid.T)) {
	m.requests = append(m.requests, request{tn, name, ask, m.now()})
	if len(m.requests) > requestsToKeep {
		m.requests = m.requests[1:]
	}
}

// repeatRequest: one request_id has one effect and one answer (I8). A call that
// had no answer may have its effect now; one that had it changes nothing.
func (m *machine) repeatRequest(t *rapid.T) {
	if len(m.requests) == 0 {
		panic(nothing("no requests"))
	}
	r := rapid.SampledFrom(m.requests).Draw(t, "request")
	if m.now().Sub(r.made) >= requestMemory {
		panic(nothing("it is forgotten"))
	}
	r.ask(t)
	before := m.look(t)
	r.ask(t)
	if m.crashed || m.road.struckAny() || r.tenant.deleting {
		return
	}
	if after := m.look(t); effects(after.of(r.tenant)) != effects(before.of(r.tenant)) {
		t.Fatalf("I8: the request to %s was done, and its repeat changed\n%s\nto\n%s", r.name, effects(before.of(r.tenant)), effects(after.of(r.tenant)))
	}
}

// effects is what the calls of people change.
func effects(d *domainState) string {
	out := fmt.Sprintf("domain version %d;", d.domain.Version)
	for _, k := range d.rows {
		out += fmt.Sprintf(" %s/%d", k.ID, k.Version)
	}
	for _, g := range d.grants {
		out += fmt.Sprintf("; %s %s until %s", g.ID, g.State, g.ExpireTime)
	}
	for _, j := range d.jobs {
		out += fmt.Sprintf("; %s %s", j.ID, j.State)
	}
	return out
}

// staleEtag: a call with another version's etag changes nothing (I13).
func (m *machine) staleEtag(t *rapid.T) {
	tn := m.anyTenant(t)
	d, api := m.before.of(tn), m.api()
	const stale = "stale"
	calls := map[string]func() error{
		"DeleteDomain": func() error {
			return api.Engine.DeleteDomain(m.ctx, harness.Caller, rotation.DeleteDomain{Domain: tn.id, Etag: stale, CryptoShred: true, Reason: "model"})
		},
	}
	if d.domain.Epoch > 0 {
		calls["ChangeKey"] = func() error {
			_, err := api.Engine.ChangeKey(m.ctx, harness.Caller, rotation.ChangeKey{Domain: tn.id, KMSKey: string(m.legacy), Etag: stale, Reason: "model"})
			return err
		}
	}
	for _, id := range slices.Sorted(maps.Keys(tn.plain)) {
		calls["DeleteDataKey"] = func() error {
			return api.Broker.DeleteDataKey(m.ctx, harness.Caller, broker.Request{}, tn.id, id, stale)
		}
	}
	for _, h := range tn.held {
		if m.grantNow(tn, h.uid).State != broker.GrantActive {
			continue
		}
		calls["RenewGrant"] = func() error {
			_, err := api.Broker.RenewGrant(m.ctx, harness.Caller, broker.RenewGrant{Domain: tn.id, ID: h.id, TTL: long, Etag: stale, Reason: "model"})
			return err
		}
		calls["RevokeGrant"] = func() error {
			_, err := api.Broker.RevokeGrant(m.ctx, harness.Caller, broker.RevokeGrant{Domain: tn.id, ID: h.id, Etag: stale})
			return err
		}
	}
	for _, j := range d.jobs {
		in := rotation.JobAct{Domain: tn.id, Job: j.ID, Etag: stale, Reason: "model"}
		calls["PauseJob"] = func() error { _, err := api.Engine.PauseJob(m.ctx, harness.Caller, in); return err }
		calls["ResumeJob"] = func() error { _, err := api.Engine.ResumeJob(m.ctx, harness.Caller, in); return err }
		calls["CancelJob"] = func() error { _, err := api.Engine.CancelJob(m.ctx, harness.Caller, in); return err }
	}
	call := rapid.SampledFrom(names(calls)).Draw(t, "call")
	before := m.look(t)
	if err := calls[call](); broker.ReasonOf(err) != broker.ReasonEtagMismatch {
		t.Fatalf("I13: %s with a stale etag was answered %v", call, err)
	}
	if after := m.look(t); !reflect.DeepEqual(after.domains, before.domains) {
		t.Fatalf("I13: %s with a stale etag changed something", call)
	}
}
