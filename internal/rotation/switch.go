package rotation

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
)

// errUnprepared says that a live grant lacks its grants on the new key.
var errUnprepared = errors.New("a live grant has no grant on the new key yet")

// switchKey is phase 2, one transaction under the exclusive domain lock and
// fenced by the job's lease: from its commit on, every store is under the new
// key. The shards' boundaries are sampled before, outside any lock; the first
// shard is open below and the last above, so they miss nothing.
func (e *Engine) switchKey(ctx context.Context, j Job) (Job, error) {
	bounds, rows, err := e.sample(ctx, j)
	if err != nil {
		return j, err
	}
	e.cfg.At("switch.sampled")
	err = e.store.Update(ctx, func(tx Tx) error {
		if err := tx.LockDomain(ctx, j.Domain, broker.Exclusive); err != nil {
			return err
		}
		d, err := tx.DomainByUID(ctx, j.Domain)
		if err != nil {
			return err
		}
		if d.Epoch != j.SourceEpoch || d.KeyChange.Job != j.ID {
			return fmt.Errorf("domain %s is at epoch %d, its change %s: %w", d.UID, d.Epoch, d.KeyChange.Job, broker.ErrConflict)
		}
		if err := allGranted(ctx, tx, j); err != nil {
			return err
		}
		if err := moveEpoch(ctx, tx, d, j); err != nil {
			return err
		}
		if err := e.supersede(ctx, tx, d, j); err != nil {
			return err
		}
		next := j
		next.Phase, next.State, next.Block = Reencrypting, Running, Block{}
		next.SwitchTime, next.EstimatedRows, next.WaitMessage = tx.Now(), rows, ""
		if err := e.replaceShards(ctx, tx, next, bounds, false); err != nil {
			return err
		}
		if err := tx.UpdateJob(ctx, next); err != nil {
			return err
		}
		if err := tx.Audit(ctx, e.event(broker.System.Subject, "domains.switchKey", d, j, broker.AuditDone,
			map[string]string{"from": string(j.SourceKey), "to": string(j.TargetKey)})); err != nil {
			return err
		}
		j, err = tx.Job(ctx, j.Ref())
		return err
	})
	e.cfg.At("switch.committed")
	if errors.Is(err, errUnprepared) {
		unprepared := j
		unprepared.PrepareTime = time.Time{}
		return unprepared, nil
	}
	return j, err
}

// sample finds the bounds between shards, and counts the rows on the way. A
// domain without an older key has nothing to cut.
func (e *Engine) sample(ctx context.Context, j Job) (bounds []broker.DataKeyID, rows int64, err error) {
	if j.SourceEpoch == 0 {
		return nil, 0, nil
	}
	err = e.store.View(ctx, func(tx Tx) error {
		if bounds, rows, err = tx.SampleBoundaries(ctx, j.Domain, e.cfg.Shards); err != nil {
			return err
		}
		if n := e.shardsFor(rows); n < e.cfg.Shards {
			bounds, rows, err = tx.SampleBoundaries(ctx, j.Domain, n)
		}
		return err
	})
	return bounds, rows, err
}

// shardsFor cuts a job that is worth cutting into a multiple of this replica's
// workers: a shard left over would be one worker's, while the others wait.
func (e *Engine) shardsFor(rows int64) int {
	n := int(rows)/e.cfg.RowsPerShard + 1
	if n == 1 {
		return n
	}
	rounds := (n + e.cfg.Workers - 1) / e.cfg.Workers
	return min(rounds*e.cfg.Workers, e.cfg.Shards)
}

// allGranted refuses the switch while a live grant could not be used after it.
func allGranted(ctx context.Context, tx Tx, j Job) error {
	grants, err := tx.LiveGrants(ctx, j.Domain)
	if err != nil {
		return err
	}
	made, err := onTarget(ctx, tx, j)
	if err != nil {
		return err
	}
	if len(unprepared(grants, made, j)) > 0 {
		return errUnprepared
	}
	return nil
}

// moveEpoch makes the target the domain's key.
func moveEpoch(ctx context.Context, tx Tx, d broker.Domain, j Job) error {
	keys, err := tx.DomainKeys(ctx, d.UID)
	if err != nil {
		return err
	}
	for _, k := range keys {
		switch k.Epoch {
		case d.Epoch:
			k.State, k.ReplaceTime = broker.KeySuperseded, tx.Now()
		case j.TargetEpoch:
			k.State, k.ActivateTime = broker.KeyCurrent, tx.Now()
		default:
			continue
		}
		if err := tx.UpdateDomainKey(ctx, k); err != nil {
			return err
		}
	}
	d.Epoch, d.KMSKey, d.KMSKeyGiven = j.TargetEpoch, j.TargetKey, j.TargetGiven
	d.State, d.InaccessibleSince, d.KeyChange = broker.DomainActive, time.Time{}, broker.KeyChange{}
	return tx.UpdateDomain(ctx, d)
}

// supersede ends the domain's earlier key changes: their rows, clocks and older
// keys are this job's now. Rows that they moved last may still be in readers'
// hands, so their max_read_delay counts from now.
func (e *Engine) supersede(ctx context.Context, tx Tx, d broker.Domain, by Job) error {
	jobs, err := tx.UnfinishedJobs(ctx, d.UID)
	if err != nil {
		return err
	}
	for _, j := range jobs {
		if j.ID == by.ID || j.Kind != KindKeyChange || j.Phase == Preparing {
			continue
		}
		if _, err := e.end(ctx, tx, broker.System, d, j, Superseded); err != nil {
			return err
		}
		if !j.LastMoveTime.IsZero() {
			if err := tx.TouchJob(ctx, by.Ref()); err != nil {
				return err
			}
		}
	}
	return nil
}

// replaceShards stores the ranges between the bounds, all of them unfinished, in
// place of those that the job had. What was counted so far is carried over, so
// that progress never goes back; with afresh, failures are counted anew.
func (e *Engine) replaceShards(ctx context.Context, tx Tx, j Job, bounds []broker.DataKeyID, afresh bool) error {
	sofar, err := tx.Progress(ctx, j.Ref())
	if err != nil {
		return err
	}
	shards := make([]Shard, 0, len(bounds)+1)
	var low broker.DataKeyID
	add := func(high broker.DataKeyID) {
		shards = append(shards, Shard{Domain: j.Domain, Job: j.ID, Index: len(shards), Low: low, High: high, Cursor: low,
			Pace: Pace{Time: tx.Now()}}) // it waits from now on
		low = high
	}
	for _, b := range bounds {
		add(b)
	}
	add("")
	shards[0].Done, shards[0].Relabelled = sofar.Done, sofar.Relabelled
	if !afresh {
		shards[0].Failed = sofar.Failed
	}
	return tx.InsertShards(ctx, shards)
}

// beginSweep stores a job as it is to be next, with its domain cut into new shards.
func (e *Engine) beginSweep(ctx context.Context, j, next Job, bounds []broker.DataKeyID, action string, detail map[string]string) (Job, error) {
	begun := j
	err := e.store.Update(ctx, func(tx Tx) error {
		if err := e.replaceShards(ctx, tx, next, bounds, false); err != nil {
			return err
		}
		if err := tx.UpdateJob(ctx, next); err != nil {
			return err
		}
		d, err := tx.DomainByUID(ctx, j.Domain)
		if err != nil {
			return err
		}
		if err := tx.Audit(ctx, e.event(broker.System.Subject, action, d, next, broker.AuditDone, detail)); err != nil {
			return err
		}
		begun, err = tx.Job(ctx, j.Ref())
		return err
	})
	return begun, err
}
