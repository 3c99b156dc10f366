package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

// refreshGap is how soon after an answer the broker is not asked again about the
// same data key, so that a KMS that refuses everything does not turn every Open
// into a call to the broker.
const refreshGap = time.Second

// DataKeyGetter is where wrapped data keys come from: the part of
// keybrokerv1.DataKeyServiceClient that is needed.
type DataKeyGetter interface {
	// GetDataKey reads one data key as it is wrapped now.
	GetDataKey(ctx context.Context, request *keybrokerv1.GetDataKeyRequest, options ...grpc.CallOption) (*keybrokerv1.DataKey, error)
}

// A wrappedKey is a data key as the broker gave it.
type wrappedKey struct {
	uid               string
	blob              []byte
	encryptionContext map[string]string
	kmsKey            string
	size              int // of the unwrapped key, bytes
	asked             time.Time
}

// inventory caches what the broker keeps. Safe for concurrent use.
type inventory struct {
	broker  DataKeyGetter
	maxAge  time.Duration
	timeout time.Duration
	max     int

	mu   sync.Mutex
	keys map[string]wrappedKey
}

// get gives the wrapped key at hand, asking the broker if there is none or if it
// is old; the old one is good enough while the broker does not answer.
func (i *inventory) get(ctx context.Context, name string) (wrappedKey, error) {
	i.mu.Lock()
	key, ok := i.keys[name]
	i.mu.Unlock()
	if ok && time.Since(key.asked) < i.maxAge {
		return key, nil
	}
	fresh, err := i.refresh(ctx, name)
	if ok && doesNotAnswer(err) {
		return key, nil
	}
	return fresh, err
}

// renew gives a newer wrapping than key, if the broker has one. ok is false if
// it has none, does not answer, or has just been asked.
func (i *inventory) renew(ctx context.Context, name string, key wrappedKey) (fresh wrappedKey, ok bool, err error) {
	if time.Since(key.asked) < refreshGap {
		return wrappedKey{}, false, nil
	}
	fresh, err = i.refresh(ctx, name)
	if doesNotAnswer(err) {
		return wrappedKey{}, false, nil
	}
	if err != nil {
		return wrappedKey{}, false, err
	}
	changed := fresh.uid != key.uid || fresh.kmsKey != key.kmsKey || !bytes.Equal(fresh.blob, key.blob)
	return fresh, changed, nil
}

// expire makes the next get ask the broker.
func (i *inventory) expire(name string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if key, ok := i.keys[name]; ok {
		key.asked = time.Time{}
		i.keys[name] = key
	}
}

// refresh asks the broker.
func (i *inventory) refresh(ctx context.Context, name string) (wrappedKey, error) {
	ctx, cancel := context.WithTimeout(ctx, i.timeout)
	defer cancel()
	// The age counts from the question: that is when the answer was surely true.
	asked := time.Now()
	answer, err := i.broker.GetDataKey(ctx, &keybrokerv1.GetDataKeyRequest{Name: name})
	if status.Code(err) == codes.NotFound {
		i.mu.Lock()
		delete(i.keys, name)
		i.mu.Unlock()
		return wrappedKey{}, fmt.Errorf("%s: %w: %w", name, ErrKeyNotFound, err)
	}
	if err != nil {
		return wrappedKey{}, fmt.Errorf("%s: %w: %w", name, ErrBroker, err)
	}
	key := wrappedKey{
		uid:               answer.GetUid(),
		blob:              answer.GetCiphertextBlob(),
		encryptionContext: answer.GetEncryptionContext(),
		kmsKey:            answer.GetKmsKey(),
		asked:             asked,
	}
	switch spec := answer.GetKeySpec(); spec {
	case "AES_128":
		key.size = 16
	case "AES_256":
		key.size = 32
	default:
		return wrappedKey{}, fmt.Errorf("%s: %w: key spec %q is not known here", name, ErrBroker, spec)
	}
	if answer.GetName() != name || !isUID(key.uid) || len(key.blob) == 0 {
		return wrappedKey{}, fmt.Errorf("%s: %w: the answer is about another key, or lacks a uid or a wrapped key", name, ErrBroker)
	}
	i.put(name, key)
	return key, nil
}

// put keeps a key, at the price of the one that was asked for longest ago.
func (i *inventory) put(name string, key wrappedKey) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if _, ok := i.keys[name]; !ok && len(i.keys) >= i.max {
		oldest, found := "", false
		for other, k := range i.keys {
			if !found || k.asked.Before(i.keys[oldest].asked) {
				oldest, found = other, true
			}
		}
		delete(i.keys, oldest)
	}
	i.keys[name] = key
}

// doesNotAnswer says whether an error means that the broker cannot be reached,
// rather than that it has something to say.
func doesNotAnswer(err error) bool {
	if err == nil {
		return false
	}
	code := status.Code(err)
	return code == codes.Unavailable || code == codes.DeadlineExceeded || errors.Is(err, context.DeadlineExceeded)
}
