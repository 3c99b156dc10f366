package brokertest

import (
	"encoding/json"
	"strings"

	"github.com/keybroker/keybroker/internal/broker"
)

// A KMSPolicy is what a customer's key policy lets the broker do.
type KMSPolicy struct {
	Owner     string // the account that owns the key, 12 digits
	Registrar string // role ARN
	Worker    string // role ARN
	// Pinned is the pair that each grant's constraint must hold.
	Pinned broker.Pair
	// Import lets the worker move blobs away that were made under this context;
	// nil lets it move none.
	Import broker.Context
	// Unlisted denies the registrar the listing of grants.
	Unlisted bool
}

// Document renders the policy: the customer may do everything; the registrar may
// look, and make grants that it can retire and that are bound to the pinned
// pair; the worker has what grants give it.
func (p KMSPolicy) Document() string {
	type m = map[string]any
	registrar := m{"AWS": p.Registrar}
	look := []string{"kms:DescribeKey", "kms:ListGrants"}
	if p.Unlisted {
		look = look[:1]
	}
	statements := []m{
		{"Sid": "Owner", "Effect": "Allow", "Principal": m{"AWS": "arn:aws:iam::" + p.Owner + ":root"}, "Action": "kms:*", "Resource": "*"},
		{"Sid": "Look", "Effect": "Allow", "Principal": registrar, "Action": look, "Resource": "*"},
		{
			"Sid": "Grant", "Effect": "Allow", "Principal": registrar, "Action": "kms:CreateGrant", "Resource": "*",
			"Condition": m{"StringEquals": m{
				"kms:EncryptionContext:" + p.Pinned.Key: p.Pinned.Value,
				"kms:GrantConstraintType":               []string{"EncryptionContextSubset", "EncryptionContextEquals"},
				"kms:RetiringPrincipal":                 p.Registrar,
			}},
		},
	}
	if len(p.Import) > 0 {
		pairs := m{}
		for key, value := range p.Import {
			pairs["kms:EncryptionContext:"+key] = value
		}
		statements = append(statements, m{
			"Sid": "Import", "Effect": "Allow", "Principal": m{"AWS": p.Worker}, "Action": "kms:ReEncryptFrom", "Resource": "*",
			"Condition": m{"StringEquals": pairs},
		})
	}
	var b strings.Builder
	// Strings, slices and maps of them always encode, and a Builder takes all.
	_ = json.NewEncoder(&b).Encode(m{"Version": "2012-10-17", "Statement": statements})
	return b.String()
}
