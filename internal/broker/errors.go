package broker

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Kinds of failure. Each Error unwraps to one of them; the front door maps a
// kind to a gRPC code, and the reason to ErrorInfo.
var (
	ErrInvalid       = errors.New("invalid argument")
	ErrNotFound      = errors.New("not found")
	ErrAlreadyExists = errors.New("already exists")
	ErrPrecondition  = errors.New("failed precondition")
	ErrConflict      = errors.New("conflict, read again and retry")
	ErrDenied        = errors.New("permission denied")
	ErrExhausted     = errors.New("resource exhausted")
	ErrUnavailable   = errors.New("unavailable")
)

// Reason is the stable, machine-readable cause of an Error: the names of the
// API's Reason enum without their prefix.
type Reason string

// The reasons this package and the rooms above it give. The API's errors.proto
// says of each when it comes and what the way out is.
const (
	ReasonFieldInvalid     Reason = "FIELD_INVALID"
	ReasonNameInvalid      Reason = "NAME_INVALID"
	ReasonFilterInvalid    Reason = "FILTER_INVALID"
	ReasonPageTokenInvalid Reason = "PAGE_TOKEN_INVALID"

	ReasonEtagRequired      Reason = "ETAG_REQUIRED"
	ReasonEtagMismatch      Reason = "ETAG_MISMATCH"
	ReasonRequestInProgress Reason = "REQUEST_IN_PROGRESS"
	ReasonRequestIDReused   Reason = "REQUEST_ID_REUSED"

	ReasonDomainNotFound      Reason = "DOMAIN_NOT_FOUND"
	ReasonDomainAlreadyExists Reason = "DOMAIN_ALREADY_EXISTS"
	ReasonDomainNotEmpty      Reason = "DOMAIN_NOT_EMPTY"
	ReasonDomainPendingKey    Reason = "DOMAIN_PENDING_KEY"

	ReasonKeyChangeInProgress Reason = "KEY_CHANGE_IN_PROGRESS"
	ReasonKeyUnchanged        Reason = "KEY_UNCHANGED"
	// ReasonKeyChangedByChangeKey: another call changes a domain's key.
	ReasonKeyChangedByChangeKey Reason = "KEY_CHANGED_BY_CHANGE_KEY"

	ReasonGrantNotFound       Reason = "GRANT_NOT_FOUND"
	ReasonGrantAlreadyExists  Reason = "GRANT_ALREADY_EXISTS"
	ReasonGrantEnded          Reason = "GRANT_ENDED"
	ReasonGranteeNotAllowed   Reason = "GRANTEE_NOT_ALLOWED"
	ReasonGrantLimitExceeded  Reason = "GRANT_LIMIT_EXCEEDED"
	ReasonOperationNotAllowed Reason = "OPERATION_NOT_ALLOWED"
	ReasonConstraintInvalid   Reason = "CONSTRAINT_INVALID"
	ReasonGrantNotSelf        Reason = "GRANT_NOT_SELF"

	ReasonDataKeyNotFound      Reason = "DATA_KEY_NOT_FOUND"
	ReasonDataKeyAlreadyExists Reason = "DATA_KEY_ALREADY_EXISTS"
	ReasonDataKeyIDDeleted     Reason = "DATA_KEY_ID_DELETED"
	ReasonCiphertextInvalid    Reason = "CIPHERTEXT_INVALID"
	ReasonCiphertextWrongKey   Reason = "CIPHERTEXT_WRONG_KEY"

	ReasonImportSourceNotAllowed Reason = "IMPORT_SOURCE_NOT_ALLOWED"
	ReasonImportDuplicate        Reason = "IMPORT_DUPLICATE"

	ReasonContextKeyReserved  Reason = "CONTEXT_KEY_RESERVED"
	ReasonContextKeyInvalid   Reason = "CONTEXT_KEY_INVALID"
	ReasonContextValueInvalid Reason = "CONTEXT_VALUE_INVALID"
	ReasonContextDuplicateKey Reason = "CONTEXT_DUPLICATE_KEY"
	ReasonContextTooLarge     Reason = "CONTEXT_TOO_LARGE"

	ReasonKeyARNInvalid        Reason = "KEY_ARN_INVALID"
	ReasonKeyRegionMismatch    Reason = "KEY_REGION_MISMATCH"
	ReasonKeyAccountNotAllowed Reason = "KEY_ACCOUNT_NOT_ALLOWED"
	ReasonKeyNotFound          Reason = "KEY_NOT_FOUND"
	ReasonKeyNotSymmetric      Reason = "KEY_NOT_SYMMETRIC"
	ReasonKeyDisabled          Reason = "KEY_DISABLED"
	ReasonKeyStateInvalid      Reason = "KEY_STATE_INVALID"
	ReasonKeyAccessDenied      Reason = "KEY_ACCESS_DENIED"
	ReasonKeyPolicyMissing     Reason = "KEY_POLICY_MISSING"
	ReasonKeyPolicyTooBroad    Reason = "KEY_POLICY_TOO_BROAD"

	ReasonPolicyDocumentInvalid Reason = "POLICY_DOCUMENT_INVALID"
	ReasonPolicyTooLarge        Reason = "POLICY_TOO_LARGE"

	ReasonJobNotFound          Reason = "JOB_NOT_FOUND"
	ReasonJobEnded             Reason = "JOB_ENDED"
	ReasonJobNotCancellable    Reason = "JOB_NOT_CANCELLABLE"
	ReasonContextOrKeyMismatch Reason = "CONTEXT_OR_KEY_MISMATCH"
	ReasonReportNotFound       Reason = "REPORT_NOT_FOUND"
	ReasonRowsFailed           Reason = "ROWS_FAILED"

	ReasonSelfInventory       Reason = "SELF_INVENTORY"
	ReasonAttestationTooEarly Reason = "ATTESTATION_TOO_EARLY"
	ReasonNoOlderKey          Reason = "NO_OLDER_KEY"
	ReasonResumeTokenInvalid  Reason = "RESUME_TOKEN_INVALID"
	ReasonKeyChangedMeanwhile Reason = "KEY_CHANGED_MEANWHILE"

	ReasonKMSThrottled     Reason = "KMS_THROTTLED"
	ReasonKMSUnavailable   Reason = "KMS_UNAVAILABLE"
	ReasonKMSRefused       Reason = "KMS_REFUSED"
	ReasonStoreUnavailable Reason = "STORE_UNAVAILABLE"
	ReasonShuttingDown     Reason = "SHUTTING_DOWN"
)

// A Violation names one field of a request that broke a rule, by its path in
// the API message, and says what to do.
type Violation struct {
	Field, Description string
}

// Error is the one failure type that use cases return on purpose. Detail is
// for the caller: it names the field or resource and the way out, and never
// holds key bytes, tokens or context values.
type Error struct {
	Kind       error
	Reason     Reason
	Resource   string // resource name, or "" where none is meant
	Detail     string
	Violations []Violation
	RetryAfter time.Duration // advice for retryable kinds; 0 means none
}

// Error implements error.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Detail)
	for _, v := range e.Violations {
		fmt.Fprintf(&b, "; %s: %s", v.Field, v.Description)
	}
	if e.Resource != "" {
		fmt.Fprintf(&b, " (%s)", e.Resource)
	}
	return b.String()
}

// Unwrap gives the kind, so that errors.Is(err, ErrNotFound) holds.
func (e *Error) Unwrap() error { return e.Kind }

// ReasonOf gives the reason of the first Error in err's chain, or "".
func ReasonOf(err error) Reason {
	var e *Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return ""
}

func invalidField(reason Reason, field, format string, args ...any) *Error {
	text := fmt.Sprintf(format, args...)
	return &Error{Kind: ErrInvalid, Reason: reason, Detail: "the request is invalid",
		Violations: []Violation{{Field: field, Description: text}}}
}

func precondition(reason Reason, resource, format string, args ...any) *Error {
	return &Error{Kind: ErrPrecondition, Reason: reason, Resource: resource, Detail: fmt.Sprintf(format, args...)}
}

func etagMismatch(resource string) *Error {
	return &Error{Kind: ErrConflict, Reason: ReasonEtagMismatch, Resource: resource,
		Detail: "the etag is not the resource's present one: read it again and repeat the call with its etag"}
}
