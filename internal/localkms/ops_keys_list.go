package localkms

import (
	"cmp"
	"slices"
)

type listKeysInput struct {
	Limit  *int
	Marker *string
}

func (in *listKeysInput) validate(v *validation) {
	v.number(in.Limit, "limit", 1, maxLongPage)
	v.text(in.Marker, "marker", maxMarker)
}

type keyEntry struct {
	KeyArn string
	KeyID  string `json:"KeyId"`
}

type listKeysOutput struct {
	Keys       []keyEntry
	Truncated  bool
	NextMarker string `json:",omitempty"`
}

// listKeys lists the keys of the caller's account and region, by id, which is no
// order that says anything. A marker holds the last id of the page before.
func (k *KMS) listKeys(r *request, in *listKeysInput) (*listKeysOutput, error) {
	last, err := r.readMarker(in.Marker)
	if err != nil {
		return nil, err
	}
	if err := k.authorizeAccount(r, "ListKeys", "*"); err != nil {
		return nil, err
	}
	out := &listKeysOutput{Keys: k.keysAfter(r, last)}
	if limit := pageSize(in.Limit, defaultLongPage); len(out.Keys) > limit {
		out.Keys, out.Truncated, out.NextMarker = out.Keys[:limit], true, r.writeMarker(out.Keys[limit-1].KeyID)
	}
	return out, k.settle()
}

func (k *KMS) keysAfter(r *request, last string) []keyEntry {
	k.mu.RLock()
	defer k.mu.RUnlock()
	found := []keyEntry{}
	for _, key := range k.state.keyOrder {
		if key.ref.Account == r.caller.account && key.ref.Region == r.region && key.ref.ID > last && !key.settings.gone(r.now) {
			found = append(found, keyEntry{key.arn, key.ref.ID})
		}
	}
	slices.SortFunc(found, func(a, b keyEntry) int { return cmp.Compare(a.KeyID, b.KeyID) })
	return found
}

type updateKeyDescriptionInput struct {
	KeyID       *string `json:"KeyId"`
	Description *string
}

func (in *updateKeyDescriptionInput) validate(v *validation) {
	v.requiredText(in.KeyID, "keyId", maxKeyID)
	v.required(in.Description != nil, "description")
	v.description(in.Description)
}

func (k *KMS) updateKeyDescription(r *request, in *updateKeyDescriptionInput) (*empty, error) {
	key, err := k.owned(r, *in.KeyID, "UpdateKeyDescription")
	if err != nil {
		return nil, err
	}
	return &empty{}, k.change(func(s *state) (*event, error) {
		now, err := s.get(key.ref)
		if err == nil {
			err = now.notPending()
		}
		return &event{Described: &descriptionEvent{key.ref, *in.Description}}, err
	})
}
