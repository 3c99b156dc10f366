//go:build !bug_recreate_revoked

package broker

// makeAgain says whether a KMS grant that was retired, or that the customer took
// away, is made again: only when a person asks for it by RenewGrant or for the
// worker by ReviveWorkerGrant, and says why. Whoever revokes a grant at KMS means
// it.
func makeAgain(last KMSGrant, asked bool) bool {
	return asked && (last.State == KMSGrantRetiring || last.State == KMSGrantRetired || last.State == KMSGrantGone)
}
