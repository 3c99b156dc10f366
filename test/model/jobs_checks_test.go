package model_test

import (
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"pgregory.net/rapid"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/test/harness"
)

// noteEnds learns from the database that a deletion which got no answer has
// happened.
func (m *machine) noteEnds(t *rapid.T, tn *tenant, after *domainState) {
	if after.domain.State != broker.DomainDeleted {
		if tn.deleted {
			t.Fatalf("I14: %s was deleted, and is %s", tn.id, after.domain.State)
		}
		return
	}
	if !tn.deleting {
		t.Fatalf("I2: %s is deleted, and nobody asked for it", tn.id)
	}
	tn.deleted = true
}

// checkDomain: a domain moves from key to key, and never back.
func (m *machine) checkDomain(t *rapid.T, tn *tenant, before, after *domainState) {
	if after.domain.Epoch < before.domain.Epoch || after.domain.LastEpoch < before.domain.LastEpoch || after.domain.Version < before.domain.Version {
		t.Fatalf("%s went back from epoch %d of %d to %d of %d", tn.id, before.domain.Epoch, before.domain.LastEpoch, after.domain.Epoch, after.domain.LastEpoch)
	}
	for _, k := range after.keys {
		if was := before.key(k.Epoch); was.KMSKey != "" && was.KMSKey != k.KMSKey {
			t.Fatalf("I1: epoch %d of %s meant %s, and now %s", k.Epoch, tn.id, was.KMSKey, k.KMSKey)
		}
		if current := k.State == broker.KeyCurrent; current != (k.Epoch == after.domain.Epoch) && !tn.deleted {
			t.Fatalf("epoch %d of %s is %s; the domain is at %d", k.Epoch, tn.id, k.State, after.domain.Epoch)
		}
		for _, row := range after.rows {
			if row.Epoch == k.Epoch && !row.Abandoned && !tn.deleted && (k.State == broker.KeyRetired || k.State == broker.KeyAbandoned || k.State == broker.KeyPreparing) {
				t.Fatalf("I3: data key %s is under epoch %d, which is %s", row.ID, k.Epoch, k.State)
			}
		}
	}
	if tn.deleted {
		m.checkDeleted(t, tn, before, after)
	}
}

// checkDeleted: a deleted domain only loses what it has left.
func (m *machine) checkDeleted(t *rapid.T, tn *tenant, before, after *domainState) {
	if after.worker.UID != "" || slices.ContainsFunc(after.grants, broker.Grant.Live) {
		t.Fatalf("I14: %s is deleted, and has live grants", tn.id)
	}
	if before.domain.State == broker.DomainDeleted && len(after.rows) > len(before.rows) {
		t.Fatalf("I14: %s is deleted, and has gained data keys", tn.id)
	}
	for _, j := range after.jobs {
		if j.Open() {
			t.Fatalf("I14: %s is deleted, and job %s is %s", tn.id, j.ID, j.State)
		}
	}
}

// checkJobs holds what the jobs are doing against what they may do, and against
// what they did before.
func (m *machine) checkJobs(t *rapid.T, tn *tenant, before, after *domainState) {
	m.checkSideBySide(t, after)
	for _, j := range after.jobs {
		was, known := before.job(j.ID)
		if known {
			m.checkProgress(t, was, j)
		}
		if known && was.State == j.State && was.Phase == j.Phase && was.Block.Reason == j.Block.Reason {
			continue
		}
		m.tally.met(strings.TrimSpace(strings.Join([]string{string(j.Kind), string(j.Phase), string(j.State), string(j.Block.Side), string(j.Block.Reason), string(j.FailReason)}, " ")))
		switch j.State {
		case rotation.Blocked:
			m.checkBlocked(t, tn, after, j)
		case rotation.Failed:
			m.checkFailed(t, tn, after, j)
		case rotation.Cancelled, rotation.Superseded:
			m.checkUndone(t, after, j)
		case rotation.Succeeded:
			m.checkSucceeded(t, tn, after, j)
		}
	}
}

// checkSideBySide: at most one change prepares, and the domain knows of it; at
// most one is past its switch; other jobs are alone.
func (m *machine) checkSideBySide(t *rapid.T, d *domainState) {
	preparing, moving, side := broker.JobID(""), 0, 0
	changes := 0
	for _, j := range d.jobs {
		switch {
		case !j.Open():
			continue
		case j.Kind != rotation.KindKeyChange:
			side++
			continue
		case j.Phase != rotation.Preparing:
			moving++
		case j.Undo == "" && preparing != "":
			t.Fatalf("two changes are preparing: %s and %s", preparing, j.ID)
		case j.Undo == "":
			preparing = j.ID
		}
		changes++
	}
	if preparing != d.domain.KeyChange.Job {
		t.Fatalf("change %q is preparing, and the domain knows of %q", preparing, d.domain.KeyChange.Job)
	}
	if moving > 1 {
		t.Fatalf("%d changes are past their switch", moving)
	}
	if side > 1 || side > 0 && changes > 0 {
		t.Fatalf("%d side jobs are open beside %d key changes", side, changes)
	}
}

// checkProgress is I10, and that a job which stands still moves nothing.
func (m *machine) checkProgress(t *rapid.T, was, j jobState) {
	if j.Done < was.Done {
		t.Fatalf("I10: job %s went back from %d rows to %d", j.ID, was.Done, j.Done)
	}
	if was.State != rotation.Running && j.Version == was.Version && j.Progress != was.Progress {
		t.Fatalf("job %s is %s, and went on from %+v to %+v", j.ID, j.State, was.Progress, j.Progress)
	}
	if was.State == rotation.Paused && j.State == rotation.Paused && j.Phase != was.Phase {
		t.Fatalf("job %s is PAUSED, and went on from %s to %s", j.ID, was.Phase, j.Phase)
	}
	if was.State == rotation.Paused && j.State == rotation.Running && j.Undo == "" && !m.resumed[j.ID] {
		t.Fatalf("job %s is PAUSED, and went on unasked, in %s", j.ID, j.Phase)
	}
	if final(was.State) && j.Version != was.Version {
		t.Fatalf("job %s was %s, and is %s", j.ID, was.State, j.State)
	}
}

// disabled says whether a key that a job may need was unusable since it was made.
func (m *machine) disabled(d *domainState, j jobState) bool {
	keys := []broker.KeyARN{broker.KeyARN(j.TargetGiven)} // TargetKey, once it is described
	for _, k := range d.keys {
		keys = append(keys, k.KMSKey)
	}
	return m.wasUnusable(j.CreateTime, keys)
}

// denied says whether KMS may have refused a job something: it refused somebody
// since the job was made, or the customer took one of the domain's grants away.
func (m *machine) denied(d *domainState, j jobState) bool {
	return m.road.happened(denied, j.CreateTime) ||
		slices.ContainsFunc(d.atKMS, func(k broker.KMSGrant) bool { return m.stolen.ids[k.KMSGrantID] })
}

// checkBlocked: nothing blocks but what happened.
func (m *machine) checkBlocked(t *rapid.T, tn *tenant, d *domainState, j jobState) {
	ok := false
	switch j.Block.Reason {
	case broker.ReasonKeyDisabled, broker.ReasonKeyStateInvalid:
		ok = m.disabled(d, j)
	case broker.ReasonKeyAccessDenied:
		ok = m.denied(d, j)
	case broker.ReasonContextOrKeyMismatch:
		ok = tn.spoilt >= many
	}
	if !ok {
		t.Fatalf("job blocked although nothing is wrong: %+v", j.Block)
	}
}

// checkFailed: nothing fails but for what happened, and I10: a poison row holds up
// nobody else.
func (m *machine) checkFailed(t *rapid.T, tn *tenant, d *domainState, j jobState) {
	before := j.Kind == rotation.KindKeyChange && j.Phase == rotation.Preparing
	ok := false
	switch j.FailReason {
	case broker.ReasonKeyUnchanged:
		ok = before
	case broker.ReasonKeyDisabled, broker.ReasonKeyStateInvalid:
		ok = before && m.disabled(d, j)
	case broker.ReasonKeyAccessDenied:
		ok = before && m.denied(d, j)
	case broker.ReasonKeyPolicyMissing:
		ok = before && m.road.happened(denied, j.CreateTime)
	case broker.ReasonRowsFailed:
		ok = !before && tn.spoilt > 0
	}
	if !ok {
		t.Fatalf("job failed: %s in %s: %s %s", j.Kind, j.Phase, j.FailReason, j.FailMessage)
	}
	if before {
		m.checkUndone(t, d, j)
		return
	}
	for _, row := range d.rows {
		if _, bad := tn.poison[row.ID]; !bad && j.Kind == rotation.KindKeyChange && row.Epoch < j.TargetEpoch {
			t.Fatalf("I10: job %s failed over poison rows, and left %s behind", j.ID, row.ID)
		}
	}
}

// checkUndone: a change that ended before its switch left nothing at KMS (I7).
func (m *machine) checkUndone(t *rapid.T, d *domainState, j jobState) {
	if j.Kind != rotation.KindKeyChange || j.Phase != rotation.Preparing || d.domain.State == broker.DomainDeleted {
		return
	}
	for _, k := range d.atKMS {
		if k.Epoch == j.TargetEpoch && k.MayExist() {
			t.Fatalf("I7: job %s is %s, and its grant %s is %s", j.ID, j.State, k.Name, k.State)
		}
	}
	for _, key := range m.keys {
		for _, l := range m.listAtKMS(t, key) {
			if g, _ := d.grant(l.parts.Grant); g.UID != "" && l.parts.Epoch == j.TargetEpoch && !m.ghost(d, l) {
				t.Fatalf("I7: job %s is %s, and KMS shows its grant %s on %s", j.ID, j.State, aws.ToString(l.Name), key)
			}
		}
	}
}

// checkSucceeded is I3: what a job says it has done is done, as the database and
// KMS themselves show.
func (m *machine) checkSucceeded(t *rapid.T, tn *tenant, d *domainState, j jobState) {
	settled := j.CreateTime.Add(time.Minute) // materialSettling of rotation
	for _, row := range d.rows {
		p, bad := tn.poison[row.ID]
		switch {
		case row.Abandoned:
		case j.Kind == rotation.KindKeyChange && row.Epoch < j.TargetEpoch:
			t.Fatalf("I3: job to epoch %d succeeded, and data key %s is under %d", j.TargetEpoch, row.ID, row.Epoch)
		case j.Kind == rotation.KindVerify && bad && p.since.Before(j.CreateTime):
			t.Fatalf("job %s verified all rows, and %s is damaged", j.ID, row.ID)
		case j.Kind == rotation.KindKeyMaterial && !bad && row.Epoch == j.TargetEpoch && row.UpdateTime.Before(settled) && m.olderMaterial(row, j):
			t.Fatalf("job %s moved to material %.8s, and %s is under %.8s", j.ID, j.TargetMaterial, row.ID, row.KeyMaterialID)
		}
	}
	if j.Kind != rotation.KindKeyChange {
		return
	}
	for _, key := range m.keys {
		for _, l := range m.listAtKMS(t, key) {
			// What KMS was told to make after the listing that proved the end is an
			// orphan, and SweepOrphans's. KMS tells milliseconds.
			late := !aws.ToTime(l.CreationDate).Before(j.ListTime.Truncate(time.Millisecond))
			if g, _ := d.grant(l.parts.Grant); g.UID != "" && l.parts.Epoch < j.TargetEpoch && !late && !m.ghost(d, l) {
				t.Fatalf("I3: job to epoch %d succeeded, and KMS shows %s on %s", j.TargetEpoch, aws.ToString(l.Name), key)
			}
		}
	}
}

func (m *machine) olderMaterial(row broker.DataKey, j jobState) bool {
	all := m.materials[j.TargetKey]
	return slices.Index(all, row.KeyMaterialID) < slices.Index(all, j.TargetMaterial)
}

// report is I6: a key that a report calls safe is needed by nothing, and the
// report of a job that is still open calls none safe.
func (m *machine) report(t *rapid.T) {
	tn := m.anyTenant(t)
	for _, j := range m.before.of(tn).jobs {
		report, err := m.api().Engine.RetirementReport(m.ctx, harness.Caller, tn.id, j.ID)
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
			m.tally.met("key called safe")
			// As coarse as the database keeps time, so that a job of the same moment
			// does not look older.
			m.safe[k.Key] = m.now().Truncate(time.Microsecond)
		}
	}
}

// checkSafe is I6: as long as a key that was called safe is not chosen again,
// nothing needs it.
func (m *machine) checkSafe(t *rapid.T, now *state) {
	for key, since := range m.safe {
		if m.chosenSince(now, key, since) {
			delete(m.safe, key)
		} else if what := m.need(now, key); what != "" {
			t.Fatalf("I6: %s is called safe, and %s", key, what)
		}
	}
}

func (m *machine) chosenSince(now *state, key broker.KeyARN, since time.Time) bool {
	for _, d := range now.domains {
		if slices.ContainsFunc(d.jobs, func(j jobState) bool {
			return j.Kind == rotation.KindKeyChange && j.TargetGiven == string(key) && !j.UpdateTime.Before(since)
		}) {
			return true
		}
	}
	return false
}

// need says what needs a key, by database, KMS and model; "" if nothing does.
func (m *machine) need(now *state, key broker.KeyARN) string {
	for _, tn := range m.tenants {
		d := now.of(tn)
		for _, row := range d.rows {
			if d.key(row.Epoch).KMSKey == key && !row.Abandoned {
				return "data key " + string(row.ID) + " is under it"
			}
		}
		if tn.deleting {
			continue
		}
		if d.domain.KMSKey == key {
			return "it is the key of " + string(tn.id)
		}
		if slices.ContainsFunc(tn.stragglers, func(s straggler) bool { return s.key == key && !m.now().After(s.until) }) {
			return "a service may still import what it made under it"
		}
		if slices.ContainsFunc(tn.reads, func(r heldRead) bool { return r.view.KMSKey == key && m.now().Before(r.until) }) {
			return "a service may still use what it read under it"
		}
	}
	for _, l := range now.listed {
		row, _ := now.kmsGrant(aws.ToString(l.Name))
		if d := now.domains[row.Domain]; l.key == key && row.KMSGrantID == aws.ToString(l.GrantId) && !m.ghost(d, l) {
			return "KMS shows " + aws.ToString(l.Name)
		}
	}
	return ""
}
