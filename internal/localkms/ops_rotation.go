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

// The days between automatic rotations (AWS KMS API Reference, EnableKeyRotation,
// RotationPeriodInDays).
const (
	minRotationDays     = 90
	maxRotationDays     = 2560
	defaultRotationDays = 365
)

// rotationPlan is when a key gets new material by itself. The zero value is never.
type rotationPlan struct {
	Days int       `json:"days"` // between rotations
	Next time.Time `json:"next"` // the next one
}

func (p rotationPlan) enabled() bool { return p.Days > 0 }

// after returns when a rotation follows upon one at some time.
func (p rotationPlan) after(t time.Time) time.Time {
	return t.Add(time.Duration(p.Days) * 24 * time.Hour)
}

// resume puts off to the day when a key was enabled again what its plan had for
// before: of the rotations that it missed, one is made up for (AWS KMS Developer
// Guide, "Rotate AWS KMS keys", Disabled KMS keys).
func (p *rotationPlan) resume(enabled time.Time) {
	if p.enabled() && p.Next.Before(enabled) {
		p.Next = enabled
	}
}

// rotationDue reports whether the key should have new material by now. A key that
// is disabled or to be deleted is not rotated.
func (s *settings) rotationDue(now time.Time) bool {
	return s.rotation.enabled() && s.enabled && !s.pending() && !now.Before(s.rotation.Next)
}

// rotateDue rotates a key as often as that was due, each time as of the date that
// the plan had for it: nobody looked at the key in between, so nobody can tell.
func (k *KMS) rotateDue(r *request, ref keyRef) error {
	for due := true; due; {
		err := k.change(func(s *state) (*event, error) {
			now, err := s.alive(ref, r.now)
			if due = err == nil && now.rotationDue(r.now); !due {
				return nil, err
			}
			m := newMaterialEvent(now.kind)
			m.Rotated, m.Automatic = now.rotation.Next, true
			return &event{Rotated: &rotatedEvent{ref, m}}, nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// rotateKeyOnDemand gives a key new material. AWS takes a while to; here it is in
// use when the call is answered. It leaves the plan of automatic rotation alone.
func (k *KMS) rotateKeyOnDemand(r *request, in *keyStateInput) (*keyARNOutput, error) {
	key, err := k.rotatable(r, *in.KeyID, "RotateKeyOnDemand")
	if err != nil {
		return nil, err
	}
	err = k.change(func(s *state) (*event, error) {
		now, err := s.get(key.ref)
		if err == nil {
			err = now.usable()
		}
		if err == nil && now.rotationsOnDemand() >= maxRotations {
			err = faultf(codeLimitExceeded, "The on-demand rotations limit has been reached for the given keyId. "+
				"No more on-demand rotations can be performed for this key: %s", key.arn)
		}
		m := newMaterialEvent(key.kind)
		m.Rotated = r.stamp()
		return &event{Rotated: &rotatedEvent{key.ref, m}}, err
	})
	if err != nil {
		return nil, err
	}
	return &keyARNOutput{key.arn}, nil
}

// rotatable finds a key whose rotation the caller may change. Only symmetric keys
// have any; the refusal has no text, as recorded from AWS.
func (k *KMS) rotatable(r *request, id, operation string, also ...attribute) (resolved, error) {
	key, err := k.owned(r, id, operation, also...)
	if err == nil && !key.symmetric() {
		err = fault(codeUnsupportedOperation, "")
	}
	return key, err
}

func (s *settings) rotationsOnDemand() int {
	n := 0
	for _, m := range s.materials {
		if !m.rotated.IsZero() && !m.automatic {
			n++
		}
	}
	return n
}

// newMaterialEvent makes the first key material of a key.
func newMaterialEvent(k kind) materialEvent {
	raw := make([]byte, k.materialSize())
	_, _ = rand.Read(raw) // never fails: see crypto/rand.Read
	return materialEvent{ID: randomHex(materialSize), Raw: raw}
}

type enableKeyRotationInput struct {
	KeyID                *string `json:"KeyId"`
	RotationPeriodInDays *int
}

func (in *enableKeyRotationInput) validate(v *validation) {
	v.requiredText(in.KeyID, "keyId", maxKeyID)
	v.number(in.RotationPeriodInDays, "rotationPeriodInDays", minRotationDays, maxRotationDays)
}

// enableKeyRotation begins automatic rotation, or changes its period; either way
// the next one is a period from now. Asked for what is so, it changes nothing.
func (k *KMS) enableKeyRotation(r *request, in *enableKeyRotationInput) (*empty, error) {
	plan := rotationPlan{Days: defaultRotationDays}
	if in.RotationPeriodInDays != nil {
		plan.Days = *in.RotationPeriodInDays
	}
	plan.Next = plan.after(r.stamp())
	return k.planRotation(r, *in.KeyID, "EnableKeyRotation", plan)
}

// disableKeyRotation ends automatic rotation. The key keeps all its material.
func (k *KMS) disableKeyRotation(r *request, in *keyStateInput) (*empty, error) {
	return k.planRotation(r, *in.KeyID, "DisableKeyRotation", rotationPlan{})
}

func (k *KMS) planRotation(r *request, id, operation string, plan rotationPlan) (*empty, error) {
	var also []attribute
	if plan.enabled() {
		also = append(also, attributeOf("kms:RotationPeriodInDays", strconv.Itoa(plan.Days)))
	}
	key, err := k.rotatable(r, id, operation, also...)
	if err != nil {
		return nil, err
	}
	return &empty{}, k.change(func(s *state) (*event, error) {
		now, err := s.get(key.ref)
		if err == nil {
			err = now.usable()
		}
		if err != nil || now.rotation.Days == plan.Days {
			return nil, err
		}
		return &event{Rotation: &rotationEvent{key.ref, plan}}, nil
	})
}

type getKeyRotationStatusOutput struct {
	KeyID                string `json:"KeyId"`
	KeyRotationEnabled   bool
	NextRotationDate     *epoch `json:",omitempty"`
	RotationPeriodInDays int    `json:",omitempty"`
}

// getKeyRotationStatus tells of no rotation on demand under way: there is none. A
// key that is to be deleted counts as one without automatic rotation (AWS KMS API
// Reference, GetKeyRotationStatus).
func (k *KMS) getKeyRotationStatus(r *request, in *keyStateInput) (*getKeyRotationStatusOutput, error) {
	key, err := k.find(r, *in.KeyID, keyForms)
	if err != nil {
		return nil, err
	}
	r.call.KeyARN = key.arn
	if err := k.authorize(r, key, access{operation: "GetKeyRotationStatus"}); err != nil {
		return nil, err
	}
	out := &getKeyRotationStatusOutput{KeyID: key.arn}
	if key.rotation.enabled() && !key.pending() {
		next := epoch(key.rotation.Next)
		out.KeyRotationEnabled, out.NextRotationDate, out.RotationPeriodInDays = true, &next, key.rotation.Days
	}
	return out, k.settle()
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
// which no rotation made, only on request, and of keys that rotate. A marker holds
// the number of materials on the pages before.
func (k *KMS) listKeyRotations(r *request, in *listKeyRotationsInput) (*listKeyRotationsOutput, error) {
	position, err := r.readMarker(in.Marker)
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
	switch all := text(in.IncludeKeyMaterial) == allKeyMaterial; {
	case all && !key.symmetric():
		return nil, fault(codeUnsupportedOperation, "")
	case !all:
		first = max(first, 1)
	}
	limit := pageSize(in.Limit, defaultLongPage)
	out := &listKeyRotationsOutput{Rotations: []rotationEntry{}}
	for i := first; i < len(key.materials); i++ {
		if len(out.Rotations) == limit {
			out.Truncated, out.NextMarker = true, r.writeMarker(strconv.Itoa(i))
			break
		}
		out.Rotations = append(out.Rotations, key.listed(key.materials[i]))
	}
	return out, k.settle()
}

func (k resolved) listed(m *material) rotationEntry {
	entry := rotationEntry{KeyID: k.arn, KeyMaterialID: m.id, KeyMaterialState: "NON_CURRENT"}
	if m == k.current() {
		entry.KeyMaterialState = "CURRENT"
	}
	if !m.rotated.IsZero() {
		date := epoch(m.rotated)
		entry.RotationDate, entry.RotationType = &date, "ON_DEMAND"
		if m.automatic {
			entry.RotationType = "AUTOMATIC"
		}
	}
	return entry
}
