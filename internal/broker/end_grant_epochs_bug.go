//go:build bug_expiry_forgets_epochs

package broker

// endsWithGrant is broken on purpose: the seeded bug "an expiry retires only what
// is on the domain's present key".
func endsWithGrant(k KMSGrant, present Epoch) bool { return k.Epoch == present }
