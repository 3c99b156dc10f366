package localkms

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// state is everything a KMS knows. It is the sum of the events of its journal:
// only apply alters it, but for the last use of keys. Guarded by KMS.mu, but for
// tokenSecret and tracking, which never change.
type state struct {
	tokenSecret []byte
	tracking    time.Time // since when the uses of keys are noted
	keys        map[keyRef]*key
	keyOrder    []*key               // as created
	ending      map[keyRef]time.Time // the deletion dates of keys
	aliases     map[aliasRef]*alias
}

func newState(tokenSecret []byte) *state {
	return &state{
		tokenSecret: tokenSecret,
		keys:        map[keyRef]*key{},
		ending:      map[keyRef]time.Time{},
		aliases:     map[aliasRef]*alias{},
	}
}

// apply makes a change. It errs, and changes nothing, when the event does not
// fit the state, which only a damaged journal can bring about.
func (s *state) apply(e *event) error {
	switch {
	case e.Opened != nil:
		return s.applyOpened(e.Opened)
	case e.Key != nil:
		return s.applyKey(e.Key)
	case e.Policy != nil:
		p, err := readPolicy(keyPolicy, "", e.Policy.Policy)
		if err != nil {
			return err
		}
		return s.alter(e.Policy.Key, func(next *settings) { next.policy = p })
	case e.Enabled != nil:
		return s.alter(e.Enabled.Key, func(next *settings) {
			next.enabled = e.Enabled.Enabled
			next.rotation.resume(e.Enabled.Time)
		})
	case e.Alias != nil:
		s.aliases[e.Alias.Ref] = &alias{e.Alias.Ref, e.Alias.Target, e.Alias.Created, e.Alias.Updated}
		return nil
	case e.Unaliased != nil:
		delete(s.aliases, *e.Unaliased)
		return nil
	case e.Described != nil:
		return s.alter(e.Described.Key, func(next *settings) { next.description = e.Described.Description })
	case e.Tagged != nil:
		return s.alter(e.Tagged.Key, func(next *settings) { next.tags = e.Tagged.Tags })
	case e.Used != nil:
		return s.applyUsed(e.Used)
	case e.Rotation != nil:
		return s.alter(e.Rotation.Key, func(next *settings) { next.rotation = e.Rotation.Plan })
	case e.Grant != nil:
		return s.applyGrant(e.Grant)
	case e.Retired != nil:
		return s.applyRetired(e.Retired)
	case e.Rotated != nil:
		return s.applyRotated(e.Rotated)
	case e.Deletion != nil:
		return s.applyDeletion(e.Deletion)
	case e.Deleted != nil:
		return s.applyDeleted(*e.Deleted)
	}
	return errors.New("event without content")
}

func (s *state) applyOpened(e *openedEvent) error {
	if e.Version != journalVersion {
		return fmt.Errorf("journal has version %d, this program reads version %d", e.Version, journalVersion)
	}
	if len(e.TokenSecret) != tokenSecretSize {
		return fmt.Errorf("token secret has %d bytes, want %d", len(e.TokenSecret), tokenSecretSize)
	}
	s.tokenSecret, s.tracking = e.TokenSecret, e.Tracking
	return nil
}

func (s *state) applyKey(e *keyEvent) error {
	p, err := readPolicy(keyPolicy, "", e.Policy)
	if err != nil {
		return err
	}
	set := &settings{enabled: e.Enabled, deletion: e.Deletion, description: e.Description, tags: e.Tags, rotation: e.Rotation, policy: p}
	kind, err := newKind(e.Spec, e.Usage)
	if err != nil {
		return err
	}
	for _, m := range e.Materials {
		ready, err := m.material(kind)
		if err != nil {
			return err
		}
		set.materials = append(set.materials, ready)
	}
	if s.keys[e.Ref] != nil || kind.symmetric() && len(set.materials) == 0 {
		return fmt.Errorf("key %s exists already, or has no material that it needs", e.Ref.arn())
	}
	made := &key{
		kind:     kind,
		ref:      e.Ref,
		arn:      e.Ref.arn(),
		created:  e.Created,
		settings: set,
		grants:   newGrantSet(),
	}
	if e.Used != nil {
		made.note(*e.Used)
	}
	s.keys[e.Ref] = made
	s.keyOrder = append(s.keyOrder, made)
	if set.pending() {
		s.ending[e.Ref] = set.deletion
	}
	return nil
}

// alter replaces the settings of a key by a changed copy.
func (s *state) alter(ref keyRef, change func(*settings)) error {
	k, err := s.get(ref)
	if err != nil {
		return err
	}
	next := *k.settings
	change(&next)
	k.key.settings = &next
	return nil
}

func (s *state) applyGrant(e *grantEvent) error {
	k, err := s.get(e.Key)
	if err != nil {
		return err
	}
	if e.Grant == nil || k.grants.byID[e.Grant.ID] != nil {
		return fmt.Errorf("grant event on key %s without a new grant", k.arn)
	}
	k.grants.insert(e.Grant)
	return nil
}

func (s *state) applyRetired(e *retiredEvent) error {
	k, err := s.get(e.Key)
	if err != nil {
		return err
	}
	g := k.grants.byID[e.GrantID]
	if g == nil {
		return fmt.Errorf("key %s has no grant %s to retire", k.arn, e.GrantID)
	}
	k.grants.remove(g)
	if e.now.Before(e.until) {
		k.grants.linger(g, e.now, e.until)
	}
	return nil
}

func (s *state) applyRotated(e *rotatedEvent) error {
	k, err := s.get(e.Key)
	if err != nil {
		return err
	}
	m, err := e.Material.material(k.kind)
	if err != nil {
		return err
	}
	return s.alter(e.Key, func(next *settings) {
		next.materials = append(slices.Clone(next.materials), m)
		if m.automatic {
			next.rotation.Next = next.rotation.after(m.rotated)
		}
	})
}

func (s *state) applyUsed(e *usedEvent) error {
	k, err := s.get(e.Key)
	if err != nil {
		return err
	}
	k.note(e.Use)
	return nil
}

// note takes down a use that the journal knows of: the last one of the key, unless
// there was one since.
func (k *key) note(u use) {
	known := u.Time
	if last := k.lastUse.Load(); last != nil && last.Time.After(u.Time) {
		u = *last
	}
	u.noted = known
	k.lastUse.Store(&u)
}

func (s *state) applyDeletion(e *deletionEvent) error {
	if err := s.alter(e.Key, func(next *settings) { next.enabled, next.deletion = false, e.Date }); err != nil {
		return err
	}
	if e.Date.IsZero() {
		delete(s.ending, e.Key)
	} else {
		s.ending[e.Key] = e.Date
	}
	return nil
}

// applyDeleted removes a key and all that belongs to it.
func (s *state) applyDeleted(ref keyRef) error {
	k, err := s.get(ref)
	if err != nil {
		return err
	}
	delete(s.keys, ref)
	delete(s.ending, ref)
	s.keyOrder = slices.DeleteFunc(s.keyOrder, func(other *key) bool { return other == k.key })
	maps.DeleteFunc(s.aliases, func(_ aliasRef, a *alias) bool { return a.target == ref })
	return nil
}

// due returns the events that remove the keys whose deletion date has come.
func (s *state) due(now time.Time) []*event {
	var events []*event
	for ref, date := range s.ending {
		if !now.Before(date) {
			events = append(events, &event{Deleted: &ref})
		}
	}
	return events
}

// incomplete returns the events that give HMAC keys their material. Programs of
// before made such keys without any, since they could not use them.
func (s *state) incomplete() []*event {
	var events []*event
	for _, k := range s.keyOrder {
		if k.materialSize() > 0 && len(k.settings.materials) == 0 {
			events = append(events, &event{Rotated: &rotatedEvent{k.ref, newMaterialEvent(k.kind)}})
		}
	}
	return events
}

// events yields the shortest journal that leads to this state.
func (s *state) events(yield func(*event) bool) {
	if !yield(&event{Opened: &openedEvent{journalVersion, s.tokenSecret, s.tracking}}) {
		return
	}
	for _, k := range s.keyOrder {
		if !yield(&event{Key: k.event()}) {
			return
		}
		for _, g := range k.grants.all {
			if !yield(&event{Grant: &grantEvent{k.ref, g}}) {
				return
			}
		}
	}
	for _, a := range s.sortedAliases() {
		if !yield(&event{Alias: &aliasEvent{a.ref, a.target, a.created, a.updated}}) {
			return
		}
	}
}

func (k *key) event() *keyEvent {
	e := &keyEvent{
		Ref:         k.ref,
		Created:     k.created,
		Description: k.settings.description,
		Tags:        k.settings.tags,
		Enabled:     k.settings.enabled,
		Deletion:    k.settings.deletion,
		Rotation:    k.settings.rotation,
		Policy:      k.settings.policy.text,
		Used:        k.lastUse.Load(),
	}
	e.describe(k.kind)
	for _, m := range k.settings.materials {
		e.Materials = append(e.Materials, materialEvent{m.id, m.raw, m.rotated, m.automatic})
	}
	return e
}

// sortedAliases returns the aliases in order of their ARNs.
func (s *state) sortedAliases() []*alias {
	return slices.SortedFunc(maps.Values(s.aliases), func(a, b *alias) int {
		return strings.Compare(a.ref.arn(), b.ref.arn())
	})
}
