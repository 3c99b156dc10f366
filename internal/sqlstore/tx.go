package sqlstore

import (
	"context"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
)

// txn is one transaction, for broker and rotation alike.
type txn struct {
	store    *Store
	session  session
	readOnly bool
	now      time.Time
	// overtaken says that a compare-and-swap met what another transaction had
	// changed, perhaps after this one read it: running again may help. Where there
	// is one writer it finds the same conflict once more.
	overtaken bool
	// broken is the first failure of the engine. An engine may have rolled the
	// transaction back by itself then, so nothing more is run in it.
	broken    error
	transient bool // broken, and running again may help
}

var _ rotation.Tx = (*txn)(nil)

// Now implements broker.Tx.
func (t *txn) Now() time.Time { return t.now }

// LockDomain implements broker.Tx.
func (t *txn) LockDomain(ctx context.Context, d broker.DomainUID, mode broker.LockMode) error {
	return t.lock(ctx, "lock domain", "domain\x00"+string(d), mode)
}

// lock holds a name until the transaction ends.
func (t *txn) lock(ctx context.Context, op, name string, mode broker.LockMode) error {
	if t.broken != nil {
		return t.broken
	}
	if err := t.store.dialect.lock(ctx, t.session, name, mode); err != nil {
		return t.fail(ctx, op, err)
	}
	return nil
}

// holding ends a select whose rows are to stay as they were read: what is read
// and then changed without a version to compare would otherwise undo what
// another transaction did in between.
func (t *txn) holding(h hold) string {
	if t.readOnly {
		return ""
	}
	return t.store.dialect.holding(h)
}

// fail translates an engine's error and ends the transaction's usefulness.
func (t *txn) fail(ctx context.Context, op string, err error) error {
	c, err := t.store.translate(ctx, op, err)
	t.broken, t.transient = err, c == classTransient
	return err
}

// exec runs a statement and gives the number of rows it changed.
func (t *txn) exec(ctx context.Context, op, query string, args ...any) (int64, error) {
	if t.broken != nil {
		return 0, t.broken
	}
	n, err := t.session.exec(ctx, query, args...)
	if err != nil {
		return 0, t.fail(ctx, op, err)
	}
	return n, nil
}

// row is what a scan function reads from.
type row interface{ Scan(into ...any) error }

// all runs a query and scans every row.
func all[T any](ctx context.Context, t *txn, op string, scan func(row) (T, error), query string, args ...any) (out []T, err error) {
	if t.broken != nil {
		return nil, t.broken
	}
	rows, err := t.session.query(ctx, query, args...)
	if err != nil {
		return nil, t.fail(ctx, op, err)
	}
	defer func() {
		if closeErr := rows.Close(); closeErr != nil && err == nil {
			out, err = nil, t.fail(ctx, op, closeErr)
		}
	}()
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, t.fail(ctx, op, err)
		}
		out = append(out, v)
	}
	if err := rows.Err(); err != nil {
		return nil, t.fail(ctx, op, err)
	}
	return out, nil
}

// one runs a query for at most one row; none is ErrNotFound of what.
func one[T any](ctx context.Context, t *txn, op, what string, scan func(row) (T, error), query string, args ...any) (T, error) {
	var zero T
	found, err := all(ctx, t, op, scan, query, args...)
	if err != nil {
		return zero, err
	}
	if len(found) == 0 {
		return zero, notFound(what)
	}
	return found[0], nil
}

// exists reports whether a query gives a row.
func exists(ctx context.Context, t *txn, op, query string, args ...any) (bool, error) {
	found, err := all(ctx, t, op, scanInt, query, args...)
	return len(found) > 0, err
}

func scanInt(r row) (n int64, err error) {
	err = r.Scan(&n)
	return n, err
}
