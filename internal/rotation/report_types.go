package rotation

import (
	"time"

	"github.com/keybroker/keybroker/internal/broker"
)

// A Report says, of each older key of a job, whether it may be retired. It is
// evaluated anew at each call.
type Report struct {
	Domain       broker.DomainID
	Job          broker.JobID
	Keys         []KeyRetirement
	EvaluateTime time.Time
	// Canonical is the report as canonical JSON (report_json.go), SHA256 its hash
	// in hex: the form that the audit row holds the hash of.
	Canonical string
	SHA256    string
}

// A KeyRetirement is the verdict on one key ARN.
type KeyRetirement struct {
	Key broker.KeyARN
	// Safe is true if nothing that this broker knows of needs the key any more
	// and SafeAfter has passed.
	Safe bool
	// SafeAfter is the earliest moment at which the key may be disabled, zero
	// while blockers have no date.
	SafeAfter time.Time
	Blockers  []Blocker
	Moved     []MaterialCount
	// GrantsRetired counts the KMS grants that the job retired, on all its older keys.
	GrantsRetired int64
	// ListTime is when the listing was read that showed no grant of the domain's under
	// the older epochs with the key, by this job or another; zero before.
	ListTime time.Time
	// LastMoveTime is the job's last move, zero where it moved nothing from this key.
	LastMoveTime time.Time
	// Confirm says what the key's owner can check without us.
	Confirm []string
	// Inventories are the services of this domain that keep their own wrapped keys
	// and were on the key.
	Inventories []SelfInventory
}

// BlockerKind says what stands against retiring a key.
type BlockerKind string

// The kinds of blockers.
const (
	BlockRows         BlockerKind = "ROWS"
	BlockGrants       BlockerKind = "GRANTS"
	BlockIntents      BlockerKind = "GRANT_INTENTS"
	BlockDomain       BlockerKind = "DOMAIN" // it is some domain's present key
	BlockJob          BlockerKind = "JOB"    // the job, or another, is not done with it
	BlockImportSource BlockerKind = "IMPORT_SOURCE"
	BlockBackup       BlockerKind = "BACKUP_RETENTION"
	// BlockSelfInventory names services that keep their own wrapped keys and have
	// not said that none is left, or have found one since.
	BlockSelfInventory BlockerKind = "SELF_INVENTORY"
	// BlockAbandoned names rows that their owner has given up; it does not stand
	// against retiring the key.
	BlockAbandoned BlockerKind = "ABANDONED_ROWS"
)

// A Blocker is one thing that needs the key.
type Blocker struct {
	Kind     BlockerKind
	Resource string // name of the domain or job
	Count    int64
	AtLeast  bool // there may be more: not everything was read
	Message  string
	Until    time.Time // when it goes by itself; zero if it does not
}
