package localkms_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/keybroker/keybroker/internal/localkms"
)

// AWS KMS API Reference, GenerateMac and VerifyMac. Codes and texts were recorded,
// 2023-04 and 2023-11.
func TestMacs(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	c, ctx := as(h, admin), t.Context()
	message := []byte("some important message")
	for spec, tc := range map[types.KeySpec]struct {
		algorithm, wrong types.MacAlgorithmSpec
		size             int // RFC 2104: that of the hash
	}{
		"HMAC_224": {"HMAC_SHA_224", "HMAC_SHA_256", 28},
		"HMAC_256": {"HMAC_SHA_256", "HMAC_SHA_512", 32},
		"HMAC_384": {"HMAC_SHA_384", "HMAC_SHA_224", 48},
		"HMAC_512": {"HMAC_SHA_512", "HMAC_SHA_384", 64},
	} {
		t.Run(string(spec), func(t *testing.T) {
			key, other := *newKeyOf(t, c, spec, "GENERATE_VERIFY_MAC").Arn, *newKeyOf(t, c, spec, "GENERATE_VERIFY_MAC").Arn
			id := key[strings.LastIndex(key, "/")+1:]
			in := &kms.GenerateMacInput{KeyId: &id, MacAlgorithm: tc.algorithm, Message: message}
			made := must[*kms.GenerateMacOutput](t)(c.GenerateMac(ctx, in))
			if *made.KeyId != key || made.MacAlgorithm != tc.algorithm || len(made.Mac) != tc.size {
				t.Errorf("%s, %s, %d bytes", *made.KeyId, made.MacAlgorithm, len(made.Mac))
			}
			if again := must[*kms.GenerateMacOutput](t)(c.GenerateMac(ctx, in)); !bytes.Equal(made.Mac, again.Mac) {
				t.Error("the same message has two MACs")
			}
			verify := func(key string, message, mac []byte) error {
				out, err := c.VerifyMac(ctx, &kms.VerifyMacInput{KeyId: &key, MacAlgorithm: tc.algorithm, Message: message, Mac: mac})
				if err == nil && (*out.KeyId != key || !out.MacValid || out.MacAlgorithm != tc.algorithm) {
					t.Errorf("%s, %v, %s", *out.KeyId, out.MacValid, out.MacAlgorithm)
				}
				return err
			}
			wantRefusal(t, verify(key, message, made.Mac), "", "")
			for _, err := range []error{
				verify(key, []byte("some different important message"), made.Mac), verify(other, message, made.Mac), verify(key, message, made.Mac[1:]),
			} {
				wantRefusal(t, err, "KMSInvalidMacException", "")
			}
			in.MacAlgorithm = tc.wrong
			_, err := c.GenerateMac(ctx, in)
			wantRefusal(t, err, "InvalidKeyUsageException", "Algorithm "+string(tc.wrong)+" is incompatible with key spec "+string(spec)+".")
			in.MacAlgorithm, in.DryRun = tc.algorithm, aws.Bool(true)
			_, err = c.GenerateMac(ctx, in)
			wantCode(t, err, "DryRunOperationException")
			_, err = c.VerifyMac(ctx, &kms.VerifyMacInput{KeyId: &key, MacAlgorithm: tc.algorithm, Message: message, Mac: made.Mac, DryRun: aws.Bool(true)})
			wantCode(t, err, "DryRunOperationException")
		})
	}
	symmetric := newKey(t, h, "")
	_, err := c.GenerateMac(ctx, &kms.GenerateMacInput{KeyId: &symmetric, MacAlgorithm: "HMAC_SHA_224", Message: message})
	wantRefusal(t, err, "InvalidKeyUsageException", symmetric+" key usage is ENCRYPT_DECRYPT which is not valid for GenerateMac.")
	_, err = c.VerifyMac(ctx, &kms.VerifyMacInput{KeyId: &symmetric, MacAlgorithm: "HMAC_SHA_224", Message: message, Mac: []byte("x")})
	wantRefusal(t, err, "InvalidKeyUsageException", symmetric+" key usage is ENCRYPT_DECRYPT which is not valid for VerifyMac.")
}

// A grant allows a MAC, and needs no encryption context to do so.
func TestMacByGrant(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	ctx, key := t.Context(), *newKeyOf(t, as(h, admin), "HMAC_256", "GENERATE_VERIFY_MAC").Arn
	use := &kms.GenerateMacInput{KeyId: &key, MacAlgorithm: "HMAC_SHA_256", Message: []byte("x")}
	_, err := as(h, worker).GenerateMac(ctx, use)
	wantCode(t, err, "AccessDeniedException")
	in := decryptGrant(key, worker)
	in.Operations = []types.GrantOperation{"GenerateMac"}
	must[*kms.CreateGrantOutput](t)(as(h, admin).CreateGrant(ctx, in))
	mac := must[*kms.GenerateMacOutput](t)(as(h, worker).GenerateMac(ctx, use)).Mac
	_, err = as(h, worker).VerifyMac(ctx, &kms.VerifyMacInput{KeyId: &key, MacAlgorithm: "HMAC_SHA_256", Message: []byte("x"), Mac: mac})
	wantCode(t, err, "AccessDeniedException")
}
