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
	pages  *pager
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
		Inventory: inventoryOf(grant.GetInventory()),
		TTL:       grant.GetTtl().AsDuration(),
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

// grantFilter is what ListGrants' filter may compare.
var grantFilter = filterFields[*keybrokerv1.Grant]{
	"state":             func(g *keybrokerv1.Grant, _ string) string { return g.GetState().String() },
	"grantee_principal": func(g *keybrokerv1.Grant, _ string) string { return g.GetGranteePrincipal() },
	"inventory":         func(g *keybrokerv1.Grant, _ string) string { return g.GetInventory().String() },
}

// ListGrants implements keybroker.v1.GrantService.
func (s *grantService) ListGrants(ctx context.Context, in *keybrokerv1.ListGrantsRequest) (*keybrokerv1.ListGrantsResponse, error) {
	caller := s.caller(ctx)
	domain, err := parseListParent(in.GetParent())
	if err != nil {
		return nil, err
	}
	keep, err := parseFilter(in.GetFilter(), grantFilter, "state, grantee_principal and inventory")
	if err != nil {
		return nil, err
	}
	call := listCall{method: keybrokerv1.GrantService_ListGrants_FullMethodName, caller: caller.Subject, parent: in.GetParent(), filter: in.GetFilter()}
	size := pageSize(in.GetPageSize(), maxPageSize)
	grants, next, err := answer(s.pages, call, in.GetPageToken(), size, list[broker.GrantView, *keybrokerv1.Grant]{
		fetch: func(after cursor, limit int) ([]broker.GrantView, error) {
			return s.grants.ListGrants(ctx, caller, domain,
				broker.GrantCursor{Domain: broker.DomainID(after.Domain), Grant: broker.GrantID(after.ID)}, limit)
		},
		at:      func(g broker.GrantView) cursor { return cursor{Domain: string(g.DomainID), ID: string(g.ID)} },
		convert: grantMessage,
		keep:    keep,
	})
	if err != nil {
		return nil, err
	}
	return &keybrokerv1.ListGrantsResponse{Grants: grants, NextPageToken: next}, nil
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

// RevokeGrant implements keybroker.v1.GrantService.
func (s *grantService) RevokeGrant(ctx context.Context, in *keybrokerv1.RevokeGrantRequest) (*keybrokerv1.Grant, error) {
	domain, id, err := broker.ParseGrantName("name", in.GetName())
	if err != nil {
		return nil, err
	}
	request, err := requestOf(keybrokerv1.GrantService_RevokeGrant_FullMethodName, in)
	if err != nil {
		return nil, err
	}
	g, err := s.grants.RevokeGrant(ctx, s.caller(ctx), broker.RevokeGrant{
		Request: request, Domain: domain, ID: id, Etag: in.GetEtag(), Reason: in.GetReason()})
	if err != nil {
		return nil, err
	}
	return grantMessage(g), nil
}
