package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"
)

// Decrypter unwraps data keys at KMS, with the service's own role.
type Decrypter interface {
	// Decrypt calls KMS's Decrypt with exactly these arguments and returns the
	// plaintext, which the client takes over and overwrites. It is called with a
	// deadline and may retry within it. Any error counts as a refusal.
	Decrypt(ctx context.Context, ciphertextBlob []byte, encryptionContext map[string]string, kmsKey string, grantTokens []string) ([]byte, error)
}

// Config is what a Client needs. Broker and KMS are required; every other field
// has a usable zero value.
type Config struct {
	// Broker gives wrapped data keys: keybrokerv1.NewDataKeyServiceClient(conn).
	Broker DataKeyGetter
	// KMS unwraps them.
	KMS Decrypter
	// GrantTokens gives the tokens of the grant for a data key's domain, which
	// make a grant usable in its first minutes. Optional.
	GrantTokens func(dataKeyName string) []string
	// MaxReadDelay is the broker's max_read_delay, or less: how long a wrapped
	// key may be used after it was replaced. Half of it passes between two
	// questions about one data key. 0 means 15 minutes.
	MaxReadDelay time.Duration
	// PlaintextTTL is how long an unwrapped data key is kept. 0 means 5 minutes.
	PlaintextTTL time.Duration
	// MaxKeys is how many data keys are kept, wrapped and unwrapped each.
	// 0 means 1,000.
	MaxKeys int
	// CallTimeout bounds each call to the broker and to KMS. 0 means 5 seconds.
	CallTimeout time.Duration
}

// Client seals and opens envelopes. Safe for concurrent use; make one and keep
// it, since its caches are what makes it fast.
type Client struct {
	kms         Decrypter
	grantTokens func(string) []string
	timeout     time.Duration
	inventory   *inventory
	keys        *keyCache
}

// New makes a client. It makes no calls.
func New(config Config) (*Client, error) {
	var faults []error
	if config.Broker == nil {
		faults = append(faults, errors.New("client: Config.Broker is missing"))
	}
	if config.KMS == nil {
		faults = append(faults, errors.New("client: Config.KMS is missing"))
	}
	if config.MaxReadDelay < 0 || config.PlaintextTTL < 0 || config.CallTimeout < 0 || config.MaxKeys < 0 {
		faults = append(faults, errors.New("client: Config has a negative limit"))
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	if config.GrantTokens == nil {
		config.GrantTokens = func(string) []string { return nil }
	}
	maxKeys := orDefault(config.MaxKeys, 1000)
	c := &Client{
		kms:         config.KMS,
		grantTokens: config.GrantTokens,
		timeout:     orDefault(config.CallTimeout, 5*time.Second),
	}
	c.inventory = &inventory{
		broker:  config.Broker,
		maxAge:  orDefault(config.MaxReadDelay, 15*time.Minute) / 2,
		timeout: c.timeout,
		max:     maxKeys,
		keys:    map[string]wrappedKey{},
	}
	c.keys = &keyCache{
		load: c.unwrap,
		ttl:  orDefault(config.PlaintextTTL, 5*time.Minute),
		max:  maxKeys,
		keys: map[string]*cachedKey{},
	}
	return c, nil
}

func orDefault[T int | time.Duration](value, standard T) T {
	if value == 0 {
		return standard
	}
	return value
}

// Close overwrites the data keys; those in use when their users are done. Seal
// and Open answer ErrClosed from then on.
func (c *Client) Close() { c.keys.close() }

// Seal encrypts plaintext under a data key, named "domains/{domain}/dataKeys/
// {data_key}", into a new envelope. The associated data is not in the envelope:
// Open needs the same again. Either may be empty.
//
// Errors: ErrNameInvalid, ErrTooLarge, ErrKeyNotFound, ErrBroker, ErrUnwrap,
// ErrClosed.
func (c *Client) Seal(ctx context.Context, dataKeyName string, plaintext, associatedData []byte) ([]byte, error) {
	if err := checkName(dataKeyName); err != nil {
		return nil, err
	}
	if len(plaintext) > MaxPlaintext {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(plaintext), MaxPlaintext)
	}
	k, err := c.keys.acquire(ctx, dataKeyName)
	if err != nil {
		return nil, err
	}
	defer c.keys.release(k)

	e := envelope{name: dataKeyName, uid: k.key.uid, salt: make([]byte, saltSize)}
	rand.Read(e.salt) // never fails: it ends the program rather than give less
	aead, err := k.key.secret.aead(e.salt)
	if err != nil {
		return nil, err
	}
	additional := append(e.header(len(associatedData)), associatedData...)
	return aead.Seal(e.header(nonceSize+len(plaintext)+tagSize), nil, plaintext, additional), nil
}

// Open decrypts an envelope that was sealed with the same associated data.
//
// Errors: ErrMalformed, ErrNotAuthentic, ErrKeyNotFound, ErrKeyReplaced,
// ErrBroker, ErrUnwrap, ErrClosed.
func (c *Client) Open(ctx context.Context, sealed, associatedData []byte) ([]byte, error) {
	e, err := parse(sealed)
	if err != nil {
		return nil, err
	}
	k, err := c.acquire(ctx, e.name, e.uid)
	if err != nil {
		return nil, err
	}
	defer c.keys.release(k)

	aead, err := k.key.secret.aead(e.salt)
	if err != nil {
		return nil, err
	}
	additional := append(e.header(len(associatedData)), associatedData...)
	plaintext, err := aead.Open(nil, nil, e.sealed, additional)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", e.name, ErrNotAuthentic)
	}
	return plaintext, nil
}

// acquire gives the data key of this name if it has this uid. When the one at
// hand has another, the name may have been given anew since: then it is loaded
// again, once.
func (c *Client) acquire(ctx context.Context, name, uid string) (*cachedKey, error) {
	k, err := c.keys.acquire(ctx, name)
	if err != nil {
		return nil, err
	}
	if k.key.uid != uid && time.Since(k.at) >= refreshGap {
		c.inventory.expire(name)
		c.keys.forget(k)
		c.keys.release(k)
		if k, err = c.keys.acquire(ctx, name); err != nil {
			return nil, err
		}
	}
	if k.key.uid != uid {
		c.keys.release(k)
		return nil, fmt.Errorf("%s: %w: sealed with uid %s", name, ErrKeyReplaced, uid)
	}
	return k, nil
}

// unwrap loads a data key: from the broker, if need be, and through KMS.
func (c *Client) unwrap(ctx context.Context, name string) (*dataKey, error) {
	wrapped, err := c.inventory.get(ctx, name)
	if err != nil {
		return nil, err
	}
	key, err := c.decrypt(ctx, name, wrapped)
	if err == nil {
		return key, nil
	}
	// The wrapping at hand may be older than a key change.
	fresh, ok, renewErr := c.inventory.renew(ctx, name, wrapped)
	if renewErr != nil {
		return nil, errors.Join(renewErr, err)
	}
	if !ok {
		return nil, err
	}
	return c.decrypt(ctx, name, fresh)
}

func (c *Client) decrypt(ctx context.Context, name string, wrapped wrappedKey) (*dataKey, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	key, err := c.kms.Decrypt(ctx, wrapped.blob, wrapped.encryptionContext, wrapped.kmsKey, c.grantTokens(name))
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", name, ErrUnwrap, err)
	}
	if len(key) != wrapped.size {
		clear(key)
		return nil, fmt.Errorf("%s: %w: KMS gave %d bytes, want %d", name, ErrUnwrap, len(key), wrapped.size)
	}
	return &dataKey{uid: wrapped.uid, secret: newSecret(key)}, nil
}
