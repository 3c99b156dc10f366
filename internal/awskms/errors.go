package awskms

import (
	"context"
	"errors"
	"regexp"
	"strings"

	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/keybroker/keybroker/internal/broker"
)

// The codes that the broker gives itself where KMS gave none: KMSError.Code is
// for operators and callers, who should not read "no answer" when there was one.
const (
	codeNoReservedPair = "ReservedPairMissing"  // refused before it was sent
	codeNoRegion       = "RegionNotAllowed"     // refused before it was sent
	codeNoName         = "GrantNameMissing"     // refused before it was sent
	codeOtherKey       = "AnswerFromAnotherKey" // KMS named another key than was asked
	codeDryRunIgnored  = "DryRunIgnored"        // a dry run was carried out
	codeIncomplete     = "AnswerIncomplete"     // a success without what it promises

	codeNoCredentials = "CredentialsUnavailable" // not sent: no credentials for the role
)

const (
	codeDryRun  = "DryRunOperationException"
	codeUnknown = "UnknownError" // the SDK's, where an error answer has no code
)

// classOf says what KMS's error codes mean (AWS KMS API Reference, the Errors of
// each operation, and Common Error Types). The HTTP status does not matter: KMS
// answers 400 to almost everything. Only what is known to be a refusal is one: the
// rest may stand for work that was done, and asking again is safe.
func classOf(code string) broker.KMSClass {
	switch code {
	case "ThrottlingException", "Throttling", "ThrottledException", "RequestThrottled", "RequestThrottledException",
		"RequestLimitExceeded", "TooManyRequestsException", "SlowDown":
		return broker.KMSThrottled
	case "KMSInternalException", "KeyUnavailableException", "DependencyTimeoutException",
		"InternalFailure", "InternalError", "InternalServerError", "InternalServerException",
		"ServiceUnavailable", "ServiceUnavailableException", "RequestTimeout", "RequestTimeoutException", codeUnknown:
		return broker.KMSUnavailable
	case "ExpiredTokenException", "ExpiredToken", "UnrecognizedClientException", "InvalidClientTokenId",
		"InvalidSignatureException", "SignatureDoesNotMatch", "IncompleteSignature", "IncompleteSignatureException",
		"MissingAuthenticationToken", "MissingAuthenticationTokenException", "RequestExpired", "OptInRequired":
		// KMS does not take us for whom we say we are: our credentials or clock.
		// No key's owner can help, and no request is at fault.
		return broker.KMSUnavailable
	case "AccessDeniedException", "AccessDenied", "NotAuthorized", "NotAuthorizedException":
		return broker.KMSDenied
	case "DisabledException":
		return broker.KMSDisabled
	case "KMSInvalidStateException":
		return broker.KMSInvalidState
	case "NotFoundException", "InvalidGrantIdException":
		return broker.KMSNotFound
	case "IncorrectKeyException":
		return broker.KMSIncorrectKey
	case "InvalidCiphertextException":
		return broker.KMSInvalidCiphertext
	case "LimitExceededException":
		return broker.KMSLimitExceeded
	case "InvalidGrantTokenException":
		return broker.KMSInvalidToken
	case "InvalidArnException", "InvalidKeyUsageException", "InvalidMarkerException", "UnsupportedOperationException", codeDryRun,
		"ValidationException", "ValidationError", "SerializationException", "UnknownOperationException",
		"MalformedHttpRequestException", "RequestEntityTooLargeException":
		return broker.KMSInvalidRequest
	}
	return broker.KMSUnavailable
}

// translate turns any failure of the SDK into the broker's. caller is the
// context that the call came with.
func translate(caller context.Context, operation string, err error) *broker.KMSError {
	var unasked *noCredentials
	if errors.As(err, &unasked) {
		return withoutCredentials(caller, operation, unasked)
	}
	k := &broker.KMSError{Operation: operation}
	var withID interface{ ServiceRequestID() string }
	if errors.As(err, &withID) {
		k.RequestID = withID.ServiceRequestID()
	}
	var answer smithy.APIError
	if errors.As(err, &answer) {
		code, message := answer.ErrorCode(), answer.ErrorMessage()
		k.Class = classOf(code)
		if code != codeUnknown {
			k.Code = code
		}
		k.Key = keyIn(message)
		k.Err = errors.New(code + ": " + withoutQuotes(code, message))
		return k
	}
	k.Class, k.Err = noAnswer(caller, err)
	return k
}

var (
	errNotSent    = errors.New("the request could not be built")
	errUnreadable = errors.New("the answer could not be read")
)

// noAnswer classifies what failed on our side of the wire. Only texts that
// cannot quote the request are kept.
func noAnswer(caller context.Context, err error) (broker.KMSClass, error) {
	if caller.Err() != nil {
		return broker.KMSUnavailable, caller.Err()
	}
	var (
		invalid smithy.InvalidParamsError
		unbuilt *smithy.SerializationError
		unread  *smithy.DeserializationError
		unsent  *smithyhttp.RequestSendError
	)
	switch {
	case errors.As(err, &invalid), errors.As(err, &unbuilt):
		return broker.KMSInvalidRequest, errNotSent
	case errors.Is(err, context.DeadlineExceeded):
		return broker.KMSUnavailable, context.DeadlineExceeded
	case errors.As(err, &unread):
		return broker.KMSUnavailable, errUnreadable
	case errors.As(err, &unsent):
		return broker.KMSUnavailable, unsent.Err // of the transport: names addresses
	}
	return broker.KMSUnavailable, errors.New(err.Error()) // endpoint, signature: before there is a body
}

var keyPattern = regexp.MustCompile(`arn:[a-z-]+:kms:[a-z0-9-]+:[0-9]{12}:key/[A-Za-z0-9-]+`)

// keyIn finds the key that a message of KMS names: "ARN is disabled.", "… on
// resource: ARN because …".
func keyIn(message string) broker.KeyARN { return broker.KeyARN(keyPattern.FindString(message)) }

// withoutQuotes takes out of a message what it may quote of the request. The
// messages of these codes name keys, principals and operations only; a
// ValidationException quotes as "Value '…' at 'field' failed to …"; what others
// say is not known.
func withoutQuotes(code, message string) string {
	switch code {
	case "AccessDeniedException", "DisabledException", "KMSInvalidStateException", "NotFoundException",
		"IncorrectKeyException", "LimitExceededException", "ThrottlingException", "InvalidKeyUsageException",
		"InvalidArnException", "UnsupportedOperationException",
		"KMSInternalException", "KeyUnavailableException", "DependencyTimeoutException", codeDryRun:
		return message
	case "ValidationException":
		const from, to = "Value '", "' at '"
		i, j := strings.Index(message, from), strings.LastIndex(message, to)
		if i >= 0 && j > i {
			return message[:i+len(from)] + "…" + message[j:]
		}
		if strings.HasPrefix(message, "1 validation error detected: Value at '") {
			return message
		}
	}
	return withheld
}

const withheld = "[message withheld: it may quote the request]"
