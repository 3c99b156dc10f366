package rotation

import (
	"context"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
)

// Store is the vault as rotation sees it; see broker.Store.
type Store interface {
	Update(ctx context.Context, fn func(tx Tx) error) error
	View(ctx context.Context, fn func(tx Tx) error) error
}

// JobRef names a job.
type JobRef struct {
	Domain broker.DomainUID
	ID     broker.JobID
}

// Tx is broker's transaction with the verbs of jobs. What is absent is
// broker.ErrNotFound; a lost fence or a changed version is broker.ErrConflict.
type Tx interface {
	broker.Tx

	InsertJob(ctx context.Context, j Job) error
	Job(ctx context.Context, r JobRef) (Job, error)
	// UpdateJob compares Version and Lease.Seq with the stored ones, then stores
	// j with Version+1 and UpdateTime = Now. It never writes the lease, nor
	// LastMoveTime, which is TouchJob's alone.
	UpdateJob(ctx context.Context, j Job) error
	// DueJobs gives, oldest first, up to limit jobs of a priority that come after one
	// (the zero Job: all), and in which a step by owner may find something to do. That leaves out
	// jobs that wait for a time or a probe to come, those that only a caller can set
	// going (PAUSED, or blocked with ReasonContextOrKeyMismatch), those that another
	// holds the lease of, and those whose shards are still at work, unless an older
	// key has a wrap grant.
	DueJobs(ctx context.Context, p Priority, owner string, after Job, limit int) ([]Job, error)
	// MovingJobs counts, by priority, the jobs of other domains than d that want
	// workers for their shards: see ClaimShard.
	MovingJobs(ctx context.Context, d broker.DomainUID) (map[Priority]int, error)
	// ListJobs gives up to limit jobs of a domain with an id greater than after.
	ListJobs(ctx context.Context, d broker.DomainUID, after broker.JobID, limit int) ([]Job, error)
	// LastKeyChange gives the domain's newest key change, broker.ErrNotFound if it
	// has none.
	LastKeyChange(ctx context.Context, d broker.DomainUID) (Job, error)
	// UnfinishedJobs gives a domain's jobs that are open or FAILED, oldest first.
	UnfinishedJobs(ctx context.Context, d broker.DomainUID) ([]Job, error)

	// LeaseJob takes the job for owner if its lease has run out or is owner's:
	// Seq is raised, Until becomes Now + ttl, and the job as it then stands is
	// returned. Another's live lease is broker.ErrConflict.
	LeaseJob(ctx context.Context, r JobRef, owner string, ttl time.Duration) (Job, error)
	// RenewJob moves Until if Seq still holds and was not released.
	RenewJob(ctx context.Context, r JobRef, seq int64, ttl time.Duration) error
	// ReleaseJob lets the next taker in at once, if Seq still holds.
	ReleaseJob(ctx context.Context, r JobRef, seq int64) error

	// SampleBoundaries splits the domain's ids into up to n ranges of about equal
	// size and gives the n-1 inner bounds, with the number of rows it saw.
	// It may be slow: call it in a View, outside any lock.
	SampleBoundaries(ctx context.Context, d broker.DomainUID, n int) (bounds []broker.DataKeyID, rows int64, err error)
	// InsertShards stores the shards of a job, replacing those it had. No fence of
	// the former shards holds for the new ones.
	InsertShards(ctx context.Context, shards []Shard) error
	Shards(ctx context.Context, r JobRef) ([]Shard, error)
	Progress(ctx context.Context, r JobRef) (Progress, error)
	// ClaimShard takes one unfinished shard, whose lease has run out, of a job
	// that is RUNNING in REENCRYPTING or, of kind VERIFY, in VERIFYING: Seq is raised and
	// Until becomes Now + ttl.
	// If the lease it takes over was not released, Again is set, but not where the
	// kind is VERIFY. The job is the one
	// with the best claim: whose live leases, with this one, would count least, each
	// counted highPart times where its priority is Normal. What counts for a job
	// without a live lease is divided by 1 + the Turns that have passed since the
	// latest Pace.Time of its shards. Among equals it is the job with the earliest.
	// broker.ErrNotFound if there is none.
	ClaimShard(ctx context.Context, owner string, ttl time.Duration) (Shard, Job, error)
	// CommitShard stores cursor, counts, pace, Again and Finished and renews the lease
	// by ttl if s.Lease.Seq still holds (else broker.ErrConflict), and gives the
	// job's state, which tells the worker whether to go on, and its priority. ttl 0
	// releases.
	CommitShard(ctx context.Context, s Shard, ttl time.Duration) (State, Priority, error)
	// ShardWanted says whether another job has a better claim to a worker of r than r
	// has: the worker should let its shard go then, and ClaimShard will not give it
	// back to r.
	ShardWanted(ctx context.Context, r JobRef) (bool, error)
	// Paces gives the paces of a job's shards.
	Paces(ctx context.Context, r JobRef) ([]Pace, error)
	// RenewShard only moves Until, if Seq still holds and was not released.
	RenewShard(ctx context.Context, s Shard, ttl time.Duration) error

	// Stretch gives the next part of the shard's range beyond its cursor: the shard,
	// with High lowered to the last of so many rows as one statement should look at. If
	// it has no more, High stays. What gives rows of a shard may have to look at each to
	// find few, so it is asked for one stretch after the other.
	Stretch(ctx context.Context, s Shard) (Shard, error)
	// PendingDataKeys gives up to limit rows of the shard's range, with an id
	// greater than the shard's cursor and an epoch below target, that are neither
	// abandoned nor a recorded Failure of this job in their present version.
	PendingDataKeys(ctx context.Context, s Shard, target broker.Epoch, limit int) ([]broker.DataKey, error)
	// MaterialDataKeys is PendingDataKeys for a KEY_MATERIAL job: rows of epoch with
	// another key material than target, last updated before t.
	MaterialDataKeys(ctx context.Context, s Shard, epoch broker.Epoch, target string, t time.Time, limit int) ([]broker.DataKey, error)
	// ShardDataKeys gives up to limit rows of the shard's range beyond its cursor.
	ShardDataKeys(ctx context.Context, s Shard, limit int) ([]broker.DataKey, error)
	// MoveDataKeys stores the moves in the order given and tells for each whether
	// its row was still as it had been read.
	MoveDataKeys(ctx context.Context, d broker.DomainUID, target broker.Epoch, moves []Move) ([]bool, error)
	// CountDataKeys counts a domain's rows by epoch, abandoned ones left out, as far
	// as they are among the first most rows; whole says that there are no others.
	CountDataKeys(ctx context.Context, d broker.DomainUID, most int) (byEpoch map[broker.Epoch]int64, whole bool, err error)
	// HasDataKeys says whether a domain has a row under a key that is not abandoned.
	// To find none it reads every row: call it where no caller waits.
	HasDataKeys(ctx context.Context, d broker.DomainUID, key broker.KeyARN) (bool, error)
	// TouchJob sets LastMoveTime without raising the version: to the time at which it
	// has the job, which is later than Now where it or the transaction had to wait.
	TouchJob(ctx context.Context, r JobRef) error

	AddFailures(ctx context.Context, f []Failure) error // replaces those of the same row
	// Failures gives up to limit failures of a job with a data key greater than after.
	Failures(ctx context.Context, r JobRef, after broker.DataKeyID, limit int) ([]Failure, error)
	// DeleteFailures forgets those that are not acknowledged, but for rows that
	// are at epoch but (0: none) and as they were.
	DeleteFailures(ctx context.Context, r JobRef, but broker.Epoch) error
	// AbandonDataKey marks a failure as acknowledged and its row as abandoned, in a
	// new version, if the row is still the one that failed or is abandoned already;
	// false if it is neither.
	AbandonDataKey(ctx context.Context, f Failure) (bool, error)
	AddMoved(ctx context.Context, r JobRef, counts []MaterialCount) error // adds to those stored
	Moved(ctx context.Context, r JobRef) ([]MaterialCount, error)

	// The next four are about the KMS grants under one epoch. Used is what somebody may
	// have used: all but what FAILED and has no id, since it was never made.

	// FailedOn gives the live grants of a domain of which an attempt under an epoch
	// FAILED, whatever came after.
	FailedOn(ctx context.Context, d broker.DomainUID, e broker.Epoch) ([]broker.GrantUID, error)
	// LastServiceWrap gives until when services could make ciphertext under an epoch:
	// Now while a wrap grant of one may exist, then the last EndTime of the used ones,
	// zero if there never was one. The worker's do not count.
	LastServiceWrap(ctx context.Context, d broker.DomainUID, e broker.Epoch) (time.Time, error)
	// LastKMSGrantEnd gives the last EndTime of the used KMS grants under an epoch, the
	// worker's too, zero if none has ended.
	LastKMSGrantEnd(ctx context.Context, d broker.DomainUID, e broker.Epoch) (time.Time, error)
	// SelfGrantsOn gives a domain's grants of InventorySelf, in every state, by id, with
	// each epoch from one on under which they have a used KMS grant, once or more. It
	// looks at each such grant that the domain had.
	SelfGrantsOn(ctx context.Context, d broker.DomainUID, from broker.Epoch) ([]SelfGrant, error)

	// PutSettlement inserts a settlement, or replaces that of the same grant and epoch.
	PutSettlement(ctx context.Context, s Settlement) error
	// Settlements gives a domain's settlements of an epoch and of those above it, by
	// epoch and grant uid.
	Settlements(ctx context.Context, d broker.DomainUID, from broker.Epoch) ([]Settlement, error)
	// DeleteSettlement removes that of the same grant and epoch; false if there is
	// none any more.
	DeleteSettlement(ctx context.Context, s Settlement) (bool, error)

	// UsesOfKey tells what, in any domain, still refers to the key ARN. It counts
	// rows of each domain whose epochs with the key are not all retired, and reads
	// most rows for that in all.
	UsesOfKey(ctx context.Context, key broker.KeyARN, most int) ([]KeyUse, error)

	// ShredDataKeys removes up to limit rows of a domain, with tombstones, and gives
	// their number. Rows that another transaction is removing are left to that.
	ShredDataKeys(ctx context.Context, d broker.DomainUID, limit int) (int, error)
	// DeletedDomains gives up to limit DELETED domains that have a key which is
	// neither RETIRED nor ABANDONED, or KMS grants that may exist.
	DeletedDomains(ctx context.Context, limit int) ([]broker.Domain, error)

	// BeatReplica stores what a replica says of itself, until Now + ttl, and forgets
	// replicas whose word has run out. Replicas gives those whose word holds, by id.
	BeatReplica(ctx context.Context, id string, budgets []Beat, ttl time.Duration) error
	ForgetReplica(ctx context.Context, id string) error
	Replicas(ctx context.Context) ([]Replica, error)

	// Standing counts what stands open in all domains, most of each at most.
	Standing(ctx context.Context, most int) (Standing, error)

	// TakePeriodic takes the periodic task name for owner if it is due, that is
	// every has passed since it was last taken or renewed; false if it is not.
	TakePeriodic(ctx context.Context, name, owner string, every time.Duration) (bool, error)
	// RenewPeriodic keeps a task that owner was the last to take: it counts as taken
	// now. One that another has taken since is broker.ErrConflict.
	RenewPeriodic(ctx context.Context, name, owner string) error
}

// A SelfGrant is a grant of InventorySelf, and an epoch that it was on.
type SelfGrant struct {
	broker.Grant
	Epoch broker.Epoch
}

// A KeyUse is what one domain still has with one key ARN.
type KeyUse struct {
	DomainID  broker.DomainID
	DomainUID broker.DomainUID
	// Epochs are the domain's unretired, preparing or abandoned epochs with this
	// ARN; Current says that one of them is the present one.
	Epochs  []broker.Epoch
	Current bool
	// Leaving says that the domain has replaced the key and is not done with it: one
	// of its epochs is not retired. Of a DELETED domain, that it may have rows left.
	Leaving bool
	// Preparing is the job that is preparing to switch to this key, if any.
	Preparing broker.JobID
	// Grants counts KMS grants that may exist, Intents those of them without an
	// answer, Rows the wrapped data keys of the epochs that may have any: not of
	// retired ones, whose job has passed over every row and found none.
	Grants, Intents, Rows int64
	// AtLeast says that not every row of the domain was read, so Rows may be more.
	AtLeast bool
	// Abandoned counts rows under the key that their owner has given up, in every
	// epoch; they are not among Rows. FirstAbandoned are the first MostNamed of them,
	// by id.
	Abandoned      int64
	FirstAbandoned []broker.DataKeyID
	// ImportSource says that the domain may import blobs made under it.
	ImportSource bool
	// RetireTime is when the last of the domain's epochs with this ARN was
	// retired, zero if none is.
	RetireTime time.Time
}
