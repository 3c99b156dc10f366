package localkms_test

import (
	"slices"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/keybroker/keybroker/internal/localkms"
)

func newKeyOf(t testing.TB, c *kms.Client, spec types.KeySpec, usage types.KeyUsageType) *types.KeyMetadata {
	t.Helper()
	return must[*kms.CreateKeyOutput](t)(c.CreateKey(t.Context(), &kms.CreateKeyInput{KeySpec: spec, KeyUsage: usage})).KeyMetadata
}

// AWS KMS Developer Guide, "Key spec reference"; API Reference, KeyMetadata.
func TestKindsAreDescribed(t *testing.T) {
	dir := t.TempDir()
	h := reopen(t, dir)
	described := map[string]*types.KeyMetadata{}
	rsa := []types.SigningAlgorithmSpec{
		"RSASSA_PKCS1_V1_5_SHA_256", "RSASSA_PKCS1_V1_5_SHA_384", "RSASSA_PKCS1_V1_5_SHA_512",
		"RSASSA_PSS_SHA_256", "RSASSA_PSS_SHA_384", "RSASSA_PSS_SHA_512",
	}
	for name, want := range map[string]*types.KeyMetadata{
		"RSA_2048 to sign":     {KeySpec: "RSA_2048", KeyUsage: "SIGN_VERIFY", SigningAlgorithms: rsa},
		"RSA_4096 to encrypt":  {KeySpec: "RSA_4096", KeyUsage: "ENCRYPT_DECRYPT", EncryptionAlgorithms: []types.EncryptionAlgorithmSpec{"RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256"}},
		"ECC_NIST_P256":        {KeySpec: "ECC_NIST_P256", KeyUsage: "SIGN_VERIFY", SigningAlgorithms: []types.SigningAlgorithmSpec{"ECDSA_SHA_256"}},
		"ECC_NIST_P384 agrees": {KeySpec: "ECC_NIST_P384", KeyUsage: "KEY_AGREEMENT", KeyAgreementAlgorithms: []types.KeyAgreementAlgorithmSpec{"ECDH"}},
		"HMAC_256":             {KeySpec: "HMAC_256", KeyUsage: "GENERATE_VERIFY_MAC", MacAlgorithms: []types.MacAlgorithmSpec{"HMAC_SHA_256"}},
		"ML_DSA_65":            {KeySpec: "ML_DSA_65", KeyUsage: "SIGN_VERIFY", SigningAlgorithms: []types.SigningAlgorithmSpec{"ML_DSA_SHAKE_256"}},
	} {
		got := newKeyOf(t, as(h, admin), want.KeySpec, want.KeyUsage)
		described[name] = got
		//nolint:staticcheck // deprecated, and AWS still answers with it, of the specs that it has
		if spec := types.CustomerMasterKeySpec(want.KeySpec); slices.Contains(spec.Values(), spec) {
			want.CustomerMasterKeySpec = spec
		}
		want.Enabled, want.KeyState, want.KeyManager, want.Origin = true, "Enabled", "CUSTOMER", "AWS_KMS"
		want.AWSAccountId, want.MultiRegion, want.Description = aws.String(customerAccount), aws.Bool(false), aws.String("")
		if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(types.KeyMetadata{}), cmpopts.IgnoreFields(types.KeyMetadata{}, "Arn", "KeyId", "CreationDate")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	closeKMS(t, h)
	h = reopen(t, dir)
	defer closeKMS(t, h)
	for name, want := range described {
		got := must[*kms.DescribeKeyOutput](t)(as(h, admin).DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: want.Arn})).KeyMetadata
		if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(types.KeyMetadata{})); diff != "" {
			t.Errorf("%s, after a restart (-want +got):\n%s", name, diff)
		}
	}
}

// The text of the first kind was recorded from AWS; ReEncrypt names its halves.
func TestWrongKindOfKey(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	c, ctx := as(h, admin), t.Context()
	own := newKey(t, h, "")
	blob := must[*kms.EncryptOutput](t)(c.Encrypt(ctx, &kms.EncryptInput{KeyId: &own, Plaintext: []byte("x")})).CiphertextBlob
	uses := map[string]func(key string) error{
		"Encrypt": func(key string) error { return encryptWith(t, nil)(c, key) },
		"Decrypt": func(key string) error {
			_, err := c.Decrypt(ctx, &kms.DecryptInput{
				KeyId: &key, DryRun: aws.Bool(true), DryRunModifiers: []types.DryRunModifierType{"IGNORE_CIPHERTEXT"},
			})
			return err
		},
		"GenerateDataKeyPair": func(key string) error {
			_, err := c.GenerateDataKeyPair(ctx, &kms.GenerateDataKeyPairInput{KeyId: &key, KeyPairSpec: "ECC_NIST_P256"})
			return err
		},
		"GenerateDataKey": func(key string) error {
			_, err := c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: &key, KeySpec: types.DataKeySpecAes256})
			return err
		},
		"GenerateDataKeyWithoutPlaintext": func(key string) error {
			_, err := c.GenerateDataKeyWithoutPlaintext(ctx, &kms.GenerateDataKeyWithoutPlaintextInput{KeyId: &key, KeySpec: types.DataKeySpecAes256})
			return err
		},
		"ReEncryptTo": func(key string) error {
			_, err := c.ReEncrypt(ctx, &kms.ReEncryptInput{CiphertextBlob: blob, DestinationKeyId: &key})
			return err
		},
		"ReEncryptFrom": func(key string) error {
			_, err := c.ReEncrypt(ctx, &kms.ReEncryptInput{
				SourceKeyId: &key, DestinationKeyId: &own, DryRun: aws.Bool(true), DryRunModifiers: []types.DryRunModifierType{"IGNORE_CIPHERTEXT"},
			})
			return err
		},
	}
	for _, kind := range []struct {
		spec  types.KeySpec
		usage types.KeyUsageType
	}{{"RSA_2048", "SIGN_VERIFY"}, {"HMAC_256", "GENERATE_VERIFY_MAC"}, {"ECC_NIST_P256", "KEY_AGREEMENT"}} {
		key := *newKeyOf(t, c, kind.spec, kind.usage).Arn
		for operation, use := range uses {
			wantRefusal(t, use(key), "InvalidKeyUsageException", key+" key usage is "+string(kind.usage)+" which is not valid for "+operation+".")
		}
		// Recorded of an HMAC key, 2023-04: that the blob is another key's comes first.
		_, err := c.Decrypt(ctx, &kms.DecryptInput{KeyId: &key, CiphertextBlob: blob})
		wantCode(t, err, "IncorrectKeyException")
		must[*kms.DisableKeyOutput](t)(c.DisableKey(ctx, &kms.DisableKeyInput{KeyId: &key}))
		wantRefusal(t, uses["Encrypt"](key), "DisabledException", key+" is disabled.")
	}

	// A key that AWS encrypts with, and this package does not.
	rsa := *newKeyOf(t, c, "RSA_2048", "ENCRYPT_DECRYPT").Arn
	for _, use := range uses {
		wantRefusal(t, use(rsa), "InvalidKeyUsageException", "Algorithm SYMMETRIC_DEFAULT and key spec RSA_2048 are incompatible.")
	}
	in := &kms.EncryptInput{KeyId: &rsa, Plaintext: []byte("x"), EncryptionAlgorithm: "RSAES_OAEP_SHA_256"}
	_, err := c.Encrypt(ctx, in)
	wantRefusal(t, err, "UnsupportedOperationException", "localkms does not encrypt with KeySpec RSA_2048.")
	in.EncryptionContext = pairs("a", "1")
	_, err = c.Encrypt(ctx, in)
	wantRefusal(t, err, "ValidationException", "EncryptionContext is not supported with KeySpec RSA_2048.")
	in.KeyId = &own
	_, err = c.Encrypt(ctx, in)
	wantRefusal(t, err, "InvalidKeyUsageException", "Algorithm RSAES_OAEP_SHA_256 and key spec SYMMETRIC_DEFAULT are incompatible.")
}

// AWS KMS Developer Guide, "Grants in AWS KMS", Grant operations; "Creating
// grants": no encryption context constraint on asymmetric and HMAC keys.
func TestGrantsOnOtherKinds(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	c := as(h, admin)
	for name, tc := range map[string]struct {
		spec      types.KeySpec
		usage     types.KeyUsageType
		operation types.GrantOperation
		ok        bool
	}{
		"sign with RSA":           {"RSA_2048", "SIGN_VERIFY", "Sign", true},
		"encrypt with it":         {"RSA_2048", "SIGN_VERIFY", "Encrypt", false},
		"encrypt with another":    {"RSA_2048", "ENCRYPT_DECRYPT", "Encrypt", true},
		"data keys under it":      {"RSA_2048", "ENCRYPT_DECRYPT", "GenerateDataKey", false},
		"MAC with HMAC":           {"HMAC_256", "GENERATE_VERIFY_MAC", "GenerateMac", true},
		"public key of HMAC":      {"HMAC_256", "GENERATE_VERIFY_MAC", "GetPublicKey", false},
		"describe any":            {"ECC_NIST_P256", "KEY_AGREEMENT", "DescribeKey", true},
		"sign with a symmetric":   {"SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT", "Sign", false},
		"derive with a symmetric": {"SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT", "DeriveSharedSecret", false},
	} {
		t.Run(name, func(t *testing.T) {
			in := decryptGrant(*newKeyOf(t, c, tc.spec, tc.usage).Arn, worker)
			in.Operations = []types.GrantOperation{tc.operation}
			_, err := c.CreateGrant(t.Context(), in)
			if tc.ok {
				wantCode(t, err, "")
			} else {
				wantRefusal(t, err, "ValidationException", "Grant operation "+string(tc.operation)+" is not valid for a key with KeySpec "+string(tc.spec)+".")
			}
			if tc.ok {
				in.Constraints = &types.GrantConstraints{EncryptionContextSubset: pairs("a", "1")}
				_, err = c.CreateGrant(t.Context(), in)
				wantRefusal(t, err, "ValidationException", "An encryption context constraint is not valid for a key with KeySpec "+string(tc.spec)+".")
			}
		})
	}
}
