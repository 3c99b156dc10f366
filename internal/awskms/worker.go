package awskms

import (
	"context"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/keybroker/keybroker/internal/broker"
)

// GenerateDataKeyWithoutPlaintext implements broker.Worker.
func (k *KMS) GenerateDataKeyWithoutPlaintext(ctx context.Context, g broker.GenerateDataKey) (broker.WrappedKey, error) {
	const name = "GenerateDataKeyWithoutPlaintext"
	if err := k.refuseUnreserved(name, g.Key, g.Context); err != nil {
		return broker.WrappedKey{}, err
	}
	in := &kms.GenerateDataKeyWithoutPlaintextInput{
		KeyId:             aws.String(string(g.Key)),
		KeySpec:           types.DataKeySpec(g.KeySpec),
		EncryptionContext: g.Context,
		GrantTokens:       reveal(g.Tokens),
		DryRun:            dryRun(g.DryRun),
	}
	op := operation{name: name, key: string(g.Key), worker: true, dryRun: g.DryRun}
	out, err := call(ctx, k, op, in, (*kms.Client).GenerateDataKeyWithoutPlaintext)
	if err != nil || out == nil {
		return broker.WrappedKey{}, err
	}
	switch {
	case len(out.CiphertextBlob) == 0:
		return broker.WrappedKey{}, incomplete(name, out.ResultMetadata)
	case aws.ToString(out.KeyId) != string(g.Key):
		return broker.WrappedKey{}, otherKey(name, out.ResultMetadata)
	}
	return broker.WrappedKey{
		Ciphertext:    out.CiphertextBlob,
		Key:           g.Key,
		KeyMaterialID: aws.ToString(out.KeyMaterialId),
		RequestID:     requestID(out.ResultMetadata),
	}, nil
}

// ReEncrypt implements broker.Worker. The source context may lack the reserved
// pair: blobs that are imported do.
func (k *KMS) ReEncrypt(ctx context.Context, r broker.ReEncrypt) (broker.ReEncrypted, error) {
	const name = "ReEncrypt"
	if err := k.refuseUnreserved(name, r.DestinationKey, r.DestinationContext); err != nil {
		return broker.ReEncrypted{}, err
	}
	in := &kms.ReEncryptInput{
		CiphertextBlob:               r.Ciphertext,
		SourceKeyId:                  aws.String(string(r.SourceKey)),
		SourceEncryptionContext:      r.SourceContext,
		DestinationKeyId:             aws.String(string(r.DestinationKey)),
		DestinationEncryptionContext: r.DestinationContext,
		GrantTokens:                  reveal(r.Tokens),
	}
	if r.DryRun {
		in.CiphertextBlob = nil
		in.DryRun = aws.Bool(true)
		in.DryRunModifiers = []types.DryRunModifierType{types.DryRunModifierTypeIgnoreCiphertext}
	}
	op := operation{name: name, key: string(r.DestinationKey), other: r.SourceKey, worker: true, dryRun: r.DryRun}
	out, err := call(ctx, k, op, in, (*kms.Client).ReEncrypt)
	if err != nil || out == nil {
		return broker.ReEncrypted{}, err
	}
	switch {
	case len(out.CiphertextBlob) == 0:
		return broker.ReEncrypted{}, incomplete(name, out.ResultMetadata)
	case aws.ToString(out.KeyId) != string(r.DestinationKey), aws.ToString(out.SourceKeyId) != string(r.SourceKey):
		return broker.ReEncrypted{}, otherKey(name, out.ResultMetadata)
	}
	return broker.ReEncrypted{
		Ciphertext:               out.CiphertextBlob,
		SourceKey:                r.SourceKey,
		SourceKeyMaterialID:      aws.ToString(out.SourceKeyMaterialId),
		DestinationKey:           r.DestinationKey,
		DestinationKeyMaterialID: aws.ToString(out.DestinationKeyMaterialId),
		RequestID:                requestID(out.ResultMetadata),
	}, nil
}

// reveal gives the grant tokens as the SDK wants them, for the wire only.
func reveal(tokens []broker.Secret) []string {
	if len(tokens) == 0 {
		return nil
	}
	texts := make([]string, len(tokens))
	for i, t := range tokens {
		texts[i] = string(t)
	}
	return texts
}
