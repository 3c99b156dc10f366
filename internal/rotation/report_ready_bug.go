//go:build bug_early_report

package rotation

// reportReady is broken on purpose: the seeded bug "report before the final pass".
func reportReady(Job) bool { return true }
