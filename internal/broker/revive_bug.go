//go:build bug_recreate_revoked

package broker

// makeAgain is broken on purpose: the seeded bug "what the customer took away is
// made again unasked".
func makeAgain(last KMSGrant, asked bool) bool {
	return last.State == KMSGrantGone || asked && (last.State == KMSGrantRetiring || last.State == KMSGrantRetired)
}
