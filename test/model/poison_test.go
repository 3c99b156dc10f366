package model_test

import (
	"bytes"
	"maps"
	"slices"

	"pgregory.net/rapid"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/test/harness"
)

// Rows that no KMS can read, and what their owners can do.

// spoil damages a row in the database, or makes two rows change places.
func (m *machine) spoil(t *rapid.T) {
	tn := m.anyTenant(t, hasRows)
	id := m.anyID(t, tn)
	m.damage(t, tn, []broker.DataKeyID{id}, func(blobs [][]byte) {
		blobs[0][len(blobs[0])-1] ^= 1
	})
}

// many poison rows are no accident: doubtAt of rotation.
const many = 20

// spoilMany makes so many poison rows that no job takes it for an accident.
func (m *machine) spoilMany(t *rapid.T) {
	tn := m.anyTenant(t, func(tn *tenant) bool { return tn.spoilt < many && m.before.of(tn).domain.Epoch > 0 })
	m.importSome(t, tn, many)
	ids := slices.Sorted(maps.Keys(tn.plain))
	if len(ids) < many {
		return // the import was refused
	}
	m.damage(t, tn, ids, func(blobs [][]byte) { // each becomes its neighbour's
		first := blobs[0]
		copy(blobs, blobs[1:])
		blobs[len(blobs)-1] = first
	})
}

func (m *machine) damage(t *rapid.T, tn *tenant, ids []broker.DataKeyID, spoil func(blobs [][]byte)) {
	ids = slices.DeleteFunc(ids, func(id broker.DataKeyID) bool { _, bad := tn.poison[id]; return bad })
	if len(ids) == 0 {
		panic(nothing("nothing to spoil"))
	}
	fatal(t, m.bench.Store.Rotation().Update(m.ctx, func(tx rotation.Tx) error {
		var blobs [][]byte
		var rows []broker.DataKey
		for _, id := range ids {
			row, err := tx.DataKey(m.ctx, tn.uid, id)
			if err != nil {
				return err
			}
			rows, blobs = append(rows, row), append(blobs, bytes.Clone(row.Ciphertext))
		}
		spoil(blobs)
		for i, row := range rows {
			// As no use case would: a new blob under the row's own epoch.
			_, err := tx.MoveDataKeys(m.ctx, tn.uid, row.Epoch, []rotation.Move{{ID: row.ID, UID: row.UID, Version: row.Version,
				FromEpoch: row.Epoch, Ciphertext: blobs[i], KeyMaterialID: row.KeyMaterialID, KMSRequestID: row.KMSRequestID}})
			if err != nil {
				return err
			}
			tn.poison[row.ID] = poison{string(blobs[i]), m.now()}
			tn.spoilt++
		}
		return nil
	}))
}

// replace: the owner imports a good copy in a poison row's place.
func (m *machine) replace(t *rapid.T) {
	tn := m.anyTenant(t, hasPoison)
	m.replaceID(t, tn, rapid.SampledFrom(slices.Sorted(maps.Keys(tn.poison))).Draw(t, "id"))
}

func (m *machine) replaceID(t *rapid.T, tn *tenant, id broker.DataKeyID) {
	view, err := m.api().Broker.GetDataKey(m.ctx, harness.Caller, tn.id, id)
	fatal(t, err)
	item := m.legacyItem(t, id, tn.plain[id])
	item.Etag = view.Etag()
	m.storing[tn.reserved.Value] = true
	results, err := m.api().Broker.ImportDataKeys(m.ctx, harness.Caller, broker.ImportDataKeys{Domain: tn.id, Items: []broker.ImportItem{item}})
	if err == nil {
		err = results[0].Err
	}
	// A job may have relabelled the row meanwhile. What a crash hides shows.
	if row, there := m.look(t).of(tn).row(id); there && string(row.Ciphertext) != tn.poison[id].blob {
		delete(tn.poison, id)
	}
	m.refused(t, tn, err, append(m.ifDeleted(tn, id), broker.ReasonEtagMismatch)...)
}

// acknowledgeFailures: the owner gives up what a job has recorded as poison.
func (m *machine) acknowledgeFailures(t *rapid.T) {
	failed := func(tn *tenant) []broker.JobID {
		return m.jobsOf(tn, func(j jobState) bool { return len(j.failures) > 0 })
	}
	tn := m.anyTenant(t, func(tn *tenant) bool { return len(failed(tn)) > 0 })
	jobs := failed(tn)
	m.acknowledgeJob(t, tn, rapid.SampledFrom(jobs).Draw(t, "job"))
}

// acknowledgeJob: only rows that are still as they failed are given up.
func (m *machine) acknowledgeJob(t *rapid.T, tn *tenant, id broker.JobID) {
	before := m.look(t).of(tn)
	_, err := m.api().Engine.AcknowledgeFailures(m.ctx, harness.Caller, rotation.Acknowledge{Domain: tn.id, Job: id, All: true, Reason: "model"})
	if m.refused(t, tn, err) {
		return
	}
	j, _ := before.job(id)
	after := m.look(t).of(tn)
	for _, f := range j.failures {
		was, there := before.row(f.DataKey)
		if !there || was.UID != f.UID || was.Version != f.Version || f.Acknowledged {
			continue
		}
		if row, _ := after.row(f.DataKey); !row.Abandoned {
			t.Fatalf("data key %s was acknowledged, and is not given up", f.DataKey)
		}
	}
}
