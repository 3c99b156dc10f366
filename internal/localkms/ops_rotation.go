package localkms

import (
	"crypto/rand"
	"strconv"
	"time"
)

// maxRotations is how often a key may be rotated on demand in its lifetime
// (AWS KMS API Reference, RotateKeyOnDemand).
const maxRotations = 25

const (
	rotationsOnly  = "ROTATIONS_ONLY"
	allKeyMaterial = "ALL_KEY_MATERIAL"
)

// rotateKeyOnDemand gives a key new material. AWS takes a while to; here it is in
// use when the call is answered.
func (k *KMS) rotateKeyOnDemand(r *request, in *keyStateInput) (*keyARNOutput, error) {
	key, err := k.owned(r, *in.KeyID, "RotateKeyOnDemand")
	if err != nil {
		return nil, err
	}
	if !key.symmetric() {
		return nil, fault(codeUnsupportedOperation, "")
	}
	err = k.change(func(s *state) (*event, error) {
		now, err := s.get(key.ref)
		if err == nil {
			err = now.usable()
		}
		if err == nil && len(now.materials) > maxRotations {
			err = faultf(codeLimitExceeded, "The on-demand rotations limit has been reached for the given keyId. "+
				"No more on-demand rotations can be performed for this key: %s", key.arn)
		}
		return &event{Rotated: &rotatedEvent{key.ref, newMaterialEvent(r.now)}}, err
	})
	if err != nil {
		return nil, err
	}
	return &keyARNOutput{key.arn}, nil
}

// newMaterialEvent makes key material. A key's first was not rotated to, and has
// no date.
func newMaterialEvent(rotated time.Time) materialEvent {
	raw := make([]byte, materialSize)
	_, _ = rand.Read(raw) // never fails: see crypto/rand.Read
	if !rotated.IsZero() {
		rotated = rotated.UTC().Truncate(time.Millisecond)
	}
	return materialEvent{ID: randomHex(materialSize), Raw: raw, Rotated: rotated}
}

type getKeyRotationStatusOutput struct {
	KeyID              string `json:"KeyId"`
	KeyRotationEnabled bool
}

// getKeyRotationStatus tells what is always so: no automatic rotation, and no
// rotation on demand under way.
func (k *KMS) getKeyRotationStatus(r *request, in *keyStateInput) (*getKeyRotationStatusOutput, error) {
	key, err := k.find(r, *in.KeyID, keyForms)
	if err != nil {
		return nil, err
	}
	r.call.KeyARN = key.arn
	if err := k.authorize(r, key, access{operation: "GetKeyRotationStatus"}); err != nil {
		return nil, err
	}
	return &getKeyRotationStatusOutput{KeyID: key.arn}, k.settle()
}

type listKeyRotationsInput struct {
	KeyID              *string `json:"KeyId"`
	IncludeKeyMaterial *string
	Limit              *int
	Marker             *string
}

func (in *listKeyRotationsInput) validate(v *validation) {
	v.requiredText(in.KeyID, "keyId", maxKeyID)
	v.oneOf(in.IncludeKeyMaterial, "includeKeyMaterial", []string{allKeyMaterial, rotationsOnly})
	v.number(in.Limit, "limit", 1, maxLongPage)
	v.text(in.Marker, "marker", maxMarker)
}

type rotationEntry struct {
	KeyID            string `json:"KeyId"`
	KeyMaterialID    string `json:"KeyMaterialId"`
	KeyMaterialState string
	RotationDate     *epoch `json:",omitempty"`
	RotationType     string `json:",omitempty"`
}

type listKeyRotationsOutput struct {
	Rotations  []rotationEntry
	Truncated  bool
	NextMarker string `json:",omitempty"`
}

// listKeyRotations lists the materials of a key, oldest first; the first one,
// which no rotation made, only on request. A marker holds the number of materials
// on the pages before.
func (k *KMS) listKeyRotations(r *request, in *listKeyRotationsInput) (*listKeyRotationsOutput, error) {
	position, err := readMarker(in.Marker)
	if err != nil {
		return nil, err
	}
	first, err := strconv.Atoi(position)
	if position != "" && (err != nil || first < 0) {
		return nil, errInvalidMarker()
	}
	key, err := k.owned(r, *in.KeyID, "ListKeyRotations")
	if err != nil {
		return nil, err
	}
	if text(in.IncludeKeyMaterial) != allKeyMaterial {
		first = max(first, 1)
	}
	limit := pageSize(in.Limit, defaultLongPage)
	out := &listKeyRotationsOutput{Rotations: []rotationEntry{}}
	for i := first; i < len(key.materials); i++ {
		if len(out.Rotations) == limit {
			out.Truncated, out.NextMarker = true, writeMarker(strconv.Itoa(i))
			break
		}
		out.Rotations = append(out.Rotations, key.rotation(key.materials[i]))
	}
	return out, k.settle()
}

func (k resolved) rotation(m *material) rotationEntry {
	entry := rotationEntry{KeyID: k.arn, KeyMaterialID: m.id, KeyMaterialState: "NON_CURRENT"}
	if m == k.current() {
		entry.KeyMaterialState = "CURRENT"
	}
	if !m.rotated.IsZero() {
		date := epoch(m.rotated)
		entry.RotationDate, entry.RotationType = &date, "ON_DEMAND"
	}
	return entry
}
