package localkms

import (
	"fmt"
	"time"
)

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

	Unaliased *aliasRef         `json:"unaliased,omitempty"` // the alias is gone
	Described *descriptionEvent `json:"described,omitempty"`
	Tagged    *tagsEvent        `json:"tagged,omitempty"`
	Rotation  *rotationEvent    `json:"rotation,omitempty"`
	Used      *usedEvent        `json:"used,omitempty"`
}

// openedEvent begins every journal.
type openedEvent struct {
	Version     int    `json:"version"`
	TokenSecret []byte `json:"tokenSecret"`

	// Since when the uses of keys are noted. Programs of before noted none.
	Tracking time.Time `json:"tracking,omitzero"`
}

// journalVersion is the version of the event format.
const journalVersion = 1

type keyEvent struct {
	Ref         keyRef          `json:"ref"`
	Created     time.Time       `json:"created"`
	Description string          `json:"description,omitempty"`
	Tags        []tag           `json:"tags,omitempty"`
	Spec        string          `json:"spec,omitempty"`  // empty: symmetricSpec
	Usage       string          `json:"usage,omitempty"` // empty: encryptDecrypt
	Enabled     bool            `json:"enabled"`
	Deletion    time.Time       `json:"deletion,omitzero"`
	Rotation    rotationPlan    `json:"rotation,omitzero"`
	Policy      string          `json:"policy"`
	Materials   []materialEvent `json:"materials"`
	Used        *use            `json:"used,omitempty"` // its last use
}

// describe notes the kind of key, of symmetric keys by leaving it out, as it was
// before there were others.
func (e *keyEvent) describe(k kind) {
	if !k.symmetric() {
		e.Spec, e.Usage = k.spec, k.usage
	}
}

// materialEvent is one generation of a key's secret.
type materialEvent struct {
	ID        string    `json:"id"`
	Raw       []byte    `json:"raw"`
	Rotated   time.Time `json:"rotated,omitzero"`
	Automatic bool      `json:"automatic,omitempty"` // it came by automatic rotation
}

// material readies the secret for the keys of one kind.
func (e *materialEvent) material(k kind) (*material, error) {
	if want := k.materialSize(); len(e.Raw) != want {
		return nil, fmt.Errorf("key material %s has %d bytes, want %d", e.ID, len(e.Raw), want)
	}
	m, err := newMaterial(e.ID, e.Raw)
	if err != nil {
		return nil, err
	}
	m.rotated, m.automatic = e.Rotated, e.Automatic
	return m, nil
}

// rotatedEvent gives a key its newest material. If that came by automatic rotation,
// the next one is a period later.
type rotatedEvent struct {
	Key      keyRef        `json:"key"`
	Material materialEvent `json:"material"`
}

// rotationEvent begins automatic rotation, changes its period, or ends it.
type rotationEvent struct {
	Key  keyRef       `json:"key"`
	Plan rotationPlan `json:"plan,omitzero"`
}

// usedEvent tells of the last use of a key, or of one within usageLag of it.
type usedEvent struct {
	Key keyRef `json:"key"`
	Use use    `json:"use"`
}

type policyEvent struct {
	Key    keyRef `json:"key"`
	Policy string `json:"policy"`
}

type enabledEvent struct {
	Key     keyRef    `json:"key"`
	Enabled bool      `json:"enabled"`
	Time    time.Time `json:"time,omitzero"` // of an EnableKey
}

type aliasEvent struct {
	Ref     aliasRef  `json:"ref"`
	Target  keyRef    `json:"target"`
	Created time.Time `json:"created"`
	Updated time.Time `json:"updated,omitzero"` // when it got another target than its first
}

type descriptionEvent struct {
	Key         keyRef `json:"key"`
	Description string `json:"description"`
}

// tagsEvent gives a key other tags: all that it has from now on.
type tagsEvent struct {
	Key  keyRef `json:"key"`
	Tags []tag  `json:"tags"`
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
