package broker

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Registrar is KMS in the registrar's role: it describes keys, makes, lists and
// retires grants, and can use no key. Failures are *KMSError.
type Registrar interface {
	// DescribeKey takes any of KMS's four key identifier forms.
	DescribeKey(ctx context.Context, key string) (KeyMetadata, error)
	// CreateGrant makes a grant or, with DryRun, asks whether it might: nil then
	// means yes, and the answer is empty.
	CreateGrant(ctx context.Context, g NewKMSGrant) (CreatedKMSGrant, error)
	// ListGrants gives every grant on a key or, with an id, that one or none.
	ListGrants(ctx context.Context, key KeyARN, kmsGrantID string) ([]ListedGrant, error)
	// ListRetirableGrants gives the grants on a key that retiring, the ARN of a role
	// of ours, may retire. The key's policy has no say in it. KMS answers for every
	// key of the Region, so it costs more calls than ListGrants.
	ListRetirableGrants(ctx context.Context, key KeyARN, retiring string) ([]ListedGrant, error)
	// RetireGrant removes a grant; one that is gone already is no error.
	RetireGrant(ctx context.Context, key KeyARN, kmsGrantID string) (requestID string, err error)
}

// Worker is KMS in the worker's role, which has only what grants give it.
// Failures are *KMSError. With DryRun, nil means that the call would be
// allowed, and the answer is empty.
type Worker interface {
	GenerateDataKeyWithoutPlaintext(ctx context.Context, g GenerateDataKey) (WrappedKey, error)
	ReEncrypt(ctx context.Context, r ReEncrypt) (ReEncrypted, error)
}

// KeyMetadata is what the broker asks of DescribeKey.
type KeyMetadata struct {
	ARN                  KeyARN
	KeySpec              string // SYMMETRIC_DEFAULT
	KeyUsage             string // ENCRYPT_DECRYPT
	KeyState             string // Enabled, Disabled, PendingDeletion …
	CurrentKeyMaterialID string
}

// NewKMSGrant is one CreateGrant call. Constraint holds the reserved pair.
type NewKMSGrant struct {
	Key        KeyARN
	Name       string
	Grantee    string // role ARN
	Retiring   string // role ARN: the registrar's
	Operations []string
	Constraint Constraint
	DryRun     bool
}

// CreatedKMSGrant is KMS's answer. The token is for the caller's eyes only.
type CreatedKMSGrant struct {
	ID        string
	Token     Secret
	RequestID string
}

// ListedGrant is one entry of ListGrants or ListRetirableGrants.
type ListedGrant struct {
	ID, Name, Grantee string
}

// GenerateDataKey asks for a wrapped data key.
type GenerateDataKey struct {
	Key     KeyARN
	KeySpec string
	Context Context // with the reserved pair
	Tokens  []Secret
	DryRun  bool
}

// WrappedKey is KMS's answer to it.
type WrappedKey struct {
	Ciphertext    Secret
	Key           KeyARN // which key made it: compared with the one asked for
	KeyMaterialID string
	RequestID     string
}

// ReEncrypt asks KMS to move a blob. DryRun asks without looking at any blob
// (DryRunModifiers IGNORE_CIPHERTEXT), so Ciphertext is not needed then.
type ReEncrypt struct {
	Ciphertext         Secret
	SourceKey          KeyARN
	SourceContext      Context
	DestinationKey     KeyARN
	DestinationContext Context
	Tokens             []Secret
	DryRun             bool
}

// ReEncrypted is KMS's answer to it.
type ReEncrypted struct {
	Ciphertext               Secret
	SourceKey                KeyARN
	SourceKeyMaterialID      string
	DestinationKey           KeyARN
	DestinationKeyMaterialID string
	RequestID                string
}

// KMSClass says what a failure of KMS means for the broker (reference: KMS API
// Reference, the errors of each operation).
type KMSClass string

// The classes of failures.
const (
	KMSThrottled         KMSClass = "THROTTLED"          // slow down, go on
	KMSUnavailable       KMSClass = "UNAVAILABLE"        // 5xx, time-outs, connections, answers that nobody knows: what was asked may have been done; or no credentials
	KMSDenied            KMSClass = "DENIED"             // policy, grant or constraint, or a grant not seen yet
	KMSDisabled          KMSClass = "DISABLED"           // the key is disabled
	KMSInvalidState      KMSClass = "INVALID_STATE"      // pending deletion, pending import …
	KMSNotFound          KMSClass = "NOT_FOUND"          // no such key or grant
	KMSIncorrectKey      KMSClass = "INCORRECT_KEY"      // the blob is not under the key named
	KMSInvalidCiphertext KMSClass = "INVALID_CIPHERTEXT" // corrupt, or another context
	KMSLimitExceeded     KMSClass = "LIMIT_EXCEEDED"     // a resource quota, 50,000 grants a key: permanent
	KMSInvalidToken      KMSClass = "INVALID_GRANT_TOKEN"
	KMSInvalidPrincipal  KMSClass = "INVALID_PRINCIPAL" // KMS knows no such role, or not yet
	KMSInvalidRequest    KMSClass = "INVALID_REQUEST"   // the request is no good: ours to mend
)

// KMSError is a failure of one KMS call.
type KMSError struct {
	Class KMSClass
	// Code is KMS's own, e.g. DisabledException, or the adapter's where it refused
	// the call or the answer itself, e.g. ReservedPairMissing, RegionNotAllowed, or
	// could not ask, CredentialsUnavailable; "" where no answer came.
	Code      string
	Operation string
	Key       KeyARN // the key that KMS's message names, "" if none
	RequestID string
	Err       error // for logs only: KMS's message may quote the request
}

// Error names operation and code; KMS's own text stays in Err.
func (e *KMSError) Error() string {
	code := e.Code
	if code == "" {
		code = "no answer"
	}
	return fmt.Sprintf("KMS %s: %s", e.Operation, code)
}

// Unwrap gives the cause.
func (e *KMSError) Unwrap() error { return e.Err }

// Transient reports whether the same call may succeed a little later.
func (c KMSClass) Transient() bool { return c == KMSThrottled || c == KMSUnavailable }

// LostAccess reports whether the class says that the key cannot be used now, by
// its owner's doing.
func (c KMSClass) LostAccess() bool {
	return c == KMSDenied || c == KMSDisabled || c == KMSInvalidState || c == KMSNotFound
}

// ClassOf gives the class of the KMSError in err's chain, or "".
func ClassOf(err error) KMSClass {
	var e *KMSError
	if errors.As(err, &e) {
		return e.Class
	}
	return ""
}

// RefusedByKMS turns a KMSError into what the caller may see: reason, resource
// and way out. Any other error passes through.
func RefusedByKMS(err error, resource string) error {
	var k *KMSError
	if !errors.As(err, &k) {
		return err
	}
	kind, reason, detail := ErrPrecondition, ReasonKeyAccessDenied, ""
	var retry time.Duration
	switch k.Class {
	case KMSThrottled:
		kind, reason, retry, detail = ErrExhausted, ReasonKMSThrottled, time.Second, "KMS throttles the broker: repeat the call later"
	case KMSUnavailable:
		kind, reason, retry, detail = ErrUnavailable, ReasonKMSUnavailable, time.Second, "KMS did not answer, or could not be asked: repeat the call with the same request_id"
	case KMSDenied, KMSInvalidToken:
		detail = "KMS denies the broker the use of the key: compare its key policy with GenerateKeyPolicy"
	case KMSDisabled:
		reason, detail = ReasonKeyDisabled, "the KMS key is disabled: its owner can enable it"
	case KMSInvalidState:
		reason, detail = ReasonKeyStateInvalid, "the KMS key is in a state in which it cannot be used (pending deletion or import)"
	case KMSNotFound:
		reason, detail = ReasonKeyNotFound, "KMS knows no such key in this Region, or hides it from the broker"
	case KMSIncorrectKey:
		kind, reason, detail = ErrInvalid, ReasonCiphertextWrongKey, "the blob is not under the KMS key named"
	case KMSInvalidCiphertext:
		kind, reason, detail = ErrInvalid, ReasonCiphertextInvalid, "KMS cannot read the blob: it is damaged, or was made with another encryption context"
	case KMSLimitExceeded:
		kind, reason, detail = ErrExhausted, ReasonGrantLimitExceeded, "the KMS key has as many grants as its quota allows: retire some, or have the quota raised"
	case KMSInvalidPrincipal:
		e := invalidField(ReasonGranteeNotAllowed, "grant.grantee_principal",
			"KMS knows no such role (KMS: %s): name one that exists; one just made may take seconds to be known", k.Code)
		e.Resource = resource
		return e
	default:
		return fmt.Errorf("unexpected answer of KMS: %w", err)
	}
	return &Error{Kind: kind, Reason: reason, Resource: resource, Detail: detail + " (KMS: " + k.Code + ")", RetryAfter: retry}
}
