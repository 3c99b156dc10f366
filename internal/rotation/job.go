package rotation

import (
	"strconv"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
)

// Kind is what a job does.
type Kind string

// The kinds of jobs.
const (
	KindKeyChange   Kind = "KEY_CHANGE"   // from one KMS key to another
	KindKeyMaterial Kind = "KEY_MATERIAL" // to the newest material of the same key
	KindVerify      Kind = "VERIFY"       // nothing moves: every row is given to KMS
)

// Phase is how far a key change has come. A pause or a block keeps it.
type Phase string

// The phases, in order.
const (
	Preparing    Phase = "PREPARING"
	Reencrypting Phase = "REENCRYPTING"
	Draining     Phase = "DRAINING"
	Verifying    Phase = "VERIFYING"
	Retiring     Phase = "RETIRING"
)

// State is whether a job is at work.
type State string

// The states. The last four are final, but a FAILED job may be resumed.
const (
	Running    State = "RUNNING"
	Paused     State = "PAUSED"
	Blocked    State = "BLOCKED"
	Succeeded  State = "SUCCEEDED"
	Failed     State = "FAILED"
	Cancelled  State = "CANCELLED"
	Superseded State = "SUPERSEDED"
)

// Side is which of a change's keys a job is blocked on.
type Side string

// The sides.
const (
	From Side = "FROM"
	To   Side = "TO"
)

// A Block says why a job cannot go on by itself, and when it looks again.
type Block struct {
	Reason    broker.Reason
	Side      Side
	Message   string
	Since     time.Time
	NextProbe time.Time // zero where only a caller ends the block
}

// A Job is one key change of one domain.
type Job struct {
	Domain broker.DomainUID
	ID     broker.JobID
	Kind   Kind
	Phase  Phase
	State  State
	Block  Block // set while State is Blocked

	// SourceKey is the domain's key at Accept, "" for a first key; TargetKey
	// comes from DescribeKey, TargetGiven from the caller.
	SourceEpoch, TargetEpoch broker.Epoch
	SourceKey, TargetKey     broker.KeyARN
	TargetGiven              string
	// TargetMaterial is the key material that a KEY_MATERIAL job moves to.
	TargetMaterial string
	Reason         string // the caller's, for people
	Caller         string
	Priority       Priority
	// AllowInaccessibleSource lets the switch happen although an older key cannot
	// be read; AcceptMismatch goes on although many rows are poison.
	AllowInaccessibleSource, AcceptMismatch bool
	// Undo is the final state of a change that is being taken back before its
	// switch, "" if none is.
	Undo State

	// FailReason and FailMessage say why State is Failed.
	FailReason  broker.Reason
	FailMessage string
	// WaitMessage and WaitUntil say what a running job waits for, if anything.
	WaitMessage string
	WaitUntil   time.Time

	// PrepareTime is when every grant was found on the new key, zero before;
	// GrantTime is PREPARING's last CreateGrant.
	PrepareTime, GrantTime time.Time
	SwitchTime             time.Time
	// LastMoveTime is the last commit that moved a row.
	LastMoveTime time.Time
	// CloseTime is when the older epochs were closed; RetireTime the last
	// RetireGrant; ListTime the listing that showed none left.
	CloseTime, RetireTime, ListTime time.Time
	GrantsRetired                   int64
	// EstimatedRows is what boundary sampling saw before the switch.
	EstimatedRows int64
	// VerifiedRows is how many rows VERIFYING gave to KMS.
	VerifiedRows int64
	// Verify is how far VERIFYING has come, in a key change.
	Verify Verification

	Lease      Lease
	Version    int64 // raised by each update; the etag
	CreateTime time.Time
	UpdateTime time.Time
	EndTime    time.Time
}

// Etag is the resource's version as callers see it.
func (j Job) Etag() string { return strconv.FormatInt(j.Version, 10) }

// Open reports whether the job is not in a final state.
func (j Job) Open() bool {
	return j.State == Running || j.State == Paused || j.State == Blocked
}

// A Lease is the right of one replica to work on a job or a shard. Seq is the
// fence: each taking raises it, and each commit compares it.
type Lease struct {
	Owner string
	Seq   int64
	Until time.Time
}

// A Shard is a range of a job's rows: ids above Low (or all, if "") up to and
// including High (or all, if "").
type Shard struct {
	Domain    broker.DomainUID
	Job       broker.JobID
	Index     int
	Low, High broker.DataKeyID
	// Cursor is the last id that this sweep has committed.
	Cursor broker.DataKeyID
	// Again asks for one more sweep: rows were changed under us, left for later,
	// or another replica held the shard before. A VERIFY job's cursor stops before
	// such rows instead.
	Again    bool
	Finished bool
	// Done counts rows moved or, by a VERIFY job, read; Relabelled those of them
	// that needed no call.
	Done, Relabelled, Failed int64
	// Pace is as of the last commit or, before the first, of the shard's beginning.
	Pace  Pace
	Lease Lease
}

// Progress is a job's shards, summed.
type Progress struct {
	Shards, FinishedShards   int
	Done, Relabelled, Failed int64
}

// A Failure is a poison row: one that KMS cannot read. It is recorded, named
// and stepped over.
type Failure struct {
	Domain  broker.DomainUID
	Job     broker.JobID
	DataKey broker.DataKeyID
	UID     broker.DataKeyUID
	Version int64 // of the row that was tried
	Class   broker.KMSClass
	Message string
	Time    time.Time
	// Acknowledged: the domain's owner has given the row up (it is ABANDONED).
	Acknowledged bool
}

// A Move is the new form of a row. It is stored only if the row is still
// (UID, Version, FromEpoch); the epoch becomes the batch's target.
type Move struct {
	ID            broker.DataKeyID
	UID           broker.DataKeyUID
	Version       int64
	FromEpoch     broker.Epoch
	Ciphertext    broker.Secret
	KeyMaterialID string
	KMSRequestID  string
}

// MaterialCount says how many rows a job moved from one key material to another.
type MaterialCount struct {
	SourceKey                   broker.KeyARN
	SourceMaterial, NewMaterial string
	Rows                        int64
}
