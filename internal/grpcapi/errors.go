package grpcapi

import (
	"context"
	"errors"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/keybroker/keybroker/internal/broker"
)

// errorDomain is the domain of every ErrorInfo of ours.
const errorDomain = "keybroker"

// reasonInternal is the one reason that only the door gives.
const reasonInternal broker.Reason = "INTERNAL"

// A status travels in HTTP/2 trailers, and many clients take 8 KiB of them.
const (
	maxViolations  = 8
	maxText        = 400
	maxField       = 160
	maxDescription = 200
)

// retryAfter is the advice where a retryable error brings none.
const retryAfter = time.Second

// A failure is a call's error on both of its ways out: status for the client,
// cause for the log.
type failure struct {
	status *status.Status
	reason broker.Reason
	// resource is what the error is about, "" if it names nothing.
	resource string
	cause    error
	// expected failures are told to the caller in full; of others the log must
	// keep the cause.
	expected bool
}

func (f *failure) Error() string { return f.status.String() }

// GRPCStatus is what gRPC sends.
func (f *failure) GRPCStatus() *status.Status { return f.status }

func (f *failure) Unwrap() error { return f.cause }

// failureOf is the error map of the product: there is no other. What it does
// not know becomes INTERNAL with a fixed text, so that nothing leaks.
func failureOf(err error) *failure {
	var known *broker.Error
	switch {
	case errors.As(err, &known):
		return told(known, err)
	case errors.Is(err, context.DeadlineExceeded):
		return bare(err, codes.DeadlineExceeded, "", "the deadline passed before the call was done: read the resource, or repeat the call with the same request_id")
	case errors.Is(err, context.Canceled):
		return bare(err, codes.Canceled, "", "the caller went away")
	}
	for _, k := range kinds {
		if errors.Is(err, k.kind) {
			return bare(err, k.code, k.reason, k.text)
		}
	}
	return bare(err, codes.Internal, reasonInternal, "internal error of the broker: its log has the details")
}

// bare is a failure that is told in a text of the map's own.
func bare(err error, code codes.Code, reason broker.Reason, text string) *failure {
	f := &failure{reason: reason, cause: err}
	f.status = withDetails(status.New(code, text), errorDetails(code, &broker.Error{Reason: reason, Detail: text}))
	return f
}

// told is a failure that a use case describes to its caller.
func told(e *broker.Error, err error) *failure {
	code := codeOf(e)
	return &failure{
		status:   withDetails(status.New(code, clip(e.Error(), maxText)), errorDetails(code, e)),
		reason:   e.Reason,
		resource: e.Resource,
		cause:    err,
		expected: err.Error() == e.Error(),
	}
}

// codeOf gives the code that the API publishes for the reason (errors.proto).
// Only an error without a known reason falls back to its kind: kinds are what
// the rooms below agree on among themselves, codes are what clients build on.
func codeOf(e *broker.Error) codes.Code {
	if code, ok := codeOfReason(e.Reason); ok {
		return code
	}
	for _, k := range kinds {
		if errors.Is(e.Kind, k.kind) {
			return k.code
		}
	}
	return codes.Internal
}

// kinds maps the kinds of failure. Reason and text are for a kind that comes
// without an Error around it. That is the store's: most often, somebody else
// changed a row between a use case's read and its write.
var kinds = []struct {
	kind   error
	code   codes.Code
	reason broker.Reason
	text   string
}{
	{broker.ErrInvalid, codes.InvalidArgument, broker.ReasonFieldInvalid, "the request is invalid"},
	{broker.ErrNotFound, codes.NotFound, "", "there is no such resource any more"},
	{broker.ErrAlreadyExists, codes.AlreadyExists, "", "a resource of this name exists: read it, or choose another id"},
	{broker.ErrPrecondition, codes.FailedPrecondition, "", "the resource is not in a state for this call"},
	{broker.ErrConflict, codes.Aborted, broker.ReasonEtagMismatch, "the resource changed during the call: read it again and decide anew"},
	{broker.ErrDenied, codes.PermissionDenied, "", "the caller may not do this"},
	{broker.ErrExhausted, codes.ResourceExhausted, "", "a limit is reached: repeat the call later"},
	{broker.ErrUnavailable, codes.Unavailable, broker.ReasonStoreUnavailable, "the broker's database does not answer: repeat the call with the same request_id"},
}

// codeOfReason is errors.proto's first words on each reason; a test compares.
func codeOfReason(r broker.Reason) (code codes.Code, ok bool) {
	switch r {
	case broker.ReasonFieldInvalid, broker.ReasonNameInvalid, broker.ReasonFilterInvalid, broker.ReasonPageTokenInvalid,
		broker.ReasonEtagRequired, broker.ReasonRequestIDReused, broker.ReasonGranteeNotAllowed, broker.ReasonOperationNotAllowed,
		broker.ReasonConstraintInvalid, broker.ReasonCiphertextInvalid, broker.ReasonCiphertextWrongKey,
		broker.ReasonImportDuplicate, broker.ReasonContextKeyReserved, broker.ReasonContextKeyInvalid,
		broker.ReasonContextDuplicateKey, broker.ReasonContextTooLarge, broker.ReasonContextValueInvalid,
		broker.ReasonKeyARNInvalid, broker.ReasonKeyRegionMismatch, broker.ReasonKeyChangedByChangeKey, broker.ReasonPolicyDocumentInvalid,
		broker.ReasonResumeTokenInvalid:
		return codes.InvalidArgument, true
	case broker.ReasonDomainNotFound, broker.ReasonGrantNotFound, broker.ReasonDataKeyNotFound,
		broker.ReasonJobNotFound, broker.ReasonReportNotFound:
		return codes.NotFound, true
	case broker.ReasonDomainAlreadyExists, broker.ReasonGrantAlreadyExists, broker.ReasonDataKeyAlreadyExists:
		return codes.AlreadyExists, true
	case broker.ReasonDomainPendingKey, broker.ReasonGrantEnded, broker.ReasonGrantNotSelf,
		broker.ReasonDataKeyIDDeleted, broker.ReasonImportSourceNotAllowed, broker.ReasonKeyUnchanged,
		broker.ReasonKeyAccountNotAllowed, broker.ReasonKeyNotFound, broker.ReasonKeyNotSymmetric,
		broker.ReasonKeyDisabled, broker.ReasonKeyStateInvalid, broker.ReasonKeyAccessDenied,
		broker.ReasonKeyPolicyMissing, broker.ReasonKeyPolicyTooBroad, broker.ReasonPolicyTooLarge,
		broker.ReasonRowsFailed, broker.ReasonContextOrKeyMismatch, broker.ReasonDomainNotEmpty, broker.ReasonJobEnded,
		broker.ReasonJobNotCancellable, broker.ReasonSelfInventory, broker.ReasonAttestationTooEarly, broker.ReasonNoOlderKey:
		return codes.FailedPrecondition, true
	case broker.ReasonEtagMismatch, broker.ReasonRequestInProgress, broker.ReasonKeyChangeInProgress, broker.ReasonKeyChangedMeanwhile:
		return codes.Aborted, true
	case broker.ReasonGrantLimitExceeded:
		return codes.ResourceExhausted, true
	case broker.ReasonStoreUnavailable, broker.ReasonShuttingDown, broker.ReasonKMSThrottled, broker.ReasonKMSUnavailable:
		return codes.Unavailable, true
	case reasonInternal:
		return codes.Internal, true
	}
	return codes.OK, false
}

// errorDetails are the google.rpc messages beside code and text.
func errorDetails(code codes.Code, e *broker.Error) []protoadapt.MessageV1 {
	var details []protoadapt.MessageV1
	if e.Reason != "" {
		details = append(details, &errdetails.ErrorInfo{Reason: string(e.Reason), Domain: errorDomain})
	}
	if len(e.Violations) > 0 {
		bad := &errdetails.BadRequest{}
		for _, v := range e.Violations[:min(len(e.Violations), maxViolations)] {
			bad.FieldViolations = append(bad.FieldViolations, &errdetails.BadRequest_FieldViolation{
				Field: clip(v.Field, maxField), Description: clip(v.Description, maxDescription)})
		}
		details = append(details, bad)
	}
	if code == codes.FailedPrecondition {
		details = append(details, &errdetails.PreconditionFailure{Violations: []*errdetails.PreconditionFailure_Violation{
			{Type: string(e.Reason), Subject: clip(e.Resource, maxText), Description: clip(e.Detail, maxText)}}})
	}
	if after := adviceOf(e); after > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(after)})
	}
	if e.Resource != "" {
		details = append(details, &errdetails.ResourceInfo{ResourceType: typeOf(e.Resource), ResourceName: clip(e.Resource, maxText)})
	}
	return details
}

// adviceOf is when to come back: errors.proto promises a delay for these.
func adviceOf(e *broker.Error) time.Duration {
	switch e.Reason {
	case broker.ReasonRequestInProgress, broker.ReasonStoreUnavailable, broker.ReasonKMSThrottled, broker.ReasonKMSUnavailable:
		return max(e.RetryAfter, retryAfter)
	}
	return e.RetryAfter
}

// typeOf tells the message behind a resource name.
func typeOf(resource string) string {
	parts := strings.Split(resource, "/")
	if len(parts) < 3 {
		return "keybroker.v1.Domain"
	}
	switch parts[2] {
	case "grants":
		return "keybroker.v1.Grant"
	case "dataKeys":
		return "keybroker.v1.DataKey"
	}
	switch {
	case len(parts) > 5:
		return "keybroker.v1.ReencryptionFailure"
	case len(parts) > 4:
		return "keybroker.v1.RetirementReport"
	}
	return "keybroker.v1.ReencryptionJob"
}

// withDetails adds details; a status that cannot carry them goes without.
func withDetails(s *status.Status, details []protoadapt.MessageV1) *status.Status {
	if detailed, err := s.WithDetails(details...); err == nil {
		return detailed
	}
	return s
}

// clip shortens text to n bytes of valid UTF-8, which protobuf demands.
func clip(text string, n int) string {
	if len(text) > n {
		for n > 0 && !utf8.RuneStart(text[n]) {
			n--
		}
		text = text[:n] + "…"
	}
	return strings.ToValidUTF8(text, "\uFFFD")
}
