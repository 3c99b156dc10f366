package grpcapi

import (
	"context"
	"fmt"
	"log/slog"

	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/keybroker/keybroker/internal/broker"
	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

// dataKeyService serves keybroker.v1.DataKeyService.
type dataKeyService struct {
	keybrokerv1.UnimplementedDataKeyServiceServer
	keys   DataKeys
	passes Passes
	tokens *passTokens
	pages  *pager
	caller func(context.Context) broker.Caller
	log    *slog.Logger
	// panicked gives the error for a panic beside a handler's own goroutine.
	panicked func(ctx context.Context, method string, p any) error
}

// CreateDataKey implements keybroker.v1.DataKeyService.
func (s *dataKeyService) CreateDataKey(ctx context.Context, in *keybrokerv1.CreateDataKeyRequest) (*keybrokerv1.DataKey, error) {
	domain, err := broker.ParseDomainName("parent", in.GetParent())
	if err != nil {
		return nil, err
	}
	request, err := requestOf(keybrokerv1.DataKeyService_CreateDataKey_FullMethodName, in)
	if err != nil {
		return nil, err
	}
	k, err := s.keys.CreateDataKey(ctx, s.caller(ctx), broker.NewDataKey{
		Request: request, Domain: domain, ID: broker.DataKeyID(in.GetDataKeyId()),
		Context: in.GetDataKey().GetContext(), KeySpec: in.GetDataKey().GetKeySpec()})
	if err != nil {
		return nil, err
	}
	return dataKeyMessage(k), nil
}

// GetDataKey implements keybroker.v1.DataKeyService.
func (s *dataKeyService) GetDataKey(ctx context.Context, in *keybrokerv1.GetDataKeyRequest) (*keybrokerv1.DataKey, error) {
	domain, id, err := broker.ParseDataKeyName("name", in.GetName())
	if err != nil {
		return nil, err
	}
	k, err := s.keys.GetDataKey(ctx, s.caller(ctx), domain, id)
	if err != nil {
		return nil, err
	}
	return dataKeyMessage(k), nil
}

// BatchGetDataKeys implements keybroker.v1.DataKeyService.
func (s *dataKeyService) BatchGetDataKeys(ctx context.Context, in *keybrokerv1.BatchGetDataKeysRequest) (*keybrokerv1.BatchGetDataKeysResponse, error) {
	parent, err := broker.ParseDomainName("parent", in.GetParent())
	if err != nil {
		return nil, err
	}
	ids := make([]broker.DataKeyID, len(in.GetNames()))
	for i, name := range in.GetNames() {
		field := fmt.Sprintf("names[%d]", i)
		domain, id, err := broker.ParseDataKeyName(field, name)
		if err != nil {
			return nil, err
		}
		if domain != parent {
			return nil, refuse(broker.ReasonNameInvalid, field, "must be a data key of parent")
		}
		ids[i] = id
	}
	keys, err := s.keys.BatchGetDataKeys(ctx, s.caller(ctx), parent, ids)
	if err != nil {
		return nil, err
	}
	out := &keybrokerv1.BatchGetDataKeysResponse{DataKeys: make([]*keybrokerv1.DataKey, len(keys))}
	for i, k := range keys {
		out.DataKeys[i] = dataKeyMessage(k)
	}
	return out, nil
}

// dataKeyFilter is what ListDataKeys' filter may compare.
var dataKeyFilter = filterFields[*keybrokerv1.DataKey]{
	"kms_key":         func(k *keybrokerv1.DataKey, _ string) string { return k.GetKmsKey() },
	"key_material_id": func(k *keybrokerv1.DataKey, _ string) string { return k.GetKeyMaterialId() },
	"key_spec":        func(k *keybrokerv1.DataKey, _ string) string { return k.GetKeySpec() },
}

// ListDataKeys implements keybroker.v1.DataKeyService.
func (s *dataKeyService) ListDataKeys(ctx context.Context, in *keybrokerv1.ListDataKeysRequest) (*keybrokerv1.ListDataKeysResponse, error) {
	caller := s.caller(ctx)
	domain, err := parseListParent(in.GetParent())
	if err != nil {
		return nil, err
	}
	keep, err := parseFilter(in.GetFilter(), dataKeyFilter, "kms_key, key_material_id and key_spec")
	if err != nil {
		return nil, err
	}
	call := listCall{method: keybrokerv1.DataKeyService_ListDataKeys_FullMethodName, caller: caller.Subject, parent: in.GetParent(), filter: in.GetFilter()}
	size := pageSize(in.GetPageSize(), maxPageSize)
	keys, next, err := answer(s.pages, call, in.GetPageToken(), size, list[broker.DataKeyView, *keybrokerv1.DataKey]{
		fetch: func(after cursor, limit int) ([]broker.DataKeyView, error) {
			return s.keys.ListDataKeys(ctx, caller, domain,
				broker.DataKeyCursor{Domain: broker.DomainID(after.Domain), DataKey: broker.DataKeyID(after.ID)}, limit)
		},
		at:      func(k broker.DataKeyView) cursor { return cursor{Domain: string(k.DomainID), ID: string(k.ID)} },
		convert: dataKeyMessage,
		keep:    keep,
	})
	if err != nil {
		return nil, err
	}
	return &keybrokerv1.ListDataKeysResponse{DataKeys: keys, NextPageToken: next}, nil
}

// allDomains is the domain that stands for every one in a List call's parent
// (AIP-159).
const allDomains broker.DomainID = "-"

// parseListParent reads domains/{d} or domains/-.
func parseListParent(parent string) (broker.DomainID, error) {
	if parent == allDomains.Name() {
		return allDomains, nil
	}
	return broker.ParseDomainName("parent", parent)
}

// DeleteDataKey implements keybroker.v1.DataKeyService.
func (s *dataKeyService) DeleteDataKey(ctx context.Context, in *keybrokerv1.DeleteDataKeyRequest) (*emptypb.Empty, error) {
	domain, id, err := broker.ParseDataKeyName("name", in.GetName())
	if err != nil {
		return nil, err
	}
	request, err := requestOf(keybrokerv1.DataKeyService_DeleteDataKey_FullMethodName, in)
	if err != nil {
		return nil, err
	}
	if err := s.keys.DeleteDataKey(ctx, s.caller(ctx), request, domain, id, in.GetEtag()); err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

// ImportDataKeys implements keybroker.v1.DataKeyService.
func (s *dataKeyService) ImportDataKeys(ctx context.Context, in *keybrokerv1.ImportDataKeysRequest) (*keybrokerv1.ImportDataKeysResponse, error) {
	domain, err := broker.ParseDomainName("parent", in.GetParent())
	if err != nil {
		return nil, err
	}
	request, err := requestOf(keybrokerv1.DataKeyService_ImportDataKeys_FullMethodName, in)
	if err != nil {
		return nil, err
	}
	items := make([]broker.ImportItem, len(in.GetItems()))
	for i, item := range in.GetItems() {
		items[i] = broker.ImportItem{
			ID:            broker.DataKeyID(item.GetDataKeyId()),
			Etag:          item.GetEtag(),
			Ciphertext:    broker.Secret(item.GetCiphertextBlob()),
			SourceKey:     broker.KeyARN(item.GetSourceKmsKey()),
			SourceContext: item.GetSourceEncryptionContext(),
			KeySpec:       item.GetKeySpec(),
		}
	}
	results, err := s.keys.ImportDataKeys(ctx, s.caller(ctx), broker.ImportDataKeys{Request: request, Domain: domain, Items: items,
		AllowUnproven: in.GetAllowUnproven()})
	if err != nil {
		return nil, err
	}
	out := &keybrokerv1.ImportDataKeysResponse{Results: make([]*keybrokerv1.ImportDataKeysResponse_Result, len(results))}
	for i, r := range results {
		out.Results[i] = s.importResult(ctx, i, r)
	}
	return out, nil
}

// importResult tells what became of one item. The call as a whole succeeds, so
// the cause of an item's error that its caller is not told is logged here.
func (s *dataKeyService) importResult(ctx context.Context, index int, r broker.ImportResult) *keybrokerv1.ImportDataKeysResponse_Result {
	if r.Err == nil {
		k := dataKeyMessage(r.Key)
		k.CiphertextBlob = nil
		return &keybrokerv1.ImportDataKeysResponse_Result{Outcome: &keybrokerv1.ImportDataKeysResponse_Result_DataKey{DataKey: k}}
	}
	f := failureOf(r.Err)
	if !f.expected {
		s.log.LogAttrs(ctx, slog.LevelError, "an item of an import failed", slog.String("call_id", callOf(ctx).id),
			slog.Int("item", index), slog.String("error", f.cause.Error()))
	}
	return &keybrokerv1.ImportDataKeysResponse_Result{Outcome: &keybrokerv1.ImportDataKeysResponse_Result_Error{
		Error: &keybrokerv1.Status{Code: int32(f.status.Code()), Message: f.status.Message(), Reason: string(f.reason)}}}
}
