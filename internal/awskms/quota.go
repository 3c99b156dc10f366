package awskms

import (
	"github.com/keybroker/keybroker/internal/pacer"
)

// Symmetric is the quota that the cryptographic operations on symmetric keys
// share; every other operation has one of its own, named like it. DryRun counts
// like the call itself (AWS KMS Developer Guide, Request quotas, and Testing your
// permissions).
const Symmetric = "cryptographic"

func quotaOf(operation string) string {
	switch operation {
	case "GenerateDataKeyWithoutPlaintext", "ReEncrypt":
		return Symmetric
	}
	return operation
}

// otherRegions stands in budgets for Regions beyond maxRegions.
const otherRegions = "other"

// budget is what a call is charged to: the account of the role that makes it,
// never the key's.
func (k *KMS) budget(r *region, op operation) pacer.Budget {
	account := k.cfg.RegistrarAccount
	if op.worker {
		account = k.cfg.WorkerAccount
	}
	return pacer.Budget{Account: account, Region: r.name, Quota: quotaOf(op.name)}
}

// DefaultQuota gives the requests a second that AWS allows an account that asked
// for no more, and 0 for what is not a quota of KMS's (AWS KMS Developer Guide,
// Request quotas, read in 2026). ReEncrypt counts as one request.
func DefaultQuota(b pacer.Budget) float64 {
	switch b.Quota {
	case Symmetric:
		switch b.Region {
		case "us-east-1", "us-west-2", "eu-west-1":
			return 100_000
		case "us-east-2", "ap-southeast-1", "ap-southeast-2", "ap-northeast-1", "eu-central-1", "eu-west-2":
			return 20_000
		}
		return 10_000
	case "DescribeKey":
		return 2000
	case "CreateGrant", "RetireGrant":
		return 50
	case "ListGrants", "ListRetirableGrants":
		return 100
	}
	return 0
}
