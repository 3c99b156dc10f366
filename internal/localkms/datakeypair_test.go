package localkms_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/keybroker/keybroker/internal/localkms"
)

// AWS KMS API Reference, GenerateDataKeyPair: PKCS #8 and SubjectPublicKeyInfo.
func TestDataKeyPairs(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	c, ctx, key := as(h, admin), t.Context(), newKey(t, h, "")
	material := currentMaterial(t, c, key)
	specs := []types.DataKeyPairSpec{"RSA_2048", "ECC_NIST_P256", "ECC_NIST_P384", "ECC_NIST_P521", "ECC_NIST_EDWARDS25519"}
	if !testing.Short() {
		specs = append(specs, "RSA_3072", "RSA_4096")
	}
	for _, spec := range specs {
		t.Run(string(spec), func(t *testing.T) {
			pair := must[*kms.GenerateDataKeyPairOutput](t)(c.GenerateDataKeyPair(ctx,
				&kms.GenerateDataKeyPairInput{KeyId: &key, KeyPairSpec: spec, EncryptionContext: pairs("a", "1")}))
			if *pair.KeyId != key || *pair.KeyMaterialId != material || pair.KeyPairSpec != spec {
				t.Errorf("%s, %s, %s", *pair.KeyId, *pair.KeyMaterialId, pair.KeyPairSpec)
			}
			if got := specOf(t, pair.PrivateKeyPlaintext, pair.PublicKey); got != spec {
				t.Errorf("a pair of %s", got)
			}
			opened := must[*kms.DecryptOutput](t)(c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: pair.PrivateKeyCiphertextBlob, EncryptionContext: pairs("a", "1")}))
			if !bytes.Equal(opened.Plaintext, pair.PrivateKeyPlaintext) {
				t.Error("the blob holds something else than the private key")
			}
			_, err := c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: pair.PrivateKeyCiphertextBlob})
			wantRefusal(t, err, "InvalidCiphertextException", "")
		})
	}
	wrapped := must[*kms.GenerateDataKeyPairWithoutPlaintextOutput](t)(c.GenerateDataKeyPairWithoutPlaintext(ctx,
		&kms.GenerateDataKeyPairWithoutPlaintextInput{KeyId: &key, KeyPairSpec: "ECC_NIST_P256"}))
	opened := must[*kms.DecryptOutput](t)(c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: wrapped.PrivateKeyCiphertextBlob}))
	if got := specOf(t, opened.Plaintext, wrapped.PublicKey); got != "ECC_NIST_P256" || *wrapped.KeyMaterialId != material {
		t.Errorf("without plaintext: a pair of %s under %s", got, *wrapped.KeyMaterialId)
	}
}

// specOf returns the spec of a pair whose halves belong together.
func specOf(t *testing.T, private, public []byte) types.DataKeyPairSpec {
	t.Helper()
	secret := must[any](t)(x509.ParsePKCS8PrivateKey(private))
	type comparable interface{ Equal(crypto.PublicKey) bool }
	open := must[any](t)(x509.ParsePKIXPublicKey(public)).(comparable)
	if !open.Equal(secret.(crypto.Signer).Public()) {
		t.Error("the public key is another pair's")
	}
	switch secret := secret.(type) {
	case *rsa.PrivateKey:
		return map[int]types.DataKeyPairSpec{2048: "RSA_2048", 3072: "RSA_3072", 4096: "RSA_4096"}[secret.N.BitLen()]
	case *ecdsa.PrivateKey:
		return types.DataKeyPairSpec(map[string]string{"P-256": "ECC_NIST_P256", "P-384": "ECC_NIST_P384", "P-521": "ECC_NIST_P521"}[secret.Params().Name])
	case ed25519.PrivateKey:
		return "ECC_NIST_EDWARDS25519"
	}
	return "unknown"
}

func TestDataKeyPairsAreRefused(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	c, ctx, key := as(h, admin), t.Context(), newKey(t, h, "")
	for _, spec := range []types.DataKeyPairSpec{"ECC_SECG_P256K1", "SM2", "ML_KEM_512", "ML_KEM_768", "ML_KEM_1024"} {
		_, err := c.GenerateDataKeyPair(ctx, &kms.GenerateDataKeyPairInput{KeyId: &key, KeyPairSpec: spec})
		wantRefusal(t, err, "UnsupportedOperationException", "localkms does not support KeyPairSpec "+string(spec)+".")
	}
	const wouldSucceed = "The request would have succeeded, but the DryRun option is set." // recorded, 2025-04
	_, err := c.GenerateDataKeyPair(ctx, &kms.GenerateDataKeyPairInput{KeyId: &key, KeyPairSpec: "RSA_4096", DryRun: aws.Bool(true)})
	wantRefusal(t, err, "DryRunOperationException", wouldSucceed)
	in := &kms.GenerateDataKeyPairWithoutPlaintextInput{KeyId: &key, KeyPairSpec: "RSA_4096", DryRun: aws.Bool(true)}
	_, err = c.GenerateDataKeyPairWithoutPlaintext(ctx, in)
	wantRefusal(t, err, "DryRunOperationException", wouldSucceed)

	grant := decryptGrant(key, worker)
	grant.Operations = []types.GrantOperation{"GenerateDataKeyPairWithoutPlaintext"}
	grant.Constraints = &types.GrantConstraints{EncryptionContextSubset: pairs("a", "1")}
	must[*kms.CreateGrantOutput](t)(c.CreateGrant(ctx, grant))
	_, err = as(h, worker).GenerateDataKeyPairWithoutPlaintext(ctx, in)
	wantCode(t, err, "AccessDeniedException")
	in.EncryptionContext = pairs("a", "1")
	_, err = as(h, worker).GenerateDataKeyPairWithoutPlaintext(ctx, in)
	wantCode(t, err, "DryRunOperationException")
	_, err = as(h, worker).GenerateDataKeyPair(ctx, &kms.GenerateDataKeyPairInput{KeyId: &key, KeyPairSpec: "RSA_2048", EncryptionContext: pairs("a", "1")})
	wantCode(t, err, "AccessDeniedException")
}
