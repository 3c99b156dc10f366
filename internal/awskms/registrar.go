package awskms

import (
	"context"
	"errors"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/smithy-go/middleware"

	"github.com/keybroker/keybroker/internal/broker"
)

// DescribeKey implements broker.Registrar. An identifier that names no Region is
// looked up in Config.Region.
func (k *KMS) DescribeKey(ctx context.Context, key string) (broker.KeyMetadata, error) {
	const name = "DescribeKey"
	out, err := call(ctx, k, operation{name: name, key: key}, &kms.DescribeKeyInput{KeyId: &key}, (*kms.Client).DescribeKey)
	if err != nil {
		return broker.KeyMetadata{}, err
	}
	m := out.KeyMetadata
	if m == nil || aws.ToString(m.Arn) == "" {
		return broker.KeyMetadata{}, incomplete(name, out.ResultMetadata)
	}
	if isKeyARN(key) && *m.Arn != key {
		return broker.KeyMetadata{}, otherKey(name, out.ResultMetadata)
	}
	return broker.KeyMetadata{
		ARN:                  broker.KeyARN(*m.Arn),
		KeySpec:              string(m.KeySpec),
		KeyUsage:             string(m.KeyUsage),
		KeyState:             string(m.KeyState),
		CurrentKeyMaterialID: aws.ToString(m.CurrentKeyMaterialId),
	}, nil
}

var errNoName = errors.New("a grant without a Name is made anew by each repetition")

// CreateGrant implements broker.Registrar. A grant without a Name is refused,
// since only its Name makes it safe to ask for it twice.
func (k *KMS) CreateGrant(ctx context.Context, g broker.NewKMSGrant) (broker.CreatedKMSGrant, error) {
	const name = "CreateGrant"
	if err := k.refuseUnreserved(name, g.Constraint.Subset, g.Constraint.Equals); err != nil {
		return broker.CreatedKMSGrant{}, err
	}
	if g.Name == "" {
		return broker.CreatedKMSGrant{}, k.refuse(name, codeNoName, errNoName)
	}
	in := &kms.CreateGrantInput{
		KeyId:            aws.String(string(g.Key)),
		Name:             &g.Name,
		GranteePrincipal: &g.Grantee,
		Operations:       make([]types.GrantOperation, len(g.Operations)),
		Constraints: &types.GrantConstraints{
			EncryptionContextSubset: g.Constraint.Subset,
			EncryptionContextEquals: g.Constraint.Equals,
		},
		DryRun: dryRun(g.DryRun),
	}
	if g.Retiring != "" {
		in.RetiringPrincipal = &g.Retiring
	}
	for i, op := range g.Operations {
		in.Operations[i] = types.GrantOperation(op)
	}
	out, err := call(ctx, k, operation{name: name, key: string(g.Key), dryRun: g.DryRun}, in, (*kms.Client).CreateGrant)
	if err != nil || out == nil {
		return broker.CreatedKMSGrant{}, err
	}
	if aws.ToString(out.GrantId) == "" {
		return broker.CreatedKMSGrant{}, incomplete(name, out.ResultMetadata)
	}
	return broker.CreatedKMSGrant{
		ID:        *out.GrantId,
		Token:     broker.Secret(aws.ToString(out.GrantToken)),
		RequestID: requestID(out.ResultMetadata),
	}, nil
}

// grantsPerPage is KMS's upper limit (AWS KMS API Reference, ListGrants, Limit).
const grantsPerPage = 100

// ListGrants implements broker.Registrar. It reads page after page: one call of
// KMS for each 100 grants.
func (k *KMS) ListGrants(ctx context.Context, key broker.KeyARN, kmsGrantID string) ([]broker.ListedGrant, error) {
	const name = "ListGrants"
	in := &kms.ListGrantsInput{KeyId: aws.String(string(key)), Limit: aws.Int32(grantsPerPage)}
	if kmsGrantID != "" {
		in.GrantId = &kmsGrantID
	}
	var grants []broker.ListedGrant
	for {
		out, err := call(ctx, k, operation{name: name, key: string(key)}, in, (*kms.Client).ListGrants)
		if err != nil {
			if kmsGrantID != "" && codeOf(err) == "InvalidGrantIdException" {
				return nil, nil
			}
			return nil, err
		}
		for i := range out.Grants {
			g := &out.Grants[i]
			listed := broker.ListedGrant{ID: aws.ToString(g.GrantId), Name: aws.ToString(g.Name), Grantee: aws.ToString(g.GranteePrincipal)}
			if listed.Grantee == "" {
				listed.Grantee = aws.ToString(g.GranteeServicePrincipal)
			}
			grants = append(grants, listed)
		}
		if !out.Truncated {
			return grants, nil
		}
		if next := aws.ToString(out.NextMarker); next == "" || next == aws.ToString(in.Marker) {
			return nil, incomplete(name, out.ResultMetadata)
		}
		in.Marker = out.NextMarker
	}
}

// RetireGrant implements broker.Registrar.
func (k *KMS) RetireGrant(ctx context.Context, key broker.KeyARN, kmsGrantID string) (string, error) {
	in := &kms.RetireGrantInput{KeyId: aws.String(string(key)), GrantId: &kmsGrantID}
	out, err := call(ctx, k, operation{name: "RetireGrant", key: string(key)}, in, (*kms.Client).RetireGrant)
	if err != nil {
		var failure *broker.KMSError
		if errors.As(err, &failure) && failure.Class == broker.KMSNotFound {
			return failure.RequestID, nil
		}
		return "", err
	}
	return requestID(out.ResultMetadata), nil
}

func isKeyARN(key string) bool {
	return strings.HasPrefix(key, "arn:") && strings.Contains(key, ":key/")
}

func dryRun(yes bool) *bool {
	if !yes {
		return nil
	}
	return aws.Bool(true)
}

func requestID(m middleware.Metadata) string {
	id, _ := awsmiddleware.GetRequestIDMetadata(m)
	return id
}

func codeOf(err error) string {
	var failure *broker.KMSError
	if errors.As(err, &failure) {
		return failure.Code
	}
	return ""
}

var (
	errIncomplete = errors.New("the answer lacks what a success promises")
	errOtherKey   = errors.New("the answer names another key than was asked")
)

// incomplete is UNAVAILABLE: what was asked may have been done.
func incomplete(operation string, m middleware.Metadata) *broker.KMSError {
	return &broker.KMSError{
		Class: broker.KMSUnavailable, Code: codeIncomplete, Operation: operation, RequestID: requestID(m), Err: errIncomplete,
	}
}

func otherKey(operation string, m middleware.Metadata) *broker.KMSError {
	return &broker.KMSError{
		Class: broker.KMSIncorrectKey, Code: codeOtherKey, Operation: operation, RequestID: requestID(m), Err: errOtherKey,
	}
}
