package main

import (
	"context"
	"errors"
)

// kmsQuota is what the KMS of quotaUse allows in a second.
const kmsQuota = 2000

// quotaUse is how much of a quota a job uses, and what the search for it costs: a
// KMS that answers after 8 ms, and throttles above a quota that the broker is not
// told.
func (b *bench) quotaUse(ctx context.Context, engine string) (err error) {
	k, err := startKMS(ctx, kmsQuota)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.stop()) }()
	// Loaded from a KMS that knows of no quota, so that the search begins with the job.
	rows := b.size.quotaRows
	w, _, err := b.loaded(ctx, engine, "quota", k.Slow, setting{pool: enginePool()}, rows)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	calls, throttled := w.calls.Load(), w.throttled.Load()
	job, err := w.changeKey(ctx, int64(rows))
	if err != nil {
		return err
	}
	made, refused := float64(w.calls.Load()-calls), float64(w.throttled.Load()-throttled)
	// The quota of localkms begins with a second's calls saved up.
	allowed := kmsQuota * (job.Seconds + 1)
	b.say("quota, %s: %.0f rows/s of %d, %.0f of %.0f calls throttled", engine, job.rate(), kmsQuota, refused, made)
	b.report.add(metric{Name: "share of a quota of 2,000 calls/s that a job uses, KMS answers after 8ms", Engine: engine, Value: float64(job.N) / allowed,
		Target: atLeast(0.97), Unit: "ratio", Raw: raw{"job, rows/s": {job.rate()}, "calls allowed meanwhile": {allowed}, "job, CPU µs/row": {job.CPU}}})
	b.report.add(metric{Name: "calls that this quota throttled", Engine: engine, Value: refused / made,
		Target: atMost(0.01), Unit: "ratio", Raw: raw{"calls": {made}, "throttled": {refused}}})
	return nil
}
