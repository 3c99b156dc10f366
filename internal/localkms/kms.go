// Package localkms is an embedded key management service: an http.Handler that
// speaks the AWS KMS wire protocol (AWS JSON 1.1) for symmetric and HMAC keys. Keys
// of other kinds can be made, described and refused, but not used.
//
// What it does. It keeps keys, aliases, key policies and grants, encrypts with
// AES-256-GCM under the encryption context, and enforces what other emulators
// only store: key policies, grants with their constraints, key states, grant
// tokens and DryRun. Codes and messages are those of AWS. With a directory its
// state survives kill -9 at any moment; without one it lives in memory.
//
// Who may call it. Anything that speaks to AWS KMS, over a socket or through
// [RoundTripper]. Signatures (SigV4, in the Authorization header) are verified: the
// caller of a request is the principal behind their access key id, and their
// region is the region of the request. STS, on the same address, lets users and
// roles act in roles.
//
// What it never does. It starts no goroutine, and no timer but to hold up a request
// that [Faults] delays; it takes no nonce and no
// key material from outside, holds no lock while it encrypts, and never shows
// plaintext or ciphertext to [Config.Observe]. Key material lies unencrypted in
// its directory, which is closed to other users: it protects development data.
//
// Where it differs from AWS:
//   - The principals of Config.Principals hold an identity policy that allows
//     everything, and roles among them a permanent access key.
//   - Accounts are not in organizations, and have no managed policies, groups,
//     permissions boundaries and tags on users and roles. STS has AssumeRole and
//     GetCallerIdentity. A session policy is taken; session tags are refused.
//   - Policies have no NotPrincipal, and of policy variables those that this
//     package can fill; others are refused. A key policy's statement without Action
//     or Resource, which AWS takes and passes over, is refused.
//   - A DryRun reads the key from a ciphertext but does not decrypt it.
//   - A rotation on demand is complete when it is answered. An automatic one
//     happens when the key is next looked at, as of the day when it was due.
//   - A deleted key is gone at its date to the millisecond. Its material leaves
//     the directory when that is opened next.
//   - A change governs the authorization of others a moment before it is on disk.
//     Answers that report state, and those of changes, wait for the disk.
//   - In a request that names two context keys which differ only by case, a
//     grant constraint or policy condition is met by either.
//   - A genuine token of a retired grant, listed in GrantTokens, gives nothing
//     and does no harm; only a token that was never issued is refused.
package localkms

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// DefaultGrantsPerKey is how many grants a key may have. Source: AWS KMS
// Developer Guide, Quotas, "Grants per customer managed KMS key".
const DefaultGrantsPerKey = 50_000

// Config says what a KMS is made of. Now is needed, and somebody who may call.
type Config struct {
	// Dir is the directory of the journal, made with mode 0700 when absent.
	// Empty keeps everything in memory. Only one KMS may use it at a time.
	Dir string

	// Accounts are the AWS accounts whose users and roles may call.
	Accounts []Account

	// Principals may call as well, each with an identity policy that allows
	// everything: what their account may do, they may do.
	Principals []Principal

	// GrantDelay is how long a new grant stays unseen, by authorization without
	// one of its tokens and by ListGrants. AWS: usually less than five minutes
	// (Developer Guide, "Grants in AWS KMS", eventual consistency).
	GrantDelay time.Duration

	// GrantsPerKey is the quota of grants on one key; 0 means
	// [DefaultGrantsPerKey].
	GrantsPerKey int

	// Faults are in force from the start. SetFaults replaces them.
	Faults Faults

	// Now tells the time. Required.
	Now func() time.Time

	// ClockSkew is how far the time of a signature may be from Now, before or
	// after. 0 is what AWS allows: 5 minutes for KMS, 15 for STS. A negative one
	// allows any time, for a Now that tests move while their clients sign by a real
	// clock.
	ClockSkew time.Duration

	// Sleep waits for a while, or until the context is done, whose error it then
	// returns. Only Faults.Latency uses it. Nil is a timer.
	Sleep func(context.Context, time.Duration) error

	// Observe is told of each request after it was served and before it is
	// answered. It is called under no lock, by the goroutine of the request, so
	// by several at once. The maps and slices it gets are its to keep. May be nil.
	Observe func(Call)

	// Explain is told of each decision about a permission, refusals included, as it
	// is made. It is called under no lock, by the goroutine of the request, so by
	// several at once. May be nil.
	Explain func(Decision)
}

// Principal is an identity that may call, and the credential it calls with.
type Principal struct {
	// ARN is an IAM role or user, arn:aws:iam::111122223333:role/name, or the
	// root of an account, arn:aws:iam::111122223333:root. A role with a permanent
	// key is no session of it: AWS has no such thing.
	ARN string

	// AccessKeyID is unique among the principals of a KMS.
	AccessKeyID string

	// SecretAccessKey is what requests are signed with. Required.
	SecretAccessKey string
}

// Call is what [Config.Observe] learns of one request. What the operation does
// not have, or what an early error left unread, is empty.
type Call struct {
	Operation string // as in X-Amz-Target, without the service; of STS its Action
	Principal string // ARN of the caller
	RequestID string // the x-amzn-RequestId of the answer

	KeyARN       string // the key used; of ReEncrypt the destination
	SourceKeyARN string // of ReEncrypt

	EncryptionContext       map[string]string // of ReEncrypt the destination's
	SourceEncryptionContext map[string]string // of ReEncrypt

	GrantID         string   // CreateGrant: the answer's; RetireGrant: the grant's
	GrantName       string   // CreateGrant
	GrantOperations []string // CreateGrant
	Constraint      Constraint

	DryRun    bool
	ErrorCode string // empty when the request succeeded

	// Injected are the faults that befell the request, with commas between them:
	// quota, latency, the code of an error, disabled-key, lost-answer, hidden-grant
	// (only Faults.GrantDelay kept a grant from allowing it), and retired-grant (only
	// Faults.RetireDelay let a grant allow it).
	Injected string
}

// Constraint is the encryption context constraint of a grant: at most one of
// the two maps has pairs. Keys are compared without regard to case, values
// exactly (AWS KMS API Reference, GrantConstraints).
type Constraint struct {
	Subset map[string]string `json:"subset,omitempty"` // the request must have these pairs, and may have more
	Equals map[string]string `json:"equals,omitempty"` // the request must have exactly these pairs
}

// KMS is the service. All methods may be called concurrently.
type KMS struct {
	now          func() time.Time
	grantDelay   time.Duration
	grantsPerKey int
	observe      func(Call)
	tell         func(Decision) // may be nil
	denials      denials
	sleep        func(context.Context, time.Duration) error
	clockSkew    time.Duration
	verifier     *verifier
	credentials  map[string]credential // of permanent keys, by access key id; never changes
	sessions     *sessions
	operations   map[string]operation // by name; never changes
	journal      *journal             // nil when there is no directory
	plan         atomic.Pointer[plan] // nil when there are no faults

	mu    sync.RWMutex // guards state
	state *state
}

var _ http.Handler = (*KMS)(nil)

// New opens a KMS, with the state that Config.Dir holds. It fails without a
// clock, on a principal that is no IAM user, role or account root or lacks an
// access key, on an access key id used twice, on faults that SetFaults refuses, on
// a directory that another KMS has open, and on a damaged journal. A journal that
// ends in the middle of a record, as a crash leaves it, is not damaged: the
// incomplete record was never acknowledged and is dropped.
func New(cfg Config) (*KMS, error) {
	if cfg.Now == nil {
		return nil, errors.New("localkms: Config.Now is required")
	}
	known, err := newDirectory(cfg.Accounts, cfg.Principals)
	if err != nil {
		return nil, fmt.Errorf("localkms: %w", err)
	}
	k := &KMS{
		now:          cfg.Now,
		grantDelay:   cfg.GrantDelay,
		grantsPerKey: cfg.GrantsPerKey,
		observe:      cfg.Observe,
		tell:         cfg.Explain,
		sleep:        cfg.Sleep,
		clockSkew:    cfg.ClockSkew,
		verifier:     newVerifier(),
		credentials:  known.credentials,
		operations:   newOperations(),
	}
	if k.grantsPerKey == 0 {
		k.grantsPerKey = DefaultGrantsPerKey
	}
	if k.sleep == nil {
		k.sleep = sleep
	}
	if err := k.SetFaults(cfg.Faults); err != nil {
		return nil, err
	}
	if cfg.Dir == "" {
		k.state = newState(newTokenSecret())
		k.state.tracking = stamp(cfg.Now())
	} else if k.journal, k.state, err = openJournal(cfg.Dir, cfg.Now()); err != nil {
		return nil, fmt.Errorf("open KMS directory %s: %w", cfg.Dir, err)
	}
	k.sessions = newSessions(k.state.tokenSecret, known.roles)
	return k, nil
}

// Close makes what was changed durable and lets the directory go. Requests after
// it that change something are answered with KMSInternalException.
func (k *KMS) Close() error {
	return k.journal.close()
}

// change is the only way to alter the state. It runs decide under the write
// lock, applies the event it returns (nil: no change), and returns when
// everything that decide saw or did is on disk, so that no answer, not even a
// refusal, rests on something a crash could undo.
func (k *KMS) change(decide func(*state) (*event, error)) error {
	err := k.decide(decide)
	if settleErr := k.settle(); settleErr != nil {
		return settleErr
	}
	return err
}

func (k *KMS) decide(decide func(*state) (*event, error)) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, e := range k.state.due(k.now()) {
		if err := k.commit(e); err != nil {
			return err
		}
	}
	e, err := decide(k.state)
	if err != nil || e == nil {
		return err
	}
	return k.commit(e)
}

// commit makes a change. Called with mu held for writing.
func (k *KMS) commit(e *event) error {
	if err := k.journal.append(e); err != nil {
		return err
	}
	return k.state.apply(e)
}

// settle waits until every change made so far is on disk. Operations that report
// state call it after they read.
func (k *KMS) settle() error {
	return k.journal.settle()
}
