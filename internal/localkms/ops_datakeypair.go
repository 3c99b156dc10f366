package localkms

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
)

// The key pair specs of the service model, and how those that this package makes
// are made (AWS KMS API Reference, GenerateDataKeyPair, KeyPairSpec).
var (
	keyPairSpecs = []string{
		"RSA_2048", "RSA_3072", "RSA_4096", "ECC_NIST_P256", "ECC_NIST_P384", "ECC_NIST_P521", "ECC_SECG_P256K1", "SM2",
		"ECC_NIST_EDWARDS25519", "ML_KEM_512", "ML_KEM_768", "ML_KEM_1024",
	}
	rsaSizes = map[string]int{"RSA_2048": 2048, "RSA_3072": 3072, "RSA_4096": 4096}
	curves   = map[string]elliptic.Curve{
		"ECC_NIST_P256": elliptic.P256(), "ECC_NIST_P384": elliptic.P384(), "ECC_NIST_P521": elliptic.P521(),
	}
)

type generateDataKeyPairInput struct {
	KeyID             *string `json:"KeyId"`
	KeyPairSpec       *string
	EncryptionContext map[string]string
	GrantTokens       []string
	Recipient         json.RawMessage
	DryRun            bool
}

func (in *generateDataKeyPairInput) validate(v *validation) {
	v.requiredText(in.KeyID, "keyId", maxKeyID)
	v.required(in.KeyPairSpec != nil, "keyPairSpec")
	v.oneOf(in.KeyPairSpec, "keyPairSpec", keyPairSpecs)
	v.grantTokens(in.GrantTokens)
}

type generateDataKeyPairOutput struct {
	KeyID                    string `json:"KeyId"`
	KeyMaterialID            string `json:"KeyMaterialId"`
	KeyPairSpec              string
	PrivateKeyCiphertextBlob []byte
	PrivateKeyPlaintext      []byte `json:",omitempty"` // DER, PKCS #8
	PublicKey                []byte // DER, SubjectPublicKeyInfo
}

func (k *KMS) generateDataKeyPair(r *request, in *generateDataKeyPairInput) (*generateDataKeyPairOutput, error) {
	if err := checkRecipient(in.Recipient); err != nil {
		return nil, err
	}
	return k.newDataKeyPair(r, in, "GenerateDataKeyPair")
}

func (k *KMS) generateDataKeyPairWithoutPlaintext(r *request, in *generateDataKeyPairInput) (*generateDataKeyPairOutput, error) {
	out, err := k.newDataKeyPair(r, in, "GenerateDataKeyPairWithoutPlaintext")
	if err != nil {
		return nil, err
	}
	clear(out.PrivateKeyPlaintext)
	out.PrivateKeyPlaintext = nil
	return out, nil
}

func (k *KMS) newDataKeyPair(r *request, in *generateDataKeyPairInput, operation string) (*generateDataKeyPairOutput, error) {
	if !makesPair(*in.KeyPairSpec) {
		return nil, faultf(codeUnsupportedOperation, "localkms does not support KeyPairSpec %s.", *in.KeyPairSpec)
	}
	use := access{
		operation: operation, takesContext: true, context: in.EncryptionContext, tokens: in.GrantTokens,
		also: []attribute{attributeOf("kms:DataKeyPairSpec", *in.KeyPairSpec)},
	}
	key, err := k.prepare(r, *in.KeyID, use, in.DryRun)
	if err != nil {
		return nil, err
	}
	private, public, err := newPair(*in.KeyPairSpec)
	if err != nil {
		return nil, err
	}
	blob, err := k.seal(key, private, in.EncryptionContext)
	if err != nil {
		return nil, err
	}
	k.used(r, key)
	return &generateDataKeyPairOutput{key.arn, key.current().id, *in.KeyPairSpec, blob, private, public}, nil
}

const edwards25519 = "ECC_NIST_EDWARDS25519"

func makesPair(spec string) bool {
	return rsaSizes[spec] > 0 || curves[spec] != nil || spec == edwards25519
}

// newPair makes a key pair and returns both halves in DER.
func newPair(spec string) (private, public []byte, err error) {
	var pair crypto.Signer
	switch {
	case rsaSizes[spec] > 0:
		pair, err = rsa.GenerateKey(rand.Reader, rsaSizes[spec])
	case curves[spec] != nil:
		pair, err = ecdsa.GenerateKey(curves[spec], rand.Reader)
	default:
		_, pair, err = ed25519.GenerateKey(rand.Reader)
	}
	if err != nil {
		return nil, nil, err
	}
	if private, err = x509.MarshalPKCS8PrivateKey(pair); err != nil {
		return nil, nil, err
	}
	public, err = x509.MarshalPKIXPublicKey(pair.Public())
	return private, public, err
}
