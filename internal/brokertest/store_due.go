package brokertest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
)

// testDueJobs: each job is of a domain of its own, and named for what it is; those
// that are due have a number.
func testDueJobs(t *testing.T, b *storeBench) {
	const wait = time.Minute
	later, now := b.clock.Now().Add(wait), b.clock.Now()
	insert := func(id broker.JobID, change func(j *rotation.Job)) rotation.Job {
		t.Helper()
		b.clock.Advance(time.Microsecond)
		j := newJob(b.domain(broker.DomainID("of-"+id)).UID, id, b.clock.Now())
		change(&j)
		b.update(func(ctx context.Context, tx rotation.Tx) error { return tx.InsertJob(ctx, j) })
		return j
	}
	shards := func(j rotation.Job, finished ...bool) {
		t.Helper()
		list := make([]rotation.Shard, len(finished))
		for i, f := range finished {
			list[i] = rotation.Shard{Domain: j.Domain, Job: j.ID, Index: i, Finished: f}
		}
		b.update(func(ctx context.Context, tx rotation.Tx) error { return tx.InsertShards(ctx, list) })
	}
	grant := func(j rotation.Job, kind broker.GrantKind, epoch broker.Epoch, state broker.KMSGrantState) {
		t.Helper()
		g := newGrant(j.Domain, "g", now)
		k := newKMSGrant(g, epoch, kind, 1, now)
		k.Name, k.State = k.Name+string(j.ID), state
		b.update(func(ctx context.Context, tx rotation.Tx) error {
			if err := tx.InsertGrant(ctx, g); err != nil {
				return err
			}
			return tx.InsertKMSGrant(ctx, k)
		})
	}
	state := func(s rotation.State) func(*rotation.Job) { return func(j *rotation.Job) { j.State = s } }
	blocked := func(reason broker.Reason, probe time.Time) func(*rotation.Job) {
		return func(j *rotation.Job) {
			j.State, j.Block = rotation.Blocked, rotation.Block{Reason: reason, Side: rotation.From, NextProbe: probe}
		}
	}
	waiting := func(until time.Time) func(*rotation.Job) {
		return func(j *rotation.Job) { j.Phase, j.WaitMessage, j.WaitUntil = rotation.Draining, "waits", until }
	}
	leased := func(owner string, until time.Time) func(*rotation.Job) {
		return func(j *rotation.Job) { j.Lease = rotation.Lease{Owner: owner, Seq: 1, Until: until} }
	}
	moving := func(j *rotation.Job) { j.Phase = rotation.Reencrypting }

	insert("urgent", func(j *rotation.Job) { j.Priority = rotation.High })
	insert("paused", state(rotation.Paused))
	insert("1 preparing", state(rotation.Running))
	insert("ended", state(rotation.Succeeded))
	insert("failed", state(rotation.Failed))
	insert("2 to probe", blocked(broker.ReasonKeyDisabled, now))
	insert("to probe later", blocked(broker.ReasonKeyDisabled, later))
	insert("for a caller", blocked(broker.ReasonContextOrKeyMismatch, now))
	insert("3 waited", waiting(now))
	insert("waits", waiting(later))
	insert("4 mine", leased("me", later))
	insert("another's", leased("another", later))
	insert("5 once another's", leased("another", now))
	shards(insert("moves", moving), false, true)
	shards(insert("6 has moved", moving), true, true)
	insert("7 has no shards", moving)
	j := insert("8 has a wrap grant", moving)
	shards(j, false)
	grant(j, broker.Wrap, 1, broker.KMSGrantLive)
	j = insert("9 retires a wrap grant", moving)
	shards(j, false)
	grant(j, broker.Wrap, 1, broker.KMSGrantRetiring)
	for id, g := range map[broker.JobID]broker.KMSGrant{
		"has retired":         {Kind: broker.Wrap, Epoch: 1, State: broker.KMSGrantRetired},
		"unwraps only":        {Kind: broker.Unwrap, Epoch: 1, State: broker.KMSGrantLive},
		"wraps on its target": {Kind: broker.Wrap, Epoch: 2, State: broker.KMSGrantLive},
	} {
		j := insert(id, moving)
		shards(j, false)
		grant(j, g.Kind, g.Epoch, g.State)
	}
	shards(insert("A says what it waits for", func(j *rotation.Job) { moving(j); j.WaitMessage = "KMS throttles" }), false)
	shards(insert("B is to probe, with shards", func(j *rotation.Job) { blocked(broker.ReasonKeyDisabled, now)(j); moving(j) }), false)
	shards(insert("verifies", func(j *rotation.Job) { j.Kind, j.Phase = rotation.KindVerify, rotation.Verifying }), false)
	shards(insert("C has verified", func(j *rotation.Job) { j.Kind, j.Phase = rotation.KindVerify, rotation.Verifying }), true)
	shards(insert("D is past its shards", func(j *rotation.Job) { j.Phase = rotation.Verifying }), false)

	want := []broker.JobID{"1 preparing", "2 to probe", "3 waited", "4 mine", "5 once another's", "6 has moved", "7 has no shards",
		"8 has a wrap grant", "9 retires a wrap grant", "A says what it waits for", "B is to probe, with shards", "C has verified", "D is past its shards"}
	for page := 1; page <= len(want)+1; page += 3 {
		equal(t, fmt.Sprint("due jobs, in pages of ", page), b.dueJobs(rotation.Normal, page), want)
		equal(t, "urgent jobs that are due", b.dueJobs(rotation.High, page), []broker.JobID{"urgent"})
	}
	b.clock.Advance(wait)
	equal(t, "due jobs a minute later", len(b.dueJobs(rotation.Normal, 100)), len(want)+3)
}

// dueJobs reads those of a priority page by page.
func (b *storeBench) dueJobs(p rotation.Priority, page int) (ids []broker.JobID) {
	b.t.Helper()
	b.view(func(ctx context.Context, tx rotation.Tx) error {
		var last rotation.Job
		for {
			jobs, err := tx.DueJobs(ctx, p, "me", last, page)
			ids = append(ids, jobIDs(jobs)...)
			if err != nil || len(jobs) < page {
				return err
			}
			last = jobs[len(jobs)-1]
		}
	})
	return ids
}

func testMovingJobs(t *testing.T, b *storeBench) {
	moving := func(what string, d broker.DomainUID, want map[rotation.Priority]int) {
		t.Helper()
		b.view(func(ctx context.Context, tx rotation.Tx) error {
			got, err := tx.MovingJobs(ctx, d)
			equal(t, what, got, want)
			return err
		})
	}
	moving("none", "uid-own", map[rotation.Priority]int{})
	own := b.runningJob("own", 1, rotation.Normal)
	for i := range 3 {
		b.runningJob(broker.DomainID(fmt.Sprint("normal-", i)), 1, rotation.Normal)
	}
	high := b.runningJob("high", 1, rotation.High)
	d := b.domain("others")
	b.job(d.UID, "paused", rotation.Paused, rotation.Reencrypting)
	b.job(d.UID, "ended", rotation.Succeeded, rotation.Reencrypting)
	b.job(d.UID, "drains", rotation.Running, rotation.Draining)
	verify := newJob(d.UID, "verifies", b.clock.Now())
	verify.Kind, verify.Phase = rotation.KindVerify, rotation.Verifying
	b.update(func(ctx context.Context, tx rotation.Tx) error { return tx.InsertJob(ctx, verify) })
	moving("beside the job's own domain", own.Domain, map[rotation.Priority]int{rotation.Normal: 4, rotation.High: 1})
	moving("beside the one of high priority", high.Domain, map[rotation.Priority]int{rotation.Normal: 5})
}
