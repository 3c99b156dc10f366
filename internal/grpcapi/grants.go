package grpcapi

import (
	"context"

	"github.com/keybroker/keybroker/internal/broker"
	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

// grantService serves keybroker.v1.GrantService.
type grantService struct {
	keybrokerv1.UnimplementedGrantServiceServer
	grants Grants
	caller func(context.Context) broker.Caller
}

// CreateGrant implements keybroker.v1.GrantService.
func (s *grantService) CreateGrant(ctx context.Context, in *keybrokerv1.CreateGrantRequest) (*keybrokerv1.Grant, error) {
	domain, err := broker.ParseDomainName("parent", in.GetParent())
	if err != nil {
		return nil, err
	}
	request, err := requestOf(keybrokerv1.GrantService_CreateGrant_FullMethodName, in)
	if err != nil {
		return nil, err
	}
	grant := in.GetGrant()
	g, err := s.grants.CreateGrant(ctx, s.caller(ctx), broker.NewGrant{
		Request:    request,
		Domain:     domain,
		ID:         broker.GrantID(in.GetGrantId()),
		Grantee:    grant.GetGranteePrincipal(),
		Operations: grant.GetOperations(),
		Constraint: broker.Constraint{
			Subset: grant.GetConstraints().GetEncryptionContextSubset(),
			Equals: grant.GetConstraints().GetEncryptionContextEquals(),
		},
		SelfInventory: grant.GetInventory() == keybrokerv1.Grant_INVENTORY_SELF,
		TTL:           grant.GetTtl().AsDuration(),
	})
	if err != nil {
		return nil, err
	}
	return grantMessage(g), nil
}

// GetGrant implements keybroker.v1.GrantService.
func (s *grantService) GetGrant(ctx context.Context, in *keybrokerv1.GetGrantRequest) (*keybrokerv1.Grant, error) {
	domain, id, err := broker.ParseGrantName("name", in.GetName())
	if err != nil {
		return nil, err
	}
	g, err := s.grants.GetGrant(ctx, s.caller(ctx), domain, id)
	if err != nil {
		return nil, err
	}
	return grantMessage(g), nil
}

// RenewGrant implements keybroker.v1.GrantService.
func (s *grantService) RenewGrant(ctx context.Context, in *keybrokerv1.RenewGrantRequest) (*keybrokerv1.Grant, error) {
	domain, id, err := broker.ParseGrantName("name", in.GetName())
	if err != nil {
		return nil, err
	}
	request, err := requestOf(keybrokerv1.GrantService_RenewGrant_FullMethodName, in)
	if err != nil {
		return nil, err
	}
	g, err := s.grants.RenewGrant(ctx, s.caller(ctx), broker.RenewGrant{
		Request: request, Domain: domain, ID: id, TTL: in.GetTtl().AsDuration(), Etag: in.GetEtag(), Reason: in.GetReason()})
	if err != nil {
		return nil, err
	}
	return grantMessage(g), nil
}
