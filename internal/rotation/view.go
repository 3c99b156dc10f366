package rotation

import (
	"context"
	"errors"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
)

// A JobView is a job with what its reader needs.
type JobView struct {
	Job
	DomainID broker.DomainID
	// Sources are the older keys that rows or grants may still be under.
	Sources  []broker.KeyARN
	Progress Progress
	// TotalRows is an estimate until every shard's first sweep has ended.
	TotalRows int64
	Estimated bool
	// Pace is how fast it moves; zero while it does not.
	Pace Pace
	// Budget is the calls a second that KMS's quota allows the replicas that move
	// rows in this Region, for all their jobs; 0 if that is not known.
	Budget float64
	// FinishTime is when the moving would end at that pace; zero if unknown.
	FinishTime time.Time
}

// GetJob gives one job.
func (e *Engine) GetJob(ctx context.Context, _ broker.Caller, d broker.DomainID, id broker.JobID) (JobView, error) {
	var view JobView
	err := e.store.View(ctx, func(tx Tx) (err error) {
		view, err = e.readJob(ctx, tx, d, id)
		return err
	})
	return view, err
}

func (e *Engine) readJob(ctx context.Context, tx Tx, id broker.DomainID, job broker.JobID) (JobView, error) {
	d, err := tx.Domain(ctx, id)
	if err != nil {
		return JobView{}, notFound(err, broker.ReasonDomainNotFound, id.Name())
	}
	j, err := tx.Job(ctx, JobRef{Domain: d.UID, ID: job})
	if err != nil {
		return JobView{}, notFound(err, broker.ReasonJobNotFound, broker.JobName(id, job))
	}
	return e.viewJob(ctx, tx, d, j)
}

// A JobCursor is a place in the list of jobs: the last one given.
type JobCursor struct {
	Domain broker.DomainID
	Job    broker.JobID
}

// ListJobs gives up to limit jobs after a place in the list: those of one domain
// or, for the id "-", of all (AIP-159), by domain and id.
func (e *Engine) ListJobs(ctx context.Context, _ broker.Caller, id broker.DomainID, after JobCursor, limit int) ([]JobView, error) {
	var views []JobView
	err := e.store.View(ctx, func(tx Tx) error {
		views = nil
		if id != "-" {
			d, err := tx.Domain(ctx, id)
			if err != nil {
				return notFound(err, broker.ReasonDomainNotFound, id.Name())
			}
			return e.listJobs(ctx, tx, d, after.Job, limit, &views)
		}
		return e.listAllJobs(ctx, tx, after, limit, &views)
	})
	return views, err
}

func (e *Engine) listAllJobs(ctx context.Context, tx Tx, after JobCursor, limit int, views *[]JobView) error {
	const domainsAtATime = 100
	if after.Domain != "" {
		if d, err := tx.Domain(ctx, after.Domain); err == nil {
			if err := e.listJobs(ctx, tx, d, after.Job, limit, views); err != nil {
				return err
			}
		}
	}
	for len(*views) < limit {
		domains, err := tx.ListDomains(ctx, after.Domain, domainsAtATime)
		if err != nil || len(domains) == 0 {
			return err
		}
		for _, d := range domains {
			if err := e.listJobs(ctx, tx, d, "", limit, views); err != nil || len(*views) >= limit {
				return err
			}
			after.Domain = d.ID
		}
	}
	return nil
}

// listJobs appends jobs of a domain until views holds limit.
func (e *Engine) listJobs(ctx context.Context, tx Tx, d broker.Domain, after broker.JobID, limit int, views *[]JobView) error {
	jobs, err := tx.ListJobs(ctx, d.UID, after, limit-len(*views))
	if err != nil {
		return err
	}
	for _, j := range jobs {
		view, err := e.viewJob(ctx, tx, d, j)
		if err != nil {
			return err
		}
		*views = append(*views, view)
	}
	return nil
}

func (e *Engine) viewJob(ctx context.Context, tx Tx, d broker.Domain, j Job) (JobView, error) {
	p, err := tx.Progress(ctx, j.Ref())
	if err != nil {
		return JobView{}, err
	}
	view := JobView{Job: j, DomainID: d.ID, Progress: p, TotalRows: j.EstimatedRows, Estimated: true}
	keys, err := tx.DomainKeys(ctx, d.UID)
	if err != nil {
		return JobView{}, err
	}
	for _, k := range keys {
		if k.Epoch < j.TargetEpoch && k.State != broker.KeyAbandoned && (k.Unretired() || k.Epoch == j.SourceEpoch) {
			view.Sources = append(view.Sources, k.KMSKey)
		}
	}
	settled := p.Done + p.Failed
	moving := j.Phase == Preparing || j.Phase == Reencrypting || j.Kind == KindVerify && j.Open()
	if !moving {
		view.TotalRows, view.Estimated = settled, false
	} else if settled > view.TotalRows {
		view.TotalRows = settled
	}
	if j.State == Running && (j.Phase == Reencrypting || j.Kind == KindVerify) {
		err = e.viewPace(ctx, tx, d, &view)
	}
	return view, err
}

// viewPace tells how fast a job moves, and what it may take.
func (e *Engine) viewPace(ctx context.Context, tx Tx, d broker.Domain, view *JobView) error {
	shards, err := tx.Paces(ctx, view.Ref())
	if err != nil {
		return err
	}
	view.Pace = sumPaces(shards, view.SwitchTime, tx.Now())
	if view.Pace.Rows > 0 {
		left := float64(view.TotalRows - view.Progress.Done - view.Progress.Failed)
		view.FinishTime = tx.Now().Add(time.Duration(left / view.Pace.Rows * float64(time.Second)))
	}
	if e.cfg.RowBudget == nil {
		return nil
	}
	view.Budget, _, err = e.allowed(ctx, tx, d.Region)
	return err
}

// Ref names the job.
func (j Job) Ref() JobRef { return JobRef{Domain: j.Domain, ID: j.ID} }

func notFound(err error, reason broker.Reason, resource string) error {
	if errors.Is(err, broker.ErrNotFound) {
		return &broker.Error{Kind: broker.ErrNotFound, Reason: reason, Resource: resource, Detail: "there is no such resource"}
	}
	return err
}
