package localkms

import (
	"errors"
	"fmt"
	"net/http"
)

// The error codes of AWS KMS that this package answers with (AWS KMS API
// Reference, each operation's Errors, and Common Errors).
const (
	codeAccessDenied          = "AccessDeniedException"
	codeAlreadyExists         = "AlreadyExistsException"
	codeDependencyTimeout     = "DependencyTimeoutException"
	codeDisabled              = "DisabledException"
	codeDryRun                = "DryRunOperationException"
	codeExpiredToken          = "ExpiredTokenException"
	codeIncompleteSignature   = "IncompleteSignatureException"
	codeIncorrectKey          = "IncorrectKeyException"
	codeInternal              = "KMSInternalException"
	codeInvalidArn            = "InvalidArnException"
	codeInvalidCiphertext     = "InvalidCiphertextException"
	codeInvalidGrantToken     = "InvalidGrantTokenException"
	codeInvalidKeyUsage       = "InvalidKeyUsageException"
	codeInvalidMac            = "KMSInvalidMacException"
	codeInvalidMarker         = "InvalidMarkerException"
	codeInvalidSignature      = "InvalidSignatureException"
	codeInvalidState          = "KMSInvalidStateException"
	codeKeyUnavailable        = "KeyUnavailableException"
	codeLimitExceeded         = "LimitExceededException"
	codeMalformedPolicy       = "MalformedPolicyDocumentException"
	codeMissingAuthentication = "MissingAuthenticationTokenException"
	codeNotAuthorized         = "NotAuthorizedException"
	codeNotFound              = "NotFoundException"
	codeSerialization         = "SerializationException"
	codeTag                   = "TagException"
	codeThrottling            = "ThrottlingException"
	codeUnknownOperation      = "UnknownOperationException"
	codeUnrecognizedClient    = "UnrecognizedClientException"
	codeUnsupportedOperation  = "UnsupportedOperationException"
	codeValidation            = "ValidationException"
)

// apiError is an error that a caller sees: code and message go over the wire.
type apiError struct {
	code    string
	message string
}

func (e *apiError) Error() string { return e.code + ": " + e.message }

// status is 400 for every error of a caller, whatever the code, and 500 or
// 503 for ours. Clients of KMS tell errors apart by code.
func (e *apiError) status() int {
	switch e.code {
	case codeInternal, codeKeyUnavailable:
		return http.StatusInternalServerError
	case codeDependencyTimeout:
		return http.StatusServiceUnavailable
	}
	return http.StatusBadRequest
}

func fault(code, message string) error { return &apiError{code, message} }

func faultf(code, format string, args ...any) error {
	return &apiError{code, fmt.Sprintf(format, args...)}
}

// asFault hides the text of anything that was not meant for a caller.
func asFault(err error) *apiError {
	var f *apiError
	if errors.As(err, &f) {
		return f
	}
	return &apiError{codeInternal, injectable[codeInternal]}
}

func errDryRun() error {
	return fault(codeDryRun, "The request would have succeeded, but the DryRun option is set.")
}

func errNoSuchKey(arn string) error {
	return faultf(codeNotFound, "Key '%s' does not exist", arn)
}

func errInvalidKeyID(id string) error {
	return faultf(codeNotFound, "Invalid keyId '%s'", id)
}

// errInvalidCiphertext has no message, as recorded from AWS: it must not tell a
// wrong context from a damaged blob.
func errInvalidCiphertext() error { return fault(codeInvalidCiphertext, "") }

func errIncorrectKey() error {
	return fault(codeIncorrectKey, "The key ID in the request does not identify a CMK that can perform this operation.")
}
