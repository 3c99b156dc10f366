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
// only apply alters it. Guarded by KMS.mu, but for tokenSecret, which never
// changes.
type state struct {
	tokenSecret []byte
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

// event is one change of the state, as the journal keeps it. Exactly one member
// is set.
type event struct {
	Opened  *openedEvent  `json:"opened,omitempty"`
	Key     *keyEvent     `json:"key,omitempty"`
	Policy  *policyEvent  `json:"policy,omitempty"`
	Enabled *enabledEvent `json:"enabled,omitempty"`
	Alias   *aliasEvent   `json:"alias,omitempty"`
	Grant   *grantEvent   `json:"grant,omitempty"`
	Retired *retiredEvent `json:"retired,omitempty"`

	Rotated  *rotatedEvent  `json:"rotated,omitempty"`
	Deletion *deletionEvent `json:"deletion,omitempty"`
	Deleted  *keyRef        `json:"deleted,omitempty"` // the key is gone
}

// openedEvent begins every journal.
type openedEvent struct {
	Version     int    `json:"version"`
	TokenSecret []byte `json:"tokenSecret"`
}

// journalVersion is the version of the event format.
const journalVersion = 1

type keyEvent struct {
	Ref         keyRef          `json:"ref"`
	Created     time.Time       `json:"created"`
	Description string          `json:"description,omitempty"`
	Spec        string          `json:"spec,omitempty"`  // empty: symmetricSpec
	Usage       string          `json:"usage,omitempty"` // empty: encryptDecrypt
	Enabled     bool            `json:"enabled"`
	Deletion    time.Time       `json:"deletion,omitzero"`
	Policy      string          `json:"policy"`
	Materials   []materialEvent `json:"materials"`
}

// describe notes the kind of key, of symmetric keys by leaving it out, as it was
// before there were others.
func (e *keyEvent) describe(k kind) {
	if !k.symmetric() {
		e.Spec, e.Usage = k.spec, k.usage
	}
}

type materialEvent struct {
	ID      string    `json:"id"`
	Raw     []byte    `json:"raw"`
	Rotated time.Time `json:"rotated,omitzero"`
}

func (e *materialEvent) material() (*material, error) {
	if len(e.Raw) != materialSize {
		return nil, fmt.Errorf("key material %s has %d bytes, want %d", e.ID, len(e.Raw), materialSize)
	}
	m, err := newMaterial(e.ID, [materialSize]byte(e.Raw))
	if err != nil {
		return nil, err
	}
	m.rotated = e.Rotated
	return m, nil
}

// rotatedEvent gives a key its newest material.
type rotatedEvent struct {
	Key      keyRef        `json:"key"`
	Material materialEvent `json:"material"`
}

type policyEvent struct {
	Key    keyRef `json:"key"`
	Policy string `json:"policy"`
}

type enabledEvent struct {
	Key     keyRef `json:"key"`
	Enabled bool   `json:"enabled"`
}

type aliasEvent struct {
	Ref     aliasRef  `json:"ref"`
	Target  keyRef    `json:"target"`
	Created time.Time `json:"created"`
}

type grantEvent struct {
	Key   keyRef `json:"key"`
	Grant *grant `json:"grant"`
}

type retiredEvent struct {
	Key     keyRef `json:"key"`
	GrantID string `json:"grantId"`

	// Not of the journal: when the grant was retired, and until when it lingers.
	now, until time.Time
}

// deletionEvent plans the deletion of a key, or with a zero date cancels it.
// Either way the key is disabled.
type deletionEvent struct {
	Key  keyRef    `json:"key"`
	Date time.Time `json:"date,omitzero"`
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
		p, err := parsePolicy(e.Policy.Policy)
		if err != nil {
			return err
		}
		return s.alter(e.Policy.Key, func(next *settings) { next.policy = p })
	case e.Enabled != nil:
		return s.alter(e.Enabled.Key, func(next *settings) { next.enabled = e.Enabled.Enabled })
	case e.Alias != nil:
		s.aliases[e.Alias.Ref] = &alias{e.Alias.Ref, e.Alias.Target, e.Alias.Created}
		return nil
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
	s.tokenSecret = e.TokenSecret
	return nil
}

func (s *state) applyKey(e *keyEvent) error {
	p, err := parsePolicy(e.Policy)
	if err != nil {
		return err
	}
	set := &settings{enabled: e.Enabled, deletion: e.Deletion, policy: p}
	kind, err := newKind(e.Spec, e.Usage)
	if err != nil {
		return err
	}
	for _, m := range e.Materials {
		ready, err := m.material()
		if err != nil {
			return err
		}
		set.materials = append(set.materials, ready)
	}
	if _, exists := s.keys[e.Ref]; exists || kind.symmetric() != (len(set.materials) > 0) {
		return fmt.Errorf("key %s exists already, or has no material that it needs, or some that it does not", e.Ref.arn())
	}
	made := &key{
		kind:        kind,
		ref:         e.Ref,
		arn:         e.Ref.arn(),
		created:     e.Created,
		description: e.Description,
		settings:    set,
		grants:      newGrantSet(),
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
	m, err := e.Material.material()
	if err != nil {
		return err
	}
	return s.alter(e.Key, func(next *settings) { next.materials = append(slices.Clone(next.materials), m) })
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

// events yields the shortest journal that leads to this state.
func (s *state) events(yield func(*event) bool) {
	if !yield(&event{Opened: &openedEvent{journalVersion, s.tokenSecret}}) {
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
		if !yield(&event{Alias: &aliasEvent{a.ref, a.target, a.created}}) {
			return
		}
	}
}

func (k *key) event() *keyEvent {
	e := &keyEvent{
		Ref:         k.ref,
		Created:     k.created,
		Description: k.description,
		Enabled:     k.settings.enabled,
		Deletion:    k.settings.deletion,
		Policy:      k.settings.policy.text,
	}
	e.describe(k.kind)
	for _, m := range k.settings.materials {
		e.Materials = append(e.Materials, materialEvent{m.id, m.raw[:], m.rotated})
	}
	return e
}

// sortedAliases returns the aliases in order of their ARNs.
func (s *state) sortedAliases() []*alias {
	return slices.SortedFunc(maps.Values(s.aliases), func(a, b *alias) int {
		return strings.Compare(a.ref.arn(), b.ref.arn())
	})
}
