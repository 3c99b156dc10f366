package client_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

const (
	keyName = "domains/acme/dataKeys/invoice-1"
	oldKey  = "arn:aws:kms:us-east-1:111122223333:key/old"
	newKey  = "arn:aws:kms:us-east-1:111122223333:key/new"
)

var (
	errDenied  = errors.New("AccessDeniedException")
	errOffline = status.Error(codes.Unavailable, "connection refused")
)

// fakeWorld is a broker and a KMS. A wrapped key is "<kms key>|<data key>", and
// KMS unwraps what is wrapped under a key that is not disabled.
type fakeWorld struct {
	mu       sync.Mutex
	rows     map[string]*keybrokerv1.DataKey
	disabled map[string]bool
	// Answered by the broker instead of a row.
	brokerErr error
	// Held while the broker or KMS answer, if set: closing it lets them.
	hold chan struct{}

	brokerCalls, kmsCalls int
	tokens                []string
	// What KMS gave out last, which the client must overwrite.
	given []byte
}

func newFakeWorld() *fakeWorld {
	w := &fakeWorld{rows: map[string]*keybrokerv1.DataKey{}, disabled: map[string]bool{}}
	w.wrap(keyName, "uid1", oldKey)
	return w
}

// plain is the data key of a uid.
func plain(uid string) []byte {
	key := sha256.Sum256([]byte(uid))
	return key[:]
}

// wrap puts a row in, or moves it to another KMS key.
func (w *fakeWorld) wrap(name, uid, kmsKey string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rows[name] = &keybrokerv1.DataKey{
		Name:              name,
		Uid:               uid,
		CiphertextBlob:    append([]byte(kmsKey+"|"), plain(uid)...),
		KmsKey:            kmsKey,
		KeySpec:           "AES_256",
		EncryptionContext: map[string]string{"keybroker:domain": "d1"},
	}
}

func (w *fakeWorld) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

// calls gives the calls to broker and KMS since it was last asked.
func (w *fakeWorld) calls() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := fmt.Sprintf("broker %d, KMS %d", w.brokerCalls, w.kmsCalls)
	w.brokerCalls, w.kmsCalls = 0, 0
	return s
}

func (w *fakeWorld) wait(ctx context.Context) error {
	w.mu.Lock()
	hold := w.hold
	w.mu.Unlock()
	if hold == nil {
		return nil
	}
	select {
	case <-hold:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// GetDataKey is the broker's.
func (w *fakeWorld) GetDataKey(ctx context.Context, request *keybrokerv1.GetDataKeyRequest, _ ...grpc.CallOption) (*keybrokerv1.DataKey, error) {
	if err := w.wait(ctx); err != nil {
		return nil, status.FromContextError(err).Err()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.brokerCalls++
	if w.brokerErr != nil {
		return nil, w.brokerErr
	}
	row, ok := w.rows[request.GetName()]
	if !ok {
		return nil, status.Error(codes.NotFound, "no such data key")
	}
	return row, nil
}

// Decrypt is KMS's.
func (w *fakeWorld) Decrypt(ctx context.Context, blob []byte, encryptionContext map[string]string, kmsKey string, tokens []string) ([]byte, error) {
	if err := w.wait(ctx); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.kmsCalls++
	w.tokens = tokens
	key, ok := bytes.CutPrefix(blob, []byte(kmsKey+"|"))
	if !ok || encryptionContext["keybroker:domain"] != "d1" || w.disabled[kmsKey] {
		return nil, errDenied
	}
	w.given = bytes.Clone(key)
	return w.given, nil
}
