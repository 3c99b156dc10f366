package localkms_test

import (
	"bytes"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/keybroker/keybroker/internal/localkms"
)

// A customer lets a broker in, and the broker moves a data key to another key.
func TestBrokerJourney(t *testing.T) {
	h := newKMS(t, localkms.Config{Dir: t.TempDir()})
	oldKey, newARN := newKey(t, h, brokerPolicy), newKey(t, h, brokerPolicy)
	domain := pairs("keybroker:domain", "d-1")

	var tokens []string
	for _, key := range []string{oldKey, newARN} {
		out := must[*kms.CreateGrantOutput](t)(as(h, registrar).CreateGrant(t.Context(), &kms.CreateGrantInput{
			KeyId:             &key,
			GranteePrincipal:  aws.String(worker),
			RetiringPrincipal: aws.String(registrar),
			Operations: []types.GrantOperation{
				types.GrantOperationGenerateDataKeyWithoutPlaintext, types.GrantOperationDecrypt,
				types.GrantOperationReEncryptFrom, types.GrantOperationReEncryptTo,
			},
			Constraints: &types.GrantConstraints{EncryptionContextSubset: domain},
			Name:        aws.String("kb/test/1"),
		}))
		tokens = append(tokens, *out.GrantToken)
	}
	made := must[*kms.GenerateDataKeyWithoutPlaintextOutput](t)(as(h, worker).GenerateDataKeyWithoutPlaintext(t.Context(),
		&kms.GenerateDataKeyWithoutPlaintextInput{KeyId: &oldKey, KeySpec: types.DataKeySpecAes256, EncryptionContext: domain}))
	if n := len(made.CiphertextBlob); n < 150 || n > 200 {
		t.Errorf("wrapped key has %d bytes, want 150 to 200", n)
	}
	before := must[*kms.DecryptOutput](t)(as(h, worker).Decrypt(t.Context(),
		&kms.DecryptInput{CiphertextBlob: made.CiphertextBlob, EncryptionContext: domain}))
	moved := must[*kms.ReEncryptOutput](t)(as(h, worker).ReEncrypt(t.Context(), &kms.ReEncryptInput{
		CiphertextBlob: made.CiphertextBlob, SourceKeyId: &oldKey, DestinationKeyId: &newARN,
		SourceEncryptionContext: domain, DestinationEncryptionContext: domain,
	}))
	if *moved.KeyId != newARN || *moved.SourceKeyId != oldKey {
		t.Errorf("moved from %s to %s", *moved.SourceKeyId, *moved.KeyId)
	}
	for _, token := range tokens[:1] {
		must[*kms.RetireGrantOutput](t)(as(h, registrar).RetireGrant(t.Context(), &kms.RetireGrantInput{GrantToken: &token}))
	}
	after := must[*kms.DecryptOutput](t)(as(h, worker).Decrypt(t.Context(),
		&kms.DecryptInput{CiphertextBlob: moved.CiphertextBlob, EncryptionContext: domain, KeyId: &newARN}))
	if !bytes.Equal(before.Plaintext, after.Plaintext) {
		t.Error("the data key changed on its way")
	}
	_, err := as(h, worker).Decrypt(t.Context(), &kms.DecryptInput{CiphertextBlob: made.CiphertextBlob, EncryptionContext: domain})
	wantRefusal(t, err, "AccessDeniedException", "User: "+worker+" is not authorized to perform: kms:Decrypt on resource: "+
		oldKey+" because no resource-based policy allows the kms:Decrypt action")
}
