package grpcapi

import (
	"context"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

// reencryptionService serves keybroker.v1.ReencryptionService.
type reencryptionService struct {
	keybrokerv1.UnimplementedReencryptionServiceServer
	jobs   Jobs
	pages  *pager
	caller func(context.Context) broker.Caller
}

// GetReencryptionJob implements keybroker.v1.ReencryptionService.
func (s *reencryptionService) GetReencryptionJob(ctx context.Context, in *keybrokerv1.GetReencryptionJobRequest) (*keybrokerv1.ReencryptionJob, error) {
	domain, id, err := broker.ParseJobName("name", in.GetName())
	if err != nil {
		return nil, err
	}
	j, err := s.jobs.GetJob(ctx, s.caller(ctx), domain, id)
	if err != nil {
		return nil, err
	}
	return jobMessage(j), nil
}

// jobFilter is what ListReencryptionJobs' filter may compare.
var jobFilter = filterFields[*keybrokerv1.ReencryptionJob]{
	"state":          func(j *keybrokerv1.ReencryptionJob, _ string) string { return j.GetState().String() },
	"phase":          func(j *keybrokerv1.ReencryptionJob, _ string) string { return j.GetPhase().String() },
	"target_kms_key": func(j *keybrokerv1.ReencryptionJob, _ string) string { return j.GetTargetKmsKey() },
}

// ListReencryptionJobs implements keybroker.v1.ReencryptionService.
func (s *reencryptionService) ListReencryptionJobs(ctx context.Context, in *keybrokerv1.ListReencryptionJobsRequest) (*keybrokerv1.ListReencryptionJobsResponse, error) {
	caller := s.caller(ctx)
	domain, err := parseListParent(in.GetParent())
	if err != nil {
		return nil, err
	}
	keep, err := parseFilter(in.GetFilter(), jobFilter, "state, phase and target_kms_key")
	if err != nil {
		return nil, err
	}
	call := listCall{method: keybrokerv1.ReencryptionService_ListReencryptionJobs_FullMethodName, caller: caller.Subject, parent: in.GetParent(), filter: in.GetFilter()}
	size := pageSize(in.GetPageSize(), maxPageSize)
	jobs, next, err := answer(s.pages, call, in.GetPageToken(), size, list[rotation.JobView, *keybrokerv1.ReencryptionJob]{
		fetch: func(after cursor, limit int) ([]rotation.JobView, error) {
			return s.jobs.ListJobs(ctx, caller, domain,
				rotation.JobCursor{Domain: broker.DomainID(after.Domain), Job: broker.JobID(after.ID)}, limit)
		},
		at:      func(j rotation.JobView) cursor { return cursor{Domain: string(j.DomainID), ID: string(j.ID)} },
		convert: jobMessage,
		keep:    keep,
	})
	if err != nil {
		return nil, err
	}
	return &keybrokerv1.ListReencryptionJobsResponse{ReencryptionJobs: jobs, NextPageToken: next}, nil
}

// WatchReencryptionJob implements keybroker.v1.ReencryptionService.
func (s *reencryptionService) WatchReencryptionJob(in *keybrokerv1.WatchReencryptionJobRequest, out keybrokerv1.ReencryptionService_WatchReencryptionJobServer) error {
	domain, id, err := broker.ParseJobName("name", in.GetName())
	if err != nil {
		return err
	}
	ctx := out.Context()
	return s.jobs.WatchJob(ctx, s.caller(ctx), domain, id, func(j rotation.JobView, heartbeat bool) error {
		if heartbeat {
			return out.Send(&keybrokerv1.WatchReencryptionJobResponse{Heartbeat: true})
		}
		return out.Send(&keybrokerv1.WatchReencryptionJobResponse{Job: jobMessage(j)})
	})
}

// GetRetirementReport implements keybroker.v1.ReencryptionService.
func (s *reencryptionService) GetRetirementReport(ctx context.Context, in *keybrokerv1.GetRetirementReportRequest) (*keybrokerv1.RetirementReport, error) {
	domain, id, err := broker.ParseReportName("name", in.GetName())
	if err != nil {
		return nil, err
	}
	r, err := s.jobs.RetirementReport(ctx, s.caller(ctx), domain, id)
	if err != nil {
		return nil, err
	}
	return reportMessage(r), nil
}
