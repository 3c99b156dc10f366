package rotation

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/pacer"
)

// A shardWork is one replica's work on one shard, under one lease.
//
// Its sweeps over the shard are a pipeline: while one batch is committed, the
// rows of the next are at KMS, and those after it are read. Each commit is one
// transaction, and they come in the order of the rows. At most two batches have
// been at KMS and are not committed: a crash costs no more than those. What a
// pipeline holds is bounded by the size of a batch.
type shardWork struct {
	engine *Engine
	shard  Shard // as the last commit left it
	job    Job
	plan   plan
	flow   *pacer.Flow
	held   bool // the last commit kept the lease
	// calls and throttled are the flow's counts as the last commit had them.
	calls, throttled uint64
	// asked is when it took the shard, or last asked whether it is wanted elsewhere.
	asked time.Time
	// ahead has what KMS said of rows behind the cursor, where a batch was cut: two
	// batches of them at most. The next sweep does not ask again.
	ahead map[broker.DataKeyID]slot
}

// A page is rows that are read at once.
type page struct {
	rows []broker.DataKey
	read time.Time
	end  bool // the range holds no more
	err  error
}

// A batch is rows that are committed together, with what became of them.
type batch struct {
	slots []slot
	begun time.Time // when its first row was read
	// timed ends with the batch's time: it takes no more rows then, and failures
	// that pass are not tried again.
	timed   context.Context
	cancel  context.CancelFunc
	pending sync.WaitGroup // rows at KMS
	end     bool           // nothing is left behind it in this sweep
	release bool           // the lease is given back with it
	cut     []slot         // rows of a VERIFY job that are not committed with it, nor any behind them
}

// A slot is a row's place in a batch.
type slot struct {
	batch   *batch
	row     *broker.DataKey
	outcome rowOutcome
}

// sweep passes over the rest of the shard once, or commits most batches of it (0
// is no limit). goOn is false when the shard is finished, its lease was given
// back, the job is not RUNNING, or another has a better claim to the worker.
func (w *shardWork) sweep(ctx context.Context, most int) (goOn bool, _ error) {
	// To stop is to take no more rows: the calls under way are seen through and
	// committed; where the process ends, for as long as a batch takes. Where no
	// commit will come, they are abandoned.
	reading, stop := context.WithCancel(ctx)
	calls, abandon := context.WithCancel(context.WithoutCancel(ctx))
	defer context.AfterFunc(ctx, func() {
		if w.engine.cfg.Sleep(calls, w.engine.cfg.BatchTime) == nil {
			abandon()
		}
	})()
	pages, rows, batches := make(chan page), make(chan *slot), make(chan *batch)
	var wg sync.WaitGroup
	defer func() { // also where a commit panics
		stop()
		abandon()
		wg.Wait()
	}()
	shard := w.shard
	var fed error // the feeder's; settled when batches is closed
	wg.Go(func() { w.read(reading, shard, most, pages) })
	wg.Go(func() {
		defer close(batches)
		defer close(rows)
		fed = w.feed(reading, calls, most, pages, rows, batches)
	})
	for range w.engine.cfg.CallsPerShard {
		wg.Go(func() {
			for s := range rows {
				s.outcome = w.moveRow(calls, s.batch.timed, s.row)
				if s.outcome.lost != nil {
					stop()
				}
				s.batch.pending.Done()
			}
		})
	}
	goOn = true
	cut, ahead := false, map[broker.DataKeyID]slot{}
	maps.Copy(ahead, w.ahead)
	for b := range batches {
		b.pending.Wait()
		if cut { // nothing is committed past it
			keep(ahead, b.slots)
			continue
		}
		w.engine.cfg.At("batch.reencrypted")
		more, err := w.commit(context.WithoutCancel(ctx), b)
		if err != nil {
			return false, err
		}
		keep(ahead, b.cut)
		cut = len(b.cut) > 0
		if goOn = goOn && more; !goOn || cut {
			stop()
		}
	}
	maps.DeleteFunc(ahead, func(id broker.DataKeyID, _ slot) bool { return id <= w.shard.Cursor })
	w.ahead = ahead
	if !goOn && w.held { // the feeder had ended before it was told to
		return false, w.release(context.WithoutCancel(ctx))
	}
	return goOn && fed == nil, fed
}

// keep puts rows that are settled where the next sweep finds them.
func keep(ahead map[broker.DataKeyID]slot, slots []slot) {
	for i := range slots {
		if slots[i].outcome.settled() {
			ahead[slots[i].row.ID] = slots[i]
		}
	}
}

// read reads the shard's rows, page by page, to the end of its range or of most
// pages.
func (w *shardWork) read(ctx context.Context, s Shard, most int, pages chan<- page) {
	defer close(pages)
	r := reader{work: w, rest: s}
	for n := 1; ; n++ {
		p := r.page(ctx)
		if ctx.Err() != nil { // nobody waits for it, nor for its error
			return
		}
		select {
		case pages <- p:
		case <-ctx.Done():
			return
		}
		if p.err != nil || p.end || n == most {
			return
		}
	}
}

// A reader reads a shard, stretch by stretch.
type reader struct {
	work *shardWork
	rest Shard // what is not read yet
	// high ends the stretch that rest begins with, if within.
	high   broker.DataKeyID
	within bool
}

// page gives the next page that has rows, or the last.
func (r *reader) page(ctx context.Context) (p page) {
	for len(p.rows) == 0 && !p.end && p.err == nil {
		part := r.rest
		p.err = r.work.engine.store.View(ctx, func(tx Tx) (err error) {
			p.read = tx.Now()
			if part.High = r.high; !r.within {
				if part, err = tx.Stretch(ctx, r.rest); err != nil {
					return err
				}
			}
			p.rows, err = r.work.pendingRows(ctx, tx, part)
			return err
		})
		n := len(p.rows)
		r.high, r.within = part.High, n == r.work.engine.cfg.BatchRows
		if r.within {
			r.rest.Cursor = p.rows[n-1].ID
			continue
		}
		p.end = part.High == r.rest.High
		r.rest.Cursor = part.High
	}
	return p
}

// feed puts the rows into batches and gives them to whoever calls KMS. It hands a
// batch on when that is full or its time is up, and waits with that while the one
// before is committed. Where it ends before the rows do, its last batch, perhaps
// an empty one, gives the lease back.
func (w *shardWork) feed(ctx, calls context.Context, most int, pages <-chan page, rows chan<- *slot, batches chan<- *batch) error {
	var p page // what is left of it
	for n := 1; ; n++ {
		b := &batch{slots: make([]slot, 0, w.engine.cfg.BatchRows)}
		err := w.fill(ctx, calls, b, &p, pages, rows)
		b.release = err != nil || ctx.Err() != nil || n == most
		last := b.end || b.release // a batch is its committer's once it is handed on
		select {
		case batches <- b:
		case <-calls.Done(): // nothing may be committed past it
			return err
		}
		if last {
			return err
		}
	}
}

// fill gives rows to KMS until the batch takes no more.
func (w *shardWork) fill(ctx, calls context.Context, b *batch, p *page, pages <-chan page, rows chan<- *slot) error {
	for len(b.slots) < cap(b.slots) {
		if len(p.rows) == 0 {
			if b.end = p.end; b.end {
				return nil
			}
			next, ok := <-pages
			if !ok {
				return nil
			}
			if *p = next; p.err != nil {
				return p.err
			}
			continue
		}
		if len(b.slots) == 0 {
			b.begin(calls, p.read, w.engine.cfg.BatchTime)
		}
		b.slots = append(b.slots, slot{batch: b, row: &p.rows[0]})
		if known, ok := w.ahead[p.rows[0].ID]; ok && known.row.UID == p.rows[0].UID && known.row.Version == p.rows[0].Version {
			b.slots[len(b.slots)-1].outcome = known.outcome
			p.rows = p.rows[1:]
			continue
		}
		b.pending.Add(1)
		select {
		case rows <- &b.slots[len(b.slots)-1]:
			p.rows = p.rows[1:]
			continue
		case <-b.timed.Done():
		case <-ctx.Done():
		}
		b.pending.Done()
		b.slots = b.slots[:len(b.slots)-1]
		if len(b.slots) > 0 || ctx.Err() != nil {
			return nil
		}
	}
	b.end = p.end && len(p.rows) == 0
	return nil
}

// begin starts the batch's time, also anew while nobody has taken a row of it.
func (b *batch) begin(calls context.Context, read time.Time, limit time.Duration) {
	if b.cancel != nil {
		b.cancel()
	}
	b.begun = read
	b.timed, b.cancel = context.WithTimeout(calls, limit)
}
