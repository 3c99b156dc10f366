package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
)

// errEnded is what a transaction answers after its function has returned.
var errEnded = errors.New("sqlstore: the transaction has ended")

func notFound(what string) error {
	return &broker.Error{Kind: broker.ErrNotFound, Detail: "the " + what + " is not in the store"}
}

func alreadyExists(what string) error {
	return &broker.Error{Kind: broker.ErrAlreadyExists, Detail: "the " + what + " is in the store already"}
}

func conflict(detail string) error {
	return &broker.Error{Kind: broker.ErrConflict, Detail: detail}
}

// changed is the conflict of a compare-and-swap.
func changed(what string) error {
	return conflict("the " + what + " was changed in between")
}

// lostLease is the conflict of a fence.
func lostLease(what string) error {
	return conflict("the lease of the " + what + " is no longer this one")
}

// translate is the only door through which an engine's error leaves. op says
// what was being done; the engine's own text goes to the log at most, and only
// as far as the dialect knows that it quotes no value.
func (s *Store) translate(ctx context.Context, op string, err error) (class, error) {
	if ctxErr := ctx.Err(); ctxErr != nil {
		return classInterrupted, fmt.Errorf("%s: %w", op, ctxErr)
	}
	if errors.Is(err, errEnded) {
		return classOther, fmt.Errorf("%s: %w", op, errEnded)
	}
	c, text := s.dialect.classify(err)
	switch c {
	case classUnknown:
		s.log.WarnContext(ctx, "the database did not say whether it committed", "op", op, "error", text)
		return c, unknownOutcome()
	case classTransient, classUnavailable, classInterrupted:
		s.log.WarnContext(ctx, "the database did not answer", "op", op, "error", text)
		return c, unavailable()
	case classUnique:
		return c, conflict("the store holds something of this name already")
	case classForeignKey:
		return c, notFound("parent of what was to be stored")
	}
	s.log.ErrorContext(ctx, "the database answered unexpectedly", "op", op, "error", text)
	return c, fmt.Errorf("%s: unexpected answer of the database", op)
}

// unknownOutcome is what a caller gets whose transaction may or may not be
// stored. It is what a crash of the caller would have left, so what mends that
// mends this: the engine reads its jobs and leases again, intents are closed by
// listings, and a client repeats its call with the same request_id, which finds
// the effect if there is one.
func unknownOutcome() error {
	return &broker.Error{
		Kind: broker.ErrUnavailable, Reason: broker.ReasonStoreUnavailable,
		Detail:     "the broker's database did not say whether it stored the call's effect: repeat the call with the same request_id",
		RetryAfter: time.Second,
	}
}

func unavailable() error {
	return &broker.Error{
		Kind: broker.ErrUnavailable, Reason: broker.ReasonStoreUnavailable,
		Detail: "the broker's database did not answer: repeat the call", RetryAfter: time.Second,
	}
}
