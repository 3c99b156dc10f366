//go:build unix

package chaos_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/durationpb"

	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

const domainName = "domains/chaos"

// opKey is the context key that carries the request_id of the call which made a
// data key or a grant: the only way to find its effects, all of them, without
// asking the broker.
const opKey = "op"

// A digest is the SHA-256 of a data key's plaintext.
type digest [sha256.Size]byte

// A workload makes calls and remembers what was acknowledged. Each has a
// request_id and is repeated until its outcome is known.
type workload struct {
	sys     caller
	service string // ARN of the grantee
	keep    int    // data keys; above it each new one is made up for by a deletion
	// refusals are those that a new grant may get: where the customer disables
	// keys, KMS refuses some, and such a grant has ended.
	refusals []string

	history *history // of the rows that clients share

	calls errgroup.Group
	next  atomic.Int64
	// Attempts that a strike left without an answer.
	unknownKeys, unknownGrants atomic.Int64

	mu       sync.Mutex
	keys     map[string]string // acknowledged: data key names by request_id
	digests  map[string]digest // by request_id
	deleted  map[string]string // acknowledged deletions: request_ids of creations by data key name
	grants   map[string]string // acknowledged: grant names by request_id
	names    []string          // of grants that nobody revokes, in the order of their acknowledgement
	renewing map[string]int    // renewals under way by grant name
	renewed  map[string]bool   // acknowledged renewals by request_id
	revoked  map[string]bool   // acknowledged revocations by grant name
	imported map[string]string // acknowledged: imported data keys by request_id
}

func newWorkload(sys caller, service string, keep int) *workload {
	w := &workload{sys: sys, service: service, keep: keep, history: newHistory(), keys: map[string]string{}, digests: map[string]digest{},
		deleted: map[string]string{}, grants: map[string]string{}, renewing: map[string]int{}, renewed: map[string]bool{},
		revoked: map[string]bool{}, imported: map[string]string{}}
	w.calls.SetLimit(callsAtMost)
	return w
}

// acknowledged is what the broker said it had done, by some moment.
type acknowledged struct {
	keys, imported, deleted, grants map[string]string
	renewed, revoked                map[string]bool
	digests                         map[string]digest
}

func (w *workload) acknowledged() acknowledged {
	w.mu.Lock()
	defer w.mu.Unlock()
	return acknowledged{keys: maps.Clone(w.keys), imported: maps.Clone(w.imported), deleted: maps.Clone(w.deleted), grants: maps.Clone(w.grants),
		renewed: maps.Clone(w.renewed), revoked: maps.Clone(w.revoked), digests: maps.Clone(w.digests)}
}

// givenUp reports whether somebody began to delete a data key.
func (w *workload) givenUp(op, name string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.keys[op] != name && w.imported[op] != name
}

func (w *workload) op(kind string) string { return fmt.Sprintf("%s-%06d", kind, w.next.Add(1)) }

func (w *workload) do(ctx context.Context, count *atomic.Int64, call func(context.Context, *running) error) error {
	unknown, err := w.sys.do(ctx, call)
	count.Add(int64(unknown))
	return err
}

// createKey makes a data key, and has its owner unwrap it at KMS: the blob as it
// was acknowledged, whatever the broker has made of it since.
func (w *workload) createKey(ctx context.Context) error {
	op := w.op("key")
	var k *keybrokerv1.DataKey
	err := w.do(ctx, &w.unknownKeys, func(ctx context.Context, r *running) (err error) {
		k, err = r.dataKeys.CreateDataKey(ctx, &keybrokerv1.CreateDataKeyRequest{
			Parent: domainName, DataKey: &keybrokerv1.DataKey{Context: map[string]string{opKey: op}}, RequestId: op})
		if err == nil {
			r.acknowledgedWrite()
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("CreateDataKey %s: %w", op, err)
	}
	w.mu.Lock()
	w.keys[op] = k.GetName()
	w.mu.Unlock()
	var out *kms.DecryptOutput
	_, err = w.sys.do(ctx, func(ctx context.Context, r *running) (err error) {
		out, err = r.customer.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: k.GetCiphertextBlob(),
			KeyId: &k.KmsKey, EncryptionContext: k.GetEncryptionContext()})
		return err
	})
	if err != nil {
		return fmt.Errorf("the owner unwraps %s: %w", op, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.digests[op] = sha256.Sum256(out.Plaintext)
	return nil
}

// createGrant makes a grant that is bound to its request_id, at KMS too.
func (w *workload) createGrant(ctx context.Context, operations ...string) error {
	op := w.op("grant")
	var g *keybrokerv1.Grant
	err := w.do(ctx, &w.unknownGrants, func(ctx context.Context, r *running) (err error) {
		g, err = r.grants.CreateGrant(ctx, &keybrokerv1.CreateGrantRequest{Parent: domainName, RequestId: op, Grant: &keybrokerv1.Grant{
			GranteePrincipal: w.service, Operations: operations, Ttl: durationpb.New(time.Hour),
			Constraints: &keybrokerv1.Grant_Constraints{EncryptionContextSubset: map[string]string{opKey: op}}}})
		return err
	})
	if err != nil && slices.Contains(w.refusals, reasonOf(err)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("CreateGrant %s: %w", op, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.grants[op] = g.GetName()
	w.names = append(w.names, g.GetName())
	return nil
}

// renewGrant renews some grant that was acknowledged.
func (w *workload) renewGrant(ctx context.Context) error {
	op := w.op("renew")
	w.mu.Lock()
	name := w.names[int(w.next.Load())%len(w.names)]
	w.renewing[name]++
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.renewing[name]--
	}()
	err := w.do(ctx, &w.unknownGrants, func(ctx context.Context, r *running) error {
		_, err := r.grants.RenewGrant(ctx, &keybrokerv1.RenewGrantRequest{Name: name, RequestId: op, Ttl: durationpb.New(2 * time.Hour)})
		return err
	})
	if err != nil {
		return fmt.Errorf("RenewGrant %s of %s: %w", op, name, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.renewed[op] = true
	return nil
}

// fill makes n data keys, several at a time.
func (w *workload) fill(ctx context.Context, n int) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(16)
	for range n {
		group.Go(func() error { return w.createKey(ctx) })
	}
	return group.Wait()
}

// The load beside a job: enough to be hit, and little enough that the job has
// the machine for itself. What is kept is bounded, or a slow machine would have
// ever more to move and to look at.
const (
	keyEvery   = 30 * time.Millisecond
	grantEvery = 400 * time.Millisecond
	grantsKept = 100
	// callsAtMost are under way at a time: where calls last longer than it takes to
	// begin as many, more would only keep each other from ever being answered.
	callsAtMost = 64
)

// traffic makes calls at a steady rate until stop is closed; those under way go
// on, see calls.Wait. A failed call ends the test by fail.
func (w *workload) traffic(ctx context.Context, stop <-chan struct{}, fail func(error)) {
	keys, grants := time.NewTicker(keyEvery), time.NewTicker(grantEvery)
	defer keys.Stop()
	defer grants.Stop()
	for {
		select {
		case <-keys.C:
			w.keyCall(ctx, fail)
		case <-grants.C:
			w.grantCall(ctx, fail)
		case <-stop:
			return
		case <-ctx.Done():
			return
		}
	}
}

// burst starts calls that change grants, so that a strike finds some under way.
func (w *workload) burst(ctx context.Context, fail func(error)) {
	for range 4 {
		w.grantCall(ctx, fail)
	}
}

// keyCall starts a CreateDataKey or, when there are enough, a DeleteDataKey.
func (w *workload) keyCall(ctx context.Context, fail func(error)) {
	w.offer(func() error {
		if op, name, ok := w.takeKey(); ok {
			return w.deleteKey(ctx, op, name)
		}
		return w.createKey(ctx)
	}, fail)
}

// grantCall starts a RenewGrant every other time; else a CreateGrant or, when
// there are enough, a RevokeGrant.
func (w *workload) grantCall(ctx context.Context, fail func(error)) {
	if w.next.Add(1)%2 == 0 {
		w.offer(func() error { return w.renewGrant(ctx) }, fail)
		return
	}
	w.offer(func() error {
		if name, ok := w.takeGrant(); ok {
			return w.revokeGrant(ctx, name)
		}
		return w.createGrant(ctx, "Decrypt", "GenerateDataKeyWithoutPlaintext")
	}, fail)
}

// offer starts a call unless there are enough.
func (w *workload) offer(call func() error, fail func(error)) { w.calls.TryGo(telling(call, fail)) }

func (w *workload) start(call func() error, fail func(error)) { w.calls.Go(telling(call, fail)) }

// telling is a call whose failure ends the test.
func telling(call func() error, fail func(error)) func() error {
	return func() error {
		err := call()
		if err != nil {
			fail(err)
		}
		return err
	}
}
