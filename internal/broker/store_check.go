//go:build !bug_no_store_check

package broker

// checkStoreEpoch is the fence of every store: a blob is stored only under the
// domain's present epoch, read under the domain lock. Without it, a blob made
// before a switch lands under the old key behind the re-encryption's back.
func checkStoreEpoch(d Domain, made Epoch) error {
	if d.Epoch != made || d.State == DomainDeleted {
		return errEpochMoved
	}
	return nil
}
