package sqlstore

import (
	"context"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
)

// dialect is what engines do not share. Everything else is one SQL text.
type dialect interface {
	// begin opens a transaction: read-write, in which each statement sees what is
	// committed when it begins, or read-only on one snapshot. It waits for a
	// connection until ctx ends.
	begin(ctx context.Context, readOnly bool) (session, error)
	// now is the one judge of time in a transaction, asked once, after begin.
	now(ctx context.Context, s session) (time.Time, error)
	// later is the judge's time when it is asked, for what must not be older than the
	// locks that were waited for.
	later(ctx context.Context, s session) (time.Time, error)
	// lock holds a name, which need not be stored, until the transaction ends.
	// What is read after it is as the lock's former holders left it.
	lock(ctx context.Context, s session, name string, mode broker.LockMode) error
	// holding ends a select: nobody else changes its rows before the transaction
	// ends. "" where nobody could.
	holding(h hold) string
	// dataKeysOf is the text of a query for rows of the domain $1 whose ids are in
	// the JSON array $2. It looks each up by its whole key.
	dataKeysOf() string
	// insertDataKeys stores rows of one domain whose ids differ, and says what became
	// of each. An id that another transaction is taking or giving up is waited for.
	insertDataKeys(ctx context.Context, s session, keys []broker.DataKey) ([]insertion, error)
	// moveDataKeys runs the compare-and-swap of every move, in order.
	moveDataKeys(ctx context.Context, s session, batch moveBatch) ([]bool, error)
	// shredDataKeys makes tombstones of up to limit rows of a domain, leaving out those
	// that another transaction is at, and gives their number.
	shredDataKeys(ctx context.Context, s session, d broker.DomainUID, now int64, limit int) (int64, error)
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
	query(ctx context.Context, query string, args ...any) (rows, error)
	// commit takes no context: once begun it is not called off, so that its
	// answer is the truth. Where none comes, the error is one of classUnknown.
	commit() error
	rollback()
}

// rows is the answer to a query.
type rows interface {
	row
	Next() bool
	Err() error
	Close() error
}

// hold says how a select meets rows that another transaction holds.
type hold int

const (
	waiting  hold = iota // it waits, and reads what the other left
	skipping             // it leaves them out
)

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
	classTransient                // a conflict of transactions, or a connection lost before the commit: running again may help
	classUnknown                  // the commit was asked for and not answered: it may have happened
	classUnavailable              // the disk, the file or the server
	classUnique                   // a unique constraint
	classForeignKey               // the parent is not there
	classInterrupted              // called off by the context
)
