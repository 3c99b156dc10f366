package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// sideBySide is the durable job beside the bare loop, in turns: loop, job, loop,
// job, …, loop. Each job is compared with the loops before and after it.
func (b *bench) sideBySide(ctx context.Context, engine string) error {
	s, err := b.inTurns(ctx, engine, "fast", b.kms.Fast, enginePool(), b.size.rows, b.size.rounds)
	if err != nil {
		return err
	}
	b.report.add(metric{Name: "durable job ÷ bare SDK loop, rows per second", Engine: engine, Value: median(s.speed), Target: atLeast(0.90),
		Unit: "ratio", Raw: raw{"job, rows/s": s.jobRate, "loop, calls/s": s.loopRate, "ratio": s.speed}})
	b.report.add(metric{Name: "the broker's own CPU per row", Engine: engine, Value: median(s.own), Target: atMost(40),
		Unit: "µs", Raw: raw{"job, µs/row": s.jobCPU, "loop, µs/call": s.loopCPU, "own": s.own}})
	b.report.add(metric{Name: "ReEncrypt calls per row", Engine: engine, Value: s.calls / s.rows, Target: atMost(1.01),
		Unit: "calls", Raw: raw{"calls": {s.calls}, "rows": {s.rows}}})
	b.report.add(metric{Name: "sample calls of VERIFYING per row", Engine: engine, Value: s.verified / s.rows,
		Unit: "calls", Raw: raw{"calls": {s.verified}, "rows": {s.rows}}})
	b.report.add(metric{Name: "other KMS calls per key change", Engine: engine, Value: s.others / float64(b.size.rounds),
		Unit: "calls", Raw: raw{"calls": {s.others}, "changes": {float64(b.size.rounds)}}})
	return nil
}

// sideBySideSlow is the same against a KMS that takes as long as AWS's.
func (b *bench) sideBySideSlow(ctx context.Context, engine string) error {
	s, err := b.inTurns(ctx, engine, "slow", b.kms.Slow, slowPool(), b.size.slowRows, b.size.slowRounds)
	if err != nil {
		return err
	}
	b.report.add(metric{Name: fmt.Sprintf("durable job ÷ bare SDK loop, KMS answers after %v", kmsDelay), Engine: engine, Value: median(s.speed),
		Target: atLeast(0.90), Unit: "ratio", Raw: raw{"job, rows/s": s.jobRate, "loop, calls/s": s.loopRate, "ratio": s.speed}})
	b.report.add(metric{Name: fmt.Sprintf("the broker's own CPU per row, KMS answers after %v", kmsDelay), Engine: engine, Value: median(s.own),
		Target: atMost(40), Unit: "µs", Raw: raw{"job, µs/row": s.jobCPU, "loop, µs/call": s.loopCPU, "own": s.own}})
	return nil
}

// turns are the figures of jobs and loops in turns.
type turns struct {
	jobRate, loopRate, speed      []float64
	jobCPU, loopCPU, own          []float64
	rows, calls, verified, others float64
}

func (b *bench) inTurns(ctx context.Context, engine, name, endpoint string, p pool, rows, rounds int) (s turns, err error) {
	b.say("%s KMS, %s: loading %d rows", name, engine, rows)
	w, _, err := b.loaded(ctx, engine, name, endpoint, setting{pool: p}, rows)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	if _, err := w.bareLoop(ctx); err != nil { // opens the connections; not counted
		return s, err
	}
	loop, err := w.bareLoop(ctx)
	if err != nil {
		return s, err
	}
	s.loopRate, s.loopCPU = []float64{loop.rate()}, []float64{loop.CPU}
	for round := range rounds {
		before, err := b.kms.stats(ctx)
		if err != nil {
			return s, err
		}
		var job change
		if err := b.profiled(fmt.Sprintf("%s-%s-job-%d", engine, name, round+1), func() (err error) {
			job, err = w.changeKey(ctx, int64(rows))
			return err
		}); err != nil {
			return s, err
		}
		after, err := b.kms.stats(ctx)
		if err != nil {
			return s, err
		}
		s.count(after.since(before), job)
		if err := b.profiled(fmt.Sprintf("%s-%s-loop-%d", engine, name, round+1), func() (err error) {
			loop, err = w.bareLoop(ctx)
			return err
		}); err != nil {
			return s, err
		}
		s.loopRate, s.loopCPU = append(s.loopRate, loop.rate()), append(s.loopCPU, loop.CPU)
		s.jobRate, s.jobCPU = append(s.jobRate, job.rate()), append(s.jobCPU, job.CPU)
		s.speed = append(s.speed, job.rate()/mean(s.loopRate[round:]))
		s.own = append(s.own, job.CPU-mean(s.loopCPU[round:]))
		b.say("%s KMS, %s: round %d of %d: job %.0f rows/s, %.0f µs; loop %.0f calls/s, %.0f µs", name, engine, round+1, rounds,
			job.rate(), job.CPU, loop.rate(), loop.CPU)
	}
	return s, nil
}

// count sorts the KMS calls of one key change.
func (s *turns) count(made map[string]int64, job change) {
	const rowCalls = "ReEncrypt"
	s.rows += float64(job.N)
	s.verified += float64(job.Verified)
	s.calls += float64(made[rowCalls] - job.Verified)
	for name, n := range made {
		if name != rowCalls {
			s.others += float64(n)
		}
	}
}

// domainSizes changes the key of small and large domains, in turns, each time
// in a fresh process, so that its peak memory is that of one job.
func (b *bench) domainSizes(ctx context.Context, engine string) error {
	sizes := b.size.domains
	memory, rate, cpu := make([][]float64, len(sizes)), make([][]float64, len(sizes)), make([][]float64, len(sizes))
	places := make([]place, len(sizes))
	for i, rows := range sizes {
		b.say("%s: loading a domain of %d rows", engine, rows)
		w, at, err := b.loaded(ctx, engine, "rows-"+strconv.Itoa(rows), b.kms.Fast, setting{pool: enginePool()}, rows)
		if err == nil {
			err = w.close()
		}
		if err != nil {
			return err
		}
		places[i] = at
	}
	once := func(i int) error {
		out, err := b.changeApart(ctx, places[i], sizes[i])
		if err != nil {
			return err
		}
		b.say("%s: %d rows: %.0f rows/s, peak %d KiB", engine, sizes[i], out.rate(), out.PeakKiB)
		memory[i], rate[i], cpu[i] = append(memory[i], float64(out.PeakKiB)), append(rate[i], out.rate()), append(cpu[i], out.CPU)
		return nil
	}
	// The small domain is measured before and after each large one: it takes a
	// moment, in which a busy machine may be at its best or worst.
	if err := once(0); err != nil {
		return err
	}
	for round := range b.size.domainRounds {
		for i := 1; i < len(sizes); i++ {
			if sizes[i] > longDomain && round > 0 {
				continue // once is enough for a figure of minutes
			}
			if err := errors.Join(once(i), once(0)); err != nil {
				return err
			}
		}
	}
	for i, rows := range sizes {
		if memory[i][0] > 0 {
			b.report.add(metric{Name: "peak memory, " + thousands(rows) + " rows", Engine: engine, Value: median(memory[i]) / 1024, Unit: "MiB",
				Raw: raw{"KiB": memory[i]}})
		}
		b.report.add(metric{Name: "speed, " + thousands(rows) + " rows", Engine: engine, Value: median(rate[i]), Unit: "rows/s",
			Raw: raw{"rows/s": rate[i], "CPU, µs/row": cpu[i]}})
	}
	for i := 1; i < len(sizes); i++ {
		both := thousands(sizes[i]) + " ÷ " + thousands(sizes[0]) + " rows"
		if memory[0][0] > 0 {
			b.report.add(metric{Name: "peak memory, " + both, Engine: engine, Value: median(memory[i]) / median(memory[0]), Target: atMost(1.1),
				Unit: "ratio", Raw: raw{"large, KiB": memory[i], "small, KiB": memory[0]}})
		}
		b.report.add(metric{Name: "speed, " + both, Engine: engine, Value: median(rate[i]) / median(rate[0]), Target: atLeast(0.95),
			Unit: "ratio", Raw: raw{"large, rows/s": rate[i], "small, rows/s": rate[0]}})
	}
	return nil
}

// longDomain takes minutes to change.
const longDomain = 500_000

// loaded opens a world in a new place, with a tenant of some rows.
func (b *bench) loaded(ctx context.Context, engine, name, endpoint string, set setting, rows int) (*world, place, error) {
	at, err := b.newPlace(ctx, engine, name)
	if err != nil {
		return nil, at, err
	}
	w, err := openWorld(ctx, at, endpoint, set)
	if err != nil {
		return nil, at, err
	}
	if err = w.onboard(ctx); err == nil {
		err = w.load(ctx, rows)
	}
	if err != nil {
		return nil, at, errors.Join(err, w.close())
	}
	return w, at, nil
}

const partChange = "change"

// changeApart changes the key of a loaded domain in a process of its own.
func (b *bench) changeApart(ctx context.Context, at place, rows int) (out change, err error) {
	command, err := startSelf(ctx, partChange, at.engine, at.at, b.kms.Fast, strconv.Itoa(rows))
	if err != nil {
		return out, err
	}
	var answer bytes.Buffer
	command.Stdout = &answer
	if err := command.Run(); err != nil {
		return out, err
	}
	return out, json.Unmarshal(answer.Bytes(), &out)
}

// changeOnce is that process.
func changeOnce(ctx context.Context, args []string, out io.Writer) (err error) {
	if len(args) != 4 {
		return errors.New("want the engine, its database, the KMS and the number of rows")
	}
	rows, err := strconv.ParseInt(args[3], 10, 64)
	if err != nil {
		return err
	}
	w, err := openWorld(ctx, place{args[0], args[1]}, args[2], setting{pool: enginePool()})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	made, err := w.changeKey(ctx, rows)
	if err != nil {
		return err
	}
	made.PeakKiB = peakMemory()
	return json.NewEncoder(out).Encode(made)
}
