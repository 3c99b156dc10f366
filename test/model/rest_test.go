package model_test

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"pgregory.net/rapid"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/localkms"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/test/harness"
)

// rest is the end of a walk: the faults stop, time goes on, both replicas run.
// First everything must come to rest by itself, in a final state or waiting for a
// person. Then people do what is asked of them, and everything must end well.
func (m *machine) rest(t *rapid.T) {
	m.begin()
	m.calm(t)
	for range 6 {
		m.settle(t)
		if !m.actAsAsked(t) {
			break
		}
	}
	m.settle(t)
	m.runFor(time.Hour) // for the sweeps' last tries
	m.check(t)
	for _, tn := range m.tenants {
		m.checkAtRest(t, tn)
	}
	m.checkReports(t)
}

// calm ends all faults.
func (m *machine) calm(t *rapid.T) {
	m.road.calm()
	fatal(t, m.bench.KMS.SetFaults(localkms.Faults{}))
	for key := range maps.Clone(m.unusable) {
		m.mend(t, key)
	}
	if slices.ContainsFunc(m.bench.Replicas[:], (*harness.Replica).Dead) {
		fatal(t, m.bench.Restart(m.cfg))
	}
}

// settle lets time go on until nothing is under way any more.
func (m *machine) settle(t *rapid.T) {
	const longest = 12 // of a quarter of an hour
	busy := ""
	for range longest {
		m.runFor(15 * time.Minute)
		m.check(t)
		if busy = m.busy(m.before); busy == "" {
			return
		}
	}
	t.Fatalf("three hours without a fault, and %s", busy)
}

// busy says what is under way, or waits for something else than a person.
func (m *machine) busy(now *state) string {
	for _, tn := range m.tenants {
		d := now.of(tn)
		for _, k := range d.atKMS {
			if k.State == broker.KMSGrantIntended || k.State == broker.KMSGrantRetiring {
				return fmt.Sprintf("%s is %s", k.Name, k.State)
			}
		}
		if tn.deleted && len(d.rows) > 0 {
			return fmt.Sprintf("deleted %s has %d data keys", tn.id, len(d.rows))
		}
		for _, j := range d.jobs {
			if j.Open() && !m.waitsForPeople(tn, j) {
				return fmt.Sprintf("job is still %s in %s: block %+v, waits for %q", j.State, j.Phase, j.Block, j.WaitMessage)
			}
		}
	}
	return ""
}

func (m *machine) waitsForPeople(tn *tenant, j jobState) bool {
	switch j.State {
	case rotation.Paused:
		return true
	case rotation.Blocked:
		return j.Block.Reason == broker.ReasonContextOrKeyMismatch ||
			j.Block.Reason == broker.ReasonKeyAccessDenied && (m.mayBeDenied(tn) || j.Phase == rotation.Preparing && len(m.robbedGrants(tn)) > 0)
	}
	return false
}

// robbedGrants are those that a change which prepares may wait for.
func (m *machine) robbedGrants(tn *tenant) (robbed []*held) {
	for _, h := range tn.held {
		if m.grantNow(tn, h.uid).Live() && m.robbed(tn, h.uid) {
			robbed = append(robbed, h)
		}
	}
	return robbed
}

// actAsAsked does what people can do for what waits for them, and says whether
// there was anything.
func (m *machine) actAsAsked(t *rapid.T) (acted bool) {
	for _, tn := range m.tenants {
		if tn.deleting {
			continue
		}
		acted = m.cure(t, tn) || acted
		for _, j := range m.before.of(tn).jobs {
			failed := j.State == rotation.Failed && j.Kind == rotation.KindKeyChange && j.Phase != rotation.Preparing
			if !j.Open() && !failed {
				continue
			}
			if j.State == rotation.Blocked && j.Phase == rotation.Preparing {
				for _, h := range m.robbedGrants(tn) {
					m.giveBack(t, tn, h)
				}
			}
			_, err := m.api().Engine.ResumeJob(m.ctx, harness.Caller, rotation.JobAct{Domain: tn.id, Job: j.ID, Reason: "model"})
			m.stolen.asked(m.before.of(tn).worker.UID)
			m.refused(t, tn, err, broker.ReasonJobEnded)
			m.resumed[j.ID] = true
			acted = true
		}
	}
	return acted
}

// giveBack lets a grant that was robbed have what it needs again, or end.
func (m *machine) giveBack(t *rapid.T, tn *tenant, h *held) {
	var err error
	if rapid.Bool().Draw(t, "revoke it") {
		h.ending = true
		_, err = m.api().Broker.RevokeGrant(m.ctx, harness.Caller, broker.RevokeGrant{Domain: tn.id, ID: h.id, Reason: "model"})
	} else {
		_, err = m.api().Broker.RenewGrant(m.ctx, harness.Caller, broker.RenewGrant{Domain: tn.id, ID: h.id, TTL: long, Reason: "model"})
		m.stolen.asked(h.uid)
	}
	m.refused(t, tn, err, broker.ReasonGrantEnded)
}

// cure deals with the poison rows: those that a job has named may be given up,
// all may be replaced or deleted.
func (m *machine) cure(t *rapid.T, tn *tenant) (acted bool) {
	if len(tn.poison) > 0 && rapid.Bool().Draw(t, "give poison rows up") {
		for _, j := range m.before.of(tn).jobs {
			if len(j.failures) > 0 {
				m.acknowledgeJob(t, tn, j.ID)
			}
		}
	}
	d := m.look(t).of(tn)
	for _, id := range slices.Sorted(maps.Keys(tn.poison)) {
		if row, _ := d.row(id); row.Abandoned {
			continue
		}
		acted = true
		if m.mayBeDenied(tn) || rapid.Bool().Draw(t, "delete it") {
			m.removeID(t, tn, id)
		} else {
			m.replaceID(t, tn, id)
		}
	}
	return acted
}

// checkAtRest holds a domain against what the model knows it must be by now.
func (m *machine) checkAtRest(t *rapid.T, tn *tenant) {
	d := m.before.of(tn)
	m.checkKeysAtRest(t, tn, d)
	m.checkGrantsAtRest(t, tn, d)
	if tn.deleted || d.domain.Epoch == 0 {
		return
	}
	if !m.mayBeDenied(tn) {
		m.storing[tn.reserved.Value] = true
		view, err := m.bench.Broker.CreateDataKey(m.ctx, harness.Caller, broker.NewDataKey{Domain: tn.id, ID: m.nextID()})
		fatal(t, err)
		m.acknowledged(t, tn, view)
	}
	for _, h := range tn.held {
		if m.good(tn, h) {
			m.checkUse(t, tn, d, h)
		}
	}
}

// checkKeysAtRest: every job ended, every row is under the present key, and no
// other key is in use.
func (m *machine) checkKeysAtRest(t *rapid.T, tn *tenant, d *domainState) {
	for _, j := range d.jobs {
		if j.Open() || !tn.deleted && j.State == rotation.Failed && j.Kind == rotation.KindKeyChange && j.Phase != rotation.Preparing {
			t.Fatalf("the job did not end well: %s %s in %s: %s %s", j.ID, j.State, j.Phase, j.FailReason, j.FailMessage)
		}
	}
	if tn.deleted {
		return
	}
	for _, k := range d.keys {
		if k.State != broker.KeyCurrent && k.State != broker.KeyRetired && k.State != broker.KeyAbandoned {
			t.Fatalf("every job of %s has ended, and its epoch %d is %s", tn.id, k.Epoch, k.State)
		}
	}
	for _, row := range d.rows {
		if row.Epoch != d.domain.Epoch && !row.Abandoned {
			t.Fatalf("every job of %s has ended, and data key %s is under epoch %d", tn.id, row.ID, row.Epoch)
		}
	}
}

// checkGrantsAtRest is I7: KMS shows, on all keys, exactly what the domain's live
// grants need on its present key.
func (m *machine) checkGrantsAtRest(t *rapid.T, tn *tenant, d *domainState) {
	wanted := map[identity]bool{}
	want := func(g broker.Grant, kind broker.GrantKind, operations ...string) {
		if slices.ContainsFunc(operations, func(o string) bool { return slices.Contains(g.Operations, o) }) {
			wanted[identity{g.UID, d.domain.Epoch, kind}] = true
		}
	}
	for _, g := range append(slices.Clone(d.grants), d.worker) {
		if !g.Live() || d.domain.Epoch == 0 {
			continue
		}
		if !g.Worker && !m.now().Before(g.ExpireTime) {
			t.Fatalf("I7: grant %s is %s, %s after its end", g.ID, g.State, m.now().Sub(g.ExpireTime))
		}
		want(g, broker.Wrap, "GenerateDataKey", "GenerateDataKeyWithoutPlaintext", "ReEncryptTo")
		want(g, broker.Unwrap, "Decrypt", "ReEncryptFrom")
	}
	for _, l := range m.before.listed {
		id := identity{l.parts.Grant, l.parts.Epoch, l.parts.Kind}
		if row, _ := m.before.kmsGrant(aws.ToString(l.Name)); row.Domain != tn.uid {
			continue
		}
		if !wanted[id] || l.key != d.domain.KMSKey {
			t.Fatalf("I7: KMS shows %s on %s, and nothing needs it", aws.ToString(l.Name), l.key)
		}
		delete(wanted, id)
	}
	for id := range wanted {
		if g, _ := d.grant(id.grant); g.State == broker.GrantActive && !m.robbed(tn, id.grant) {
			t.Fatalf("I7: grant %s of %s needs %s on its present key, and KMS shows none", g.ID, tn.id, id.kind)
		}
	}
}

// checkUse: a service can do what its grant says, by now without any token.
func (m *machine) checkUse(t *rapid.T, tn *tenant, d *domainState, h *held) {
	key := aws.String(string(d.domain.KMSKey))
	if h.may("GenerateDataKey") {
		_, err := m.client(h).GenerateDataKey(m.ctx, &kms.GenerateDataKeyInput{KeyId: key, KeySpec: types.DataKeySpecAes256,
			EncryptionContext: map[string]string{tn.reserved.Key: tn.reserved.Value}})
		if err != nil {
			t.Fatalf("service cannot generate by %s: %v", h.id, err)
		}
	}
	if !h.may("Decrypt") {
		return
	}
	for _, row := range d.rows {
		if _, bad := tn.poison[row.ID]; bad {
			continue
		}
		_, err := m.client(h).Decrypt(m.ctx, &kms.DecryptInput{CiphertextBlob: row.Ciphertext, EncryptionContext: row.Context.With(tn.reserved)})
		if err != nil {
			t.Fatalf("service cannot unwrap %s by %s: %v", row.ID, h.id, err)
		}
	}
}

// checkReports is I6 both ways: at rest a report calls a key safe exactly if
// nothing needs it.
func (m *machine) checkReports(t *rapid.T) {
	for _, tn := range m.tenants {
		if tn.deleted {
			continue
		}
		for _, j := range m.before.of(tn).jobs {
			report, err := m.bench.Engine.RetirementReport(m.ctx, harness.Caller, tn.id, j.ID)
			if broker.ReasonOf(err) == broker.ReasonReportNotFound {
				continue
			}
			fatal(t, err)
			for _, k := range report.Keys {
				if what := m.need(m.before, k.Key); k.Safe != (what == "") {
					t.Fatalf("I6: at rest the report of %s calls %s safe: %t; %s; blockers %+v", j.ID, k.Key, k.Safe, what, k.Blockers)
				}
			}
		}
	}
}
