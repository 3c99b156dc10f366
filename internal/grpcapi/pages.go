package grpcapi

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
)

const (
	pageTokenKeySize = 32
	pageTokenLife    = 24 * time.Hour

	defaultPageSize = 50
	// A page of data keys stays within the 4 MiB that clients accept: 250 blobs
	// of 6 KiB, with their contexts.
	maxPageSize        = 250
	maxDomainsPageSize = 500
	// maxScanned is how many rows one call looks at to fill a filtered page;
	// after that it answers with what it has and a token to go on.
	maxScanned = 2000
	// filterBatch is how many rows a filtered page fetches at a time.
	filterBatch = 250
)

// A cursor is a place in a list: the last resource that was looked at.
type cursor struct {
	Domain string `json:"d,omitempty"`
	ID     string `json:"i,omitempty"`
}

// A pageToken is a cursor with the time of its making.
type pageToken struct {
	cursor
	Issued int64 `json:"t"` // Unix seconds
}

// A listCall is what a page token is good for; it is bound to all of it.
type listCall struct {
	method, caller, parent, filter string
}

// A pager seals and opens page tokens (T15). A token is the base64url of an
// AES-256-GCM sealed cursor; the call it belongs to is additional data. It
// carries no right: each page is looked up for its own caller.
type pager struct {
	aead cipher.AEAD
	now  func() time.Time
}

func newPager(key []byte, now func() time.Time) (*pager, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("page token key: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("page token key: %w", err)
	}
	return &pager{aead: aead, now: now}, nil
}

// data is the call as additional data; lengths keep its parts apart.
func (c listCall) data() []byte {
	var b []byte
	for _, part := range []string{c.method, c.caller, c.parent, c.filter} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(part)))
		b = append(b, part...)
	}
	return b
}

func tokenEncoding() *base64.Encoding { return base64.RawURLEncoding.Strict() }

func (p *pager) seal(c listCall, at cursor) (string, error) {
	plain, err := json.Marshal(pageToken{cursor: at, Issued: p.now().Unix()})
	if err != nil {
		return "", fmt.Errorf("encode a page token: %w", err)
	}
	return tokenEncoding().EncodeToString(p.aead.Seal(nil, nil, plain, c.data())), nil
}

// open reads a token; "" is the beginning. Broken, foreign and old tokens are
// refused alike.
func (p *pager) open(c listCall, token string) (cursor, error) {
	if token == "" {
		return cursor{}, nil
	}
	t, err := p.decode(c, token)
	age := p.now().Sub(time.Unix(t.Issued, 0))
	// Replicas' clocks may differ by a little; a token from the future is forged.
	if err != nil || age > pageTokenLife || age < -time.Minute {
		return cursor{}, refuse(broker.ReasonPageTokenInvalid, "page_token",
			"was not made for this list with these fields, or is older than 24 h: start again without it")
	}
	return t.cursor, nil
}

func (p *pager) decode(c listCall, token string) (pageToken, error) {
	sealed, err := tokenEncoding().DecodeString(token)
	if err != nil {
		return pageToken{}, err
	}
	// The decoder skips line ends; one token has one spelling.
	if len(sealed) < p.aead.Overhead() || tokenEncoding().EncodeToString(sealed) != token {
		return pageToken{}, errors.New("not a page token")
	}
	plain, err := p.aead.Open(nil, nil, sealed, c.data())
	if err != nil {
		return pageToken{}, err
	}
	var t pageToken
	err = json.Unmarshal(plain, &t)
	return t, err
}

// pageSize applies the rules of page_size; negative ones are refused before.
func pageSize(asked int32, most int) int {
	if asked == 0 {
		return defaultPageSize
	}
	return min(int(asked), most)
}

// A list is one List call: how to get rows V after a place, where a row is, what
// message M it makes, and which messages the filter lets through (nil: all).
type list[V, M any] struct {
	fetch   func(after cursor, limit int) ([]V, error)
	at      func(V) cursor
	convert func(V) M
	keep    func(M) bool
}

// page collects up to size messages after a place. more is nil on the last
// page. One row more than needed is fetched, to know whether there is another.
func (l list[V, M]) page(after cursor, size int) (items []M, more *cursor, err error) {
	limit := size + 1
	if l.keep != nil {
		limit = max(limit, filterBatch)
	}
	for scanned := 0; ; {
		rows, err := l.fetch(after, limit)
		if err != nil {
			return nil, nil, err
		}
		for _, row := range rows {
			if len(items) == size || scanned == maxScanned {
				return items, &after, nil
			}
			scanned++
			after = l.at(row)
			if m := l.convert(row); l.keep == nil || l.keep(m) {
				items = append(items, m)
			}
		}
		if len(rows) < limit {
			return items, nil, nil
		}
	}
}

// answer runs a List call and gives its page and the token for the next.
func answer[V, M any](p *pager, call listCall, token string, size int, l list[V, M]) (items []M, next string, err error) {
	after, err := p.open(call, token)
	if err != nil {
		return nil, "", err
	}
	items, more, err := l.page(after, size)
	if err != nil || more == nil {
		return items, "", err
	}
	next, err = p.seal(call, *more)
	return items, next, err
}
