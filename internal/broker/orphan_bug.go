//go:build bug_orphan_ignored

package broker

// orphanWithoutRow is broken on purpose: the seeded bug "the orphan sweep steps
// over Names that it does not know".
func orphanWithoutRow() bool { return false }
