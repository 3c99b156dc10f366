package localkms

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"hash"
)

// The MAC algorithms of the service model (AWS KMS API Reference, GenerateMac).
var macAlgorithms = []string{"HMAC_SHA_224", "HMAC_SHA_256", "HMAC_SHA_384", "HMAC_SHA_512"}

// macHashes are the hash functions of the MAC algorithms.
var macHashes = map[string]func() hash.Hash{
	"HMAC_SHA_224": sha256.New224, "HMAC_SHA_256": sha256.New, "HMAC_SHA_384": sha512.New384, "HMAC_SHA_512": sha512.New,
}

type generateMacInput struct {
	KeyID        *string `json:"KeyId"`
	MacAlgorithm *string
	Message      []byte
	GrantTokens  []string
	DryRun       bool
}

func (in *generateMacInput) validate(v *validation) {
	v.blob(in.Message, "message", maxPlaintext)
	v.requiredText(in.KeyID, "keyId", maxKeyID)
	v.required(in.MacAlgorithm != nil, "macAlgorithm")
	v.oneOf(in.MacAlgorithm, "macAlgorithm", macAlgorithms)
	v.grantTokens(in.GrantTokens)
}

func (in *generateMacInput) access(operation string) access {
	return access{operation: operation, algorithm: in.MacAlgorithm, tokens: in.GrantTokens}
}

type generateMacOutput struct {
	KeyID        string `json:"KeyId"`
	Mac          []byte
	MacAlgorithm string
}

func (k *KMS) generateMac(r *request, in *generateMacInput) (*generateMacOutput, error) {
	key, err := k.prepare(r, *in.KeyID, in.access("GenerateMac"), in.DryRun)
	if err != nil {
		return nil, err
	}
	k.used(r, key)
	return &generateMacOutput{key.arn, key.current().mac(*in.MacAlgorithm, in.Message), *in.MacAlgorithm}, nil
}

type verifyMacInput struct {
	generateMacInput
	Mac []byte
}

func (in *verifyMacInput) validate(v *validation) {
	in.generateMacInput.validate(v)
	v.blob(in.Mac, "mac", maxCiphertext)
}

type verifyMacOutput struct {
	KeyID        string `json:"KeyId"`
	MacAlgorithm string
	MacValid     bool
}

// verifyMac answers only to say that the MAC is right. A DryRun does not look at it.
func (k *KMS) verifyMac(r *request, in *verifyMacInput) (*verifyMacOutput, error) {
	key, err := k.prepare(r, *in.KeyID, in.access("VerifyMac"), in.DryRun)
	if err != nil {
		return nil, err
	}
	if !hmac.Equal(key.current().mac(*in.MacAlgorithm, in.Message), in.Mac) {
		return nil, fault(codeInvalidMac, "")
	}
	k.used(r, key)
	return &verifyMacOutput{key.arn, *in.MacAlgorithm, true}, nil
}

// mac computes the HMAC of a message (RFC 2104).
func (m *material) mac(algorithm string, message []byte) []byte {
	h := hmac.New(macHashes[algorithm], m.raw)
	_, _ = h.Write(message) // never fails: see hash.Hash
	return h.Sum(nil)
}
