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
	if err := k.refuseUnreserved(name, g.Key, g.Constraint.Subset, g.Constraint.Equals); err != nil {
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
		return broker.CreatedKMSGrant{}, unknownGrantee(g, err)
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

// unknownGrantee tells a role that KMS does not know from other bad ARNs: KMS
// refuses both with one code, and names the ARN that it means.
func unknownGrantee(g broker.NewKMSGrant, err error) error {
	var failure *broker.KMSError
	if !errors.As(err, &failure) || failure.Code != "InvalidArnException" || failure.Key != "" ||
		strings.Contains(failure.Err.Error(), g.Retiring) {
		return err
	}
	known := *failure
	known.Class = broker.KMSInvalidPrincipal
	return &known
}

// grantsPerPage is KMS's upper limit (AWS KMS API Reference, ListGrants and
// ListRetirableGrants, Limit).
const grantsPerPage = 100

// ListGrants implements broker.Registrar. It reads page after page: one call of
// KMS for each 100 grants.
func (k *KMS) ListGrants(ctx context.Context, key broker.KeyARN, kmsGrantID string) ([]broker.ListedGrant, error) {
	const name = "ListGrants"
	in := &kms.ListGrantsInput{KeyId: aws.String(string(key)), Limit: aws.Int32(grantsPerPage)}
	if kmsGrantID != "" {
		in.GrantId = &kmsGrantID
	}
	grants, err := everyPage(name, func(marker *string) (grantPage, error) {
		in.Marker = marker
		out, err := call(ctx, k, operation{name: name, key: string(key)}, in, (*kms.Client).ListGrants)
		if err != nil {
			return grantPage{}, err
		}
		return grantPage{out.Grants, out.Truncated, out.NextMarker, out.ResultMetadata}, nil
	}, func(*types.GrantListEntry) bool { return true })
	if kmsGrantID != "" && codeOf(err) == "InvalidGrantIdException" {
		return nil, nil
	}
	return grants, err
}

// ListRetirableGrants implements broker.Registrar. KMS knows no listing by
// principal and key: what is on other keys is read and left out, one call for each
// 100 grants of the Region.
func (k *KMS) ListRetirableGrants(ctx context.Context, key broker.KeyARN, retiring string) ([]broker.ListedGrant, error) {
	const name = "ListRetirableGrants"
	in := &kms.ListRetirableGrantsInput{RetiringPrincipal: &retiring, Limit: aws.Int32(grantsPerPage)}
	return everyPage(name, func(marker *string) (grantPage, error) {
		in.Marker = marker
		out, err := call(ctx, k, operation{name: name, key: string(key)}, in, (*kms.Client).ListRetirableGrants)
		if err != nil {
			return grantPage{}, err
		}
		return grantPage{out.Grants, out.Truncated, out.NextMarker, out.ResultMetadata}, nil
	}, func(g *types.GrantListEntry) bool { return aws.ToString(g.KeyId) == string(key) })
}

// A grantPage is one page of a listing of grants.
type grantPage struct {
	grants    []types.GrantListEntry
	truncated bool
	next      *string
	metadata  middleware.Metadata
}

// everyPage reads a listing to its end and gives the entries that keep chooses.
func everyPage(name string, read func(marker *string) (grantPage, error), keep func(*types.GrantListEntry) bool) ([]broker.ListedGrant, error) {
	var grants []broker.ListedGrant
	var marker *string
	for {
		page, err := read(marker)
		if err != nil {
			return nil, err
		}
		for i := range page.grants {
			if g := &page.grants[i]; keep(g) {
				grants = append(grants, listedGrant(g))
			}
		}
		if !page.truncated {
			return grants, nil
		}
		if next := aws.ToString(page.next); next == "" || next == aws.ToString(marker) {
			return nil, incomplete(name, page.metadata)
		}
		marker = page.next
	}
}

func listedGrant(g *types.GrantListEntry) broker.ListedGrant {
	listed := broker.ListedGrant{ID: aws.ToString(g.GrantId), Name: aws.ToString(g.Name), Grantee: aws.ToString(g.GranteePrincipal)}
	if listed.Grantee == "" {
		listed.Grantee = aws.ToString(g.GranteeServicePrincipal)
	}
	return listed
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
