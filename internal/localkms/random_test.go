package localkms_test

import (
	"bytes"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/keybroker/keybroker/internal/localkms"
)

// AWS KMS API Reference, GenerateRandom; the sizes are those recorded, 2023-04.
func TestRandomBytes(t *testing.T) {
	c, ctx := as(newKMS(t, localkms.Config{}), admin), t.Context()
	for _, n := range []int32{1, 12, 44, 91, 1024} {
		if got := must[*kms.GenerateRandomOutput](t)(c.GenerateRandom(ctx, &kms.GenerateRandomInput{NumberOfBytes: &n})).Plaintext; len(got) != int(n) {
			t.Errorf("%d bytes, want %d", len(got), n)
		}
	}
	in := &kms.GenerateRandomInput{NumberOfBytes: aws.Int32(32)}
	first, second := must[*kms.GenerateRandomOutput](t)(c.GenerateRandom(ctx, in)), must[*kms.GenerateRandomOutput](t)(c.GenerateRandom(ctx, in))
	if bytes.Equal(first.Plaintext, second.Plaintext) {
		t.Error("the same bytes twice")
	}
	for name, in := range map[string]*kms.GenerateRandomInput{
		"localkms does not support CustomKeyStoreId cks-1.": {NumberOfBytes: aws.Int32(1), CustomKeyStoreId: aws.String("cks-1")},
		"localkms does not support Recipient.":              {NumberOfBytes: aws.Int32(1), Recipient: &types.RecipientInfo{AttestationDocument: []byte("x")}},
	} {
		_, err := c.GenerateRandom(ctx, in)
		wantRefusal(t, err, "UnsupportedOperationException", name)
	}
}
