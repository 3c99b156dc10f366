//go:build !bug_no_cas

package sqlstore

// moveMatches is the compare-and-swap of a move: the row must still be the one
// that was read, and nobody may have given it up. $8, $9 and $10 are the uid,
// version and epoch that were read.
const moveMatches = `
	domain_uid = $1 and data_key_id = $2
	and data_key_uid = $8 and version = $9 and key_epoch = $10 and not abandoned`

// bulkMoveMatches is the same for rows of arrays.
const bulkMoveMatches = `
			and data_key.data_key_uid = move.uid and data_key.version = move.version and data_key.key_epoch = move.epoch
			and not data_key.abandoned`
