//go:build !bug_early_report

package rotation

// reportReady: until the job has succeeded, with its full pass and its listing
// behind it, no count of rows or grants is final.
func reportReady(j Job) bool { return j.State == Succeeded }
