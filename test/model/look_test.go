package model_test

import (
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"pgregory.net/rapid"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
)

// A state is everything that the database holds at one moment, and what the
// keys' owner sees at KMS. No use case has a word in it.
type state struct {
	domains map[broker.DomainUID]*domainState
	listed  []listedGrant
}

type domainState struct {
	domain broker.Domain
	keys   []broker.DomainKey
	rows   []broker.DataKey
	grants []broker.Grant // the services', in every state
	worker broker.Grant   // zero once the domain is deleted
	atKMS  []broker.KMSGrant
	jobs   []jobState
}

type jobState struct {
	rotation.Job
	rotation.Progress
	failures []rotation.Failure
}

// A listedGrant is one of this deployment as ListGrants shows it.
type listedGrant struct {
	types.GrantListEntry
	key   broker.KeyARN
	parts broker.GrantNameParts
}

func (s *state) of(tn *tenant) *domainState {
	if d := s.domains[tn.uid]; d != nil {
		return d
	}
	return &domainState{}
}

func (d *domainState) job(id broker.JobID) (jobState, bool) {
	i := slices.IndexFunc(d.jobs, func(j jobState) bool { return j.ID == id })
	if i < 0 {
		return jobState{}, false
	}
	return d.jobs[i], true
}

func (d *domainState) row(id broker.DataKeyID) (broker.DataKey, bool) {
	i := slices.IndexFunc(d.rows, func(k broker.DataKey) bool { return k.ID == id })
	if i < 0 {
		return broker.DataKey{}, false
	}
	return d.rows[i], true
}

func (d *domainState) grant(uid broker.GrantUID) (broker.Grant, bool) {
	if d.worker.UID == uid {
		return d.worker, true
	}
	i := slices.IndexFunc(d.grants, func(g broker.Grant) bool { return g.UID == uid })
	if i < 0 {
		return broker.Grant{}, false
	}
	return d.grants[i], true
}

// key gives the record of an epoch.
func (d *domainState) key(e broker.Epoch) broker.DomainKey {
	k, _ := broker.KeyOfEpoch(d.keys, e)
	return k
}

// kmsGrant finds the row of a Name.
func (s *state) kmsGrant(name string) (broker.KMSGrant, bool) {
	for _, d := range s.domains {
		for _, k := range d.atKMS {
			if k.Name == name {
				return k, true
			}
		}
	}
	return broker.KMSGrant{}, false
}

// look reads it all: the database in one transaction.
func (m *machine) look(t *rapid.T) *state {
	const all = 100_000
	s := &state{domains: map[broker.DomainUID]*domainState{}}
	fatal(t, m.bench.Store.Rotation().View(m.ctx, func(tx rotation.Tx) error {
		for _, tn := range m.tenants {
			d, err := m.lookAt(tx, tn, all)
			if err != nil {
				return err
			}
			s.domains[tn.uid] = d
		}
		return nil
	}))
	for _, key := range m.keys {
		s.listed = append(s.listed, m.listAtKMS(t, key)...)
	}
	return s
}

func grantUIDs(grants []broker.Grant) (uids []broker.GrantUID) {
	for _, g := range grants {
		uids = append(uids, g.UID)
	}
	return uids
}

func (m *machine) lookAt(tx rotation.Tx, tn *tenant, all int) (*domainState, error) {
	ctx, uid, d := m.ctx, tn.uid, &domainState{}
	var jobs []rotation.Job
	var live []broker.Grant
	reads := []func() error{
		func() (err error) { d.domain, err = tx.DomainByUID(ctx, uid); return err },
		func() (err error) { d.keys, err = tx.DomainKeys(ctx, uid); return err },
		func() (err error) { d.rows, err = tx.ListDataKeys(ctx, uid, "", all); return err },
		func() (err error) { d.grants, err = tx.ListGrants(ctx, uid, "", all); return err },
		func() (err error) { live, err = tx.LiveGrants(ctx, uid); return err },
		func() (err error) { jobs, err = tx.ListJobs(ctx, uid, "", all); return err },
	}
	for _, read := range reads {
		if err := read(); err != nil {
			return nil, err
		}
	}
	for _, g := range live {
		if g.Worker {
			d.worker, tn.worker = g, g.UID
		}
	}
	for _, g := range append(grantUIDs(d.grants), tn.worker) {
		made, err := tx.KMSGrants(ctx, uid, g)
		if err != nil {
			return nil, err
		}
		d.atKMS = append(d.atKMS, made...)
	}
	for _, j := range jobs {
		now := jobState{Job: j}
		if was, known := m.before.of(tn).job(j.ID); known && was.State == j.State && was.Version == j.Version && final(j.State) {
			now = was // it was looked at after its end
		} else if err := m.lookAtJob(tx, tn, &now, all); err != nil {
			return nil, err
		}
		d.jobs = append(d.jobs, now)
	}
	return d, nil
}

func (m *machine) lookAtJob(tx rotation.Tx, tn *tenant, j *jobState, all int) (err error) {
	if j.Progress, err = tx.Progress(m.ctx, j.Ref()); err != nil || tn.spoilt == 0 {
		return err
	}
	j.failures, err = tx.Failures(m.ctx, j.Ref(), "", all)
	return err
}

// final: a job in this state is done for good; one that FAILED may be resumed.
func final(s rotation.State) bool {
	return s == rotation.Succeeded || s == rotation.Cancelled || s == rotation.Superseded
}

// listAtKMS gives this deployment's grants on a key, as KMS lists them to its
// owner, and sees that everybody else's are there too.
func (m *machine) listAtKMS(t *rapid.T, key broker.KeyARN) (ours []listedGrant) {
	foreign := 0
	pages := kms.NewListGrantsPaginator(m.bench.Customer, &kms.ListGrantsInput{KeyId: aws.String(string(key))})
	for pages.HasMorePages() {
		page, err := pages.NextPage(m.ctx)
		fatal(t, err)
		for _, g := range page.Grants {
			if m.foreign[aws.ToString(g.GrantId)] {
				foreign++
				continue
			}
			parts, ok := m.bench.Broker.ParseKMSGrantName(aws.ToString(g.Name))
			if !ok {
				t.Fatalf("I7: KMS shows a grant %q that is nobody's", aws.ToString(g.Name))
			}
			ours = append(ours, listedGrant{g, key, parts})
		}
	}
	if want := len(m.foreign) / len(m.keys); m.now().Sub(m.planted) > grantDelay && foreign != want {
		t.Fatalf("I7: %d grants of others are left on %s, want %d", foreign, key, want)
	}
	return ours
}

// describe logs what is there, for whoever reads a failure.
func (m *machine) describe(t *rapid.T) {
	s := m.look(t)
	t.Logf("at %s; unusable %v; stolen %v", m.now().Format(time.TimeOnly), m.unusable, m.stolen.unasked)
	for _, tn := range m.tenants {
		d := s.of(tn)
		t.Logf("%s %s: epoch %d of %d, change %+v, deleting %t", tn.id, d.domain.State, d.domain.Epoch, d.domain.LastEpoch, d.domain.KeyChange, tn.deleting)
		for _, k := range d.keys {
			t.Logf("  epoch %d %s %s", k.Epoch, k.State, k.KMSKey)
		}
		for _, j := range d.jobs {
			t.Logf("  job %s %s to %d: %s %s %s undo %q; %s %s; %s%s; %+v", j.ID, j.Kind, j.TargetEpoch, j.Phase, j.State, j.Undo,
				j.Block.Side, j.Block.Reason, j.WaitMessage, j.FailReason, j.FailMessage, j.Progress)
			for _, f := range j.failures {
				t.Logf("    failure %s version %d %s acknowledged %t", f.DataKey, f.Version, f.Class, f.Acknowledged)
			}
		}
		for _, k := range d.rows {
			_, bad := tn.poison[k.ID]
			t.Logf("  row %s version %d epoch %d poison %t abandoned %t", k.ID, k.Version, k.Epoch, bad, k.Abandoned)
		}
		for _, g := range append(slices.Clone(d.grants), d.worker) {
			t.Logf("  grant %s %s %s until %s", g.ID, g.UID, g.State, g.ExpireTime)
		}
		for _, k := range d.atKMS {
			if !k.MayExist() && !m.stolen.ids[k.KMSGrantID] {
				continue
			}
			t.Logf("  %s %s intended %s live %s ended %s stolen %t", k.Name, k.State, k.IntendTime.Format(time.TimeOnly), k.LiveTime.Format(time.TimeOnly),
				k.EndTime.Format(time.TimeOnly), m.stolen.ids[k.KMSGrantID])
		}
	}
	for _, l := range s.listed {
		t.Logf("KMS shows %s on %s", aws.ToString(l.Name), l.key)
	}
}
