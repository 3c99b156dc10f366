package grpcapi

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
)

const (
	pageTokenLife = 24 * time.Hour

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

// A pager makes and reads page tokens (T15): cursors, bound to their call. A
// token carries no right: each page is looked up for its own caller.
type pager struct {
	tokens *sealer
	now    func() time.Time
}

func (c listCall) data() []byte { return joined(c.method, c.caller, c.parent, c.filter) }

func (p *pager) seal(c listCall, at cursor) (string, error) {
	plain, err := json.Marshal(pageToken{cursor: at, Issued: p.now().Unix()})
	if err != nil {
		return "", fmt.Errorf("encode a page token: %w", err)
	}
	return p.tokens.seal(plain, c.data()), nil
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

func (p *pager) decode(c listCall, token string) (t pageToken, err error) {
	plain, err := p.tokens.open(token, c.data())
	if err != nil {
		return t, err
	}
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
