package localkms

import (
	"maps"
	"slices"
	"strconv"
	"unicode/utf8"
)

// Limits of a grant constraint (AWS KMS API Reference, CreateGrant, Constraints).
const (
	maxConstraintPairs = 8
	maxConstraintValue = 384 // characters
)

// grantConstraints is a constraint as it goes over the wire.
type grantConstraints struct {
	EncryptionContextSubset map[string]string `json:",omitempty"`
	EncryptionContextEquals map[string]string `json:",omitempty"`
	SourceArn               string            `json:",omitempty"`
}

type createGrantInput struct {
	KeyID                    *string `json:"KeyId"`
	GranteePrincipal         *string
	RetiringPrincipal        *string
	GranteeServicePrincipal  *string
	RetiringServicePrincipal *string
	Operations               []string
	Constraints              *grantConstraints
	GrantTokens              []string
	Name                     *string
	DryRun                   bool
}

func (in *createGrantInput) validate(v *validation) {
	v.requiredText(in.KeyID, "keyId", maxKeyID)
	v.text(in.GranteePrincipal, "granteePrincipal", maxName)
	v.text(in.RetiringPrincipal, "retiringPrincipal", maxName)
	v.required(in.Operations != nil, "operations")
	v.allOf(in.Operations, "operations", slices.Concat(grantOperations, foreignGrantOperations))
	v.grantTokens(in.GrantTokens)
	v.name(in.Name, "name")
	v.rule(len(in.Operations) > 0, "Operations must contain at least one grant operation.")
	v.rule(in.GranteePrincipal != nil || in.GranteeServicePrincipal != nil,
		"Either GranteePrincipal or GranteeServicePrincipal must be specified.")
	if in.Constraints != nil {
		in.Constraints.validate(v)
	}
}

func (c *grantConstraints) validate(v *validation) {
	v.rule(len(c.EncryptionContextSubset) == 0 || len(c.EncryptionContextEquals) == 0, "More than one constraint supplied")
	for _, pairs := range []map[string]string{c.EncryptionContextSubset, c.EncryptionContextEquals} {
		v.rule(len(pairs) <= maxConstraintPairs,
			"An encryption context constraint can have at most "+strconv.Itoa(maxConstraintPairs)+" pairs.")
		for _, value := range pairs {
			v.rule(utf8.RuneCountInString(value) <= maxConstraintValue,
				"A value of an encryption context constraint can have at most "+strconv.Itoa(maxConstraintValue)+" characters.")
		}
	}
}

// supported refuses what only AWS services use.
func (in *createGrantInput) supported() error {
	switch {
	case in.GranteeServicePrincipal != nil:
		return fault(codeUnsupportedOperation, "localkms does not support GranteeServicePrincipal.")
	case in.RetiringServicePrincipal != nil:
		return fault(codeUnsupportedOperation, "localkms does not support RetiringServicePrincipal.")
	case in.Constraints != nil && in.Constraints.SourceArn != "":
		return fault(codeUnsupportedOperation, "localkms does not support the grant constraint SourceArn.")
	}
	for _, arn := range []*string{in.GranteePrincipal, in.RetiringPrincipal} {
		if arn != nil && principalAccount(*arn) == "" {
			return errInvalidPrincipal(*arn)
		}
	}
	return nil
}

func errInvalidPrincipal(arn string) error {
	return fault(codeInvalidArn, "ARN does not refer to a valid principal: "+arn)
}

// grant returns the grant that is asked for. Its maps are its own.
func (in *createGrantInput) grant(r *request) *grant {
	g := &grant{
		ID:         randomHex(32),
		Name:       text(in.Name),
		Grantee:    text(in.GranteePrincipal),
		Retiring:   text(in.RetiringPrincipal),
		Issuer:     r.caller.account,
		Operations: in.Operations,
		Created:    r.stamp(),
	}
	if c := in.Constraints; c != nil {
		g.Constraint = Constraint{Subset: c.EncryptionContextSubset, Equals: c.EncryptionContextEquals}
	}
	return g
}

type createGrantOutput struct {
	GrantID    string `json:"GrantId"`
	GrantToken string
}

func (k *KMS) createGrant(r *request, in *createGrantInput) (*createGrantOutput, error) {
	if err := in.supported(); err != nil {
		return nil, err
	}
	wanted := in.grant(r)
	r.call.DryRun = in.DryRun
	r.call.GrantName = wanted.Name
	r.call.GrantOperations = slices.Clone(wanted.Operations)
	r.call.Constraint = Constraint{maps.Clone(wanted.Constraint.Subset), maps.Clone(wanted.Constraint.Equals)}
	key, err := k.find(r, *in.KeyID, keyForms)
	if err != nil {
		return nil, err
	}
	r.call.KeyARN = key.arn
	if err := k.authorize(r, key, access{operation: "CreateGrant", tokens: in.GrantTokens, grant: wanted}); err != nil {
		return nil, err
	}
	if err := key.grantable(wanted); err != nil {
		return nil, err
	}
	id := wanted.ID
	err = k.change(func(s *state) (*event, error) {
		e, existing, err := k.addGrant(s, key.ref, wanted, in.DryRun)
		if existing != nil {
			id = existing.ID
		}
		return e, err
	})
	if err != nil {
		return nil, err
	}
	r.call.GrantID = id
	token, err := k.state.mintToken(key.ref, id)
	return &createGrantOutput{id, token}, err
}

// addGrant decides what a CreateGrant leads to: an event that adds the grant, the
// grant that it repeats, or an error. A Name with other parameters than before
// makes another grant, as at AWS: a name does not identify a grant.
func (k *KMS) addGrant(s *state, ref keyRef, wanted *grant, dryRun bool) (*event, *grant, error) {
	key, err := s.get(ref)
	if err != nil {
		return nil, nil, err
	}
	if err := key.usable(); err != nil {
		return nil, nil, err
	}
	existing := key.grants.named(wanted)
	switch {
	case existing == nil && len(key.grants.all) >= k.grantsPerKey:
		return nil, nil, faultf(codeLimitExceeded, "The key %s has reached the quota of %d grants.", key.arn, k.grantsPerKey)
	case dryRun:
		return nil, nil, errDryRun()
	case existing != nil:
		return nil, existing, nil
	}
	wanted.Seq = key.grants.nextSeq
	return &event{Grant: &grantEvent{ref, wanted}}, nil, nil
}
