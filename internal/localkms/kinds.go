package localkms

import "slices"

const (
	signVerify        = "SIGN_VERIFY"
	encryptDecrypt    = "ENCRYPT_DECRYPT"
	generateVerifyMac = "GENERATE_VERIFY_MAC"
	keyAgreement      = "KEY_AGREEMENT"
)

// kinds are the keys that can be made: by key spec and key usage, the algorithms
// (AWS KMS Developer Guide, "Key spec reference"). Only symmetric and HMAC keys do
// anything: the others are there to be described, and to be refused.
var kinds = map[string]map[string][]string{
	symmetricSpec: {encryptDecrypt: {symmetricSpec}},

	"RSA_2048": {encryptDecrypt: rsaEncryption, signVerify: rsaSigning},
	"RSA_3072": {encryptDecrypt: rsaEncryption, signVerify: rsaSigning},
	"RSA_4096": {encryptDecrypt: rsaEncryption, signVerify: rsaSigning},

	"ECC_NIST_P256":         {signVerify: {"ECDSA_SHA_256"}, keyAgreement: {"ECDH"}},
	"ECC_NIST_P384":         {signVerify: {"ECDSA_SHA_384"}, keyAgreement: {"ECDH"}},
	"ECC_NIST_P521":         {signVerify: {"ECDSA_SHA_512"}, keyAgreement: {"ECDH"}},
	"ECC_SECG_P256K1":       {signVerify: {"ECDSA_SHA_256"}},
	"ECC_NIST_EDWARDS25519": {signVerify: {"ED25519_SHA_512", "ED25519_PH_SHA_512"}},

	"ML_DSA_44": {signVerify: {"ML_DSA_SHAKE_256"}},
	"ML_DSA_65": {signVerify: {"ML_DSA_SHAKE_256"}},
	"ML_DSA_87": {signVerify: {"ML_DSA_SHAKE_256"}},

	"HMAC_224": {generateVerifyMac: {"HMAC_SHA_224"}},
	"HMAC_256": {generateVerifyMac: {"HMAC_SHA_256"}},
	"HMAC_384": {generateVerifyMac: {"HMAC_SHA_384"}},
	"HMAC_512": {generateVerifyMac: {"HMAC_SHA_512"}},
}

var (
	rsaEncryption = []string{"RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256"}
	rsaSigning    = []string{
		"RSASSA_PKCS1_V1_5_SHA_256", "RSASSA_PKCS1_V1_5_SHA_384", "RSASSA_PKCS1_V1_5_SHA_512",
		"RSASSA_PSS_SHA_256", "RSASSA_PSS_SHA_384", "RSASSA_PSS_SHA_512",
	}
)

// The operations that a grant may allow, by the usage of its key; those of any
// key come to them (AWS KMS Developer Guide, "Grants in AWS KMS", Grant
// operations).
var (
	anyGrantOperations   = []string{"CreateGrant", "RetireGrant", "DescribeKey"}
	otherGrantOperations = map[string][]string{
		encryptDecrypt:    {"Encrypt", "Decrypt", "ReEncryptFrom", "ReEncryptTo", "GetPublicKey"},
		signVerify:        {"Sign", "Verify", "GetPublicKey"},
		generateVerifyMac: {"GenerateMac", "VerifyMac"},
		keyAgreement:      {"DeriveSharedSecret", "GetPublicKey"},
	}
)

// kind is what a key is for. It is fixed at creation.
type kind struct {
	spec  string // KeySpec
	usage string // KeyUsage
}

func (k kind) symmetric() bool { return k.spec == symmetricSpec }

func (k kind) algorithms() []string { return kinds[k.spec][k.usage] }

// materialSizes are the bytes of key material that keys of each spec have here
// (AWS KMS Developer Guide, "Key spec reference"). Those of other specs do nothing,
// and have none.
var materialSizes = map[string]int{
	symmetricSpec: materialSize, "HMAC_224": 28, "HMAC_256": 32, "HMAC_384": 48, "HMAC_512": 64,
}

func (k kind) materialSize() int { return materialSizes[k.spec] }

// newKind returns the kind of key that a CreateKey asks for.
func newKind(spec, usage string) (kind, error) {
	if spec == "" {
		spec = symmetricSpec
	}
	usages, known := kinds[spec]
	switch {
	case !known:
		return kind{}, faultf(codeUnsupportedOperation, "localkms does not support KeySpec %s.", spec)
	case usage == "" && spec != symmetricSpec:
		return kind{}, fault(codeValidation, "You must specify a KeyUsage value for all KMS keys except for symmetric encryption keys.")
	case usage == "":
		usage = encryptDecrypt
	case usages[usage] == nil:
		return kind{}, faultf(codeValidation, "KeyUsage %s is not compatible with KeySpec %s", usage, spec)
	}
	return kind{spec, usage}, nil
}

// usageFor returns the key usage that an operation needs.
func usageFor(operation string) string {
	if operation == "GenerateMac" || operation == "VerifyMac" {
		return generateVerifyMac
	}
	return encryptDecrypt
}

// ready checks that the key is in a state, and of a kind, to do what is asked.
// AWS looks at the state first. The texts about usage and MACs were recorded.
func (k resolved) ready(a access) error {
	if err := k.usable(); err != nil {
		return err
	}
	wanted := usageFor(a.operation)
	if k.usage != wanted {
		return faultf(codeInvalidKeyUsage, "%s key usage is %s which is not valid for %s.", k.arn, k.usage, a.operation)
	}
	asked := symmetricSpec
	if a.algorithm != nil {
		asked = *a.algorithm
	}
	known := slices.Contains(k.algorithms(), asked)
	switch {
	case wanted == generateVerifyMac && !known:
		return faultf(codeInvalidKeyUsage, "Algorithm %s is incompatible with key spec %s.", asked, k.spec)
	case !known:
		return faultf(codeInvalidKeyUsage, "Algorithm %s and key spec %s are incompatible.", asked, k.spec)
	case k.materialSize() > 0:
		return nil
	case len(a.context) > 0:
		return faultf(codeValidation, "EncryptionContext is not supported with KeySpec %s.", k.spec)
	}
	return faultf(codeUnsupportedOperation, "localkms does not encrypt with KeySpec %s.", k.spec)
}

// grantable refuses a grant that allows what a key of this kind cannot do.
func (k kind) grantable(g *grant) error {
	legal := grantOperations
	if !k.symmetric() {
		legal = slices.Concat(otherGrantOperations[k.usage], anyGrantOperations)
	}
	for _, operation := range g.Operations {
		if !slices.Contains(legal, operation) {
			return faultf(codeValidation, "Grant operation %s is not valid for a key with KeySpec %s.", operation, k.spec)
		}
	}
	if !k.symmetric() && !g.Constraint.none() {
		return faultf(codeValidation, "An encryption context constraint is not valid for a key with KeySpec %s.", k.spec)
	}
	return nil
}
