package rotation

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/keybroker/keybroker/internal/broker"
)

const (
	// passPage is how many rows a full pass reads at a time; ours.
	passPage = 500
	// passPages is how many pages one step reads, and sampleRounds how many times
	// CallsPerShard rows it gives to KMS, the last page's in full. Then it stores how
	// far it has come, and other jobs have their turn; ours.
	passPages    = 100
	sampleRounds = 4
	// A sample of sampleShare of the rows, at least sampleMin and at most
	// sampleMax, goes through KMS.
	sampleShare          = 0.01
	sampleMin, sampleMax = 20, 1000
)

// A Verification is how far VERIFYING's full pass has come. It goes on where it
// was, whatever KMS does and whoever takes the job over: no row behind the cursor
// can have come under an older key since, as nothing is stored under one any more.
type Verification struct {
	Cursor broker.DataKeyID // the last row that the pass has seen
	// Seen counts the rows up to there that are as they should be, Rows all that there
	// were when it began.
	Seen, Rows int64
}

// verify is phase 5, a step of it. A full pass over the domain must find no row
// under an older key; what it finds goes back to REENCRYPTING, and poison rows
// alone fail the job. From each part of the rows a sample is given to KMS for a
// real ReEncrypt from the new key to itself, whose result is dropped: a dry run may
// not look at the ciphertext. A row that KMS cannot read is a failure of the job,
// and is given to KMS again when the job is resumed, whatever the sample then is.
func (e *Engine) verify(ctx context.Context, j Job) (Job, error) {
	d, next, err := e.beginVerify(ctx, j)
	if err != nil {
		return j, err
	}
	if next.Verify != j.Verify {
		return next, nil // no step that KMS holds up counts them again
	}
	part, err := e.passOn(ctx, next)
	if err != nil {
		return j, err
	}
	if part.pending > 0 {
		return e.sweepAgain(ctx, j, part.pending)
	}
	if err := e.readSample(ctx, d, j, part.sample); err != nil {
		return j, err
	}
	next.Verify.Cursor, next.Verify.Seen = part.cursor, part.seen
	next.VerifiedRows += int64(len(part.sample))
	if !part.end {
		return next, nil
	}
	poison, suspects, err := e.failuresLeft(ctx, j)
	if err != nil {
		return j, err
	}
	if poison > 0 {
		return j, failWith(broker.ReasonRowsFailed, "%d rows cannot be read by KMS and are still under an older key; they are listed as the job's failures", poison)
	}
	if !next.Verify.enough(next.VerifiedRows) {
		// Many of the rows that were counted are given up, or gone: once more, for a
		// sample of those that are left.
		next.Verify, next.VerifiedRows = Verification{Rows: next.Verify.Seen}, 0
		return next, nil
	}
	e.cfg.At("verify.passed")
	if err := e.readSample(ctx, d, j, suspects); err != nil {
		return j, err
	}
	next.VerifiedRows += int64(len(suspects))
	if len(suspects) > 0 { // KMS can read them now
		if err := e.store.Update(ctx, func(tx Tx) error { return tx.DeleteFailures(ctx, j.Ref(), 0) }); err != nil {
			return j, err
		}
	}
	next.Phase = Retiring
	return next, nil
}

// beginVerify reads the job's domain and, where the pass begins, counts its rows:
// that says how large a part of them the sample is.
func (e *Engine) beginVerify(ctx context.Context, j Job) (d broker.Domain, _ Job, err error) {
	err = e.store.View(ctx, func(tx Tx) error {
		if d, err = tx.DomainByUID(ctx, j.Domain); err != nil || j.Verify != (Verification{}) {
			return err
		}
		j.VerifiedRows = 0
		_, j.Verify.Rows, err = tx.SampleBoundaries(ctx, j.Domain, 1)
		return err
	})
	return d, j, err
}

// A passPart is what a full pass saw in one step.
type passPart struct {
	cursor  broker.DataKeyID
	seen    int64
	pending int64 // rows under an older key that are no recorded failures
	sample  []broker.DataKey
	end     bool // no row is left behind the cursor
}

// passOn goes on with the full pass, to the end of a step or to a page with a row
// that is pending.
func (e *Engine) passOn(ctx context.Context, j Job) (passPart, error) {
	part := passPart{cursor: j.Verify.Cursor, seen: j.Verify.Seen}
	for range passPages {
		var page []broker.DataKey
		var recorded map[broker.DataKeyID]int64
		err := e.store.View(ctx, func(tx Tx) (err error) {
			if page, err = tx.ListDataKeys(ctx, j.Domain, part.cursor, passPage); err != nil {
				return err
			}
			recorded, err = recordedAmong(ctx, tx, j, part.cursor, page)
			return err
		})
		if err != nil {
			return part, err
		}
		if err := e.seePage(&part, j, page, recorded); err != nil {
			return part, err
		}
		if part.end = len(page) < passPage; part.end || part.pending > 0 || len(part.sample) >= sampleRounds*e.cfg.CallsPerShard {
			break
		}
	}
	return part, nil
}

// seePage looks at each row of a page, and draws its sample. failed has the versions
// in which rows of it failed.
func (e *Engine) seePage(part *passPart, j Job, page []broker.DataKey, failed map[broker.DataKeyID]int64) error {
	var sound []broker.DataKey
	for _, row := range page {
		part.cursor = row.ID
		if row.Abandoned {
			continue
		}
		version, recorded := failed[row.ID]
		switch {
		case row.Epoch > j.TargetEpoch:
			return fmt.Errorf("row %s is of epoch %d, of a later change: %w", row.ID, row.Epoch, broker.ErrConflict)
		case row.Epoch == j.TargetEpoch:
			sound = append(sound, row)
		case !recorded || version != row.Version:
			part.pending++
		}
	}
	before := j.Verify.sampled(part.seen)
	part.seen += int64(len(sound))
	for i := range min(int(j.Verify.sampled(part.seen)-before), len(sound)) {
		other := i + int(e.cfg.Rand()*float64(len(sound)-i))
		sound[i], sound[other] = sound[other], sound[i]
		part.sample = append(part.sample, sound[i])
	}
	return nil
}

// sampled gives how many of the first seen rows are in the sample: it is spread
// evenly over all rows, and within a page each is as likely as any other.
func (v Verification) sampled(seen int64) int64 {
	if v.Rows == 0 {
		return 0
	}
	whole := min(v.Rows, sampleMax, max(sampleMin, int64(float64(v.Rows)*sampleShare)))
	return min(sampleMax, (seen*whole+v.Rows-1)/v.Rows)
}

// enough says whether as many rows were verified as the sample of what the whole pass
// has seen would have: of a large one a tenth may lack, since a pass that meets fewer
// rows than there were when it began is not made again for every row that is deleted.
func (v Verification) enough(verified int64) bool {
	want := Verification{Rows: v.Seen}.sampled(v.Seen)
	return verified >= max(want*9/10, min(want, sampleMin))
}

// recordedAmong gives the versions of those rows under an older key that the job has
// recorded as failures. The rows are of one page, by id, after is the one before it.
func recordedAmong(ctx context.Context, tx Tx, j Job, after broker.DataKeyID, page []broker.DataKey) (map[broker.DataKeyID]int64, error) {
	older := slices.DeleteFunc(slices.Clone(page), func(row broker.DataKey) bool { return row.Abandoned || row.Epoch >= j.TargetEpoch })
	recorded := make(map[broker.DataKeyID]int64, len(older))
	for len(older) > 0 && after < older[len(older)-1].ID {
		failures, err := tx.Failures(ctx, j.Ref(), after, len(older))
		if err != nil {
			return nil, err
		}
		for _, f := range failures {
			recorded[f.DataKey], after = f.Version, f.DataKey
		}
		if len(failures) < len(older) {
			break
		}
	}
	return recorded, nil
}

// sweepAgain sends the job back to REENCRYPTING, with all its shards; found is how
// many rows the pass had met when it ended.
func (e *Engine) sweepAgain(ctx context.Context, j Job, found int64) (Job, error) {
	e.cfg.Logger.InfoContext(ctx, "full pass found rows under an older key", "job", j.ID, "rows", found)
	bounds, _, err := e.sample(ctx, j)
	if err != nil {
		return j, err
	}
	next := j
	next.Phase = Reencrypting
	return e.beginSweep(ctx, j, next, bounds, "reencryptionJobs.sweepAgain", map[string]string{"rows": strconv.FormatInt(found, 10)})
}

// failuresLeft looks at the rows that the job has recorded as failures and that
// are as they were: it counts those under an older key, and gives the others, which
// an earlier sample found unreadable.
func (e *Engine) failuresLeft(ctx context.Context, j Job) (poison int64, suspects []broker.DataKey, err error) {
	var after broker.DataKeyID
	for {
		var failures []Failure
		var rows []broker.DataKey
		err := e.store.View(ctx, func(tx Tx) (err error) {
			if failures, err = tx.Failures(ctx, j.Ref(), after, passPage); err != nil || len(failures) == 0 {
				return err
			}
			ids := make([]broker.DataKeyID, len(failures))
			for i, f := range failures {
				ids[i] = f.DataKey
			}
			rows, err = tx.DataKeys(ctx, j.Domain, ids)
			return err
		})
		if err != nil {
			return 0, nil, err
		}
		failed := make(map[broker.DataKeyID]int64, len(failures))
		for _, f := range failures {
			failed[f.DataKey], after = f.Version, f.DataKey
		}
		for _, row := range rows {
			switch {
			case row.Abandoned || row.Version != failed[row.ID]:
			case row.Epoch < j.TargetEpoch:
				poison++
			default:
				suspects = append(suspects, row)
			}
		}
		if len(failures) < passPage {
			return poison, suspects, nil
		}
	}
}

// readSample has KMS read rows as the pass saw them. Where KMS throttles, it goes
// on with what is left for as long as KMS reads any.
func (e *Engine) readSample(ctx context.Context, d broker.Domain, j Job, rows []broker.DataKey) error {
	var unreadable []Failure
	for len(rows) > 0 {
		answers := make([]error, len(rows))
		e.severalAtATime(len(rows), func(i int) { answers[i] = e.readRow(ctx, d, j, rows[i]) })
		var left []broker.DataKey
		var passing, lasting error
		for i, err := range answers {
			switch class := broker.ClassOf(err); {
			case err == nil:
			case class == broker.KMSIncorrectKey || class == broker.KMSInvalidCiphertext:
				unreadable = append(unreadable, newFailure(j, rows[i], class, err))
			case class.Transient():
				left, passing = append(left, rows[i]), err
			default:
				lasting = err
			}
		}
		switch {
		case len(unreadable) > 0:
			return e.failUnreadable(ctx, unreadable)
		case lasting != nil:
			return blockOnKMS(To, j.TargetKey, lasting)
		case len(left) == len(rows):
			return passing
		}
		rows = left
	}
	return nil
}

func (e *Engine) readRow(ctx context.Context, d broker.Domain, j Job, row broker.DataKey) error {
	full := row.Context.With(d.Reserved)
	_, err := e.askPatiently(ctx, broker.ReEncrypt{Ciphertext: row.Ciphertext, SourceKey: j.TargetKey, SourceContext: full,
		DestinationKey: j.TargetKey, DestinationContext: full})
	return err
}

// failUnreadable records rows of the sample that KMS cannot read, and fails the job.
func (e *Engine) failUnreadable(ctx context.Context, rows []Failure) error {
	err := e.store.Update(ctx, func(tx Tx) error {
		for i := range rows {
			rows[i].Time = tx.Now()
		}
		return tx.AddFailures(ctx, rows)
	})
	if err != nil {
		return err
	}
	return failWith(broker.ReasonRowsFailed, "%d data keys cannot be read under the new key, as %s: %s; they are listed as the job's failures",
		len(rows), rows[0].DataKey, rows[0].Class)
}
