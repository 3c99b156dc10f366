package rotation

import (
	"context"
	"errors"
	"slices"

	"github.com/keybroker/keybroker/internal/broker"
)

// A KeyChangePlan says what a key change would find: counts, and whatever
// stands against it now.
type KeyChangePlan struct {
	TargetKey broker.KeyARN
	Sources   []PlanSource
	Grants    int // live service grants that would be made anew
	// SelfGrants are those for whose services' word the change would wait.
	SelfGrants int
	Problems   []Problem
	// Forecast is nil where no budget is known.
	Forecast *Forecast
}

// A PlanSource is a key that rows would be moved away from.
type PlanSource struct {
	Key  broker.KeyARN
	Rows int64
	// AtLeast says that not every row of the domain was read, so Rows may be more.
	AtLeast bool
}

// countedRows bounds the rows that a call counts for its caller, who has 30 s; ours.
// On PostgreSQL they are some 0.75 GB of the table.
const countedRows = 1_000_000

// A Problem is something that would block or fail the change.
type Problem struct {
	Reason  broker.Reason
	Side    Side
	Message string
}

// PlanKeyChange looks, and changes nothing: it counts, asks KMS by dry runs, and
// tells every problem it finds. What only the new grants could show, namely that
// rows can be moved to the new key, is found by the change itself.
func (e *Engine) PlanKeyChange(ctx context.Context, caller broker.Caller, id broker.DomainID, kmsKey string) (KeyChangePlan, error) {
	if err := broker.ValidateKeyChange(kmsKey, ""); err != nil {
		return KeyChangePlan{}, err
	}
	d, _, err := e.broker.GetDomain(ctx, caller, id)
	if err != nil {
		return KeyChangePlan{}, err
	}
	p, err := e.readPlan(ctx, Job{Domain: d.UID})
	if err != nil {
		return KeyChangePlan{}, err
	}
	var out KeyChangePlan
	for _, g := range p.grants {
		if !g.Worker {
			out.Grants++
		}
	}
	if err := e.planTarget(ctx, p, kmsKey, &out); err != nil {
		return KeyChangePlan{}, err
	}
	if err := e.planSources(ctx, p, &out); err != nil {
		return KeyChangePlan{}, err
	}
	out.Forecast, err = e.forecast(ctx, p, out)
	return out, err
}

func (e *Engine) planTarget(ctx context.Context, p plan, kmsKey string, out *KeyChangePlan) error {
	var elsewhere *broker.Error
	if errors.As(e.broker.CheckKeyARN(p.domain, kmsKey), &elsewhere) {
		return out.note(To, failWith(elsewhere.Reason, "%s", elsewhere.Violations[0].Description))
	}
	meta, err := e.registrar.DescribeKey(ctx, kmsKey)
	if err != nil {
		return out.note(To, describeFailed(kmsKey, err))
	}
	out.TargetKey = meta.ARN
	if meta.ARN == p.domain.KMSKey {
		return out.note(To, failWith(broker.ReasonKeyUnchanged, "the domain has this key already"))
	}
	if err := e.checkMetadata(p.domain, meta); err != nil {
		return out.note(To, err)
	}
	return out.note(To, e.probeOwnership(ctx, p.domain, Job{TargetKey: meta.ARN}))
}

// planSources counts the rows of each older key, as far as there is time, and asks KMS whether the worker
// may still read under it: a dry run from the key to the present one.
func (e *Engine) planSources(ctx context.Context, p plan, out *KeyChangePlan) error {
	var counts map[broker.Epoch]int64
	var whole bool
	err := e.store.View(ctx, func(tx Tx) (err error) {
		if counts, whole, err = tx.CountDataKeys(ctx, p.domain.UID, countedRows); err != nil {
			return err
		}
		left := slices.DeleteFunc(slices.Clone(p.keys), func(k broker.DomainKey) bool { return !k.Unretired() })
		self, err := selfGrantsOn(ctx, tx, p.domain.UID, left)
		out.SelfGrants = len(self)
		return err
	})
	if err != nil {
		return err
	}
	rows, readable := map[broker.KeyARN]int64{}, map[broker.KeyARN]bool{}
	for _, k := range p.keys {
		if k.Unretired() {
			rows[k.KMSKey] += counts[k.Epoch]
			readable[k.KMSKey] = readable[k.KMSKey] || k.Readable()
		}
	}
	for _, k := range p.keys {
		n, ok := rows[k.KMSKey]
		if !ok {
			continue
		}
		delete(rows, k.KMSKey)
		out.Sources = append(out.Sources, PlanSource{Key: k.KMSKey, Rows: n, AtLeast: !whole})
		if !readable[k.KMSKey] || n == 0 && whole {
			continue
		}
		if err := e.dryRunReEncrypt(ctx, p, k.KMSKey, p.domain.KMSKey, nil); err != nil {
			if err := out.note(From, blockOnKMS(From, k.KMSKey, err)); err != nil {
				return err
			}
		}
	}
	return nil
}

// note keeps a hold as a problem; any other error is the call's own.
func (out *KeyChangePlan) note(side Side, err error) error {
	var h *hold
	if !errors.As(err, &h) {
		return broker.RefusedByKMS(err, "")
	}
	out.Problems = append(out.Problems, Problem{Reason: h.Reason, Side: side, Message: h.Message})
	return nil
}
