//go:build bug_no_cas

package sqlstore

// moveMatches is a seeded bug: the row is overwritten whatever it has become.
// Tests built with this tag must fail.
const moveMatches = `
	domain_uid = $1 and data_key_id = $2
	and (data_key_uid = $8 or version = $9 or key_epoch = $10 or true)`

// bulkMoveMatches is the same bug.
const bulkMoveMatches = `
			and (data_key.data_key_uid = move.uid or data_key.version = move.version or true)`
