package sqlstore

import (
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// A lostConnectionError ended a transaction before its commit was asked for.
type lostConnectionError struct{ cause error }

func (e *lostConnectionError) Error() string { return "connection lost: " + e.cause.Error() }
func (e *lostConnectionError) Unwrap() error { return e.cause }

// An unansweredCommitError leaves open whether the transaction is stored.
type unansweredCommitError struct{ cause error }

func (e *unansweredCommitError) Error() string { return "commit not answered: " + e.cause.Error() }
func (e *unansweredCommitError) Unwrap() error { return e.cause }

// errUnanswered is why a statement was given up that the server did not answer.
var errUnanswered = errors.New("the server did not answer in time")

// errRolledBack is PostgreSQL's answer to a commit of a transaction in which a
// statement had failed.
var errRolledBack = errors.New("the transaction was rolled back")

// isRefusal reports whether the server itself answered, in a session that goes
// on: what it refused has not happened. A FATAL answer says less: the session
// ended, perhaps after the commit.
func isRefusal(err error) bool {
	var e *pgconn.PgError
	return errors.As(err, &e) && e.SeverityUnlocalized == "ERROR"
}

// classify knows PostgreSQL's error codes (PostgreSQL documentation, appendix A).
// Its messages may quote values, so the log gets the code and the names of things.
func (e *postgresDialect) classify(err error) (class, string) {
	text := describe(err)
	var unanswered *unansweredCommitError
	if errors.As(err, &unanswered) {
		return classUnknown, text
	}
	if errors.Is(err, errClosed) {
		return classUnavailable, errClosed.Error()
	}
	var connect *pgconn.ConnectError
	if errors.As(err, &connect) {
		return classUnavailable, text
	}
	var lost *lostConnectionError
	if errors.As(err, &lost) {
		return classTransient, text
	}
	var refused *pgconn.PgError
	if !errors.As(err, &refused) {
		return classOther, text
	}
	return classOfCode(refused.Code), text
}

func classOfCode(code string) class {
	switch code {
	case "40001", "40P01", "55P03": // serialization_failure, deadlock_detected, lock_not_available
		return classTransient
	case "23505": // unique_violation
		return classUnique
	case "23503": // foreign_key_violation
		return classForeignKey
	case "57014", // query_canceled: statement_timeout, or an operator
		"25006",          // read_only_sql_transaction: the server has become a standby
		"XX001", "XX002": // data_corrupted, index_corrupted
		return classUnavailable
	}
	switch code[:min(2, len(code))] {
	case "08", // connection exception
		"53", // insufficient resources: disk, memory, connections
		"57", // operator intervention: shutdown, crash, cannot connect now
		"58": // system error
		return classUnavailable
	}
	return classOther
}

// describe says what an error is without quoting a value.
func describe(err error) string {
	var e *pgconn.PgError
	if !errors.As(err, &e) {
		return fmt.Sprintf("%T", err)
	}
	parts := []string{e.Severity, "SQLSTATE " + e.Code}
	for name, value := range map[string]string{"table": e.TableName, "column": e.ColumnName, "constraint": e.ConstraintName} {
		if value != "" {
			parts = append(parts, name+" "+value)
		}
	}
	return strings.Join(parts, ", ")
}

// withoutURL takes out of an error what a URL may hold. pgx masks the passwords
// that it recognises, which a malformed URL may hide from it.
func withoutURL(err error) error {
	var parse *pgconn.ParseConfigError
	if errors.As(err, &parse) {
		return errors.New("the database's URL cannot be read: it must be like postgres://user:password@host:5432/database?sslmode=verify-full, with special characters of the password percent-encoded")
	}
	return err
}
