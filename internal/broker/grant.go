package broker

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// GrantState says whether a grant may be used.
type GrantState string

// The states of a grant.
const (
	GrantCreating GrantState = "CREATING" // being made at KMS; not answered yet
	GrantActive   GrantState = "ACTIVE"
	GrantExpired  GrantState = "EXPIRED"
	GrantRevoked  GrantState = "REVOKED"
	GrantFailed   GrantState = "FAILED" // KMS refused it, or its making was given up
	// GrantRevokedByCustomer: the key's owner took it away at KMS; only
	// RenewGrant makes it again.
	GrantRevokedByCustomer GrantState = "REVOKED_BY_CUSTOMER"
)

// A Grant lets one IAM role use a domain's key under the domain's encryption
// context. The broker's own worker has one too (Worker is set; never listed).
type Grant struct {
	Domain  DomainUID
	ID      GrantID
	UID     GrantUID
	Worker  bool
	Grantee string // IAM role ARN
	// Operations in KMS's spelling, sorted.
	Operations []string
	Constraint Constraint // the caller's pairs; the reserved one is added at KMS
	Inventory  Inventory
	State      GrantState
	ExpireTime time.Time // zero for the worker's: it lives as long as the domain
	Version    int64
	CreateTime time.Time
	UpdateTime time.Time
}

// Etag is the resource's version as callers see it.
func (g Grant) Etag() string { return strconv.FormatInt(g.Version, 10) }

// Wraps reports whether the grantee may make ciphertext at KMS by itself.
func (g Grant) Wraps() bool { return len(g.operationsOf(Wrap)) > 0 }

// Live reports whether the grant is in use or about to be.
func (g Grant) Live() bool { return g.State == GrantActive || g.State == GrantCreating }

// Inventory says who keeps the wrapped data keys that a grant's role uses.
type Inventory string

// The inventories. A key change moves what the broker keeps, and waits for the
// word of services that keep their own.
const (
	InventoryBroker Inventory = "BROKER"
	InventorySelf   Inventory = "SELF"
)

// A Constraint is what a request's encryption context must satisfy: contain
// Subset, or equal Equals. At most one is set.
type Constraint struct {
	Subset, Equals Context
}

// GrantKind tells the two KMS grants of one Grant apart. A key change retires
// wrap first and unwrap last, and KMS cannot edit a grant.
type GrantKind string

// The kinds of KMS grants.
const (
	Wrap   GrantKind = "wrap"
	Unwrap GrantKind = "unwrap"
)

// KMSGrantState says what is known of one grant at KMS.
type KMSGrantState string

// The states of a KMS grant. All but the last three count as live: what might
// exist at KMS does, until KMS has said otherwise.
const (
	KMSGrantIntended KMSGrantState = "INTENDED" // committed before CreateGrant; no answer yet
	KMSGrantLive     KMSGrantState = "LIVE"     // KMS answered with an id
	KMSGrantRetiring KMSGrantState = "RETIRING" // committed before RetireGrant; no answer yet
	KMSGrantRetired  KMSGrantState = "RETIRED"
	KMSGrantFailed   KMSGrantState = "FAILED" // KMS refused, or a listing showed that nothing was made
	KMSGrantGone     KMSGrantState = "GONE"   // vanished without us: the customer revoked it
)

// A KMSGrant is one grant at KMS, made for a Grant under one epoch's key.
// (Grant, Epoch, Kind, Attempt) is its identity and makes its Name.
type KMSGrant struct {
	Domain     DomainUID
	Grant      GrantUID
	Epoch      Epoch
	Kind       GrantKind
	Attempt    int
	Worker     bool // the broker's own
	Name       string
	KMSKey     KeyARN
	KMSGrantID string
	State      KMSGrantState
	IntendTime time.Time // before CreateGrant was sent, last
	LiveTime   time.Time // when its answer was recorded
	EndTime    time.Time // when it was known to be gone
	// NextTry is when a sweep takes an open one up, again if need be.
	NextTry time.Time
	// MissTime is when the listing began that missed a live one first; zero if
	// the last one had it.
	MissTime time.Time
}

// MayExist reports whether KMS may hold the grant.
func (g KMSGrant) MayExist() bool {
	return g.State == KMSGrantIntended || g.State == KMSGrantLive || g.State == KMSGrantRetiring
}

// A KMSGrantRange says which KMS grants of a domain are meant: those under the keys
// of some epochs, and perhaps of one kind only.
type KMSGrantRange struct {
	From, Below Epoch     // from From on and below Below; Below 0 is no end
	Kind        GrantKind // "" is both
}

// grantName renders the Name under which KMS knows a grant. KMS allows 256
// characters of [a-zA-Z0-9:/_-] (KMS API Reference, CreateGrant).
func grantName(deployment string, g GrantUID, kind GrantKind, e Epoch, attempt int) string {
	return fmt.Sprintf("kb/%s/%s/%s/%d/%d", deployment, g, kind, e, attempt)
}

// A GrantNameParts is a KMS grant Name of ours, taken apart.
type GrantNameParts struct {
	Grant   GrantUID
	Kind    GrantKind
	Epoch   Epoch
	Attempt int
}

// ParseKMSGrantName reads a Name that grantName rendered for this deployment; ok
// is false for every other Name.
func (b *Broker) ParseKMSGrantName(name string) (parts GrantNameParts, ok bool) {
	f := strings.Split(name, "/")
	if len(f) != 6 || f[0] != "kb" || f[1] != b.cfg.Deployment {
		return GrantNameParts{}, false
	}
	epoch, err1 := strconv.ParseInt(f[4], 10, 64)
	attempt, err2 := strconv.Atoi(f[5])
	kind := GrantKind(f[3])
	if err1 != nil || err2 != nil || (kind != Wrap && kind != Unwrap) {
		return GrantNameParts{}, false
	}
	parts = GrantNameParts{Grant: GrantUID(f[2]), Kind: kind, Epoch: Epoch(epoch), Attempt: attempt}
	if grantName(b.cfg.Deployment, parts.Grant, kind, parts.Epoch, attempt) != name {
		return GrantNameParts{}, false // +1, 01: spellings of ours that we never write
	}
	return parts, true
}

// wrapOperations make new ciphertext; unwrapOperations read old. DescribeKey
// goes with either.
var (
	wrapOperations = map[string]bool{
		"Encrypt": true, "GenerateDataKey": true, "GenerateDataKeyWithoutPlaintext": true,
		"GenerateDataKeyPair": true, "GenerateDataKeyPairWithoutPlaintext": true, "ReEncryptTo": true,
	}
	unwrapOperations = map[string]bool{"Decrypt": true, "ReEncryptFrom": true}
)

const describeKey = "DescribeKey"

// operationsOf splits a grant's operations: those of kind, and DescribeKey if
// it was asked for. An empty result means that this kind is not needed; a grant
// of DescribeKey alone is an unwrap grant.
func (g Grant) operationsOf(kind GrantKind) []string {
	set := wrapOperations
	if kind == Unwrap {
		set = unwrapOperations
	}
	var ops []string
	describe := false
	for _, op := range g.Operations {
		switch {
		case set[op]:
			ops = append(ops, op)
		case op == describeKey:
			describe = true
		}
	}
	if describe && (len(ops) > 0 || (kind == Unwrap && len(g.Operations) == 1)) {
		ops = append(ops, describeKey)
	}
	return ops
}

// kinds are the KMS grants that the grant consists of.
func (g Grant) kinds() []GrantKind {
	var kinds []GrantKind
	for _, k := range []GrantKind{Wrap, Unwrap} {
		if len(g.operationsOf(k)) > 0 {
			kinds = append(kinds, k)
		}
	}
	return kinds
}
