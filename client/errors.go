package client

import "errors"

// What Seal and Open can answer, beside the context's errors. Use errors.Is;
// the message says more, and never holds keys, plaintext or context values.
var (
	// ErrMalformed: not an envelope, or one of a later version.
	ErrMalformed = errors.New("malformed envelope")
	// ErrTooLarge: the plaintext exceeds MaxPlaintext.
	ErrTooLarge = errors.New("plaintext too large")
	// ErrNameInvalid: not the name of a data key.
	ErrNameInvalid = errors.New("invalid data key name")
	// ErrNotAuthentic: the envelope was changed, or sealed with other associated
	// data.
	ErrNotAuthentic = errors.New("envelope is not authentic")
	// ErrKeyNotFound: the broker has no such data key, or not for this caller.
	ErrKeyNotFound = errors.New("data key not found")
	// ErrKeyReplaced: the name now belongs to another data key than the one that
	// the envelope was sealed with; that one is gone.
	ErrKeyReplaced = errors.New("data key was replaced")
	// ErrBroker: the broker did not give a usable data key, and none was at
	// hand. A gRPC status inside it is found by status.FromError.
	ErrBroker = errors.New("no data key from the broker")
	// ErrUnwrap: KMS did not unwrap the data key. The Decrypter's error is in it.
	ErrUnwrap = errors.New("data key was not unwrapped")
	// ErrClosed: the client was closed.
	ErrClosed = errors.New("client is closed")
)
