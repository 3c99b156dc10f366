//go:build unix

package chaos_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/keybroker/keybroker/client"
	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

// A keeper is a service that keeps its own wrapped data keys, by a grant of
// INVENTORY_SELF. Its store compares before it swaps. It makes one pass at a time,
// each stream of it at whatever process is up.
type keeper struct {
	at     site
	tokens []string

	// gate holds the service's store up, and with it the pass, while a strike is
	// looked at.
	gate sync.Mutex

	mu    sync.Mutex
	keys  map[string]client.WrappedKey // the service's store, by its own ids
	plain map[string]digest
	lines map[*running]*grpc.ClientConn
	conns []net.Conn // that a cut breaks
	pass  *passLog
}

// A passLog is what the service saw of a pass.
type passLog struct {
	keys     int // that it is about
	answered int // messages
	moved    int // keys
	// wire counts items on all streams, streams those that were opened, resumed
	// those of them that went on with what an earlier one had begun.
	wire, streams, resumed int
	// movedOn counts streams that went on, and got receipts, at another process.
	movedOn int
	// The service's word is on its way; it was taken.
	completed, attested bool
	now, last           *running
	waits               []*awaited
}

// An awaited moment of a pass, told once.
type awaited struct {
	passMoment
	reached chan *running // the process that the pass is at
}

// A passMoment is when a pass has so many answers, or gives its word.
type passMoment struct {
	answered int
	complete bool
}

func newKeeper(at site) *keeper {
	return &keeper{at: at, keys: map[string]client.WrappedKey{}, plain: map[string]digest{}, lines: map[*running]*grpc.ClientConn{}}
}

// onboard gets the service its grant, and n data keys of its own making.
func (k *keeper) onboard(ctx context.Context, n int) error {
	if _, err := k.at.do(ctx, func(ctx context.Context, r *running) error {
		g, err := r.grants.CreateGrant(ctx, &keybrokerv1.CreateGrantRequest{Parent: domainName, GrantId: "keeper", RequestId: "keeper",
			Grant: &keybrokerv1.Grant{GranteePrincipal: serviceARN, Operations: []string{"Decrypt", "GenerateDataKey"},
				Inventory: keybrokerv1.Grant_INVENTORY_SELF, Ttl: durationpb.New(24 * time.Hour)}})
		k.tokens = g.GetGrantTokens()
		return err
	}); err != nil {
		return err
	}
	var domain *keybrokerv1.Domain
	if _, err := k.at.do(ctx, func(ctx context.Context, r *running) (err error) {
		domain, err = r.domains.GetDomain(ctx, &keybrokerv1.GetDomainRequest{Name: domainName})
		return err
	}); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for i := range n {
		group.Go(func() error { return k.generate(ctx, domain, fmt.Sprintf("kept-%05d", i)) })
	}
	return group.Wait()
}

// generate makes a data key at KMS, by the service's own role.
func (k *keeper) generate(ctx context.Context, d *keybrokerv1.Domain, id string) error {
	pairs := maps.Clone(d.GetEncryptionContext())
	pairs["record"] = id
	var out *kms.GenerateDataKeyOutput
	if _, err := k.at.do(ctx, func(ctx context.Context, r *running) (err error) {
		out, err = r.service.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: aws.String(d.GetKmsKey()),
			KeySpec: types.DataKeySpecAes256, EncryptionContext: pairs, GrantTokens: k.tokens})
		return err
	}); err != nil {
		return fmt.Errorf("the service makes a data key: %w", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keys[id] = client.WrappedKey{ID: id, CiphertextBlob: out.CiphertextBlob, EncryptionContext: pairs, KMSKey: aws.ToString(out.KeyId)}
	k.plain[id] = sha256.Sum256(out.Plaintext)
	return nil
}

// begin starts the log of a pass over some of the keys, or all.
func (k *keeper) begin(n int, attest bool) client.Pass {
	k.mu.Lock()
	defer k.mu.Unlock()
	ids := slices.Sorted(maps.Keys(k.keys))[:n]
	k.pass = &passLog{keys: n}
	return client.Pass{Broker: k, Domain: domainName, Grantee: serviceARN, Store: k.store, Attest: attest,
		Keys: func(yield func(client.WrappedKey, error) bool) {
			for _, id := range ids {
				k.mu.Lock()
				key := k.keys[id]
				k.mu.Unlock()
				if !yield(key, nil) {
					return
				}
			}
		}}
}

// store puts receipts into the service's store.
func (k *keeper) store(_ context.Context, receipts []client.KeyReceipt) error {
	k.gate.Lock()
	defer k.gate.Unlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, r := range receipts {
		if r.Err != nil {
			return fmt.Errorf("%s was not moved: %w", r.Sent.ID, r.Err)
		}
		if !bytes.Equal(k.keys[r.Sent.ID].CiphertextBlob, r.Sent.CiphertextBlob) {
			return fmt.Errorf("%s has a second receipt", r.Sent.ID)
		}
		k.keys[r.Sent.ID] = r.Now
		if !r.Unchanged {
			k.pass.moved++
		}
	}
	k.pass.answered++
	k.tell()
	return nil
}

// await gives the process that the pass is at once it has come to a moment.
func (k *keeper) await(m passMoment) <-chan *running {
	k.mu.Lock()
	defer k.mu.Unlock()
	w := &awaited{passMoment: m, reached: make(chan *running, 1)}
	k.pass.waits = append(k.pass.waits, w)
	k.tell()
	return w.reached
}

// tell tells those whose moment has come. k.mu is held.
func (k *keeper) tell() {
	p := k.pass
	p.waits = slices.DeleteFunc(p.waits, func(w *awaited) bool {
		come := p.now != nil && p.answered >= w.answered && (p.completed || !w.complete)
		if come {
			w.reached <- p.now
		}
		return come
	})
}

// left says that the pass is not at a process any more: it ends.
func (k *keeper) left(r *running) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.pass.now == r {
		k.pass.now = nil
	}
}

// log is what was seen of the pass so far.
func (k *keeper) log() passLog {
	k.mu.Lock()
	defer k.mu.Unlock()
	return *k.pass
}

// ReencryptStream opens a stream at a process that is up, over a connection that
// this service has to it.
func (k *keeper) ReencryptStream(ctx context.Context, options ...grpc.CallOption) (grpc.BidiStreamingClient[keybrokerv1.ReencryptStreamRequest, keybrokerv1.ReencryptStreamResponse], error) {
	r, err := k.at.up(ctx)
	if err != nil {
		return nil, err
	}
	line, err := k.line(r)
	if err != nil {
		return nil, err
	}
	s, err := keybrokerv1.NewDataKeyServiceClient(line).ReencryptStream(ctx, options...)
	if err != nil {
		return nil, err
	}
	return &watchedStream{BidiStreamingClient: s, k: k, at: r}, nil
}

// line gives the connection to a process.
func (k *keeper) line(r *running) (*grpc.ClientConn, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if line := k.lines[r]; line != nil {
		return line, nil
	}
	if r.isDown() {
		return nil, status.Error(codes.Unavailable, "the process ended this moment")
	}
	line, err := grpc.NewClient(r.API, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
			if err == nil {
				k.mu.Lock()
				defer k.mu.Unlock()
				k.conns = append(k.conns, conn)
			}
			return conn, err
		}))
	if err == nil {
		k.lines[r] = line
	}
	return line, err
}

// cut breaks every connection that the service has.
func (k *keeper) cut() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, conn := range k.conns {
		_ = conn.Close() // it may be gone already
	}
	k.conns = nil
}

// hangUp ends the lines to processes that are down or, at the end, all.
func (k *keeper) hangUp(all bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	var errs []error
	for r, line := range k.lines {
		if all || r.isDown() {
			errs = append(errs, line.Close())
			delete(k.lines, r)
		}
	}
	return errors.Join(errs...)
}

// A watchedStream notes what a pass sends and gets.
type watchedStream struct {
	grpc.BidiStreamingClient[keybrokerv1.ReencryptStreamRequest, keybrokerv1.ReencryptStreamResponse]
	k       *keeper
	at      *running
	resumed bool
}

func (s *watchedStream) Send(m *keybrokerv1.ReencryptStreamRequest) error {
	err := s.BidiStreamingClient.Send(m)
	s.k.mu.Lock()
	defer s.k.mu.Unlock()
	p := s.k.pass
	p.wire += len(m.GetItems().GetItems())
	p.completed = p.completed || m.GetComplete() != nil
	s.resumed = s.resumed || m.GetHeader().GetResumeToken() != ""
	s.k.tell()
	return err
}

func (s *watchedStream) Recv() (*keybrokerv1.ReencryptStreamResponse, error) {
	m, err := s.BidiStreamingClient.Recv()
	s.k.mu.Lock()
	defer s.k.mu.Unlock()
	p := s.k.pass
	if m.GetOpened() != nil {
		p.streams++
		p.now = s.at
		if s.resumed {
			p.resumed++
		}
		s.k.tell()
	}
	if m.GetReceipts() != nil || m.GetAttested() != nil {
		if p.last != nil && p.last != s.at && s.resumed {
			p.movedOn++
		}
		p.last = s.at
	}
	p.attested = p.attested || m.GetAttested() != nil
	return m, err
}

// all is a copy of what the service has.
func (k *keeper) all() map[string]client.WrappedKey {
	k.mu.Lock()
	defer k.mu.Unlock()
	return maps.Clone(k.keys)
}

// check opens wrapped keys, each under the very key that its receipt names, and
// compares them with what the service ever made: as the keys' owner, or by the
// service's own role and grant.
func (k *keeper) check(ctx context.Context, keys map[string]client.WrappedKey, asService bool) (found findings, err error) {
	var mu sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for id, want := range k.plain {
		group.Go(func() error {
			key, kept := keys[id]
			if !kept {
				mu.Lock()
				defer mu.Unlock()
				found.lost++
				found.add("%s is gone", id)
				return nil
			}
			got, err := k.open(ctx, key, asService)
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				found.undecryptable++
				found.add("%s does not open under %s, which its receipt names: %v", id, key.KMSKey, err)
			case got != want:
				found.undecryptable++
				found.add("%s holds another data key than it was made with", id)
			}
			return nil
		})
	}
	err = group.Wait()
	return found, err
}

func (k *keeper) open(ctx context.Context, key client.WrappedKey, asService bool) (digest, error) {
	in := &kms.DecryptInput{CiphertextBlob: key.CiphertextBlob, KeyId: aws.String(key.KMSKey), EncryptionContext: key.EncryptionContext}
	var out *kms.DecryptOutput
	_, err := k.at.do(ctx, func(ctx context.Context, r *running) (err error) {
		as := r.customer
		if asService {
			as = r.service
		}
		out, err = as.Decrypt(ctx, in)
		return err
	})
	if err != nil {
		return digest{}, err
	}
	return sha256.Sum256(out.Plaintext), nil
}
