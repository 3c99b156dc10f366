package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

// changeKey moves the domain to the customer's new key, with traffic all along.
func (r *run) changeKey(ctx context.Context) error {
	traffic, err := r.startTraffic(ctx)
	if err != nil {
		return err
	}
	err = r.changeUnderTraffic(ctx)
	stats, trafficErr := traffic.stop()
	if err := errors.Join(err, trafficErr); err != nil {
		return err
	}
	r.story.say("service", "added %d files meanwhile, and opened files %s times with %d errors",
		stats.added, thousands(int64(stats.opened)), stats.failures)
	return nil
}

func (r *run) changeUnderTraffic(ctx context.Context) error {
	if r.st.Job == "" {
		if err := r.requestChange(ctx); err != nil {
			return err
		}
		r.story.say("customer", "asks for %s instead of %s; a writer and a reader go on meanwhile", short(r.st.NewKey), short(r.st.OldKey))
	}
	r.act()
	bar := r.story.bar("re-encrypt", 0)
	job, err := r.follow(ctx, r.st.Job, func(j *keybrokerv1.ReencryptionJob) {
		r.act()
		r.showJob(bar, j)
	})
	if err != nil {
		return err
	}
	bar.set(job.GetProgress().GetDoneRows(), 0, 0)
	bar.end()
	r.story.say("broker", "moved %s data keys, then retired its grants and the service's on the old key",
		thousands(job.GetProgress().GetDoneRows()))
	return nil
}

// requestChange calls ChangeKey with the etag of the domain that was looked at.
// The etag is saved first: a repeat sends the same request, and so finds the
// job that an earlier start got.
func (r *run) requestChange(ctx context.Context) error {
	for {
		if r.st.ChangeEtag == "" {
			domain, err := r.domains.GetDomain(ctx, &keybrokerv1.GetDomainRequest{Name: domainName})
			if err != nil {
				return err
			}
			r.st.ChangeEtag = domain.GetEtag()
			if err := r.save(); err != nil {
				return err
			}
		}
		job, err := r.domains.ChangeKey(ctx, &keybrokerv1.ChangeKeyRequest{
			Name: domainName, KmsKey: r.st.NewKey, Etag: r.st.ChangeEtag,
			Reason: "the demo's key change", RequestId: "demo-change-" + r.st.ChangeEtag,
		})
		if reasonOf(err) == "ETAG_MISMATCH" {
			r.st.ChangeEtag = ""
			if err := pause(ctx, firstWait); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		r.st.Job = job.GetName()
		return r.save()
	}
}

// showJob turns a state of the job into what people see of it.
func (r *run) showJob(bar *bar, j *keybrokerv1.ReencryptionJob) {
	p := j.GetProgress()
	switch {
	case j.GetState() == keybrokerv1.ReencryptionJob_STATE_BLOCKED:
		bar.wait("blocked: " + j.GetBlock().GetMessage())
	case j.GetPhase() == keybrokerv1.ReencryptionJob_PHASE_REENCRYPTING:
		bar.set(p.GetDoneRows(), p.GetTotalRows(), p.GetRowsPerSecond())
	case j.GetWaiting().GetMessage() != "":
		bar.wait(j.GetWaiting().GetMessage())
	}
}

// follow watches a job to its end. It fails unless that is success.
func (r *run) follow(ctx context.Context, name string, show func(*keybrokerv1.ReencryptionJob)) (*keybrokerv1.ReencryptionJob, error) {
	var job *keybrokerv1.ReencryptionJob
	for {
		err := r.watch(ctx, name, func(j *keybrokerv1.ReencryptionJob) {
			job = j
			show(j)
		})
		if status.Code(err) == codes.Unavailable { // the broker drains, or restarts
			err = pause(ctx, firstWait)
			if err == nil {
				continue
			}
		}
		if err != nil {
			return nil, fmt.Errorf("watch %s: %w", name, err)
		}
		break
	}
	if job.GetState() != keybrokerv1.ReencryptionJob_STATE_SUCCEEDED {
		return nil, fmt.Errorf("%s ended in %s: %s", name, job.GetState(), job.GetError().GetMessage())
	}
	return job, nil
}

func (r *run) watch(ctx context.Context, name string, show func(*keybrokerv1.ReencryptionJob)) error {
	ctx, cancel := context.WithCancel(ctx) // ends the stream on any way out
	defer cancel()
	stream, err := r.jobs.WatchReencryptionJob(ctx, &keybrokerv1.WatchReencryptionJobRequest{Name: name})
	if err != nil {
		return err
	}
	for {
		answer, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if answer.GetJob() != nil {
			show(answer.GetJob())
		}
	}
}

// verdictPatience is how long the verdict may take to become good after the job
// has ended: no longer than the windows of a broker that a demo starts.
const verdictPatience = 30 * time.Second

// awaitVerdict asks for the retirement report until every key in it is safe to
// retire, or until that will not happen soon.
func (r *run) awaitVerdict(ctx context.Context) (*keybrokerv1.RetirementReport, error) {
	for start := r.cfg.Now(); ; {
		report, err := r.jobs.GetRetirementReport(ctx, &keybrokerv1.GetRetirementReportRequest{Name: r.st.Job + "/retirementReport"})
		if err != nil {
			return nil, err
		}
		if safe(report) || r.cfg.Now().Sub(start) > verdictPatience {
			return report, nil
		}
		if err := pause(ctx, longestWait); err != nil {
			return nil, err
		}
	}
}

func safe(report *keybrokerv1.RetirementReport) bool {
	for _, entry := range report.GetEntries() {
		if !entry.GetSafeToRetire() {
			return false
		}
	}
	return len(report.GetEntries()) > 0
}
