package client

import (
	"context"
	"sync"
	"time"
)

// keyCache keeps unwrapped data keys for a bounded time, and loads each once
// however many ask for it. A key is wiped when it has left the cache and its
// last user is done with it. Safe for concurrent use.
type keyCache struct {
	load func(ctx context.Context, name string) (*dataKey, error)
	ttl  time.Duration
	max  int

	mu     sync.Mutex
	closed bool
	keys   map[string]*cachedKey
}

// A dataKey is an unwrapped data key and whose it is.
type dataKey struct {
	uid    string
	secret secret
}

// A cachedKey is in the cache, or was. Fields below loaded are set before it is
// closed and not changed after; the others belong to the cache's lock.
type cachedKey struct {
	name   string
	used   time.Time // last time, for eviction
	users  int       // who must not see it wiped, its loading included
	listed bool      // in the cache
	expiry *time.Timer

	loaded chan struct{}
	at     time.Time
	key    *dataKey
	err    error
}

// acquire gives the data key, which release must follow.
func (c *keyCache) acquire(ctx context.Context, name string) (*cachedKey, error) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, ErrClosed
	}
	k, ok := c.keys[name]
	if !ok {
		c.makeRoom()
		k = &cachedKey{name: name, listed: true, users: 1, loaded: make(chan struct{})}
		c.keys[name] = k
		// Whoever asked first may give up; those who joined must not suffer.
		go c.fill(context.WithoutCancel(ctx), k)
	}
	k.users++
	k.used = time.Now()
	c.mu.Unlock()

	select {
	case <-k.loaded:
	case <-ctx.Done():
		c.release(k)
		return nil, ctx.Err()
	}
	if k.err != nil {
		c.release(k)
		return nil, k.err
	}
	return k, nil
}

// fill loads a key for all who wait for it.
func (c *keyCache) fill(ctx context.Context, k *cachedKey) {
	k.key, k.err = c.load(ctx, k.name)
	k.at = time.Now()
	close(k.loaded)
	c.mu.Lock()
	switch {
	case k.err != nil:
		c.unlist(k)
	case k.listed:
		k.expiry = time.AfterFunc(c.ttl, func() { c.forget(k) })
	}
	c.mu.Unlock()
	c.release(k)
}

// release tells that the caller uses the key no more.
func (c *keyCache) release(k *cachedKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k.users--
	c.wipeIfDone(k)
}

// forget takes a key out of the cache.
func (c *keyCache) forget(k *cachedKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unlist(k)
}

// close takes all keys out and refuses to take any in.
func (c *keyCache) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, k := range c.keys {
		c.unlist(k)
	}
}

// makeRoom takes out the key that was not used for longest, if the cache is
// full. It looks at all of them: that costs little beside the call to KMS that
// follows.
func (c *keyCache) makeRoom() {
	if len(c.keys) < c.max {
		return
	}
	var oldest *cachedKey
	for _, k := range c.keys {
		if oldest == nil || k.used.Before(oldest.used) {
			oldest = k
		}
	}
	c.unlist(oldest)
}

func (c *keyCache) unlist(k *cachedKey) {
	if !k.listed {
		return
	}
	k.listed = false
	delete(c.keys, k.name)
	if k.expiry != nil {
		k.expiry.Stop()
	}
	c.wipeIfDone(k)
}

func (c *keyCache) wipeIfDone(k *cachedKey) {
	if !k.listed && k.users == 0 && k.key != nil {
		k.key.secret.wipe()
	}
}
