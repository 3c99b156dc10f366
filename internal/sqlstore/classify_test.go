package sqlstore

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

// TestClassOfCode: codes and their meaning are of the PostgreSQL documentation,
// appendix A, and the errors in it that a broker can meet.
func TestClassOfCode(t *testing.T) {
	for code, want := range map[string]class{
		"40001": classTransient,   // serialization_failure
		"40P01": classTransient,   // deadlock_detected
		"55P03": classTransient,   // lock_not_available
		"23505": classUnique,      // unique_violation
		"23503": classForeignKey,  // foreign_key_violation
		"57014": classUnavailable, // query_canceled
		"57P01": classUnavailable, // admin_shutdown
		"57P03": classUnavailable, // cannot_connect_now
		"53100": classUnavailable, // disk_full
		"53300": classUnavailable, // too_many_connections
		"08006": classUnavailable, // connection_failure
		"25006": classUnavailable, // read_only_sql_transaction
		"58030": classUnavailable, // io_error
		"23514": classOther,       // check_violation
		"42601": classOther,       // syntax_error
		"22021": classOther,       // character_not_in_repertoire
	} {
		if got := classOfCode(code); got != want {
			t.Errorf("SQLSTATE %s: class %d, want %d", code, got, want)
		}
	}
}

// TestErrorsQuoteNoValue: the server's texts quote what was stored.
func TestErrorsQuoteNoValue(t *testing.T) {
	const value = "a-value-that-is-nobody's-business"
	refused := &pgconn.PgError{Severity: "ERROR", SeverityUnlocalized: "ERROR", Code: "23505", Message: "value " + value, Detail: "Key (x)=(" + value + ") exists.",
		Hint: value, Where: value, InternalQuery: value, TableName: "domain", ConstraintName: "domain_pk"}
	for _, err := range []error{refused, fmt.Errorf("%w: %s", refused, value), &unansweredCommitError{refused}, &lostConnectionError{errors.New(value)}, errors.New(value)} {
		if _, text := (&postgresDialect{}).classify(err); strings.Contains(text, value) || text == "" {
			t.Errorf("%T: the log gets %q", err, text)
		}
	}
}
