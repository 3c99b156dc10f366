package localkms

import (
	"maps"
	"slices"
	"strconv"
	"strings"
)

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

func (in *listGrantsInput) asksFor(g *grant) bool {
	return (in.GrantID == nil || g.ID == *in.GrantID) && (in.GranteePrincipal == nil || g.Grantee == *in.GranteePrincipal)
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
	position, err := r.readMarker(in.Marker)
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
		out.NextMarker = r.writeMarker(strconv.FormatUint(page[len(page)-1].Seq, 10))
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
		list = nil
	case in.GrantID != nil:
		list = []*grant{key.grants.byID[*in.GrantID]}
	case in.GranteePrincipal != nil:
		list = key.grants.byGrantee[*in.GranteePrincipal]
	}
	list = withEnded(list, r.plan.lingering(key.grants, r.now), in.asksFor)
	limit := pageSize(in.Limit, defaultPage)
	for _, g := range list[after(list, last):] {
		if !k.visible(g, r) || !in.asksFor(g) {
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

type listRetirableGrantsInput struct {
	RetiringPrincipal        *string
	RetiringServicePrincipal *string
	Limit                    *int
	Marker                   *string
}

func (in *listRetirableGrantsInput) validate(v *validation) {
	v.text(in.RetiringPrincipal, "retiringPrincipal", maxName)
	v.number(in.Limit, "limit", 1, maxPage)
	v.text(in.Marker, "marker", maxMarker)
	v.rule(in.RetiringPrincipal != nil || in.RetiringServicePrincipal != nil,
		"Either RetiringPrincipal or RetiringServicePrincipal must be specified.")
}

// listRetirableGrants lists the grants of a region that name a principal of the
// caller's account as the one to retire them, whichever account their keys are
// in, and whatever the caller may do to those (AWS KMS API Reference,
// ListRetirableGrants). A marker holds the key and the Seq of the last grant of
// the page before.
func (k *KMS) listRetirableGrants(r *request, in *listRetirableGrantsInput) (*listGrantsOutput, error) {
	if in.RetiringServicePrincipal != nil {
		return nil, fault(codeUnsupportedOperation, "localkms does not support RetiringServicePrincipal.")
	}
	switch principalAccount(*in.RetiringPrincipal) {
	case "":
		return nil, errInvalidPrincipal(*in.RetiringPrincipal)
	case r.caller.account:
	default:
		return nil, k.conclude(k.accountQuery(r, "ListRetirableGrants", *in.RetiringPrincipal, nil), conclusion{
			verdict: verdict{kind: keyPolicy}, also: "the retiring principal belongs to another account",
		})
	}
	if err := k.authorizeAccount(r, "ListRetirableGrants", "*"); err != nil {
		return nil, err
	}
	lastKey, lastSeq, err := r.readGrantMarker(in.Marker)
	if err != nil {
		return nil, err
	}
	limit := pageSize(in.Limit, defaultPage)
	page := k.retirable(r, *in.RetiringPrincipal, lastKey, lastSeq, limit+1)
	out := &listGrantsOutput{Truncated: len(page) > limit}
	if out.Truncated {
		page = page[:limit]
		last := page[limit-1]
		out.NextMarker = r.writeMarker(last.keyARN + "#" + strconv.FormatUint(last.Seq, 10))
	}
	out.Grants = make([]grantEntry, len(page))
	for i, found := range page {
		out.Grants[i] = found.entry(found.keyARN)
	}
	return out, k.settle()
}

// readGrantMarker returns the key and Seq in a marker, nothing without one.
func (r *request) readGrantMarker(marker *string) (keyARN string, seq uint64, err error) {
	position, err := r.readMarker(marker)
	if err != nil || position == "" {
		return "", 0, err
	}
	keyARN, number, _ := strings.Cut(position, "#")
	if seq, err = strconv.ParseUint(number, 10, 64); err != nil {
		return "", 0, errInvalidMarker()
	}
	return keyARN, seq, nil
}

// keyedGrant is a grant and the key it is on.
type keyedGrant struct {
	*grant
	keyARN string
}

// retirable returns up to most grants that a principal is to retire, after one
// position in the order of key ARN and Seq.
func (k *KMS) retirable(r *request, principal, lastKey string, lastSeq uint64, most int) []keyedGrant {
	k.mu.RLock()
	defer k.mu.RUnlock()
	var found []keyedGrant
	for _, key := range k.state.retirableKeys(r, principal, lastKey) {
		list := key.grants.toRetire(r, principal)
		if key.arn == lastKey {
			list = list[after(list, lastSeq):]
		}
		for _, g := range list {
			if len(found) == most {
				return found
			}
			if k.visible(g, r) {
				found = append(found, keyedGrant{g, key.arn})
			}
		}
	}
	return found
}

// toRetire returns the grants that a principal is to retire, in order of Seq.
func (s *grantSet) toRetire(r *request, principal string) []*grant {
	return withEnded(s.byRetiring[principal], r.plan.lingering(s, r.now), func(g *grant) bool { return g.Retiring == principal })
}

// retirableKeys returns the keys of a region that have grants which a principal
// is to retire, by ARN from a first one on.
func (s *state) retirableKeys(r *request, principal, first string) []*key {
	return slices.SortedFunc(func(yield func(*key) bool) {
		for key := range maps.Values(s.keys) {
			if key.ref.Region == r.region && key.arn >= first && !key.settings.gone(r.now) &&
				len(key.grants.toRetire(r, principal)) > 0 && !yield(key) {
				return
			}
		}
	}, func(a, b *key) int { return strings.Compare(a.arn, b.arn) })
}
