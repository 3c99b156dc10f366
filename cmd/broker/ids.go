package main

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/binary"
	"sync"
	"time"
)

// ids mints ids of 26 characters that sort by the time they were minted at: 48
// bits of milliseconds, then 80 random bits, in lower-case base32 without the
// letters i, l, o and u (Crockford's). Within a process each id sorts after the
// one before, also when the clock steps back. Safe for concurrent use.
type ids struct {
	now      func() time.Time
	encoding *base32.Encoding

	mu     sync.Mutex
	millis uint64
	chance [10]byte
}

func newIDs(now func() time.Time) *ids {
	return &ids{now: now, encoding: base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)}
}

// next mints an id.
func (g *ids) next() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	if millis := uint64(g.now().UnixMilli()); millis > g.millis {
		g.millis = millis
		_, _ = rand.Read(g.chance[:]) // never fails: see crypto/rand.Read
	} else {
		g.increment()
	}
	var id [16]byte
	binary.BigEndian.PutUint64(id[:8], g.millis<<16)
	copy(id[6:], g.chance[:])
	return g.encoding.EncodeToString(id[:])
}

// increment raises the random part by a random step, so that an id does not tell
// its neighbour. Should it run over, which takes more ids in a millisecond than
// anybody mints, the time goes on by one.
func (g *ids) increment() {
	var step [4]byte
	_, _ = rand.Read(step[:])
	carry := uint64(binary.BigEndian.Uint32(step[:])) + 1
	for i := len(g.chance) - 1; i >= 0 && carry > 0; i-- {
		carry += uint64(g.chance[i])
		g.chance[i] = byte(carry)
		carry >>= 8
	}
	g.millis += carry
}
