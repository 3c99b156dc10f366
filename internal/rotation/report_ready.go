//go:build !bug_early_report

package rotation

import "github.com/keybroker/keybroker/internal/broker"

// reportReady: no count of rows or grants is final until a full pass and a
// listing at KMS have retired every epoch in which the domain used the key; by
// this job, or by one that superseded it.
func reportReady(j Job, keys []broker.DomainKey, arn broker.KeyARN) bool {
	for _, k := range keys {
		if k.KMSKey == arn && k.Epoch < j.TargetEpoch && k.State != broker.KeyRetired && k.State != broker.KeyAbandoned {
			return false
		}
	}
	return !j.Open()
}
