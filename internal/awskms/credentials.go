package awskms

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/smithy-go"

	"github.com/keybroker/keybroker/internal/broker"
)

// A role marks what goes wrong when its credentials are got. The SDK gets them
// within the call to KMS, and hands on whatever STS says as if KMS had said it:
// a refusal of the broker would be read as one of the customer's key.
type role struct {
	name    string
	from    aws.CredentialsProvider
	log     *slog.Logger // nil logs nothing
	without atomic.Bool
}

// Retrieve implements aws.CredentialsProvider. Its errors are *noCredentials. That
// there are none any more, or again, is logged once.
func (r *role) Retrieve(ctx context.Context) (aws.Credentials, error) {
	got, cause := r.from.Retrieve(ctx)
	if cause == nil {
		if r.without.Swap(false) && r.log != nil {
			r.log.InfoContext(ctx, "credentials are back", "role", r.name)
		}
		return got, nil
	}
	err := &noCredentials{cause}
	if ctx.Err() == nil && !r.without.Swap(true) && r.log != nil {
		r.log.ErrorContext(ctx, "no credentials", "role", r.name, "error", err.Error())
	}
	return aws.Credentials{}, err
}

// noCredentials is what got in the way of a role's credentials: STS, a file, the
// network. KMS was not asked.
type noCredentials struct{ cause error }

func (e *noCredentials) Unwrap() error { return e.cause }

// Error quotes nothing of the request to STS: the token of a web identity is in it.
func (e *noCredentials) Error() string {
	var answer smithy.APIError
	switch {
	case !errors.As(e.cause, &answer):
		return "get credentials: " + e.cause.Error() // of files and the network
	case answer.ErrorCode() == "AccessDenied": // names principal, action and role only
		return "get credentials: AccessDenied: " + answer.ErrorMessage()
	}
	return "get credentials: " + answer.ErrorCode() + ": " + withheld
}

// withoutCredentials is the failure of a call that was not sent. It passes when
// the broker's operator, or AWS, has mended what is wrong: no key's owner can
// help, and no request or row is at fault. caller is the context that the call
// came with.
func withoutCredentials(caller context.Context, operation string, e *noCredentials) *broker.KMSError {
	k := &broker.KMSError{Class: broker.KMSUnavailable, Code: codeNoCredentials, Operation: operation, Err: errors.New(e.Error())}
	switch {
	case caller.Err() != nil:
		k.Code, k.Err = "", caller.Err()
	case errors.Is(e, context.DeadlineExceeded):
		k.Err = context.DeadlineExceeded
	}
	return k
}
