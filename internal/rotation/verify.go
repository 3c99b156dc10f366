package rotation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/keybroker/keybroker/internal/broker"
)

const (
	// passPage is how many rows a full pass reads at a time; ours.
	passPage = 500
	// A sample of sampleShare of the rows, at least sampleMin and at most
	// sampleMax, goes through KMS.
	sampleShare          = 0.01
	sampleMin, sampleMax = 20, 1000
)

// verify is phase 5. A full pass over the domain must find no row under an
// older key; what it finds goes back to REENCRYPTING, and poison rows alone
// fail the job. Then a sample of rows is given to KMS for a real ReEncrypt from
// the new key to itself, whose result is dropped: a dry run may not look at the
// ciphertext. A row that KMS cannot read is a failure of the job, and first in
// the sample when the job is resumed.
func (e *Engine) verify(ctx context.Context, j Job) (Job, error) {
	pass, err := e.fullPass(ctx, j)
	if err != nil {
		return j, err
	}
	if pass.pending > 0 {
		return e.sweepAgain(ctx, j, pass)
	}
	if pass.poison > 0 {
		return j, failWith(broker.ReasonRowsFailed, "%d rows cannot be read by KMS and are still under an older key; they are listed as the job's failures", pass.poison)
	}
	p, err := e.readPlan(ctx, j)
	if err != nil {
		return j, err
	}
	e.cfg.At("verify.passed")
	j.VerifiedRows = 0
	for _, id := range slices.Concat(pass.suspects, pass.sample) {
		checked, err := e.verifyRow(ctx, p, j, id)
		if err != nil {
			return j, err
		}
		if checked {
			j.VerifiedRows++
		}
	}
	if len(pass.suspects) > 0 { // KMS can read them now
		if err := e.store.Update(ctx, func(tx Tx) error { return tx.DeleteFailures(ctx, j.Ref(), 0) }); err != nil {
			return j, err
		}
	}
	j.Phase = Retiring
	return j, nil
}

// A passResult is what a full pass saw.
type passResult struct {
	rows, pending, poison int64
	// suspects are rows under the new key that an earlier sample found unreadable,
	// and that are as they were.
	suspects, sample []broker.DataKeyID
}

// fullPass reads every row of the domain, page by page, and draws a sample
// (reservoir sampling: each row is as likely as any other).
func (e *Engine) fullPass(ctx context.Context, j Job) (passResult, error) {
	var out passResult
	poison, err := e.poisonRows(ctx, j)
	if err != nil {
		return out, err
	}
	var after broker.DataKeyID
	for {
		var page []broker.DataKey
		err := e.store.View(ctx, func(tx Tx) (err error) {
			page, err = tx.ListDataKeys(ctx, j.Domain, after, passPage)
			return err
		})
		if err != nil {
			return out, err
		}
		for _, row := range page {
			e.seeRow(&out, row, j.TargetEpoch, poison)
		}
		if len(page) < passPage {
			break
		}
		after = page[len(page)-1].ID
	}
	keep := min(len(out.sample), max(sampleMin, int(float64(out.rows)*sampleShare)))
	out.sample = out.sample[:keep]
	return out, nil
}

func (e *Engine) seeRow(out *passResult, row broker.DataKey, target broker.Epoch, poison map[broker.DataKeyID]int64) {
	if row.Abandoned {
		return
	}
	out.rows++
	version, recorded := poison[row.ID]
	switch poisonous := recorded && version == row.Version; {
	case row.Epoch < target && poisonous:
		out.poison++
		return
	case row.Epoch < target:
		out.pending++
		return
	case poisonous:
		out.suspects = append(out.suspects, row.ID)
		return
	}
	if len(out.sample) < sampleMax {
		out.sample = append(out.sample, row.ID)
		i := int(e.cfg.Rand() * float64(len(out.sample)))
		last := len(out.sample) - 1
		out.sample[i], out.sample[last] = out.sample[last], out.sample[i]
	} else if i := int64(e.cfg.Rand() * float64(out.rows)); i < sampleMax {
		out.sample[i] = row.ID
	}
}

// poisonRows gives the versions of the rows that the job has recorded as failures.
func (e *Engine) poisonRows(ctx context.Context, j Job) (map[broker.DataKeyID]int64, error) {
	poison := map[broker.DataKeyID]int64{}
	var after broker.DataKeyID
	for {
		var page []Failure
		err := e.store.View(ctx, func(tx Tx) (err error) {
			page, err = tx.Failures(ctx, j.Ref(), after, passPage)
			return err
		})
		if err != nil {
			return nil, err
		}
		for _, f := range page {
			poison[f.DataKey] = f.Version
		}
		if len(page) < passPage {
			return poison, nil
		}
		after = page[len(page)-1].DataKey
	}
}

// sweepAgain sends the job back to REENCRYPTING, with all its shards.
func (e *Engine) sweepAgain(ctx context.Context, j Job, pass passResult) (Job, error) {
	e.cfg.Logger.InfoContext(ctx, "full pass found rows under an older key", "job", j.ID, "rows", pass.pending)
	bounds, _, err := e.sample(ctx, j)
	if err != nil {
		return j, err
	}
	again := j
	err = e.store.Update(ctx, func(tx Tx) error {
		if err := e.replaceShards(ctx, tx, j, bounds, false); err != nil {
			return err
		}
		next := j
		next.Phase = Reencrypting
		if err := tx.UpdateJob(ctx, next); err != nil {
			return err
		}
		d, err := tx.DomainByUID(ctx, j.Domain)
		if err != nil {
			return err
		}
		if err := tx.Audit(ctx, e.event(broker.System.Subject, "reencryptionJobs.sweepAgain", d, next, broker.AuditDone,
			map[string]string{"rows": strconv.FormatInt(pass.pending, 10)})); err != nil {
			return err
		}
		again, err = tx.Job(ctx, j.Ref())
		return err
	})
	return again, err
}

// verifyRow has KMS read one row as it is stored now. A row that was deleted
// meanwhile is none.
func (e *Engine) verifyRow(ctx context.Context, p plan, j Job, id broker.DataKeyID) (checked bool, err error) {
	var row broker.DataKey
	err = e.store.View(ctx, func(tx Tx) error {
		row, err = tx.DataKey(ctx, j.Domain, id)
		return err
	})
	if errors.Is(err, broker.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if row.Epoch != j.TargetEpoch {
		return false, fmt.Errorf("row %s has epoch %d after a full pass: %w", id, row.Epoch, broker.ErrConflict)
	}
	full := row.Context.With(p.domain.Reserved)
	_, err = e.worker.ReEncrypt(ctx, broker.ReEncrypt{Ciphertext: row.Ciphertext, SourceKey: j.TargetKey, SourceContext: full,
		DestinationKey: j.TargetKey, DestinationContext: full})
	if err == nil {
		return true, nil
	}
	switch class := broker.ClassOf(err); class {
	case broker.KMSIncorrectKey, broker.KMSInvalidCiphertext:
		failure := newFailure(j, row, class, err)
		err := e.store.Update(ctx, func(tx Tx) error {
			failure.Time = tx.Now()
			return tx.AddFailures(ctx, []Failure{failure})
		})
		if err != nil {
			return false, err
		}
		return false, failWith(broker.ReasonRowsFailed, "data key %s cannot be read under the new key: %s", id, class)
	}
	return false, blockOnKMS(To, j.TargetKey, err)
}
