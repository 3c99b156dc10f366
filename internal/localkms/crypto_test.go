package localkms_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/keybroker/keybroker/internal/localkms"
)

// AWS KMS Developer Guide, "Encryption context": exact, case-sensitive match, in
// any order. The message of the refusal is empty, as recorded from AWS.
func TestEncryptionContextIsBound(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	key := newKey(t, h, "")
	c, ctx := as(h, admin), t.Context()
	for name, tc := range map[string]struct {
		sealed, opened map[string]string
		ok             bool
	}{
		"none":                  {nil, nil, true},
		"none and empty":        {nil, pairs(), true},
		"same":                  {pairs("a", "1", "b", "2"), pairs("b", "2", "a", "1"), true},
		"none given":            {pairs("a", "1"), nil, false},
		"none wanted":           {nil, pairs("a", "1"), false},
		"other value":           {pairs("a", "1"), pairs("a", "2"), false},
		"case of key":           {pairs("a", "1"), pairs("A", "1"), false},
		"case of value":         {pairs("a", "x"), pairs("a", "X"), false},
		"one more":              {pairs("a", "1"), pairs("a", "1", "b", "2"), false},
		"shifted letter":        {pairs("tenant", "a", "env", "p"), pairs("tenan", "ta", "env", "p"), false},
		"key and value swapped": {pairs("a", "b"), pairs("b", "a"), false},
		"empty value":           {pairs("a", ""), nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			sealed := must[*kms.EncryptOutput](t)(c.Encrypt(ctx, &kms.EncryptInput{
				KeyId: &key, Plaintext: []byte("secret"), EncryptionContext: tc.sealed,
			}))
			out, err := c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: sealed.CiphertextBlob, EncryptionContext: tc.opened})
			switch {
			case !tc.ok:
				wantRefusal(t, err, "InvalidCiphertextException", "")
			case err != nil || string(out.Plaintext) != "secret":
				t.Errorf("got %v, %v", out, err)
			}
		})
	}
}

// Every single damage to a blob is refused as InvalidCiphertextException.
func TestDamagedBlob(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	key := newKey(t, h, "")
	c, ctx := as(h, admin), t.Context()
	blob := must[*kms.EncryptOutput](t)(c.Encrypt(ctx, &kms.EncryptInput{KeyId: &key, Plaintext: []byte("x")})).CiphertextBlob
	try := func(what string, damaged []byte) {
		t.Helper()
		if _, err := c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: damaged}); refusalOf(err).code != "InvalidCiphertextException" {
			t.Errorf("%s: got %v", what, err)
		}
	}
	for i := range blob {
		damaged := bytes.Clone(blob)
		damaged[i] ^= 0x20
		try(fmt.Sprint("bit in byte ", i), damaged)
		if i > 0 {
			try(fmt.Sprint("cut at ", i), blob[:i])
		}
	}
	try("appended", append(bytes.Clone(blob), 0))
	try("garbage", []byte("hello"))
}

// AWS KMS API Reference, Decrypt and ReEncrypt, KeyId and SourceKeyId.
func TestNamedKeyMustMatchBlob(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	key, other := newKey(t, h, ""), newKey(t, h, "")
	c, ctx := as(h, admin), t.Context()
	const message = "The key ID in the request does not identify a CMK that can perform this operation."
	blob := must[*kms.EncryptOutput](t)(c.Encrypt(ctx, &kms.EncryptInput{KeyId: &key, Plaintext: []byte("x")})).CiphertextBlob
	_, err := c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob, KeyId: &other})
	wantRefusal(t, err, "IncorrectKeyException", message)
	_, err = c.ReEncrypt(ctx, &kms.ReEncryptInput{CiphertextBlob: blob, SourceKeyId: &other, DestinationKeyId: &other})
	wantRefusal(t, err, "IncorrectKeyException", message)
	must[*kms.DecryptOutput](t)(c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob, KeyId: &key}))

	_, err = in(h, admin, "eu-west-1").Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob})
	wantRefusal(t, err, "AccessDeniedException", "The ciphertext refers to a customer master key that does not exist, "+
		"does not exist in this region, or you are not allowed to access.")
	_, err = as(newKMS(t, localkms.Config{}), admin).Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob})
	wantCode(t, err, "AccessDeniedException")
}

// AWS KMS API Reference, Decrypt: a bare key id is taken for a key of another
// account, which the ciphertext tells.
func TestDecryptWithForeignBareID(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	key := newKey(t, h, strings.ReplaceAll(brokerPolicy, `"kms:CreateGrant"`, `"kms:Decrypt"`))
	blob := must[*kms.EncryptOutput](t)(as(h, admin).Encrypt(t.Context(), &kms.EncryptInput{KeyId: &key, Plaintext: []byte("x")})).CiphertextBlob
	id := key[strings.LastIndex(key, "/")+1:]
	must[*kms.DecryptOutput](t)(as(h, registrar).Decrypt(t.Context(), &kms.DecryptInput{CiphertextBlob: blob, KeyId: &id}))
}

// AWS KMS API Reference, response syntax of the cryptographic operations.
func TestCryptoAnswers(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	key, other := newKey(t, h, ""), newKey(t, h, "")
	c, ctx := as(h, admin), t.Context()
	materialOf := func(key string) string {
		return *must[*kms.DescribeKeyOutput](t)(c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &key})).KeyMetadata.CurrentKeyMaterialId
	}
	id := key[strings.LastIndex(key, "/")+1:]

	sealed := must[*kms.EncryptOutput](t)(c.Encrypt(ctx, &kms.EncryptInput{KeyId: &id, Plaintext: []byte("x")}))
	if *sealed.KeyId != key || sealed.EncryptionAlgorithm != types.EncryptionAlgorithmSpecSymmetricDefault {
		t.Errorf("Encrypt: key %s, algorithm %s", *sealed.KeyId, sealed.EncryptionAlgorithm)
	}
	opened := must[*kms.DecryptOutput](t)(c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: sealed.CiphertextBlob}))
	if *opened.KeyId != key || *opened.KeyMaterialId != materialOf(key) || opened.EncryptionAlgorithm != types.EncryptionAlgorithmSpecSymmetricDefault {
		t.Errorf("Decrypt: key %s, material %s, algorithm %s", *opened.KeyId, *opened.KeyMaterialId, opened.EncryptionAlgorithm)
	}
	moved := must[*kms.ReEncryptOutput](t)(c.ReEncrypt(ctx, &kms.ReEncryptInput{CiphertextBlob: sealed.CiphertextBlob, DestinationKeyId: &other}))
	if *moved.KeyId != other || *moved.SourceKeyId != key ||
		*moved.SourceKeyMaterialId != materialOf(key) || *moved.DestinationKeyMaterialId != materialOf(other) ||
		moved.SourceEncryptionAlgorithm != types.EncryptionAlgorithmSpecSymmetricDefault ||
		moved.DestinationEncryptionAlgorithm != types.EncryptionAlgorithmSpecSymmetricDefault {
		t.Errorf("ReEncrypt: %+v", moved)
	}
	for name, tc := range map[string]struct {
		in   kms.GenerateDataKeyInput
		size int
	}{
		"AES_256":  {kms.GenerateDataKeyInput{KeySpec: types.DataKeySpecAes256}, 32},
		"AES_128":  {kms.GenerateDataKeyInput{KeySpec: types.DataKeySpecAes128}, 16},
		"64 bytes": {kms.GenerateDataKeyInput{NumberOfBytes: aws.Int32(64)}, 64},
	} {
		t.Run(name, func(t *testing.T) {
			tc.in.KeyId = &key
			made := must[*kms.GenerateDataKeyOutput](t)(c.GenerateDataKey(ctx, &tc.in))
			opened := must[*kms.DecryptOutput](t)(c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: made.CiphertextBlob}))
			if len(made.Plaintext) != tc.size || !bytes.Equal(made.Plaintext, opened.Plaintext) {
				t.Errorf("data key of %d bytes, decrypts to the same: %v", len(made.Plaintext), bytes.Equal(made.Plaintext, opened.Plaintext))
			}
			if *made.KeyId != key || *made.KeyMaterialId != materialOf(key) {
				t.Errorf("key %s, material %s", *made.KeyId, *made.KeyMaterialId)
			}
		})
	}
}

// ReEncrypt can change the context under one key, and never gives the same blob
// twice (AWS KMS API Reference, ReEncrypt).
func TestReEncryptUnderTheSameKey(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	key := newKey(t, h, "")
	c, ctx := as(h, admin), t.Context()
	blob := must[*kms.EncryptOutput](t)(c.Encrypt(ctx, &kms.EncryptInput{
		KeyId: &key, Plaintext: bytes.Repeat([]byte("p"), 4096), EncryptionContext: pairs("a", "1"),
	})).CiphertextBlob
	move := &kms.ReEncryptInput{
		CiphertextBlob: blob, DestinationKeyId: &key,
		SourceEncryptionContext: pairs("a", "1"), DestinationEncryptionContext: pairs("b", "2"),
	}
	one := must[*kms.ReEncryptOutput](t)(c.ReEncrypt(ctx, move))
	two := must[*kms.ReEncryptOutput](t)(c.ReEncrypt(ctx, move))
	if bytes.Equal(one.CiphertextBlob, two.CiphertextBlob) {
		t.Error("two encryptions gave the same blob")
	}
	must[*kms.DecryptOutput](t)(c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: two.CiphertextBlob, EncryptionContext: pairs("b", "2")}))
	_, err := c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: two.CiphertextBlob, EncryptionContext: pairs("a", "1")})
	wantCode(t, err, "InvalidCiphertextException")
	move.SourceEncryptionContext = pairs("a", "2")
	_, err = c.ReEncrypt(ctx, move)
	wantRefusal(t, err, "InvalidCiphertextException", "")
}

// Limits and messages: AWS KMS API Reference, request parameters.
func TestCryptoValidation(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	key := newKey(t, h, "")
	c, ctx := as(h, admin), t.Context()
	long := strings.Repeat("k", 2049)
	const detected = "1 validation error detected: "
	for name, tc := range map[string]struct {
		call func() error
		want refusal
	}{
		"plaintext too long": {func() error {
			_, err := c.Encrypt(ctx, &kms.EncryptInput{KeyId: &key, Plaintext: make([]byte, 4097)})
			return err
		}, refusal{"ValidationException", detected + "Value at 'plaintext' failed to satisfy constraint: Member must have length less than or equal to 4096"}},
		"plaintext empty": {func() error {
			_, err := c.Encrypt(ctx, &kms.EncryptInput{KeyId: &key, Plaintext: []byte{}})
			return err
		}, refusal{"ValidationException", detected + "Value at 'plaintext' failed to satisfy constraint: Member must have length greater than or equal to 1"}},
		"blob too long": {func() error {
			_, err := c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: make([]byte, 6145)})
			return err
		}, refusal{"ValidationException", detected + "Value at 'ciphertextBlob' failed to satisfy constraint: Member must have length less than or equal to 6144"}},
		"key id too long": {func() error {
			_, err := c.Encrypt(ctx, &kms.EncryptInput{KeyId: &long, Plaintext: []byte("x")})
			return err
		}, refusal{"ValidationException", detected + "Value '" + long + "' at 'keyId' failed to satisfy constraint: Member must have length less than or equal to 2048"}},
		"no bytes": {func() error {
			_, err := c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: &key, NumberOfBytes: aws.Int32(0)})
			return err
		}, refusal{"ValidationException", detected + "Value '0' at 'numberOfBytes' failed to satisfy constraint: Member must have value greater than or equal to 1"}},
		"too many bytes": {func() error {
			_, err := c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: &key, NumberOfBytes: aws.Int32(1025)})
			return err
		}, refusal{"ValidationException", detected + "Value '1025' at 'numberOfBytes' failed to satisfy constraint: Member must have value less than or equal to 1024"}},
		"bytes and spec": {func() error {
			_, err := c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: &key, NumberOfBytes: aws.Int32(1), KeySpec: types.DataKeySpecAes128})
			return err
		}, refusal{"ValidationException", "Please specify either number of bytes or key spec."}},
		"neither bytes nor spec": {func() error {
			_, err := c.GenerateDataKeyWithoutPlaintext(ctx, &kms.GenerateDataKeyWithoutPlaintextInput{KeyId: &key})
			return err
		}, refusal{"ValidationException", "Please specify either number of bytes or key spec."}},
		"two faults": {func() error {
			_, err := c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: &key, NumberOfBytes: aws.Int32(0), KeySpec: "AES_512"})
			return err
		}, refusal{"ValidationException", "2 validation errors detected: Value 'AES_512' at 'keySpec' failed to satisfy constraint: " +
			"Member must satisfy enum value set: [AES_256, AES_128]; Value '0' at 'numberOfBytes' failed to satisfy constraint: Member must have value greater than or equal to 1"}},
		"asymmetric algorithm": {func() error {
			_, err := c.Encrypt(ctx, &kms.EncryptInput{KeyId: &key, Plaintext: []byte("x"), EncryptionAlgorithm: types.EncryptionAlgorithmSpecRsaesOaepSha256})
			return err
		}, refusal{"InvalidKeyUsageException", "Algorithm RSAES_OAEP_SHA_256 and key spec SYMMETRIC_DEFAULT are incompatible."}},
		"attestation": {func() error {
			_, err := c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: &key, KeySpec: types.DataKeySpecAes256, Recipient: &types.RecipientInfo{}})
			return err
		}, refusal{"UnsupportedOperationException", "localkms does not support Recipient."}},
		"modifier without dry run": {func() error {
			_, err := c.Decrypt(ctx, &kms.DecryptInput{KeyId: &key, DryRunModifiers: []types.DryRunModifierType{types.DryRunModifierTypeIgnoreCiphertext}})
			return err
		}, refusal{"ValidationException", "DryRunModifiers can be specified only with DryRun."}},
		"too many tokens": {func() error {
			_, err := c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: []byte("x"), GrantTokens: strings.Split(strings.Repeat("t", 11), "")})
			return err
		}, refusal{"ValidationException", detected + "Value '[t, t, t, t, t, t, t, t, t, t, t]' at 'grantTokens' failed to satisfy constraint: Member must have length less than or equal to 10"}},
	} {
		t.Run(name, func(t *testing.T) { wantRefusal(t, tc.call(), tc.want.code, tc.want.message) })
	}
}

// AWS KMS Developer Guide, "Testing your permissions": a dry run always errs, and
// says whether it is for the right reason.
func TestDryRun(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	key, other := newKey(t, h, ""), newKey(t, h, "")
	ctx, yes := t.Context(), aws.Bool(true)
	blob := must[*kms.EncryptOutput](t)(as(h, admin).Encrypt(ctx, &kms.EncryptInput{KeyId: &key, Plaintext: []byte("x")})).CiphertextBlob
	ignore := []types.DryRunModifierType{types.DryRunModifierTypeIgnoreCiphertext}
	grant := decryptGrant(key, worker)
	g := must[*kms.CreateGrantOutput](t)(as(h, customerRoot).CreateGrant(ctx, grant))
	grant.DryRun, grant.Name = yes, aws.String("dry")

	for name, call := range map[string]func(c *kms.Client) error{
		"Encrypt": func(c *kms.Client) error {
			_, err := c.Encrypt(ctx, &kms.EncryptInput{KeyId: &key, Plaintext: []byte("x"), DryRun: yes})
			return err
		},
		"Decrypt": func(c *kms.Client) error {
			_, err := c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob, DryRun: yes})
			return err
		},
		"Decrypt without ciphertext": func(c *kms.Client) error {
			_, err := c.Decrypt(ctx, &kms.DecryptInput{KeyId: &key, DryRun: yes, DryRunModifiers: ignore})
			return err
		},
		"ReEncrypt": func(c *kms.Client) error {
			_, err := c.ReEncrypt(ctx, &kms.ReEncryptInput{CiphertextBlob: blob, DestinationKeyId: &other, DryRun: yes})
			return err
		},
		"ReEncrypt without ciphertext": func(c *kms.Client) error {
			_, err := c.ReEncrypt(ctx, &kms.ReEncryptInput{SourceKeyId: &key, DestinationKeyId: &other, DryRun: yes, DryRunModifiers: ignore})
			return err
		},
		"GenerateDataKey": func(c *kms.Client) error {
			_, err := c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: &key, KeySpec: types.DataKeySpecAes256, DryRun: yes})
			return err
		},
		"GenerateDataKeyWithoutPlaintext": func(c *kms.Client) error {
			_, err := c.GenerateDataKeyWithoutPlaintext(ctx, &kms.GenerateDataKeyWithoutPlaintextInput{KeyId: &key, KeySpec: types.DataKeySpecAes256, DryRun: yes})
			return err
		},
		"CreateGrant": func(c *kms.Client) error {
			_, err := c.CreateGrant(ctx, grant)
			return err
		},
		"RetireGrant": func(c *kms.Client) error {
			_, err := c.RetireGrant(ctx, &kms.RetireGrantInput{KeyId: &key, GrantId: g.GrantId, DryRun: yes})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			wantRefusal(t, call(as(h, customerRoot)), "DryRunOperationException", "The request would have succeeded, but the DryRun option is set.")
			wantCode(t, call(as(h, stranger)), "AccessDeniedException")
		})
	}
	_, err := as(h, admin).ReEncrypt(ctx, &kms.ReEncryptInput{DestinationKeyId: &other, DryRun: yes, DryRunModifiers: ignore})
	wantRefusal(t, err, "ValidationException", "1 validation error detected: Value null at 'sourceKeyId' failed to satisfy constraint: Member must not be null")
	if all := grantsOf(t, h, admin, key); len(all) != 1 || *all[0].GrantId != *g.GrantId {
		t.Errorf("dry runs changed the grants: %v", all)
	}
}
