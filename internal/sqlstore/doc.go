// Package sqlstore is the vault: it keeps domains, grants, wrapped data keys,
// jobs and audit events in a SQL database, behind the ports broker.Store and
// rotation.Store.
//
// What it does. One transaction type serves both ports. The SQL is written once,
// for every engine; what engines do not share (how a transaction begins, the
// clock, locks, rows in bulk, classes of errors, the schema) is behind
// the small interface dialect. SQLite is the embedded default, PostgreSQL is for
// any number of replicas.
//
// A limit is written "limit $n + 0". SQLite looks into a bare parameter there when
// it plans, and so plans again, which takes longer than most statements, each time
// that one is bound.
//
// Who may call it. cmd/broker wires it; tests open it on a file of their own.
// Everything is safe for concurrent use. A transaction belongs to the function
// it was given to and must not outlive it; a function must not open a second
// transaction of the same store, which would wait for the first.
//
// What it never does. It calls no KMS, decides nothing about domains or jobs,
// reads no clock but the configured one, puts no stored value into an error, a
// log line or a span, and once open lets no driver error out: callers see
// *broker.Error, context errors, and plain errors for what is a bug.
// No error and no log line has the database's URL.
package sqlstore
