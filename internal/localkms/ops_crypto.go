package localkms

import (
	"crypto/rand"
	"encoding/json"
)

// The values of the service model (AWS KMS API Reference, Encrypt, GenerateDataKey,
// Decrypt).
var (
	algorithms      = []string{symmetricSpec, "RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256", "SM2PKE"}
	dataKeySizes    = map[string]int{"AES_256": 32, "AES_128": 16}
	dataKeySpecs    = []string{"AES_256", "AES_128"}
	dryRunModifiers = []string{"IGNORE_CIPHERTEXT"}
)

// prepare does what every use of one key to encrypt has in common: find the key,
// authorize, check its state, and stop at a dry run.
func (k *KMS) prepare(r *request, keyID string, a access, dryRun bool) (resolved, error) {
	r.call.DryRun = dryRun
	r.call.EncryptionContext = a.context
	key, err := k.find(r, keyID, keyAliasForms)
	if err != nil {
		return resolved{}, err
	}
	r.call.KeyARN = key.arn
	if err := k.authorize(r, key, a); err != nil {
		return resolved{}, err
	}
	if err := key.ready(a); err != nil {
		return resolved{}, err
	}
	if dryRun {
		return resolved{}, errDryRun()
	}
	return key, nil
}

type encryptInput struct {
	KeyID               *string `json:"KeyId"`
	Plaintext           []byte
	EncryptionContext   map[string]string
	GrantTokens         []string
	EncryptionAlgorithm *string
	DryRun              bool
}

func (in *encryptInput) validate(v *validation) {
	v.requiredText(in.KeyID, "keyId", maxKeyID)
	v.blob(in.Plaintext, "plaintext", maxPlaintext)
	v.oneOf(in.EncryptionAlgorithm, "encryptionAlgorithm", algorithms)
	v.grantTokens(in.GrantTokens)
}

type encryptOutput struct {
	CiphertextBlob      []byte
	EncryptionAlgorithm string
	KeyID               string `json:"KeyId"`
}

func (k *KMS) encrypt(r *request, in *encryptInput) (*encryptOutput, error) {
	use := access{
		operation: "Encrypt", takesContext: true, context: in.EncryptionContext,
		algorithm: in.EncryptionAlgorithm, tokens: in.GrantTokens,
	}
	key, err := k.prepare(r, *in.KeyID, use, in.DryRun)
	if err != nil {
		return nil, err
	}
	blob, err := k.seal(key, in.Plaintext, in.EncryptionContext)
	if err != nil {
		return nil, err
	}
	k.used(r, key)
	return &encryptOutput{blob, symmetricSpec, key.arn}, nil
}

type generateDataKeyInput struct {
	KeyID             *string `json:"KeyId"`
	EncryptionContext map[string]string
	KeySpec           *string
	NumberOfBytes     *int
	GrantTokens       []string
	Recipient         json.RawMessage
	DryRun            bool
}

func (in *generateDataKeyInput) validate(v *validation) {
	v.requiredText(in.KeyID, "keyId", maxKeyID)
	v.oneOf(in.KeySpec, "keySpec", dataKeySpecs)
	v.number(in.NumberOfBytes, "numberOfBytes", 1, maxDataKey)
	v.grantTokens(in.GrantTokens)
	v.rule((in.KeySpec == nil) != (in.NumberOfBytes == nil), "Please specify either number of bytes or key spec.")
}

func (in *generateDataKeyInput) size() int {
	if in.NumberOfBytes != nil {
		return *in.NumberOfBytes
	}
	return dataKeySizes[*in.KeySpec]
}

type generateDataKeyOutput struct {
	CiphertextBlob []byte
	KeyID          string `json:"KeyId"`
	KeyMaterialID  string `json:"KeyMaterialId"`
	Plaintext      []byte `json:",omitempty"`
}

func (k *KMS) generateDataKey(r *request, in *generateDataKeyInput) (*generateDataKeyOutput, error) {
	if err := checkRecipient(in.Recipient); err != nil {
		return nil, err
	}
	return k.newDataKey(r, in, "GenerateDataKey")
}

func (k *KMS) generateDataKeyWithoutPlaintext(r *request, in *generateDataKeyInput) (*generateDataKeyOutput, error) {
	out, err := k.newDataKey(r, in, "GenerateDataKeyWithoutPlaintext")
	if err != nil {
		return nil, err
	}
	clear(out.Plaintext)
	out.Plaintext = nil
	return out, nil
}

func (k *KMS) newDataKey(r *request, in *generateDataKeyInput, operation string) (*generateDataKeyOutput, error) {
	use := access{operation: operation, takesContext: true, context: in.EncryptionContext, tokens: in.GrantTokens}
	key, err := k.prepare(r, *in.KeyID, use, in.DryRun)
	if err != nil {
		return nil, err
	}
	plaintext := make([]byte, in.size())
	_, _ = rand.Read(plaintext) // never fails: see crypto/rand.Read
	blob, err := k.seal(key, plaintext, in.EncryptionContext)
	if err != nil {
		return nil, err
	}
	k.used(r, key)
	return &generateDataKeyOutput{blob, key.arn, key.current().id, plaintext}, nil
}

// checkRecipient refuses attestation documents of AWS Nitro.
func checkRecipient(recipient json.RawMessage) error {
	if len(recipient) > 0 && string(recipient) != "null" {
		return fault(codeUnsupportedOperation, "localkms does not support Recipient.")
	}
	return nil
}

type decryptInput struct {
	CiphertextBlob      []byte
	KeyID               *string `json:"KeyId"`
	EncryptionContext   map[string]string
	GrantTokens         []string
	EncryptionAlgorithm *string
	Recipient           json.RawMessage
	DryRun              bool
	DryRunModifiers     []string
}

func (in *decryptInput) validate(v *validation) {
	validateSource(v, in.CiphertextBlob, in.KeyID, "keyId", in.DryRun, in.DryRunModifiers)
	v.oneOf(in.EncryptionAlgorithm, "encryptionAlgorithm", algorithms)
	v.grantTokens(in.GrantTokens)
}

// validateSource checks the members that say what is to be decrypted. With
// IGNORE_CIPHERTEXT the key is named and the blob is not looked at.
func validateSource(v *validation, blob []byte, keyID *string, member string, dryRun bool, modifiers []string) {
	v.text(keyID, member, maxKeyID)
	v.allOf(modifiers, "dryRunModifiers", dryRunModifiers)
	v.rule(dryRun || len(modifiers) == 0, "DryRunModifiers can be specified only with DryRun.")
	if len(modifiers) > 0 {
		v.required(keyID != nil, member)
		return
	}
	v.blob(blob, "ciphertextBlob", maxCiphertext)
}

type decryptOutput struct {
	EncryptionAlgorithm string
	KeyID               string `json:"KeyId"`
	KeyMaterialID       string `json:"KeyMaterialId"`
	Plaintext           []byte
}

func (k *KMS) decrypt(r *request, in *decryptInput) (*decryptOutput, error) {
	r.call.DryRun = in.DryRun
	r.call.EncryptionContext = in.EncryptionContext
	if err := checkRecipient(in.Recipient); err != nil {
		return nil, err
	}
	src, err := k.findSource(r, in.CiphertextBlob, in.KeyID, in.DryRunModifiers)
	if err != nil {
		return nil, err
	}
	r.call.KeyARN = src.key.arn
	use := access{
		operation: "Decrypt", takesContext: true, context: in.EncryptionContext,
		algorithm: in.EncryptionAlgorithm, tokens: in.GrantTokens,
	}
	if err := k.authorize(r, src.key, use); err != nil {
		return nil, err
	}
	if err := src.ready(use); err != nil {
		return nil, err
	}
	if in.DryRun {
		return nil, errDryRun()
	}
	plaintext, err := src.key.open(src.blob, in.EncryptionContext)
	if err != nil {
		return nil, err
	}
	k.used(r, src.key)
	return &decryptOutput{symmetricSpec, src.key.arn, src.blob.materialID, plaintext}, nil
}

// source is a blob to be decrypted, and the key that is to do it.
type source struct {
	key     resolved
	blob    sealedBlob
	ignored bool // the blob was not looked at
}

// ready is checked after authorization: what a blob is made of is nobody's
// business who may not use the key.
func (s *source) ready(a access) error {
	if !s.ignored && s.blob.ref != s.key.ref {
		return errIncorrectKey()
	}
	return s.key.ready(a)
}

// findSource finds the key to decrypt with: the one that the request names, else
// the one that the blob names.
func (k *KMS) findSource(r *request, ciphertext []byte, keyID *string, modifiers []string) (source, error) {
	src := source{ignored: len(modifiers) > 0}
	var err error
	if !src.ignored {
		if src.blob, err = parseBlob(ciphertext); err != nil {
			return source{}, err
		}
	}
	switch {
	case keyID == nil && src.blob.ref.Region != r.region:
		return source{}, errForeignCiphertext()
	case keyID == nil:
		if src.key, err = k.lookup(r, src.blob.ref); err != nil {
			return source{}, errForeignCiphertext()
		}
	case *keyID == src.blob.ref.ID && src.blob.ref.Region == r.region:
		// A bare key id may be that of another account's key, which the blob tells.
		src.key, err = k.lookup(r, src.blob.ref)
	default:
		src.key, err = k.find(r, *keyID, keyAliasForms)
	}
	return src, err
}

func errForeignCiphertext() error {
	return fault(codeAccessDenied, "The ciphertext refers to a customer master key that does not exist, "+
		"does not exist in this region, or you are not allowed to access.")
}

type reEncryptInput struct {
	CiphertextBlob                 []byte
	SourceKeyID                    *string `json:"SourceKeyId"`
	SourceEncryptionContext        map[string]string
	SourceEncryptionAlgorithm      *string
	DestinationKeyID               *string `json:"DestinationKeyId"`
	DestinationEncryptionContext   map[string]string
	DestinationEncryptionAlgorithm *string
	GrantTokens                    []string
	DryRun                         bool
	DryRunModifiers                []string
}

func (in *reEncryptInput) validate(v *validation) {
	validateSource(v, in.CiphertextBlob, in.SourceKeyID, "sourceKeyId", in.DryRun, in.DryRunModifiers)
	v.requiredText(in.DestinationKeyID, "destinationKeyId", maxKeyID)
	v.oneOf(in.SourceEncryptionAlgorithm, "sourceEncryptionAlgorithm", algorithms)
	v.oneOf(in.DestinationEncryptionAlgorithm, "destinationEncryptionAlgorithm", algorithms)
	v.grantTokens(in.GrantTokens)
}

type reEncryptOutput struct {
	CiphertextBlob                 []byte
	DestinationEncryptionAlgorithm string
	DestinationKeyMaterialID       string `json:"DestinationKeyMaterialId"`
	KeyID                          string `json:"KeyId"`
	SourceEncryptionAlgorithm      string
	SourceKeyID                    string `json:"SourceKeyId"`
	SourceKeyMaterialID            string `json:"SourceKeyMaterialId"`
}

func (k *KMS) reEncrypt(r *request, in *reEncryptInput) (*reEncryptOutput, error) {
	r.call.DryRun = in.DryRun
	r.call.SourceEncryptionContext = in.SourceEncryptionContext
	r.call.EncryptionContext = in.DestinationEncryptionContext
	src, dst, err := k.findBoth(r, in)
	if err != nil {
		return nil, err
	}
	if err := k.allowBoth(r, in, src, dst); err != nil {
		return nil, err
	}
	if in.DryRun {
		return nil, errDryRun()
	}
	plaintext, err := src.key.open(src.blob, in.SourceEncryptionContext)
	if err != nil {
		return nil, err
	}
	defer clear(plaintext)
	blob, err := k.seal(dst, plaintext, in.DestinationEncryptionContext)
	if err != nil {
		return nil, err
	}
	k.used(r, src.key, dst)
	return &reEncryptOutput{
		CiphertextBlob:                 blob,
		DestinationEncryptionAlgorithm: symmetricSpec,
		DestinationKeyMaterialID:       dst.current().id,
		KeyID:                          dst.arn,
		SourceEncryptionAlgorithm:      symmetricSpec,
		SourceKeyID:                    src.key.arn,
		SourceKeyMaterialID:            src.blob.materialID,
	}, nil
}

func (k *KMS) findBoth(r *request, in *reEncryptInput) (src source, dst resolved, err error) {
	if src, err = k.findSource(r, in.CiphertextBlob, in.SourceKeyID, in.DryRunModifiers); err != nil {
		return source{}, resolved{}, err
	}
	r.call.SourceKeyARN = src.key.arn
	if dst, err = k.find(r, *in.DestinationKeyID, keyAliasForms); err != nil {
		return source{}, resolved{}, err
	}
	r.call.KeyARN = dst.arn
	return src, dst, nil
}

// allowBoth asks each key for its half of a ReEncrypt, each with its own context
// (AWS KMS API Reference, ReEncrypt, Required permissions), and then whether it
// can.
func (k *KMS) allowBoth(r *request, in *reEncryptInput, src source, dst resolved) error {
	sameKey := src.key.ref == dst.ref
	from := access{
		operation: "ReEncryptFrom", takesContext: true, context: in.SourceEncryptionContext,
		algorithm: in.SourceEncryptionAlgorithm, tokens: in.GrantTokens, sameKey: &sameKey,
	}
	if err := k.authorize(r, src.key, from); err != nil {
		return err
	}
	to := access{
		operation: "ReEncryptTo", takesContext: true, context: in.DestinationEncryptionContext,
		algorithm: in.DestinationEncryptionAlgorithm, tokens: in.GrantTokens, sameKey: &sameKey,
	}
	if err := k.authorize(r, dst, to); err != nil {
		return err
	}
	if err := src.ready(from); err != nil {
		return err
	}
	return dst.ready(to)
}
