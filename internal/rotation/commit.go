package rotation

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strconv"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
)

// commit stores a batch in one transaction: rows, failures, counts, cursor and
// lease together, fenced by the shard's lease. A replica that lost the lease
// writes nothing.
func (w *shardWork) commit(ctx context.Context, b *batch) (goOn bool, err error) {
	retryLater, found := w.look(ctx, b)
	next, tally, lost := w.shard, tally{}, found
	var state State
	var priority Priority
	calls, throttled := w.flow.Counts()
	var now time.Time
	var took time.Duration
	err = w.engine.store.Update(ctx, func(tx Tx) error {
		next, lost, now = w.shard, found, tx.Now()
		if len(b.slots) > 0 {
			took = now.Sub(b.begun)
		}
		if tally, err = w.storeRows(ctx, tx, b); err != nil {
			return err
		}
		next.Done += int64(tally.moved + tally.verified)
		next.Relabelled += int64(tally.relabelled)
		next.Failed += int64(tally.failed)
		next.Pace = next.Pace.add(now, uint64(tally.moved+tally.verified+tally.failed), calls-w.calls, throttled-w.throttled)
		next.Again = next.Again || tally.conflicts > 0 || retryLater
		next.advance(b)
		ttl := w.engine.cfg.LeaseTTL
		if b.release || next.Finished {
			ttl = 0
		}
		if state, priority, err = tx.CommitShard(ctx, next, ttl); err != nil {
			return err
		}
		if lost == nil {
			if lost, err = w.doubt(ctx, tx, tally); err != nil {
				return err
			}
		}
		return w.block(ctx, tx, lost)
	})
	if err != nil {
		return false, err
	}
	w.engine.cfg.At("batch.committed")
	w.shard, w.held = next, !b.release && !next.Finished
	w.calls, w.throttled = calls, throttled
	w.flow.SetWeight(priority.part())
	w.engine.cfg.Observe.Batch(BatchRows{Moved: tally.moved - tally.relabelled, Relabelled: tally.relabelled, Verified: tally.verified,
		Failed: tally.failed, Conflicts: tally.conflicts}, took)
	if tally.conflicts > 0 {
		w.engine.cfg.Logger.InfoContext(ctx, "rows changed during their re-encryption", "job", w.job.ID, "rows", tally.conflicts)
	}
	w.engine.changed.notify()
	if next.Finished || lost != nil {
		w.engine.nudge()
	}
	if state != Running || lost != nil || next.Finished || b.release {
		return false, nil
	}
	return !w.wanted(ctx, now), nil
}

// wanted asks, once in a Turn, whether another job has a better claim to this
// worker. The answer is advice and takes a look at every job that is at work, so it
// is no part of the commit, for whose locks others wait.
func (w *shardWork) wanted(ctx context.Context, now time.Time) (wanted bool) {
	if now.Sub(w.asked) < Turn {
		return false
	}
	w.asked = now
	err := w.engine.store.View(ctx, func(tx Tx) (err error) {
		wanted, err = tx.ShardWanted(ctx, w.job.Ref())
		return err
	})
	if err != nil {
		w.engine.logFailure(ctx, "jobs' claims to a worker not compared", err, "job", w.job.ID)
	}
	return wanted && err == nil
}

// release gives the lease back, with everything as the last commit left it.
func (w *shardWork) release(ctx context.Context) error {
	return w.engine.store.Update(ctx, func(tx Tx) error {
		_, _, err := tx.CommitShard(ctx, w.shard, 0)
		return err
	})
}

// look says whether rows are left for later, and finds the loss of access that
// stops the job, as a hold. A batch of a VERIFY job is cut before the first row that
// is left: its rows do not change, so nothing but the cursor says which of them KMS
// has read.
func (w *shardWork) look(ctx context.Context, b *batch) (retryLater bool, lost error) {
	if b.cancel != nil {
		b.cancel()
	}
	left := len(b.slots) // the first that is
	for i := range b.slots {
		o := &b.slots[i].outcome
		if !o.settled() {
			left = min(left, i)
		}
		if o.lost != nil && lost == nil {
			lost = w.diagnose(ctx, o.lostOn, o.lost)
		}
	}
	if left == len(b.slots) {
		return false, lost
	}
	if w.job.Kind == KindVerify {
		b.slots, b.cut, b.end = b.slots[:left], b.slots[left:], false
		return false, lost
	}
	return true, lost
}

// advance moves the cursor over the rows of the batch, or ends the sweep.
func (s *Shard) advance(b *batch) {
	if n := len(b.slots); n > 0 {
		s.Cursor = b.slots[n-1].row.ID
	}
	if !b.end {
		return
	}
	if s.Again {
		s.Again, s.Cursor = false, s.Low
		return
	}
	s.Finished = true
}

// A tally counts what became of a batch's rows. relabelled is part of moved.
type tally struct {
	moved, relabelled, verified, failed, conflicts int
}

func (w *shardWork) storeRows(ctx context.Context, tx Tx, b *batch) (tally, error) {
	var t tally
	var moves []Move
	var failures []Failure
	byMove := make([]*rowOutcome, 0, len(b.slots))
	for i := range b.slots {
		switch o := &b.slots[i].outcome; {
		case o.move != nil:
			moves, byMove = append(moves, *o.move), append(byMove, o)
		case o.verified:
			t.verified++
		case o.failure != nil:
			f := *o.failure
			f.Time = tx.Now()
			failures = append(failures, f)
		}
	}
	if len(moves) > 0 {
		stored, err := tx.MoveDataKeys(ctx, w.job.Domain, w.job.TargetEpoch, moves)
		if err != nil {
			return t, err
		}
		if err := w.record(ctx, tx, moves, byMove, stored, &t); err != nil {
			return t, err
		}
	}
	if len(failures) > 0 {
		t.failed = len(failures)
		return t, tx.AddFailures(ctx, failures)
	}
	return t, nil
}

// record keeps what the batch proves: how many rows came from which key
// material, and one audit event with the Merkle root of the rows.
func (w *shardWork) record(ctx context.Context, tx Tx, moves []Move, outcomes []*rowOutcome, stored []bool, t *tally) error {
	counts := map[MaterialCount]int64{}
	var leaves [][sha256.Size]byte
	for i, ok := range stored {
		if !ok {
			t.conflicts++
			continue
		}
		m := moves[i]
		t.moved++
		if outcomes[i].relabel {
			t.relabelled++
		}
		counts[MaterialCount{SourceKey: outcomes[i].source, SourceMaterial: outcomes[i].oldID, NewMaterial: m.KeyMaterialID}]++
		leaves = append(leaves, broker.LeafHash(broker.DataKey{ID: m.ID, UID: m.UID, Ciphertext: m.Ciphertext,
			KeyMaterialID: m.KeyMaterialID, Version: m.Version + 1, Epoch: w.job.TargetEpoch}))
	}
	if t.moved == 0 {
		return nil
	}
	list := make([]MaterialCount, 0, len(counts))
	for m, n := range counts {
		m.Rows = n
		list = append(list, m)
	}
	if err := tx.AddMoved(ctx, w.job.Ref(), list); err != nil {
		return err
	}
	if err := tx.TouchJob(ctx, w.job.Ref()); err != nil {
		return err
	}
	root := broker.MerkleRoot(leaves)
	return tx.Audit(ctx, w.engine.event(broker.System.Subject, "dataKeys.reencrypt", w.plan.domain, w.job, broker.AuditDone,
		map[string]string{"rows": strconv.Itoa(t.moved), "merkle_root": hex.EncodeToString(root[:]), "kms_key": string(w.job.TargetKey)}))
}

// doubtAt and doubtShare: that many poison rows, and that share of the job, are
// no accident; the context or the key that the domain records is wrong then.
const (
	doubtAt    = 20
	doubtShare = 0.01
)

// doubt blocks a job whose rows turn out to be poison one after the other,
// unless somebody said to go on over them. The block is a hold, nil for none.
func (w *shardWork) doubt(ctx context.Context, tx Tx, t tally) (block, err error) {
	if t.failed == 0 || w.job.Kind == KindVerify {
		return nil, nil
	}
	j, err := tx.Job(ctx, w.job.Ref())
	if err != nil || j.AcceptMismatch {
		return nil, err
	}
	p, err := tx.Progress(ctx, w.job.Ref())
	if err != nil || p.Failed < doubtAt || float64(p.Failed) < doubtShare*float64(j.EstimatedRows) {
		return nil, err
	}
	return blockOn(From, broker.ReasonContextOrKeyMismatch,
		"KMS cannot read %d rows: their key or context is not what the domain records; ResumeReencryptionJob goes on over them", p.Failed), nil
}

// block stores the loss of access on the job, unless it is blocked already or
// was changed meanwhile: the next batch will say it again.
func (w *shardWork) block(ctx context.Context, tx Tx, lost error) error {
	var h *hold
	if !errors.As(lost, &h) || h.State != Blocked {
		return nil
	}
	j, err := tx.Job(ctx, w.job.Ref())
	if err != nil || j.State != Running {
		return err
	}
	before := j
	w.engine.applyHold(&j, before, h, tx.Now())
	if err := tx.UpdateJob(ctx, j); err != nil {
		if errors.Is(err, broker.ErrConflict) {
			return nil
		}
		return err
	}
	return tx.Audit(ctx, w.engine.event(broker.System.Subject, "reencryptionJobs.block", w.plan.domain, j, broker.AuditDone,
		map[string]string{"reason": string(h.Reason), "side": string(h.Side)}))
}
