package localkms

import (
	"slices"
	"strings"
	"time"
)

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
	key, g, err := k.findGrant(r, claim)
	if err != nil {
		return nil, err
	}
	if err := k.authorizeRetirement(r, key, g); err != nil {
		return nil, err
	}
	return &empty{}, k.endGrant(r, claim, in.DryRun)
}

// findGrant returns a grant and its key. It waits for the disk before it says that
// there is none.
func (k *KMS) findGrant(r *request, claim grantClaim) (resolved, *grant, error) {
	k.mu.RLock()
	key, g, err := k.state.grant(claim, r.now)
	k.mu.RUnlock()
	if err != nil {
		if settleErr := k.settle(); settleErr != nil {
			err = settleErr
		}
	}
	return key, g, err
}

func (s *state) grant(claim grantClaim, now time.Time) (resolved, *grant, error) {
	key, err := s.alive(claim.Key, now)
	if err != nil {
		return resolved{}, nil, err
	}
	g := key.grants.byID[claim.GrantID]
	if g == nil {
		return resolved{}, nil, faultf(codeNotFound, "Grant ID %s not found", claim.GrantID)
	}
	return key, g, nil
}

// endGrant removes a grant. It works in every key state.
func (k *KMS) endGrant(r *request, claim grantClaim, dryRun bool) error {
	return k.change(func(s *state) (*event, error) {
		_, g, err := s.grant(claim, r.now)
		if err != nil {
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

// authorizeRetirement decides who may retire a grant (AWS KMS Developer Guide,
// "Retiring and revoking grants"): its retiring principal; its grantee, if it allows
// RetireGrant; and the accounts of the grant and the key, which pass that on by
// identity policies. Only a policy of the caller's can deny it.
func (k *KMS) authorizeRetirement(r *request, key resolved, g *grant) error {
	q := k.newQuery(r, &key, &access{operation: "RetireGrant", grant: g})
	c := conclusion{opinions: q.ownOpinions()}
	var denied bool
	if c.verdict, denied = c.opinions.denial(""); denied { // R1
		return k.conclude(q, c)
	}
	switch names := q.grantees(c.opinions); {
	case slices.Contains(names, g.Retiring): // R2
		c.allowed, c.also = true, "the grant names the caller as retiring principal"
	case g.allows("RetireGrant") && slices.Contains(names, g.Grantee): // R3
		c.allowed, c.also = true, "the grant allows RetireGrant to the caller"
	case r.caller.account == g.Issuer || r.caller.account == key.ref.Account: // R4
		c.verdict = q.ownVerdict(c.opinions)
	default:
		c.verdict = verdict{kind: keyPolicy}
	}
	return k.conclude(q, c)
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
	return &empty{}, k.endGrant(r, grantClaim{Key: key.ref, GrantID: *in.GrantID}, in.DryRun)
}
