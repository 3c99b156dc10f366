package broker

import (
	"context"
	"crypto/sha256"
	"time"
)

// Store is the vault. Both methods are safe for concurrent use, run fn once or,
// after a transient conflict of the engine, again from the start (so fn has no
// effect outside its transaction), and roll back if fn fails.
type Store interface {
	// Update runs fn in a read-write transaction and commits it durably. An error
	// means that nothing was stored, but for one ErrUnavailable: where the engine
	// did not answer the commit, nobody knows. That is what a crash would have left.
	Update(ctx context.Context, fn func(tx Tx) error) error
	// View runs fn in a read-only transaction: one snapshot.
	View(ctx context.Context, fn func(tx Tx) error) error
}

// LockMode is how a transaction holds a domain against its switch.
type LockMode int

// The modes of the domain lock.
const (
	Shared    LockMode = iota // writers of a domain: many at a time
	Exclusive                 // the switch and the closing of epochs: alone
)

// Tx is one transaction. Absent things are ErrNotFound with the resource's own
// reason left to the caller (a plain ErrNotFound kind); an Update… or Delete…
// that finds another version than given is ErrConflict. Lists are in key order.
//
// Other transactions may run beside an Update. What it reads may be changed by
// others before it ends, but for what is held: the domain after LockDomain, as far
// as whoever changes it locks it too; a grant that GrantByUID or DueGrants read; a
// KMS grant that KMSGrantByName, KMSGrants or StaleKMSGrants read; a
// request that RequestRecord looked up, also in vain. What is compared by a
// Version needs no hold. Read a grant before its KMS grants: two that hold them in
// another order wait for each other until the engine stops one, which is run again.
type Tx interface {
	// Now is the database's clock, or the injected process clock on SQLite; the
	// one judge of every stored time and deadline. UTC, microseconds.
	Now() time.Time
	// LockDomain holds the domain until the transaction ends. A writer locks
	// first and reads the domain after.
	LockDomain(ctx context.Context, d DomainUID, mode LockMode) error

	InsertDomain(ctx context.Context, d Domain) error // ErrAlreadyExists
	// Domain does not find a DELETED one; DomainByUID does.
	Domain(ctx context.Context, id DomainID) (Domain, error)
	DomainByUID(ctx context.Context, uid DomainUID) (Domain, error)
	// ListDomains gives up to limit domains that are not DELETED with an id greater than after.
	ListDomains(ctx context.Context, after DomainID, limit int) ([]Domain, error)
	// InaccessibleDomains gives up to limit KEY_INACCESSIBLE domains with a uid
	// greater than after, in the order of their uids.
	InaccessibleDomains(ctx context.Context, after DomainUID, limit int) ([]Domain, error)
	// UpdateDomain compares d.Version with the stored one, then stores d with
	// Version+1 and UpdateTime = Now.
	UpdateDomain(ctx context.Context, d Domain) error

	InsertDomainKey(ctx context.Context, k DomainKey) error // ErrConflict for a used epoch
	UpdateDomainKey(ctx context.Context, k DomainKey) error // by (Domain, Epoch)
	// DomainKeys gives every key that the domain had, by epoch ascending.
	DomainKeys(ctx context.Context, d DomainUID) ([]DomainKey, error)

	// InsertDataKey stores a new row. ErrAlreadyExists if the id lives, with
	// ReasonDataKeyIDDeleted if it was deleted (ids are never reused, I14).
	InsertDataKey(ctx context.Context, k DataKey) error
	// InsertDataKeys stores new rows of one domain, whose ids differ, and gives for
	// each nil or the ErrAlreadyExists that InsertDataKey would give; the others are
	// stored all the same.
	InsertDataKeys(ctx context.Context, keys []DataKey) ([]error, error)
	DataKey(ctx context.Context, d DomainUID, id DataKeyID) (DataKey, error)
	// DataKeys gives the rows of those ids that are there, in no order. No id stands
	// twice.
	DataKeys(ctx context.Context, d DomainUID, ids []DataKeyID) ([]DataKey, error)
	// ListDataKeys gives up to limit rows of d with an id greater than after.
	ListDataKeys(ctx context.Context, d DomainUID, after DataKeyID, limit int) ([]DataKey, error)
	// ReplaceDataKey compares UID, Version and the stored epoch with k's and with
	// epoch, then stores k with Version+1, UpdateTime = Now and the row's own
	// CreateTime. The row is not abandoned any more.
	ReplaceDataKey(ctx context.Context, k DataKey, epoch Epoch) error
	// DeleteDataKey compares UID and Version, removes the row and leaves a
	// tombstone for its id.
	DeleteDataKey(ctx context.Context, k DataKey) error

	InsertGrant(ctx context.Context, g Grant) error // ErrAlreadyExists
	Grant(ctx context.Context, d DomainUID, id GrantID) (Grant, error)
	GrantByUID(ctx context.Context, d DomainUID, uid GrantUID) (Grant, error)
	UpdateGrant(ctx context.Context, g Grant) error // compares Version, as UpdateDomain
	// LiveGrants gives the ACTIVE and CREATING grants of a domain, the worker's too.
	LiveGrants(ctx context.Context, d DomainUID) ([]Grant, error)
	// ListGrants gives up to limit grants of d with an id greater than after, in
	// every state; not the worker's.
	ListGrants(ctx context.Context, d DomainUID, after GrantID, limit int) ([]Grant, error)
	// SelfGrants gives a domain's grants of InventorySelf to one role, in every state.
	SelfGrants(ctx context.Context, d DomainUID, grantee string) ([]Grant, error)
	// DueGrants gives up to limit live grants, of all domains, whose ExpireTime
	// has come, longest due first.
	DueGrants(ctx context.Context, limit int) ([]Grant, error)
	// UnmadeGrants gives up to limit grants, of all domains, that are CREATING and
	// were created at t or before, oldest first.
	UnmadeGrants(ctx context.Context, t time.Time, limit int) ([]Grant, error)

	InsertKMSGrant(ctx context.Context, g KMSGrant) error // ErrConflict for a used identity or Name
	UpdateKMSGrant(ctx context.Context, g KMSGrant) error // by (Domain, Grant, Epoch, Kind, Attempt)
	// KMSGrants gives what a grant has, or had, at KMS, in every state: at most two for
	// each key that the domain came to in the grant's life, but for attempts that
	// failed. No verb gives that of a whole domain, which has any number of ended ones.
	KMSGrants(ctx context.Context, d DomainUID, g GrantUID) ([]KMSGrant, error)
	// RecordedKMSGrants gives the KMS grants of a domain, in a range, that may exist
	// and have an id: the LIVE and RETIRING ones. It holds none of them.
	RecordedKMSGrants(ctx context.Context, d DomainUID, r KMSGrantRange) ([]KMSGrant, error)
	// KMSIntents gives the INTENDED ones, likewise.
	KMSIntents(ctx context.Context, d DomainUID, r KMSGrantRange) ([]KMSGrant, error)
	KMSGrantByName(ctx context.Context, name string) (KMSGrant, error)
	// KMSGrantsOnKey gives the INTENDED, LIVE and RETIRING KMS grants on a key,
	// of all domains.
	KMSGrantsOnKey(ctx context.Context, key KeyARN) ([]KMSGrant, error)
	// StaleKMSGrants gives up to limit KMS grants, of all domains, that are
	// INTENDED or RETIRING and whose NextTry has come, longest due first.
	StaleKMSGrants(ctx context.Context, limit int) ([]KMSGrant, error)

	// ClaimListings gives up to limit keys that domains use, or used lately, and
	// that nobody listed since before: those unlisted for longest. They count as
	// listed now.
	ClaimListings(ctx context.Context, before time.Time, limit int) ([]KeyARN, error)
	// ForgetListing lets a key go that no epoch and no KMS grant needs any more,
	// and that was used last before t; its next use brings it back.
	ForgetListing(ctx context.Context, key KeyARN, t time.Time) error

	// RequestRecord gives the record of a request id, ErrNotFound if none. Of two
	// transactions that look one up, the second waits for the first.
	RequestRecord(ctx context.Context, k RequestKey) (RequestRecord, error)
	// PutRequestRecord inserts or replaces a record.
	PutRequestRecord(ctx context.Context, r RequestRecord) error
	// ForgetRequests removes up to limit records, and gives their number: those that
	// are done and whose Until has come, and those in flight whose Until was at t or
	// before.
	ForgetRequests(ctx context.Context, t time.Time, limit int) (int, error)

	// Audit appends an event; its time is Now.
	Audit(ctx context.Context, e AuditEvent) error
}

// Request is a caller's idempotency token with the hash of the request it came
// with. The zero value asks for no idempotency.
type Request struct {
	Method string // full gRPC method
	ID     string
	Hash   [sha256.Size]byte // of the request without its request_id
}

// RequestKey is what makes a request id unique.
type RequestKey struct {
	Caller, Method, ID string
}

// A RequestRecord remembers a request for 24 h. It names the resource and holds
// no secret: a repeat reads the resource again.
type RequestRecord struct {
	RequestKey
	Hash [sha256.Size]byte
	// Resource is its name and, behind a space, what else a repeat has to know.
	Resource string
	Done     bool
	// Until is when a request in flight is presumed dead, and for one that is
	// done when the record may be forgotten.
	Until time.Time
}

// An AuditEvent says who did what to which resource, and how it ended. An act
// at KMS that leaves something there has two: INTENDED, committed before, and
// its outcome.
type AuditEvent struct {
	Caller       string
	Action       string // e.g. domains.create, kms.CreateGrant
	Domain       DomainUID
	Resource     string
	Outcome      AuditOutcome
	RequestID    string
	KMSRequestID string
	Detail       map[string]string // never a token, a blob or a context value
}

// AuditOutcome is how an audited act ended.
type AuditOutcome string

// The outcomes.
const (
	AuditIntended AuditOutcome = "INTENDED"
	AuditDone     AuditOutcome = "DONE"
	AuditRefused  AuditOutcome = "REFUSED"
)
