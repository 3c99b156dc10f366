package localkms

type getKeyPolicyInput struct {
	KeyID      *string `json:"KeyId"`
	PolicyName *string
}

func (in *getKeyPolicyInput) validate(v *validation) {
	v.requiredText(in.KeyID, "keyId", maxKeyID)
	v.text(in.PolicyName, "policyName", maxGrantID)
}

type getKeyPolicyOutput struct {
	Policy     string
	PolicyName string
}

func (k *KMS) getKeyPolicy(r *request, in *getKeyPolicyInput) (*getKeyPolicyOutput, error) {
	key, err := k.policyKey(r, *in.KeyID, in.PolicyName, "GetKeyPolicy")
	if err != nil {
		return nil, err
	}
	return &getKeyPolicyOutput{key.policy.text, policyNameDefault}, k.settle()
}

type putKeyPolicyInput struct {
	KeyID                          *string `json:"KeyId"`
	PolicyName                     *string
	Policy                         *string
	BypassPolicyLockoutSafetyCheck bool
}

func (in *putKeyPolicyInput) validate(v *validation) {
	v.requiredText(in.KeyID, "keyId", maxKeyID)
	v.text(in.PolicyName, "policyName", maxGrantID)
	v.requiredText(in.Policy, "policy", maxPolicyText)
}

func (k *KMS) putKeyPolicy(r *request, in *putKeyPolicyInput) (*empty, error) {
	key, err := k.policyKey(r, *in.KeyID, in.PolicyName, "PutKeyPolicy", bypassAttribute(in.BypassPolicyLockoutSafetyCheck)...)
	if err != nil {
		return nil, err
	}
	if err := k.checkPolicy(r, key.ref, *in.Policy, in.BypassPolicyLockoutSafetyCheck); err != nil {
		return nil, err
	}
	return &empty{}, k.change(func(s *state) (*event, error) {
		if _, err := s.get(key.ref); err != nil {
			return nil, err
		}
		return &event{Policy: &policyEvent{key.ref, *in.Policy}}, nil
	})
}

type listKeyPoliciesInput struct {
	KeyID  *string `json:"KeyId"`
	Limit  *int
	Marker *string
}

func (in *listKeyPoliciesInput) validate(v *validation) {
	v.requiredText(in.KeyID, "keyId", maxKeyID)
	v.number(in.Limit, "limit", 1, maxLongPage)
	v.text(in.Marker, "marker", maxMarker)
	// There is one page, so no marker was ever given out. Elsewhere that is an
	// InvalidMarkerException, which ListKeyPolicies does not have.
	v.rule(in.Marker == nil, "Marker is not valid: the list has one page.")
}

type listKeyPoliciesOutput struct {
	PolicyNames []string
	Truncated   bool
}

func (k *KMS) listKeyPolicies(r *request, in *listKeyPoliciesInput) (*listKeyPoliciesOutput, error) {
	if _, err := k.policyKey(r, *in.KeyID, nil, "ListKeyPolicies"); err != nil {
		return nil, err
	}
	return &listKeyPoliciesOutput{PolicyNames: []string{policyNameDefault}}, k.settle()
}

// policyKey finds the key whose policy a caller may work on. A key has one
// policy, and it is called default.
func (k *KMS) policyKey(r *request, id string, name *string, operation string, also ...attribute) (resolved, error) {
	key, err := k.owned(r, id, operation, also...)
	if err != nil {
		return resolved{}, err
	}
	if name != nil && *name != policyNameDefault {
		return resolved{}, fault(codeNotFound, "No such policy exists")
	}
	return key, nil
}

// bypassAttribute is there only when the check is bypassed: AWS's own example tests
// for its absence (AWS KMS Developer Guide, kms:BypassPolicyLockoutSafetyCheck).
func bypassAttribute(bypass bool) []attribute {
	if !bypass {
		return nil
	}
	return []attribute{attributeOf("kms:BypassPolicyLockoutSafetyCheck", "true")}
}

// checkPolicy refuses a policy that is malformed, or that would lock its author
// out of the key (AWS KMS API Reference, PutKeyPolicy,
// BypassPolicyLockoutSafetyCheck). The policy is all it looks at: who names the
// account leaves the rest to the account.
func (k *KMS) checkPolicy(r *request, ref keyRef, document string, bypass bool) error {
	p, err := parseKeyPolicy(document)
	if err != nil || bypass {
		return err
	}
	again := &query{
		kms: k, r: r, action: "kms:putkeypolicy", resource: ref.arn(), owner: ref.Account,
		access: &access{operation: "PutKeyPolicy"},
	}
	if o := opine([]*policy{p}, again); o.denies != nil || o.allows == nil {
		return malformed(lockoutExplanation)
	}
	return nil
}
