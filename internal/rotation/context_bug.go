//go:build bug_no_reserved_pair

package rotation

import "github.com/keybroker/keybroker/internal/broker"

// contextOf is broken on purpose: the seeded bug "reserved pair skipped".
func contextOf(row broker.DataKey, _ broker.Domain) broker.Context { return row.Context }
