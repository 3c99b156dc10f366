package broker

import (
	"context"
	"errors"
	"strings"
	"time"
)

// requestMemory is how long a request id is remembered (the API promises 24 h).
const requestMemory = 24 * time.Hour

// begin looks a request id up. A nil record means that this is the first time,
// or that the zero Request asked for nothing. A done record means: read its
// resource again and answer that. A record in flight whose time has run out is
// returned too: the caller takes it over.
func begin(ctx context.Context, tx Tx, caller Caller, r Request) (*RequestRecord, error) {
	if r.ID == "" {
		return nil, nil
	}
	rec, err := tx.RequestRecord(ctx, r.key(caller))
	switch {
	case errors.Is(err, ErrNotFound):
		return nil, nil
	case err != nil:
		return nil, err
	case tx.Now().After(rec.Until) && rec.Done:
		return nil, nil
	case rec.Hash != r.Hash:
		return nil, invalidField(ReasonRequestIDReused, "request_id", "was used for another request within 24 h: mint a new one")
	case !rec.Done && !tx.Now().After(rec.Until):
		name, _, _ := strings.Cut(rec.Resource, " ")
		return nil, &Error{Kind: ErrConflict, Reason: ReasonRequestInProgress, Resource: name,
			Detail: "the same request is still at work: repeat the call later", RetryAfter: time.Second}
	}
	return &rec, nil
}

// finish records that the request's effect is on resource, in the transaction
// of the effect.
func finish(ctx context.Context, tx Tx, caller Caller, r Request, resource string) error {
	if r.ID == "" {
		return nil
	}
	return tx.PutRequestRecord(ctx, RequestRecord{RequestKey: r.key(caller), Hash: r.Hash,
		Resource: resource, Done: true, Until: tx.Now().Add(requestMemory)})
}

// inFlight records that the request is at work for at most patience; a repeat
// within it is refused, one after it takes over.
func inFlight(ctx context.Context, tx Tx, caller Caller, r Request, resource string, patience time.Duration) error {
	if r.ID == "" {
		return nil
	}
	return tx.PutRequestRecord(ctx, RequestRecord{RequestKey: r.key(caller), Hash: r.Hash,
		Resource: resource, Until: tx.Now().Add(patience)})
}

func (r Request) key(c Caller) RequestKey {
	return RequestKey{Caller: c.Subject, Method: r.Method, ID: r.ID}
}

// Begin is begin for the rooms above: it gives the resource that a repeated
// request made, or "".
func Begin(ctx context.Context, tx Tx, caller Caller, r Request) (resource string, err error) {
	rec, err := begin(ctx, tx, caller, r)
	if rec == nil || err != nil {
		return "", err
	}
	return rec.Resource, nil
}

// Finish is finish for the rooms above.
func Finish(ctx context.Context, tx Tx, caller Caller, r Request, resource string) error {
	return finish(ctx, tx, caller, r, resource)
}
