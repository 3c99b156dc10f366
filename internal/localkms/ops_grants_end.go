package localkms

import "strings"

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

// retireGrant ends a grant for one of those it names.
func (k *KMS) retireGrant(r *request, in *retireGrantInput) (*empty, error) {
	r.call.DryRun = in.DryRun
	claim, err := k.grantToRetire(r, in)
	if err != nil {
		return nil, err
	}
	r.call.KeyARN, r.call.GrantID = claim.Key.arn(), claim.GrantID
	return &empty{}, k.endGrant(r, claim, in.DryRun, func(g *grant) error {
		if !g.retirableBy(r.caller) {
			return errDenied(r.caller.arn, "RetireGrant", claim.Key.arn(), "because no resource-based policy allows the kms:RetireGrant action")
		}
		return nil
	})
}

// endGrant removes a grant, if the caller may. It works in every key state.
func (k *KMS) endGrant(r *request, claim grantClaim, dryRun bool, may func(*grant) error) error {
	return k.change(func(s *state) (*event, error) {
		key, err := s.get(claim.Key)
		if err != nil {
			return nil, err
		}
		g := key.grants.byID[claim.GrantID]
		if g == nil {
			return nil, faultf(codeNotFound, "Grant ID %s not found", claim.GrantID)
		}
		if err := may(g); err != nil {
			return nil, err
		}
		if dryRun {
			return nil, errDryRun()
		}
		e := &retiredEvent{Key: claim.Key, GrantID: g.ID}
		if r.plan != nil {
			e.now, e.until = r.now, r.now.Add(r.plan.faults.RetireDelay)
		}
		return &event{Retired: e}, nil
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

type revokeGrantInput struct {
	KeyID   *string `json:"KeyId"`
	GrantID *string `json:"GrantId"`
	DryRun  bool
}

func (in *revokeGrantInput) validate(v *validation) {
	v.requiredText(in.KeyID, "keyId", maxKeyID)
	v.requiredText(in.GrantID, "grantId", maxGrantID)
}

// revokeGrant ends a grant for whom the key policy lets. No grant allows it (AWS
// KMS API Reference, RevokeGrant).
func (k *KMS) revokeGrant(r *request, in *revokeGrantInput) (*empty, error) {
	r.call.DryRun = in.DryRun
	key, err := k.find(r, *in.KeyID, keyForms)
	if err != nil {
		return nil, err
	}
	r.call.KeyARN, r.call.GrantID = key.arn, *in.GrantID
	if err := k.authorize(r, key, access{operation: "RevokeGrant"}); err != nil {
		return nil, err
	}
	claim := grantClaim{Key: key.ref, GrantID: *in.GrantID}
	return &empty{}, k.endGrant(r, claim, in.DryRun, func(*grant) error { return nil })
}
