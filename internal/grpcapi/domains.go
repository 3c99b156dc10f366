package grpcapi

import (
	"context"

	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

// domainService serves keybroker.v1.DomainService.
type domainService struct {
	keybrokerv1.UnimplementedDomainServiceServer
	domains Domains
	jobs    Jobs
	pages   *pager
	caller  func(context.Context) broker.Caller
}

// CreateDomain implements keybroker.v1.DomainService.
func (s *domainService) CreateDomain(ctx context.Context, in *keybrokerv1.CreateDomainRequest) (*keybrokerv1.Domain, error) {
	request, err := requestOf(keybrokerv1.DomainService_CreateDomain_FullMethodName, in)
	if err != nil {
		return nil, err
	}
	d, keys, err := s.domains.CreateDomain(ctx, s.caller(ctx), broker.NewDomain{
		Request:       request,
		ID:            broker.DomainID(in.GetDomainId()),
		DisplayName:   in.GetDomain().GetDisplayName(),
		Region:        in.GetDomain().GetRegion(),
		KeyAccounts:   in.GetDomain().GetKeyAccounts(),
		ImportSources: in.GetDomain().GetImportSourceKeys(),
		Labels:        in.GetDomain().GetLabels(),
	})
	if err != nil {
		return nil, err
	}
	job, err := s.openJob(ctx, d, keys)
	if err != nil {
		return nil, err
	}
	return domainMessage(d, keys, job), nil
}

// GetDomain implements keybroker.v1.DomainService.
func (s *domainService) GetDomain(ctx context.Context, in *keybrokerv1.GetDomainRequest) (*keybrokerv1.Domain, error) {
	id, err := broker.ParseDomainName("name", in.GetName())
	if err != nil {
		return nil, err
	}
	d, keys, err := s.domains.GetDomain(ctx, s.caller(ctx), id)
	if err != nil {
		return nil, err
	}
	job, err := s.openJob(ctx, d, keys)
	if err != nil {
		return nil, err
	}
	return domainMessage(d, keys, job), nil
}

// openJob gives the job that is changing the domain's key, "" if none is. The
// domain itself tells of one that prepares; one that is past its switch is asked
// for only where an older key is not retired yet, which few domains have.
func (s *domainService) openJob(ctx context.Context, d broker.Domain, keys []broker.DomainKey) (broker.JobID, error) {
	if d.KeyChange.Job != "" {
		return d.KeyChange.Job, nil
	}
	for _, k := range keys {
		if k.State == broker.KeySuperseded || k.State == broker.KeyClosed {
			return s.jobs.OpenJob(ctx, d.UID)
		}
	}
	return "", nil
}

// domainFilter is what ListDomains' filter may compare.
var domainFilter = filterFields[*keybrokerv1.Domain]{
	"state":    func(d *keybrokerv1.Domain, _ string) string { return d.GetState().String() },
	"kms_key":  func(d *keybrokerv1.Domain, _ string) string { return d.GetKmsKey() },
	"labels.*": func(d *keybrokerv1.Domain, key string) string { return d.GetLabels()[key] },
}

// A domainRow is a domain with the keys that it had and its open job.
type domainRow struct {
	domain broker.Domain
	keys   []broker.DomainKey
	job    broker.JobID
}

// ListDomains implements keybroker.v1.DomainService.
func (s *domainService) ListDomains(ctx context.Context, in *keybrokerv1.ListDomainsRequest) (*keybrokerv1.ListDomainsResponse, error) {
	caller := s.caller(ctx)
	keep, err := parseFilter(in.GetFilter(), domainFilter, "state, kms_key and labels.{key}")
	if err != nil {
		return nil, err
	}
	call := listCall{method: keybrokerv1.DomainService_ListDomains_FullMethodName, caller: caller.Subject, filter: in.GetFilter()}
	size := pageSize(in.GetPageSize(), maxDomainsPageSize)
	domains, next, err := answer(s.pages, call, in.GetPageToken(), size, list[domainRow, *keybrokerv1.Domain]{
		fetch: func(after cursor, limit int) ([]domainRow, error) {
			domains, keys, err := s.domains.ListDomains(ctx, caller, broker.DomainID(after.Domain), limit)
			if err != nil {
				return nil, err
			}
			rows := make([]domainRow, len(domains))
			for i, d := range domains {
				job, err := s.openJob(ctx, d, keys[i])
				if err != nil {
					return nil, err
				}
				rows[i] = domainRow{domain: d, keys: keys[i], job: job}
			}
			return rows, nil
		},
		at:      func(r domainRow) cursor { return cursor{Domain: string(r.domain.ID)} },
		convert: func(r domainRow) *keybrokerv1.Domain { return domainMessage(r.domain, r.keys, r.job) },
		keep:    keep,
	})
	if err != nil {
		return nil, err
	}
	return &keybrokerv1.ListDomainsResponse{Domains: domains, NextPageToken: next}, nil
}

// UpdateDomain implements keybroker.v1.DomainService.
func (s *domainService) UpdateDomain(ctx context.Context, in *keybrokerv1.UpdateDomainRequest) (*keybrokerv1.Domain, error) {
	id, err := broker.ParseDomainName("domain.name", in.GetDomain().GetName())
	if err != nil {
		return nil, err
	}
	request, err := requestOf(keybrokerv1.DomainService_UpdateDomain_FullMethodName, in)
	if err != nil {
		return nil, err
	}
	d, keys, err := s.domains.UpdateDomain(ctx, s.caller(ctx), broker.DomainUpdate{
		Request:       request,
		ID:            id,
		Mask:          in.GetUpdateMask().GetPaths(),
		DisplayName:   in.GetDomain().GetDisplayName(),
		Labels:        in.GetDomain().GetLabels(),
		KeyAccounts:   in.GetDomain().GetKeyAccounts(),
		ImportSources: in.GetDomain().GetImportSourceKeys(),
		Etag:          in.GetEtag(),
	})
	if err != nil {
		return nil, err
	}
	job, err := s.openJob(ctx, d, keys)
	if err != nil {
		return nil, err
	}
	return domainMessage(d, keys, job), nil
}

// DeleteDomain implements keybroker.v1.DomainService.
func (s *domainService) DeleteDomain(ctx context.Context, in *keybrokerv1.DeleteDomainRequest) (*emptypb.Empty, error) {
	id, err := broker.ParseDomainName("name", in.GetName())
	if err != nil {
		return nil, err
	}
	request, err := requestOf(keybrokerv1.DomainService_DeleteDomain_FullMethodName, in)
	if err != nil {
		return nil, err
	}
	if err := s.jobs.DeleteDomain(ctx, s.caller(ctx), rotation.DeleteDomain{
		Request: request, Domain: id, Etag: in.GetEtag(), Reason: in.GetReason(), CryptoShred: in.GetCryptoShred()}); err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

// GenerateKeyPolicy implements keybroker.v1.DomainService.
func (s *domainService) GenerateKeyPolicy(ctx context.Context, in *keybrokerv1.GenerateKeyPolicyRequest) (*keybrokerv1.GenerateKeyPolicyResponse, error) {
	id, err := broker.ParseDomainName("name", in.GetName())
	if err != nil {
		return nil, err
	}
	policy, err := s.domains.GenerateKeyPolicy(ctx, s.caller(ctx), broker.KeyPolicyRequest{
		Domain:        id,
		KeyAccount:    in.GetKeyAccount(),
		Existing:      in.GetExistingPolicyDocument(),
		Profile:       policyProfiles[in.GetProfile()],
		ImportContext: in.GetImportSourceContext(),
	})
	if err != nil {
		return nil, err
	}
	return &keybrokerv1.GenerateKeyPolicyResponse{
		PolicyDocument: policy.Document, Statements: policy.Statements, PolicyVersion: policy.Version}, nil
}

// ChangeKey implements keybroker.v1.DomainService.
func (s *domainService) ChangeKey(ctx context.Context, in *keybrokerv1.ChangeKeyRequest) (*keybrokerv1.ReencryptionJob, error) {
	id, err := broker.ParseDomainName("name", in.GetName())
	if err != nil {
		return nil, err
	}
	request, err := requestOf(keybrokerv1.DomainService_ChangeKey_FullMethodName, in)
	if err != nil {
		return nil, err
	}
	job, err := s.jobs.ChangeKey(ctx, s.caller(ctx), rotation.ChangeKey{
		Request: request, Domain: id, KMSKey: in.GetKmsKey(), Etag: in.GetEtag(), Reason: in.GetReason(),
		AllowInaccessibleSource: in.GetAllowInaccessibleSource(), Priority: priorityOf(in.GetPriority())})
	if err != nil {
		return nil, err
	}
	return jobMessage(job), nil
}

// PlanKeyChange implements keybroker.v1.DomainService.
func (s *domainService) PlanKeyChange(ctx context.Context, in *keybrokerv1.PlanKeyChangeRequest) (*keybrokerv1.PlanKeyChangeResponse, error) {
	id, err := broker.ParseDomainName("name", in.GetName())
	if err != nil {
		return nil, err
	}
	plan, err := s.jobs.PlanKeyChange(ctx, s.caller(ctx), id, in.GetKmsKey())
	if err != nil {
		return nil, err
	}
	return planMessage(plan), nil
}
