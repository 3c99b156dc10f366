package model_test

import (
	"context"
	"slices"
	"sync"
	"time"

	"pgregory.net/rapid"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/test/harness"
)

// What the owners of keys ask for, and the engine that does it.

// changeKey: to any key, at any time. A change in PREPARING gives way; the
// present key takes it back.
func (m *machine) changeKey(t *rapid.T) {
	tn := m.anyTenant(t)
	d, _, err := m.api().Broker.GetDomain(m.ctx, harness.Caller, tn.id)
	fatal(t, err)
	target := rapid.SampledFrom(m.keys).Draw(t, "target")
	in := rotation.ChangeKey{Request: m.newRequest("ChangeKey"), Domain: tn.id, KMSKey: string(target), Etag: d.Etag(), Reason: "model"}
	in.AllowInaccessibleSource = m.storm && rapid.Bool().Draw(t, "allow inaccessible source")
	var made broker.JobID
	ask := func(t *rapid.T) {
		view, err := m.api().Engine.ChangeKey(m.ctx, harness.Caller, in)
		if m.refused(t, tn, err, m.notChangeable(target, d, made)...) {
			return
		}
		if made != "" && made != view.ID {
			t.Fatalf("I8: one request_id made jobs %s and %s", made, view.ID)
		}
		made = view.ID
	}
	ask(t)
	m.remember(tn, "change key", ask)
}

// notChangeable gives the reasons for which a change may be refused.
func (m *machine) notChangeable(target broker.KeyARN, asked broker.Domain, made broker.JobID) []broker.Reason {
	var reasons []broker.Reason
	if target == asked.KMSKey {
		reasons = append(reasons, broker.ReasonKeyUnchanged)
	}
	if d := m.domainNow(asked.UID); made == "" && d.Version != asked.Version {
		reasons = append(reasons, broker.ReasonEtagMismatch, broker.ReasonKeyUnchanged) // an unanswered call, repeated later
	}
	return reasons
}

func (m *machine) domainNow(uid broker.DomainUID) (d broker.Domain) {
	_ = m.bench.Store.Broker().View(m.ctx, func(tx broker.Tx) (err error) {
		d, err = tx.DomainByUID(m.ctx, uid)
		return err
	})
	return d
}

// sideJob begins a job that is no key change.
func (m *machine) sideJob(t *rapid.T) {
	tn := m.anyTenant(t)
	in := rotation.NewJob{Request: m.newRequest("CreateReencryptionJob"), Domain: tn.id, Reason: "model",
		Kind: rapid.SampledFrom([]rotation.Kind{rotation.KindKeyMaterial, rotation.KindVerify}).Draw(t, "kind")}
	var made broker.JobID
	ask := func(t *rapid.T) {
		view, err := m.api().Engine.CreateJob(m.ctx, harness.Caller, in)
		if m.refused(t, tn, err, broker.ReasonKeyChangeInProgress) {
			return
		}
		if made != "" && made != view.ID {
			t.Fatalf("I8: one request_id made jobs %s and %s", made, view.ID)
		}
		made = view.ID
	}
	ask(t)
	m.remember(tn, "side job", ask)
}

// jobsOf gives some of a domain's jobs, the newest first.
func (m *machine) jobsOf(tn *tenant, which func(jobState) bool) (ids []broker.JobID) {
	for _, j := range m.before.of(tn).jobs {
		if which(j) {
			ids = append(ids, j.ID)
		}
	}
	slices.Reverse(ids)
	return ids
}

type verb func(*rotation.Engine, context.Context, broker.Caller, rotation.JobAct) (rotation.JobView, error)

// act calls a verb on one of the jobs that are open or have failed; a refusal
// must be one of reasons.
func (m *machine) act(t *rapid.T, do verb, reasons ...broker.Reason) broker.JobID {
	unfinished := func(tn *tenant) []broker.JobID {
		return m.jobsOf(tn, func(j jobState) bool { return j.Open() || j.State == rotation.Failed })
	}
	tn := m.anyTenant(t, func(tn *tenant) bool { return len(unfinished(tn)) > 0 })
	jobs := unfinished(tn)
	in := rotation.JobAct{Domain: tn.id, Job: rapid.SampledFrom(jobs).Draw(t, "job"), Reason: "model"}
	if m.storm && rapid.Bool().Draw(t, "without a reason") {
		in.Reason = ""
	} else {
		defer m.stolen.asked(m.before.of(tn).worker.UID) // also what is taken away meanwhile
	}
	_, err := do(m.api().Engine, m.ctx, harness.Caller, in)
	m.refused(t, tn, err, reasons...)
	return in.Job
}

func (m *machine) pause(t *rapid.T) {
	m.act(t, (*rotation.Engine).PauseJob, broker.ReasonJobEnded)
}

func (m *machine) resume(t *rapid.T) {
	m.resumed[m.act(t, (*rotation.Engine).ResumeJob, broker.ReasonJobEnded, broker.ReasonKeyChangeInProgress)] = true
}

func (m *machine) cancel(t *rapid.T) {
	m.act(t, (*rotation.Engine).CancelJob, broker.ReasonJobEnded, broker.ReasonJobNotCancellable)
}

func (m *machine) step(t *rapid.T) { m.stepWith(t, m.api()) }

func (m *machine) stepWith(t *rapid.T, r *harness.Replica) (moved bool) {
	moved, err := m.bench.StepWith(m.ctx, r.Engine)
	m.passing(t, "step", err)
	return moved
}

// passing accepts that work of the broker's own fails for a fault, and for
// nothing else.
func (m *machine) passing(t *rapid.T, what string, err error) {
	t.Helper()
	if err != nil && !m.crashed && !m.road.struckAny() {
		t.Fatalf("%s: %v", what, err)
	}
}

func (m *machine) stepALot(t *rapid.T) {
	for range rapid.IntRange(5, 40).Draw(t, "steps") {
		m.step(t)
	}
}

func (m *machine) otherReplica(t *rapid.T) {
	for range rapid.IntRange(1, 10).Draw(t, "steps") {
		m.stepWith(t, m.bench.Replicas[1-m.serving])
	}
}

// workOn lets the jobs go on through every wait up to a length.
func (m *machine) workOn(t *rapid.T) {
	longest := rapid.SampledFrom([]time.Duration{0, visibility, readDelay, storeDelay + visibility}).Draw(t, "longest wait")
	for range rapid.IntRange(5, 60).Draw(t, "steps") {
		if m.stepWith(t, m.api()) {
			continue
		}
		wait := m.nextWait(t)
		if wait > longest {
			return
		}
		m.bench.Clock.Advance(wait)
	}
}

// nextWait gives the shortest time that an open job waits for, 0 if none does.
func (m *machine) nextWait(t *rapid.T) time.Duration {
	jobs, err := m.bench.OpenJobs(m.ctx)
	fatal(t, err)
	shortest := time.Duration(0)
	for _, j := range jobs {
		if wait := j.WaitUntil.Sub(m.now()); wait > 0 && (shortest == 0 || wait < shortest) {
			shortest = wait
		}
	}
	return shortest
}

// run lets both replicas work as they do in production, by their own loops.
func (m *machine) run(t *rapid.T) {
	m.runFor(rapid.SampledFrom([]time.Duration{time.Second, visibility, time.Minute, 5 * time.Minute}).Draw(t, "time"))
}

func (m *machine) runFor(d time.Duration) {
	ctx, cancel := context.WithCancel(m.ctx)
	var loops sync.WaitGroup
	for _, r := range m.bench.Replicas {
		loops.Go(func() { _ = r.Engine.Run(ctx) })
	}
	m.bench.Clock.Advance(d)
	cancel()
	loops.Wait()
}

func (m *machine) time(t *rapid.T) {
	ds := []time.Duration{time.Second, grantDelay, visibility, visibility, readDelay, readDelay, visibility + storeDelay}
	m.bench.Clock.Advance(rapid.SampledFrom(ds).Draw(t, "duration"))
}

// sweep: a sweep that nothing disturbed has ended every grant whose time has come.
func (m *machine) sweep(t *rapid.T) {
	begun := m.now() // it may be held on its way
	err := m.api().Broker.Sweep(m.ctx)
	m.passing(t, "sweep", err)
	if err != nil || m.crashed || m.road.struckAny() {
		return
	}
	for _, tn := range m.tenants {
		for _, h := range tn.held {
			if g := m.grantNow(tn, h.uid); g.Live() && !begun.Before(g.ExpireTime) {
				t.Fatalf("I7: grant %s is %s, %s after its end, and was swept", h.id, g.State, begun.Sub(g.ExpireTime))
			}
		}
	}
}

func (m *machine) sweepOrphans(t *rapid.T) {
	m.passing(t, "sweep of orphans", m.api().Broker.SweepOrphans(m.ctx))
}

// deleteDomain: a domain goes when it is empty, or with its data on purpose.
func (m *machine) deleteDomain(t *rapid.T) {
	left := slices.DeleteFunc(slices.Clone(m.tenants), func(tn *tenant) bool { return tn.deleting })
	if len(left) == 1 {
		panic(nothing("it is the last one"))
	}
	tn := m.anyTenant(t)
	in := rotation.DeleteDomain{Request: m.newRequest("DeleteDomain"), Domain: tn.id, Reason: "model", CryptoShred: rapid.Bool().Draw(t, "shred")}
	rows := len(m.look(t).of(tn).rows)
	tn.deleting = in.CryptoShred || rows == 0
	err := m.api().Engine.DeleteDomain(m.ctx, harness.Caller, in)
	if !tn.deleting && broker.ReasonOf(err) != broker.ReasonDomainNotEmpty {
		t.Fatalf("a domain with %d rows was deleted unasked: %v", rows, err)
	}
	if tn.deleting && !m.refused(t, tn, err) {
		tn.deleted = true
		tn.reads, tn.stragglers = nil, nil
	}
}
