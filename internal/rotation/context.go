//go:build !bug_no_reserved_pair

package rotation

import "github.com/keybroker/keybroker/internal/broker"

// contextOf gives the context under which a row's blob was made: both sides of
// its ReEncrypt carry the domain's reserved pair, from the database.
func contextOf(row broker.DataKey, d broker.Domain) broker.Context {
	return row.Context.With(d.Reserved)
}
