package rotation

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/keybroker/keybroker/internal/broker"
)

// ListFailures gives up to limit poison rows of a job, by data key id.
func (e *Engine) ListFailures(ctx context.Context, _ broker.Caller, d broker.DomainID, job broker.JobID, after broker.DataKeyID, limit int) ([]Failure, error) {
	var failures []Failure
	err := e.store.View(ctx, func(tx Tx) error {
		view, err := e.readJob(ctx, tx, d, job)
		if err != nil {
			return err
		}
		failures, err = tx.Failures(ctx, view.Ref(), after, limit)
		return err
	})
	return failures, err
}

// Acknowledge is an AcknowledgeReencryptionFailures call: the owner of the
// domain gives rows up that KMS cannot read.
type Acknowledge struct {
	Request  broker.Request
	Domain   broker.DomainID
	Job      broker.JobID
	DataKeys []broker.DataKeyID
	All      bool // instead of DataKeys
	Reason   string
}

// acknowledgePage bounds one read of failures; ours.
const acknowledgePage = 1000

// AcknowledgeFailures marks rows as ABANDONED: they stay as they are, under the
// key they are under, and no job waits for them any more. ResumeReencryptionJob
// then lets the job end. It returns how many rows were marked, to a repeat the
// same; one that has changed since it failed is left alone.
func (e *Engine) AcknowledgeFailures(ctx context.Context, caller broker.Caller, in Acknowledge) (int, error) {
	if in.Reason == "" {
		return 0, fieldInvalid("reason", "must say why the rows are given up: it goes into the audit log")
	}
	if in.All == (len(in.DataKeys) > 0) {
		return 0, fieldInvalid("names", "give either names or all")
	}
	for i, id := range in.DataKeys {
		if slices.Contains(in.DataKeys[:i], id) {
			return 0, fieldInvalid(fmt.Sprintf("names[%d]", i), "stands twice in the request")
		}
	}
	marked := 0
	err := e.store.Update(ctx, func(tx Tx) error {
		marked = 0
		view, err := e.readJob(ctx, tx, in.Domain, in.Job)
		if err != nil {
			return err
		}
		done, err := broker.Begin(ctx, tx, caller, in.Request)
		if err != nil {
			return err
		}
		if done != "" {
			marked, err = countIn(done)
			return err
		}
		failures, err := chosenFailures(ctx, tx, view, in)
		if err != nil {
			return err
		}
		for _, f := range failures {
			ok, err := tx.AbandonDataKey(ctx, f)
			if err != nil {
				return err
			}
			if ok {
				marked++
			}
		}
		d, err := tx.DomainByUID(ctx, view.Domain)
		if err != nil {
			return err
		}
		if err := tx.Audit(ctx, e.event(caller.Subject, "reencryptionFailures.acknowledge", d, view.Job, broker.AuditDone,
			map[string]string{"rows": strconv.Itoa(marked), "reason": in.Reason})); err != nil {
			return err
		}
		return broker.Finish(ctx, tx, caller, in.Request, acknowledgeRecord(broker.JobName(in.Domain, in.Job), marked))
	})
	return marked, err
}

// acknowledgeRecord is what a request record keeps of an acknowledgement: the job
// and how many rows were marked, which cannot be read again.
func acknowledgeRecord(job string, marked int) string { return job + " " + strconv.Itoa(marked) }

func countIn(record string) (marked int, err error) {
	_, count, _ := strings.Cut(record, " ")
	if marked, err = strconv.Atoi(count); err != nil {
		return 0, fmt.Errorf("request record of an acknowledgement: %w", err)
	}
	return marked, nil
}

// chosenFailures gives the failures that are meant and not acknowledged yet; a
// data key that is no failure of the job is refused.
func chosenFailures(ctx context.Context, tx Tx, view JobView, in Acknowledge) ([]Failure, error) {
	byID := map[broker.DataKeyID]Failure{}
	var chosen []Failure
	var after broker.DataKeyID
	for {
		page, err := tx.Failures(ctx, view.Ref(), after, acknowledgePage)
		if err != nil {
			return nil, err
		}
		for _, f := range page {
			byID[f.DataKey] = f
			if in.All && !f.Acknowledged {
				chosen = append(chosen, f)
			}
		}
		if len(page) < acknowledgePage {
			break
		}
		after = page[len(page)-1].DataKey
	}
	for i, id := range in.DataKeys {
		f, ok := byID[id]
		if !ok {
			return nil, fieldInvalid(fmt.Sprintf("names[%d]", i), "is no failure of this job")
		}
		if !f.Acknowledged {
			chosen = append(chosen, f)
		}
	}
	return chosen, nil
}

func fieldInvalid(field, description string) error {
	return &broker.Error{Kind: broker.ErrInvalid, Reason: broker.ReasonFieldInvalid, Detail: "the request is invalid",
		Violations: []broker.Violation{{Field: field, Description: description}}}
}
