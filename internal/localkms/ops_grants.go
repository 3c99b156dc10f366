package localkms

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
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
	for _, operation := range in.Operations {
		v.rule(!slices.Contains(foreignGrantOperations, operation),
			"Grant operation "+operation+" is not valid for a key with KeySpec "+symmetricSpec+".")
	}
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
			return fault(codeInvalidArn, "ARN does not refer to a valid principal: "+*arn)
		}
	}
	return nil
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
		Created:    r.now.UTC().Truncate(time.Millisecond),
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
	if err := k.authorize(r, key, access{operation: "CreateGrant", tokens: in.GrantTokens, newGrant: wanted}); err != nil {
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

type listGrantsInput struct {
	KeyID                   *string `json:"KeyId"`
	GrantID                 *string `json:"GrantId"`
	GranteePrincipal        *string
	GranteeServicePrincipal *string
	Limit                   *int
	Marker                  *string
}

func (in *listGrantsInput) validate(v *validation) {
	v.requiredText(in.KeyID, "keyId", maxKeyID)
	v.text(in.GrantID, "grantId", maxGrantID)
	v.text(in.GranteePrincipal, "granteePrincipal", maxName)
	v.number(in.Limit, "limit", 1, maxPage)
	v.text(in.Marker, "marker", maxMarker)
}

type grantEntry struct {
	Constraints       *grantConstraints `json:",omitempty"`
	CreationDate      epoch
	GrantID           string `json:"GrantId"`
	GranteePrincipal  string
	IssuingAccount    string
	KeyID             string `json:"KeyId"`
	Name              string `json:",omitempty"`
	Operations        []string
	RetiringPrincipal string `json:",omitempty"`
}

type listGrantsOutput struct {
	Grants     []grantEntry
	Truncated  bool
	NextMarker string `json:",omitempty"`
}

// listGrants lists the grants that have become consistent, oldest first. A
// marker holds the Seq of the last grant of the page before.
func (k *KMS) listGrants(r *request, in *listGrantsInput) (*listGrantsOutput, error) {
	if in.GranteeServicePrincipal != nil {
		return nil, fault(codeUnsupportedOperation, "localkms does not support GranteeServicePrincipal.")
	}
	position, err := readMarker(in.Marker)
	if err != nil {
		return nil, err
	}
	last, err := strconv.ParseUint(position, 10, 64)
	if err != nil && position != "" {
		return nil, errInvalidMarker()
	}
	key, err := k.find(r, *in.KeyID, keyForms)
	if err != nil {
		return nil, err
	}
	r.call.KeyARN = key.arn
	if err := k.authorize(r, key, access{operation: "ListGrants"}); err != nil {
		return nil, err
	}
	page, more := k.grantPage(r, key, in, last)
	out := &listGrantsOutput{Grants: make([]grantEntry, len(page)), Truncated: more}
	for i, g := range page {
		out.Grants[i] = g.entry(key.arn)
	}
	if more {
		out.NextMarker = writeMarker(strconv.FormatUint(page[len(page)-1].Seq, 10))
	}
	return out, k.settle()
}

// grantPage returns up to a page of the grants after last, and whether there
// are more.
func (k *KMS) grantPage(r *request, key resolved, in *listGrantsInput, last uint64) (page []*grant, more bool) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	list := key.grants.all
	switch {
	case in.GrantID != nil && key.grants.byID[*in.GrantID] == nil:
		return nil, false
	case in.GrantID != nil:
		list = []*grant{key.grants.byID[*in.GrantID]}
	case in.GranteePrincipal != nil:
		list = key.grants.byGrantee[*in.GranteePrincipal]
	}
	limit := pageSize(in.Limit)
	for _, g := range list[after(list, last):] {
		if !k.visible(g, r) || (in.GranteePrincipal != nil && g.Grantee != *in.GranteePrincipal) {
			continue
		}
		if len(page) == limit {
			return page, true
		}
		page = append(page, g)
	}
	return page, false
}

func (g *grant) entry(keyARN string) grantEntry {
	e := grantEntry{
		CreationDate:      epoch(g.Created),
		GrantID:           g.ID,
		GranteePrincipal:  g.Grantee,
		IssuingAccount:    rootARN(g.Issuer),
		KeyID:             keyARN,
		Name:              g.Name,
		Operations:        g.Operations,
		RetiringPrincipal: g.Retiring,
	}
	if !g.Constraint.none() {
		e.Constraints = &grantConstraints{
			EncryptionContextSubset: g.Constraint.Subset,
			EncryptionContextEquals: g.Constraint.Equals,
		}
	}
	return e
}

type retireGrantInput struct {
	GrantToken *string
	KeyID      *string `json:"KeyId"`
	GrantID    *string `json:"GrantId"`
	DryRun     bool
}

func (in *retireGrantInput) validate(v *validation) {
	v.text(in.GrantToken, "grantToken", maxGrantToken)
	v.text(in.KeyID, "keyId", maxKeyID)
	v.text(in.GrantID, "grantId", maxGrantID)
	byID := in.KeyID != nil && in.GrantID != nil
	byToken := in.KeyID == nil && in.GrantID == nil && in.GrantToken != nil
	v.rule(byID && in.GrantToken == nil || byToken,
		"You must specify either GrantToken, or both KeyId and GrantId, but not a combination of both.")
}

// retireGrant ends a grant at once. It works in every key state.
func (k *KMS) retireGrant(r *request, in *retireGrantInput) (*empty, error) {
	r.call.DryRun = in.DryRun
	claim, err := k.grantToRetire(r, in)
	if err != nil {
		return nil, err
	}
	r.call.KeyARN, r.call.GrantID = claim.Key.arn(), claim.GrantID
	return &empty{}, k.change(func(s *state) (*event, error) {
		key, err := s.get(claim.Key)
		if err != nil {
			return nil, err
		}
		g := key.grants.byID[claim.GrantID]
		switch {
		case g == nil:
			return nil, faultf(codeNotFound, "Grant ID %s not found", claim.GrantID)
		case !g.retirableBy(r.caller):
			return nil, errDenied(r.caller.arn, "RetireGrant", key.arn, "because no resource-based policy allows the kms:RetireGrant action")
		case in.DryRun:
			return nil, errDryRun()
		}
		return &event{Retired: &retiredEvent{claim.Key, g.ID}}, nil
	})
}

func (k *KMS) grantToRetire(r *request, in *retireGrantInput) (grantClaim, error) {
	if in.GrantToken != nil {
		return k.state.readToken(*in.GrantToken)
	}
	if !strings.HasPrefix(*in.KeyID, "arn:") {
		return grantClaim{}, faultf(codeInvalidArn, "Invalid arn %s", *in.KeyID)
	}
	key, err := k.find(r, *in.KeyID, keyForms)
	if err != nil {
		return grantClaim{}, err
	}
	return grantClaim{Key: key.ref, GrantID: *in.GrantID}, nil
}

// retirableBy reports whether a caller may retire the grant: its retiring
// principal, its grantee if it allows RetireGrant, and the root of the account
// that issued it (AWS KMS Developer Guide, "Retiring and revoking grants").
func (g *grant) retirableBy(caller *identity) bool {
	return caller.matches(g.Retiring) ||
		(g.allows("RetireGrant") && caller.matches(g.Grantee)) ||
		caller.arn == rootARN(g.Issuer)
}
