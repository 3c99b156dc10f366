package broker

import (
	"strconv"
	"time"
)

// KeySpecs are the data key specs that KMS generates, in its spelling.
var keySpecs = map[string]bool{"AES_256": true, "AES_128": true}

// DefaultKeySpec is used where a caller names none.
const DefaultKeySpec = "AES_256"

// A DataKey is one wrapped data key of a domain. The row is the truth of a key
// change: it is pending while Epoch is below the domain's.
type DataKey struct {
	Domain DomainUID
	ID     DataKeyID
	UID    DataKeyUID
	// Ciphertext is KMS's blob, 1 to 6144 bytes. It is not secret, and useless
	// without the key, but it stays out of logs and errors all the same.
	Ciphertext Secret
	// Context is the caller's pairs; KMS gets them with the domain's reserved one.
	Context Context
	KeySpec string
	// Epoch is that of the call that made the blob, never the domain's at commit.
	Epoch         Epoch
	KeyMaterialID string // as KMS answered; "" if it did not say
	KMSRequestID  string
	// Abandoned: KMS cannot read the row, and the domain's owner has given it up.
	Abandoned  bool
	Version    int64 // raised by each update; part of every compare-and-swap
	CreateTime time.Time
	UpdateTime time.Time
}

// Etag is the resource's version as callers see it.
func (k DataKey) Etag() string { return strconv.FormatInt(k.Version, 10) }
