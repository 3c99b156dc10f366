package localkms

import "slices"

// The values of the service model, which tell an unsupported request from an
// invalid one (AWS KMS API Reference, CreateKey).
var (
	keySpecs = []string{
		"RSA_2048", "RSA_3072", "RSA_4096", "ECC_NIST_P256", "ECC_NIST_P384", "ECC_NIST_P521", "ECC_SECG_P256K1",
		"SYMMETRIC_DEFAULT", "HMAC_224", "HMAC_256", "HMAC_384", "HMAC_512", "SM2", "ML_DSA_44", "ML_DSA_65",
		"ML_DSA_87", "ECC_NIST_EDWARDS25519", "ML_KEM_512", "ML_KEM_768", "ML_KEM_1024",
	}
	// The specs that there were when CustomerMasterKeySpec became deprecated.
	customerMasterKeySpecs = []string{
		"RSA_2048", "RSA_3072", "RSA_4096", "ECC_NIST_P256", "ECC_NIST_P384", "ECC_NIST_P521", "ECC_SECG_P256K1",
		"SYMMETRIC_DEFAULT", "HMAC_224", "HMAC_256", "HMAC_384", "HMAC_512", "SM2",
	}

	keyUsages = []string{signVerify, encryptDecrypt, generateVerifyMac, keyAgreement, "KEY_ENCAPSULATION"}
	origins   = []string{"AWS_KMS", "EXTERNAL", "AWS_CLOUDHSM", "EXTERNAL_KEY_STORE"}
)

const (
	symmetricSpec      = "SYMMETRIC_DEFAULT" // also the name of its algorithm
	originKMS          = "AWS_KMS"
	stateEnabled       = "Enabled"
	stateDisabled      = "Disabled"
	statePending       = "PendingDeletion"
	managedByCustomer  = "CUSTOMER"
	policyNameDefault  = "default"
	lockoutExplanation = "The new key policy will not allow you to update the key policy in the future."
)

// keyMetadata has the members that AWS returns for a single-Region key.
type keyMetadata struct {
	AWSAccountID          string   `json:"AWSAccountId"`
	Arn                   string   `json:"Arn"`
	CreationDate          epoch    `json:"CreationDate"`
	CurrentKeyMaterialID  string   `json:"CurrentKeyMaterialId,omitempty"`
	CustomerMasterKeySpec string   `json:"CustomerMasterKeySpec,omitempty"`
	DeletionDate          *epoch   `json:"DeletionDate,omitempty"`
	Description           string   `json:"Description"`
	Enabled               bool     `json:"Enabled"`
	EncryptionAlgorithms  []string `json:"EncryptionAlgorithms,omitempty"`
	KeyAgreementAlgos     []string `json:"KeyAgreementAlgorithms,omitempty"`
	KeyID                 string   `json:"KeyId"`
	KeyManager            string   `json:"KeyManager"`
	KeySpec               string   `json:"KeySpec"`
	KeyState              string   `json:"KeyState"`
	KeyUsage              string   `json:"KeyUsage"`
	MacAlgorithms         []string `json:"MacAlgorithms,omitempty"`
	MultiRegion           bool     `json:"MultiRegion"`
	Origin                string   `json:"Origin"`
	SigningAlgorithms     []string `json:"SigningAlgorithms,omitempty"`
}

func (k resolved) metadata() keyMetadata {
	m := keyMetadata{
		AWSAccountID: k.ref.Account,
		Arn:          k.arn,
		CreationDate: epoch(k.created),
		Description:  k.description,
		Enabled:      k.enabled,
		KeyID:        k.ref.ID,
		KeyManager:   managedByCustomer,
		KeySpec:      k.spec,
		KeyState:     stateEnabled,
		KeyUsage:     k.usage,
		Origin:       originKMS,
	}
	if slices.Contains(customerMasterKeySpecs, k.spec) {
		m.CustomerMasterKeySpec = k.spec
	}
	if k.symmetric() {
		m.CurrentKeyMaterialID = k.current().id
	}
	switch k.usage {
	case encryptDecrypt:
		m.EncryptionAlgorithms = k.algorithms()
	case signVerify:
		m.SigningAlgorithms = k.algorithms()
	case generateVerifyMac:
		m.MacAlgorithms = k.algorithms()
	case keyAgreement:
		m.KeyAgreementAlgos = k.algorithms()
	}
	switch {
	case k.pending():
		date := epoch(k.deletion)
		m.KeyState, m.DeletionDate = statePending, &date
	case !k.enabled:
		m.KeyState = stateDisabled
	}
	return m
}

type createKeyInput struct {
	Policy                         *string
	Description                    *string
	KeySpec                        *string
	CustomerMasterKeySpec          *string
	KeyUsage                       *string
	Origin                         *string
	MultiRegion                    bool
	CustomKeyStoreID               *string `json:"CustomKeyStoreId"`
	XksKeyID                       *string `json:"XksKeyId"`
	BypassPolicyLockoutSafetyCheck bool
	Tags                           []tagInput
}

func (in *createKeyInput) validate(v *validation) {
	v.text(in.Policy, "policy", maxPolicyText)
	v.description(in.Description)
	v.tags(in.Tags)
	v.oneOf(in.KeySpec, "keySpec", keySpecs)
	v.oneOf(in.CustomerMasterKeySpec, "customerMasterKeySpec", customerMasterKeySpecs)
	v.oneOf(in.KeyUsage, "keyUsage", keyUsages)
	v.oneOf(in.Origin, "origin", origins)
	v.rule(in.KeySpec == nil || in.CustomerMasterKeySpec == nil,
		"You cannot specify KeySpec and CustomerMasterKeySpec in the same request. CustomerMasterKeySpec is deprecated.")
}

// supported names the first thing asked for that this package does not make.
func (in *createKeyInput) supported() error {
	for _, asked := range []struct {
		member, value, only string
	}{
		{"Origin", text(in.Origin), originKMS},
		{"CustomKeyStoreId", text(in.CustomKeyStoreID), ""},
		{"XksKeyId", text(in.XksKeyID), ""},
	} {
		if asked.value != "" && asked.value != asked.only {
			return faultf(codeUnsupportedOperation, "localkms does not support %s %s.", asked.member, asked.value)
		}
	}
	if in.MultiRegion {
		return fault(codeUnsupportedOperation, "localkms does not support MultiRegion keys.")
	}
	return nil
}

// attributes are what policies on CreateKey can test, defaults included.
func (in *createKeyInput) attributes(wanted kind) []attribute {
	return slices.Concat([]attribute{
		attributeOf("kms:KeySpec", wanted.spec), attributeOf("kms:CustomerMasterKeySpec", wanted.spec),
		attributeOf("kms:KeyUsage", wanted.usage), attributeOf("kms:CustomerMasterKeyUsage", wanted.usage),
		attributeOf("kms:KeyOrigin", originKMS), attributeOf("kms:MultiRegion", "false"),
	}, bypassAttribute(in.BypassPolicyLockoutSafetyCheck), tagAttributes(in.Tags))
}

type keyMetadataOutput struct {
	KeyMetadata keyMetadata
}

func (k *KMS) createKey(r *request, in *createKeyInput) (*keyMetadataOutput, error) {
	if err := in.supported(); err != nil {
		return nil, err
	}
	wanted, err := newKind(text(in.KeySpec)+text(in.CustomerMasterKeySpec), text(in.KeyUsage))
	if err != nil {
		return nil, err
	}
	tags, err := newTags(in.Tags)
	if err != nil {
		return nil, err
	}
	if err := k.authorizeAccount(r, "CreateKey", "*", in.attributes(wanted)...); err != nil {
		return nil, err
	}
	document := defaultPolicy(r.caller.account)
	if in.Policy != nil {
		document = *in.Policy
	}
	ref := keyRef{r.caller.account, r.region, newUUID()}
	if len(tags) > 0 { // AWS KMS API Reference, CreateKey, Required permissions
		if err := k.authorizeAccount(r, "TagResource", ref.arn(), tagAttributes(in.Tags)...); err != nil {
			return nil, err
		}
	}
	// Only a policy that the request brings can lock its author out (AWS KMS API
	// Reference, CreateKey, Policy).
	if err := k.checkPolicy(r, ref, document, in.BypassPolicyLockoutSafetyCheck || in.Policy == nil); err != nil {
		return nil, err
	}
	e := &keyEvent{
		Ref:         ref,
		Created:     r.stamp(),
		Description: text(in.Description),
		Tags:        tags,
		Enabled:     true,
		Policy:      document,
	}
	e.describe(wanted)
	if wanted.materialSize() > 0 {
		e.Materials = []materialEvent{newMaterialEvent(wanted)}
	}
	r.call.KeyARN = ref.arn()
	if err := k.change(func(*state) (*event, error) { return &event{Key: e}, nil }); err != nil {
		return nil, err
	}
	key, err := k.lookup(r, ref)
	if err != nil {
		return nil, err
	}
	return &keyMetadataOutput{key.metadata()}, nil
}

type describeKeyInput struct {
	KeyID       *string `json:"KeyId"`
	GrantTokens []string
}

func (in *describeKeyInput) validate(v *validation) {
	v.requiredText(in.KeyID, "keyId", maxKeyID)
	v.grantTokens(in.GrantTokens)
}

func (k *KMS) describeKey(r *request, in *describeKeyInput) (*keyMetadataOutput, error) {
	key, err := k.find(r, *in.KeyID, keyAliasForms)
	if err != nil {
		return nil, err
	}
	r.call.KeyARN = key.arn
	if err := k.authorize(r, key, access{operation: "DescribeKey", tokens: in.GrantTokens}); err != nil {
		return nil, err
	}
	return &keyMetadataOutput{key.metadata()}, k.settle()
}

type keyStateInput struct {
	KeyID *string `json:"KeyId"`
}

func (in *keyStateInput) validate(v *validation) { v.requiredText(in.KeyID, "keyId", maxKeyID) }

func (k *KMS) enableKey(r *request, in *keyStateInput) (*empty, error) {
	return k.setEnabled(r, in, "EnableKey", true)
}

func (k *KMS) disableKey(r *request, in *keyStateInput) (*empty, error) {
	return k.setEnabled(r, in, "DisableKey", false)
}

func (k *KMS) setEnabled(r *request, in *keyStateInput, operation string, enabled bool) (*empty, error) {
	key, err := k.owned(r, *in.KeyID, operation)
	if err != nil {
		return nil, err
	}
	return &empty{}, k.change(func(s *state) (*event, error) {
		now, err := s.get(key.ref)
		if err == nil {
			err = now.notPending()
		}
		if err != nil || now.enabled == enabled {
			return nil, err
		}
		return &event{Enabled: &enabledEvent{key.ref, enabled, r.stamp()}}, nil
	})
}
