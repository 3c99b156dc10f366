//go:build bug_no_store_check

package broker

// checkStoreEpoch is broken on purpose: the seeded bug "no key check at store".
func checkStoreEpoch(Domain, Epoch) error { return nil }
