package brokertest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
)

// readJob gives a job as stored.
func (b *storeBench) readJob(j rotation.Job) (got rotation.Job) {
	b.t.Helper()
	b.view(func(ctx context.Context, tx rotation.Tx) (err error) {
		got, err = tx.Job(ctx, refOf(j))
		return err
	})
	return got
}

func refOf(j rotation.Job) rotation.JobRef { return rotation.JobRef{Domain: j.Domain, ID: j.ID} }

func jobIDs(jobs []rotation.Job) (ids []broker.JobID) {
	for _, j := range jobs {
		ids = append(ids, j.ID)
	}
	return ids
}

func testJobs(t *testing.T, b *storeBench) {
	d := b.domain("alpha")
	now := b.clock.Now()
	j := newJob(d.UID, "job-1", now)
	next := func() time.Time { now = now.Add(time.Second); return now }
	j.State, j.Phase = rotation.Blocked, rotation.Retiring
	j.Block = rotation.Block{Reason: broker.ReasonKeyDisabled, Side: rotation.From, Message: "disabled", Since: next(), NextProbe: next()}
	j.FailReason, j.FailMessage, j.WaitMessage, j.WaitUntil = broker.ReasonRowsFailed, "rows failed", "waits", next()
	j.PrepareTime, j.GrantTime, j.SwitchTime, j.LastMoveTime = next(), next(), next(), next()
	j.CloseTime, j.RetireTime, j.ListTime, j.EndTime = next(), next(), next(), next()
	j.GrantsRetired, j.EstimatedRows, j.VerifiedRows = 3, 4, 5
	j.Verify = rotation.Verification{Cursor: "k-1", Seen: 6, Rows: 7}
	b.update(func(ctx context.Context, tx rotation.Tx) error { return tx.InsertJob(ctx, j) })
	equal(t, "job as stored", b.readJob(j), j)

	b.refused(broker.ErrConflict, "a second job of the same id", func(ctx context.Context, tx rotation.Tx) error {
		return tx.InsertJob(ctx, newJob(d.UID, "job-1", now))
	})
	b.refused(broker.ErrNotFound, "an absent job", func(ctx context.Context, tx rotation.Tx) error {
		_, err := tx.Job(ctx, rotation.JobRef{Domain: d.UID, ID: "absent"})
		return err
	})
	b.refused(broker.ErrNotFound, "an update of an absent job", func(ctx context.Context, tx rotation.Tx) error {
		return tx.UpdateJob(ctx, newJob(d.UID, "absent", now))
	})

	b.clock.Advance(time.Hour)
	bare := newJob(d.UID, "job-1", j.CreateTime)
	b.update(func(ctx context.Context, tx rotation.Tx) error { return tx.UpdateJob(ctx, bare) })
	want := bare
	want.LastMoveTime = j.LastMoveTime
	want.Version, want.UpdateTime = 2, b.clock.Now()
	equal(t, "job after an update that clears everything", b.readJob(j), want)

	for what, change := range map[string]func(*rotation.Job){
		"an update with an old version":      func(j *rotation.Job) { j.Version = 1 },
		"an update with another lease fence": func(j *rotation.Job) { j.Lease.Seq = 1 },
	} {
		stale := want
		change(&stale)
		b.refused(broker.ErrConflict, what, func(ctx context.Context, tx rotation.Tx) error { return tx.UpdateJob(ctx, stale) })
	}
	full := j
	full.Version = 2
	full.LastMoveTime = full.LastMoveTime.Add(time.Hour)     // never written by an update
	full.Lease = rotation.Lease{Owner: "nobody", Until: now} // never written by an update
	b.update(func(ctx context.Context, tx rotation.Tx) error { return tx.UpdateJob(ctx, full) })
	full.Version, full.UpdateTime, full.Lease, full.LastMoveTime = 3, b.clock.Now(), rotation.Lease{}, j.LastMoveTime
	equal(t, "job after an update that sets everything", b.readJob(j), full)
}

func testJobLists(t *testing.T, b *storeBench) {
	alpha, beta := b.domain("alpha"), b.domain("beta")
	b.refused(broker.ErrNotFound, "the last job of a domain without any", func(ctx context.Context, tx rotation.Tx) error {
		_, err := tx.LastKeyChange(ctx, alpha.UID)
		return err
	})
	for i, c := range []struct {
		d     broker.DomainUID
		state rotation.State
	}{
		{beta.UID, rotation.Running},
		{alpha.UID, rotation.Paused},
		{alpha.UID, rotation.Succeeded},
		{alpha.UID, rotation.Failed},
		{alpha.UID, rotation.Blocked},
		{alpha.UID, rotation.Cancelled},
		{alpha.UID, rotation.Superseded},
	} {
		b.job(c.d, broker.JobID(fmt.Sprint("job-", i)), c.state, rotation.Preparing)
		b.clock.Advance(time.Second)
	}
	b.view(func(ctx context.Context, tx rotation.Tx) error {
		list, err := tx.ListJobs(ctx, alpha.UID, "", 3)
		equal(t, "jobs of a domain", jobIDs(list), []broker.JobID{"job-1", "job-2", "job-3"})
		if err != nil {
			return err
		}
		list, err = tx.ListJobs(ctx, alpha.UID, "job-4", 10)
		equal(t, "jobs after an id", jobIDs(list), []broker.JobID{"job-5", "job-6"})
		if err != nil {
			return err
		}
		last, err := tx.LastKeyChange(ctx, alpha.UID)
		equal(t, "the newest job", last.ID, "job-6")
		return err
	})
}

func testJobLease(t *testing.T, b *storeBench) {
	j := b.job(b.domain("alpha").UID, "job-1", rotation.Running, rotation.Preparing)
	ref := refOf(j)
	const ttl = 10 * time.Second
	lease := func(owner string) (got rotation.Job) {
		t.Helper()
		b.update(func(ctx context.Context, tx rotation.Tx) (err error) {
			got, err = tx.LeaseJob(ctx, ref, owner, ttl)
			return err
		})
		return got
	}
	wantLease := func(what string, want rotation.Lease) {
		t.Helper()
		equal(t, what, b.readJob(j).Lease, want)
	}
	lost := func(what string, fn func(context.Context, rotation.Tx) error) {
		t.Helper()
		before := b.readJob(j)
		b.refused(broker.ErrConflict, what, fn)
		equal(t, "the job after "+what, b.readJob(j), before)
	}
	renew := func(seq int64) func(context.Context, rotation.Tx) error {
		return func(ctx context.Context, tx rotation.Tx) error { return tx.RenewJob(ctx, ref, seq, ttl) }
	}
	release := func(seq int64) func(context.Context, rotation.Tx) error {
		return func(ctx context.Context, tx rotation.Tx) error { return tx.ReleaseJob(ctx, ref, seq) }
	}
	takenByTwo := func(ctx context.Context, tx rotation.Tx) error {
		_, err := tx.LeaseJob(ctx, ref, "two", ttl)
		return err
	}
	absent := rotation.JobRef{Domain: j.Domain, ID: "absent"}
	for what, fn := range map[string]func(context.Context, rotation.Tx) error{
		"lease of an absent job": func(ctx context.Context, tx rotation.Tx) error {
			_, err := tx.LeaseJob(ctx, absent, "one", ttl)
			return err
		},
		"renewal of an absent job": func(ctx context.Context, tx rotation.Tx) error { return tx.RenewJob(ctx, absent, 0, ttl) },
		"release of an absent job": func(ctx context.Context, tx rotation.Tx) error { return tx.ReleaseJob(ctx, absent, 0) },
	} {
		b.refused(broker.ErrNotFound, what, fn)
	}

	got := lease("one")
	want := j
	want.Lease = rotation.Lease{Owner: "one", Seq: 1, Until: b.clock.Now().Add(ttl)}
	equal(t, "the job as leased", got, want)
	equal(t, "the job as stored", b.readJob(j), want)
	lost("a live lease of another", takenByTwo)

	b.clock.Advance(4 * time.Second)
	b.update(renew(1))
	wantLease("a renewed lease", rotation.Lease{Owner: "one", Seq: 1, Until: b.clock.Now().Add(ttl)})
	lost("a renewal with another fence", renew(2))
	lost("a release with another fence", release(2))
	lease("one")
	wantLease("a lease taken again by its owner", rotation.Lease{Owner: "one", Seq: 2, Until: b.clock.Now().Add(ttl)})
	lost("a renewal with the former fence", renew(1))

	b.clock.Advance(ttl - time.Microsecond)
	lost("a lease that has not run out", takenByTwo)
	b.clock.Advance(time.Microsecond)
	lease("two")
	wantLease("a lease that had run out", rotation.Lease{Owner: "two", Seq: 3, Until: b.clock.Now().Add(ttl)})
	lost("a late renewal", renew(2))
	lost("a late release", release(2))
	lost("a late update", func(ctx context.Context, tx rotation.Tx) error {
		late := b.jobIn(ctx, tx, ref)
		late.Lease.Seq, late.WaitMessage = 2, "late"
		return tx.UpdateJob(ctx, late)
	})

	b.update(release(3))
	if l := b.readJob(j).Lease; l.Seq != 3 || !l.Until.IsZero() {
		t.Errorf("a released lease: seq %d until %v, want seq 3 and no time", l.Seq, l.Until)
	}
	lost("a renewal after the release", renew(3))
	lease("one")
	wantLease("a lease taken after a release", rotation.Lease{Owner: "one", Seq: 4, Until: b.clock.Now().Add(ttl)})
	equal(t, "leases raise no version", b.readJob(j).Version, 1)

	b.clock.Advance(2 * ttl)
	b.update(renew(4)) // run out, but nobody took it
	wantLease("a lease renewed late but in time", rotation.Lease{Owner: "one", Seq: 4, Until: b.clock.Now().Add(ttl)})
}

// jobIn reads a job inside a transaction.
func (b *storeBench) jobIn(ctx context.Context, tx rotation.Tx, r rotation.JobRef) rotation.Job {
	b.t.Helper()
	j, err := tx.Job(ctx, r)
	if err != nil {
		b.t.Errorf("read job: %v", err)
	}
	return j
}

// testTouchJob: the last move is a clock that a key change waits on, so no
// update made from an older reading may set it back.
func testTouchJob(t *testing.T, b *storeBench) {
	j := b.job(b.domain("alpha").UID, "job-1", rotation.Running, rotation.Reencrypting)
	b.clock.Advance(time.Minute)
	b.update(func(ctx context.Context, tx rotation.Tx) error {
		b.clock.Advance(time.Second) // it waits for others
		return tx.TouchJob(ctx, refOf(j))
	})
	touched := b.clock.Now()
	want := j
	want.LastMoveTime = touched
	equal(t, "job after the touch", b.readJob(j), want)

	b.clock.Advance(time.Minute)
	j.WaitMessage = "read before the touch"
	b.update(func(ctx context.Context, tx rotation.Tx) error { return tx.UpdateJob(ctx, j) })
	equal(t, "last move after an update from before the touch", b.readJob(j).LastMoveTime, touched)
	b.refused(broker.ErrNotFound, "a touch of an absent job", func(ctx context.Context, tx rotation.Tx) error {
		return tx.TouchJob(ctx, rotation.JobRef{Domain: j.Domain, ID: "absent"})
	})
}

func testFailures(t *testing.T, b *storeBench) {
	d := b.domain("alpha")
	j, other := b.job(d.UID, "job-1", rotation.Running, rotation.Reencrypting), b.job(d.UID, "job-2", rotation.Running, rotation.Reencrypting)
	var failures []rotation.Failure
	for i := range 5 {
		failures = append(failures, rotation.Failure{
			Domain: d.UID, Job: j.ID, DataKey: broker.DataKeyID(fmt.Sprint("k", i)), UID: broker.DataKeyUID(fmt.Sprint("u", i)), Version: int64(i),
			Class: broker.KMSIncorrectKey, Message: "another key", Time: b.clock.Now(),
		})
	}
	foreign := failures[0]
	foreign.Job = other.ID
	list := func(what string, r rotation.JobRef, after broker.DataKeyID, limit int, want ...rotation.Failure) {
		t.Helper()
		b.view(func(ctx context.Context, tx rotation.Tx) error {
			got, err := tx.Failures(ctx, r, after, limit)
			equal(t, what, got, want)
			return err
		})
	}
	b.update(func(ctx context.Context, tx rotation.Tx) error {
		return tx.AddFailures(ctx, []rotation.Failure{failures[3], failures[1], failures[4], failures[0], failures[2], foreign})
	})
	list("failures of a job", refOf(j), "", 10, failures...)
	list("a page of failures", refOf(j), "k1", 2, failures[2], failures[3])
	failures[1].UID, failures[1].Version, failures[1].Class, failures[1].Message = "other", 9, broker.KMSInvalidCiphertext, "damaged"
	failures[1].Time = b.clock.Now().Add(time.Minute)
	b.update(func(ctx context.Context, tx rotation.Tx) error { return tx.AddFailures(ctx, failures[1:2]) })
	list("a failure replaced", refOf(j), "", 10, failures...)
	kept := failures[2]
	b.update(func(ctx context.Context, tx rotation.Tx) error {
		for id, version := range map[broker.DataKeyID]int64{"k2": kept.Version, "k3": failures[3].Version + 1} {
			row := newDataKey(d.UID, id, b.clock.Now())
			row.Version = version
			if err := tx.InsertDataKey(ctx, row); err != nil {
				return err
			}
		}
		return tx.DeleteFailures(ctx, refOf(j), 1)
	})
	list("failures of rows at an epoch, after the others' deletion", refOf(j), "", 10, kept)
	b.update(func(ctx context.Context, tx rotation.Tx) error { return tx.DeleteFailures(ctx, refOf(j), 0) })
	list("failures after their deletion", refOf(j), "", 10)
	list("failures of another job", refOf(other), "", 10, foreign)
}

func testMoved(t *testing.T, b *storeBench) {
	d := b.domain("alpha")
	j, other := b.job(d.UID, "job-1", rotation.Running, rotation.Reencrypting), b.job(d.UID, "job-2", rotation.Running, rotation.Reencrypting)
	one := rotation.MaterialCount{SourceKey: "arn:one", SourceMaterial: "m1", NewMaterial: "m9", Rows: 5}
	two := rotation.MaterialCount{SourceKey: "arn:one", SourceMaterial: "", NewMaterial: "m9", Rows: 7}
	b.update(func(ctx context.Context, tx rotation.Tx) error {
		if err := tx.AddMoved(ctx, refOf(j), []rotation.MaterialCount{one, two}); err != nil {
			return err
		}
		return tx.AddMoved(ctx, refOf(other), []rotation.MaterialCount{one})
	})
	b.update(func(ctx context.Context, tx rotation.Tx) error {
		return tx.AddMoved(ctx, refOf(j), []rotation.MaterialCount{one, one})
	})
	one.Rows = 15
	b.view(func(ctx context.Context, tx rotation.Tx) error {
		got, err := tx.Moved(ctx, refOf(j))
		equal(t, "rows moved, by material", got, []rotation.MaterialCount{two, one})
		return err
	})
}
