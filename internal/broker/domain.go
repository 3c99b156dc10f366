package broker

import (
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"time"
)

// A Caller is who asks, as the front door identified them. Until callers are
// authenticated, it is the peer's description; it goes into audit rows.
type Caller struct {
	Subject string
}

// System is the Caller of what the broker does by itself: sweeps and jobs.
var System = Caller{Subject: "keybroker"}

// DomainState says what a domain can do now.
type DomainState string

// The states of a domain.
const (
	DomainPendingKey      DomainState = "PENDING_KEY"      // registered; no key yet
	DomainActive          DomainState = "ACTIVE"           // its key can be used
	DomainKeyInaccessible DomainState = "KEY_INACCESSIBLE" // KMS refuses its key, see Domain.InaccessibleSince
	// DomainDeleted: only its uid and its audit are left; names do not find it.
	DomainDeleted DomainState = "DELETED"
)

// A Domain is one tenant's data under one KMS key.
type Domain struct {
	ID          DomainID
	UID         DomainUID
	DisplayName string
	Region      string
	State       DomainState
	// InaccessibleSince is set while State is DomainKeyInaccessible.
	InaccessibleSince time.Time
	// Reserved is the pair that every KMS call for this domain carries, rendered
	// once at creation and never changed.
	Reserved Pair
	// KMSKey is the present key, resolved; "" before the first. KMSKeyGiven is
	// what the caller wrote (perhaps an alias); it is never followed later.
	KMSKey      KeyARN
	KMSKeyGiven string
	// Epoch is the present key's; LastEpoch is the highest ever given out, also
	// to changes that failed: nothing gives an epoch back.
	Epoch, LastEpoch Epoch
	// KeyChange is the change that is PREPARING, the zero value if none is.
	KeyChange KeyChange
	// KeyAccounts may own this domain's keys; empty leaves it to the ownership
	// probe. ImportSources are key ARNs from which blobs made without the
	// reserved pair may be imported.
	KeyAccounts   []string
	ImportSources []string
	Labels        map[string]string
	Version       int64 // raised by each update; the etag
	CreateTime    time.Time
	UpdateTime    time.Time
}

// KeyChange is what writers must know of a change in PREPARING: which key is
// coming, and under which epoch.
type KeyChange struct {
	Job         JobID
	TargetKey   KeyARN
	TargetEpoch Epoch
}

// Etag is the resource's version as callers see it.
func (d Domain) Etag() string { return strconv.FormatInt(d.Version, 10) }

// KeyState says how far a domain's key of one epoch is in its life.
type KeyState string

// The states of a key of one epoch. Only CURRENT may be stored under; PREPARING
// and CURRENT get wrap and unwrap grants, SUPERSEDED unwrap grants only.
const (
	KeyPreparing  KeyState = "PREPARING"  // a change is getting ready for it
	KeyCurrent    KeyState = "CURRENT"    // the domain's key
	KeySuperseded KeyState = "SUPERSEDED" // replaced; rows or readers may still need it
	KeyClosed     KeyState = "CLOSED"     // no new intent or store; its grants are being retired
	KeyRetired    KeyState = "RETIRED"    // KMS showed no grant of this epoch any more, or the domain is deleted and cleared
	KeyAbandoned  KeyState = "ABANDONED"  // its change failed or was cancelled before the switch
)

// A DomainKey is the key that a domain used, or will use, in one epoch. Rows
// store the epoch; this record gives the ARN for it.
type DomainKey struct {
	Domain       DomainUID
	Epoch        Epoch
	KMSKey       KeyARN
	State        KeyState
	ActivateTime time.Time // the switch to it
	ReplaceTime  time.Time // the switch away from it
	RetireTime   time.Time // since when it is RETIRED
}

// Unretired reports whether rows or grants of this epoch may still exist.
func (k DomainKey) Unretired() bool {
	return k.State == KeyCurrent || k.State == KeySuperseded || k.State == KeyClosed
}

// Readable reports whether the broker may still read under it: it is Unretired, and
// no job has closed it and retires the broker's own grants there.
func (k DomainKey) Readable() bool {
	return k.State == KeyCurrent || k.State == KeySuperseded
}

// KeyOfEpoch finds the record of an epoch; ok is false for an unknown one.
func KeyOfEpoch(keys []DomainKey, e Epoch) (key DomainKey, ok bool) {
	for _, k := range keys {
		if k.Epoch == e {
			return k, true
		}
	}
	return DomainKey{}, false
}

// Secret is a value that may be printed anywhere without saying anything.
type Secret []byte

// String hides the value.
func (Secret) String() string { return "[redacted]" }

// GoString hides the value.
func (Secret) GoString() string { return "[redacted]" }

// Format hides the value under every verb: %d knows no String.
func (Secret) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, "[redacted]") }

// LogValue hides the value from log handlers.
func (Secret) LogValue() slog.Value { return slog.StringValue("[redacted]") }

// MarshalJSON hides the value.
func (Secret) MarshalJSON() ([]byte, error) { return []byte(`"[redacted]"`), nil }
