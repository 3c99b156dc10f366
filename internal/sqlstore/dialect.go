package sqlstore

import (
	"context"
	"database/sql"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
)

// dialect is what engines do not share. Everything else is one SQL text.
type dialect interface {
	// begin opens a transaction: read-write, serialised against every other
	// writer of the same rows, or read-only on one snapshot. It waits for a
	// connection until ctx ends.
	begin(ctx context.Context, readOnly bool) (session, error)
	// now is the one judge of time in a transaction, asked once, after begin.
	now(ctx context.Context, s session) (time.Time, error)
	// lockDomain holds the domain until the transaction ends.
	lockDomain(ctx context.Context, s session, d broker.DomainUID, mode broker.LockMode) error
	// moveDataKeys runs the compare-and-swap of every move, in order.
	moveDataKeys(ctx context.Context, s session, batch moveBatch) ([]bool, error)
	// classify sorts the engine's errors, with a text for the log that quotes no
	// value.
	classify(err error) (c class, text string)
	// close waits for transactions to end and closes the database.
	close() error
}

// session is one transaction of an engine, used by one goroutine at a time.
// Exactly one of commit and rollback ends it.
type session interface {
	exec(ctx context.Context, query string, args ...any) (rows int64, err error)
	query(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	// commit takes no context: once begun it is not called off, so that its
	// answer is the truth.
	commit() error
	rollback()
}

// moveBatch is the input of a bulk move.
type moveBatch struct {
	domain broker.DomainUID
	target broker.Epoch
	now    int64 // microseconds
	moves  []rotation.Move
}

// class says what an engine's error means here.
type class int

const (
	classOther       class = iota // a bug of ours
	classTransient                // a conflict of transactions: running again may help
	classUnavailable              // the disk, the file or the server
	classUnique                   // a unique constraint
	classForeignKey               // the parent is not there
	classInterrupted              // called off by the context
)
