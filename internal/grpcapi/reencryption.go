package grpcapi

import (
	"context"
	"fmt"
	"strconv"

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

// jobKindOf reads the kind of a new job; the engine judges it.
func jobKindOf(kind keybrokerv1.ReencryptionJob_Kind) rotation.Kind {
	for k, m := range jobKinds {
		if m == kind {
			return k
		}
	}
	return ""
}

// CreateReencryptionJob implements keybroker.v1.ReencryptionService.
func (s *reencryptionService) CreateReencryptionJob(ctx context.Context, in *keybrokerv1.CreateReencryptionJobRequest) (*keybrokerv1.ReencryptionJob, error) {
	domain, err := broker.ParseDomainName("parent", in.GetParent())
	if err != nil {
		return nil, err
	}
	request, err := requestOf(keybrokerv1.ReencryptionService_CreateReencryptionJob_FullMethodName, in)
	if err != nil {
		return nil, err
	}
	j, err := s.jobs.CreateJob(ctx, s.caller(ctx), rotation.NewJob{Request: request, Domain: domain,
		Kind: jobKindOf(in.GetReencryptionJob().GetKind()), Reason: in.GetReencryptionJob().GetReason(),
		Priority: priorityOf(in.GetReencryptionJob().GetPriority())})
	if err != nil {
		return nil, err
	}
	return jobMessage(j), nil
}

// A jobAct is a request that pauses, resumes or cancels a job.
type jobAct interface {
	mutation
	GetName() string
	GetEtag() string
	GetReason() string
}

// act runs one of the verbs that take a job from state to state.
func (s *reencryptionService) act(ctx context.Context, method string, in jobAct,
	verb func(context.Context, broker.Caller, rotation.JobAct) (rotation.JobView, error)) (*keybrokerv1.ReencryptionJob, error) {
	domain, id, err := broker.ParseJobName("name", in.GetName())
	if err != nil {
		return nil, err
	}
	request, err := requestOf(method, in)
	if err != nil {
		return nil, err
	}
	j, err := verb(ctx, s.caller(ctx), rotation.JobAct{Request: request, Domain: domain, Job: id, Etag: in.GetEtag(), Reason: in.GetReason()})
	if err != nil {
		return nil, err
	}
	return jobMessage(j), nil
}

// PauseReencryptionJob implements keybroker.v1.ReencryptionService.
func (s *reencryptionService) PauseReencryptionJob(ctx context.Context, in *keybrokerv1.PauseReencryptionJobRequest) (*keybrokerv1.ReencryptionJob, error) {
	return s.act(ctx, keybrokerv1.ReencryptionService_PauseReencryptionJob_FullMethodName, in, s.jobs.PauseJob)
}

// ResumeReencryptionJob implements keybroker.v1.ReencryptionService.
func (s *reencryptionService) ResumeReencryptionJob(ctx context.Context, in *keybrokerv1.ResumeReencryptionJobRequest) (*keybrokerv1.ReencryptionJob, error) {
	return s.act(ctx, keybrokerv1.ReencryptionService_ResumeReencryptionJob_FullMethodName, in, s.jobs.ResumeJob)
}

// CancelReencryptionJob implements keybroker.v1.ReencryptionService.
func (s *reencryptionService) CancelReencryptionJob(ctx context.Context, in *keybrokerv1.CancelReencryptionJobRequest) (*keybrokerv1.ReencryptionJob, error) {
	return s.act(ctx, keybrokerv1.ReencryptionService_CancelReencryptionJob_FullMethodName, in, s.jobs.CancelJob)
}

// failureFilter is what ListReencryptionFailures' filter may compare.
var failureFilter = filterFields[*keybrokerv1.ReencryptionFailure]{
	"class": func(f *keybrokerv1.ReencryptionFailure, _ string) string { return f.GetClass().String() },
	"acknowledged": func(f *keybrokerv1.ReencryptionFailure, _ string) string {
		return strconv.FormatBool(f.GetAcknowledged())
	},
}

// ListReencryptionFailures implements keybroker.v1.ReencryptionService.
func (s *reencryptionService) ListReencryptionFailures(ctx context.Context, in *keybrokerv1.ListReencryptionFailuresRequest) (*keybrokerv1.ListReencryptionFailuresResponse, error) {
	caller := s.caller(ctx)
	domain, job, err := broker.ParseJobName("parent", in.GetParent())
	if err != nil {
		return nil, err
	}
	keep, err := parseFilter(in.GetFilter(), failureFilter, "class and acknowledged")
	if err != nil {
		return nil, err
	}
	call := listCall{method: keybrokerv1.ReencryptionService_ListReencryptionFailures_FullMethodName, caller: caller.Subject, parent: in.GetParent(), filter: in.GetFilter()}
	size := pageSize(in.GetPageSize(), maxPageSize)
	failures, next, err := answer(s.pages, call, in.GetPageToken(), size, list[rotation.Failure, *keybrokerv1.ReencryptionFailure]{
		fetch: func(after cursor, limit int) ([]rotation.Failure, error) {
			return s.jobs.ListFailures(ctx, caller, domain, job, broker.DataKeyID(after.ID), limit)
		},
		at:      func(f rotation.Failure) cursor { return cursor{ID: string(f.DataKey)} },
		convert: func(f rotation.Failure) *keybrokerv1.ReencryptionFailure { return failureMessage(domain, f) },
		keep:    keep,
	})
	if err != nil {
		return nil, err
	}
	return &keybrokerv1.ListReencryptionFailuresResponse{ReencryptionFailures: failures, NextPageToken: next}, nil
}

// AcknowledgeReencryptionFailures implements keybroker.v1.ReencryptionService.
func (s *reencryptionService) AcknowledgeReencryptionFailures(ctx context.Context, in *keybrokerv1.AcknowledgeReencryptionFailuresRequest) (*keybrokerv1.AcknowledgeReencryptionFailuresResponse, error) {
	domain, job, err := broker.ParseJobName("parent", in.GetParent())
	if err != nil {
		return nil, err
	}
	request, err := requestOf(keybrokerv1.ReencryptionService_AcknowledgeReencryptionFailures_FullMethodName, in)
	if err != nil {
		return nil, err
	}
	var ids []broker.DataKeyID
	for i, name := range in.GetNames() {
		field := fmt.Sprintf("names[%d]", i)
		d, j, id, err := broker.ParseFailureName(field, name)
		if err != nil {
			return nil, err
		}
		if d != domain || j != job {
			return nil, refuse(broker.ReasonNameInvalid, field, "must be a failure of parent")
		}
		ids = append(ids, id)
	}
	n, err := s.jobs.AcknowledgeFailures(ctx, s.caller(ctx), rotation.Acknowledge{
		Request: request, Domain: domain, Job: job, DataKeys: ids, All: in.GetAll(), Reason: in.GetReason()})
	if err != nil {
		return nil, err
	}
	return &keybrokerv1.AcknowledgeReencryptionFailuresResponse{AcknowledgedCount: int64(n)}, nil
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

// OverrideSelfInventory implements keybroker.v1.ReencryptionService.
func (s *reencryptionService) OverrideSelfInventory(ctx context.Context, in *keybrokerv1.OverrideSelfInventoryRequest) (*keybrokerv1.SelfInventory, error) {
	domain, grant, err := broker.ParseGrantName("name", in.GetName())
	if err != nil {
		return nil, err
	}
	request, err := requestOf(keybrokerv1.ReencryptionService_OverrideSelfInventory_FullMethodName, in)
	if err != nil {
		return nil, err
	}
	inventory, err := s.jobs.OverrideSelfInventory(ctx, s.caller(ctx), rotation.OverrideInventory{
		Request: request, Domain: domain, Grant: grant, Reason: in.GetReason()})
	if err != nil {
		return nil, err
	}
	return inventoryMessage(inventory), nil
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
