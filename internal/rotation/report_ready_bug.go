//go:build bug_early_report

package rotation

import "github.com/keybroker/keybroker/internal/broker"

// reportReady is broken on purpose: the seeded bug "report before the final pass".
func reportReady(Job, []broker.DomainKey, broker.KeyARN) bool { return true }
