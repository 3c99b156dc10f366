package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

// ReencryptStreamer moves wrapped keys: the part of
// keybrokerv1.DataKeyServiceClient that is needed.
type ReencryptStreamer interface {
	// ReencryptStream opens a stream.
	ReencryptStream(ctx context.Context, options ...grpc.CallOption) (grpc.BidiStreamingClient[keybrokerv1.ReencryptStreamRequest, keybrokerv1.ReencryptStreamResponse], error)
}

// A WrappedKey is a data key that a service keeps itself, wrapped by KMS, by a
// grant of INVENTORY_SELF. ID, CiphertextBlob and EncryptionContext are required.
type WrappedKey struct {
	// ID is the service's own name for it: 1 to 256 characters.
	ID string
	// CiphertextBlob is KMS's, made under EncryptionContext. The domain's reserved
	// pair may be left out of that.
	CiphertextBlob    []byte
	EncryptionContext map[string]string
	// KMSKey is the ARN of the key that it is under, as KMS named it; "" if the
	// service did not keep it, which costs KMS calls.
	KMSKey string
	// Proof came with the blob if the broker moved it; it saves a KMS call.
	Proof []byte
}

// A KeyReceipt is what became of a wrapped key.
type KeyReceipt struct {
	Sent WrappedKey
	// Now is what to store in place of Sent, but only if what is stored is still
	// Sent.CiphertextBlob. Absent if Err is set.
	Now WrappedKey
	// Unchanged: it was under Now.KMSKey already.
	Unchanged bool
	// Err says why it was not moved: a gRPC status, with the broker's reason.
	Err error
}

// A Pass is one run through all wrapped keys that a service keeps itself. Domain,
// Broker, Keys, Store and one of Grant and Grantee are required.
type Pass struct {
	Broker ReencryptStreamer
	// Domain is "domains/{domain}", Grant "domains/{domain}/grants/{grant}".
	// Grantee, the ARN of the service's IAM role, stands for all its grants.
	Domain, Grant, Grantee string
	// Keys gives every wrapped key, or every one that is not surely under the
	// domain's present key. It is read once, after the pass has begun.
	Keys iter.Seq2[WrappedKey, error]
	// Store stores receipts, durably, and compares before it swaps: see KeyReceipt.
	// It is called by one goroutine at a time. An error ends the pass.
	Store func(ctx context.Context, receipts []KeyReceipt) error
	// Attest ends the pass with the service's word that it has no wrapped key left
	// under an older key of the domain, wherever it keeps any.
	Attest bool
	// GiveUp says whether the service does without a key that was not moved. If it
	// does not for each, the pass does not attest. nil: never.
	GiveUp func(KeyReceipt) bool
}

// A PassResult tells what a pass did; also one that failed.
type PassResult struct {
	// KMSKey is the domain's key when the pass began; OlderKMSKeys are those before
	// it that are not retired.
	KMSKey       string
	OlderKMSKeys []string
	// AttestAfter is when a pass must begin to be able to attest; zero: any time.
	AttestAfter                       time.Time
	Moved, Unchanged, Failed, GivenUp int64
	Attested                          bool
}

// What Reencrypt can answer beside the errors of Keys, Store, the broker and the
// context. A gRPC status inside is found by status.FromError.
var (
	// ErrAttestTooEarly: the pass began before PassResult.AttestAfter. Its keys are
	// moved. Make another pass after that.
	ErrAttestTooEarly = errors.New("the pass began too early to attest")
	// ErrKeyChanged: the domain's key changed during the pass. Make another one.
	ErrKeyChanged = errors.New("the domain's key changed during the pass")
	// ErrNotMoved: keys were neither moved nor given up, so the pass did not attest.
	ErrNotMoved = errors.New("wrapped keys were not moved")
)

const (
	// passWindow is how many messages may be unanswered; the broker reads no more.
	passWindow = 4
	// A message has at most passItems keys and about passBytes; the broker takes
	// 250 and 256 KiB.
	passItems = 100
	passBytes = 192 << 10
	// The waits before a broken stream is resumed grow from firstWait to longestWait.
	firstWait, longestWait = 20 * time.Millisecond, 5 * time.Second
)

// Reencrypt makes a pass: it has the broker move each wrapped key to the domain's
// present KMS key. A stream that breaks is resumed until ctx ends; no key is
// stored twice for it, or left out. At most 400 keys are held at a time.
func Reencrypt(ctx context.Context, p Pass) (PassResult, error) {
	if p.Broker == nil || p.Keys == nil || p.Store == nil || p.Domain == "" || (p.Grant == "") == (p.Grantee == "") {
		return PassResult{}, errors.New("client: Pass needs Broker, Domain, Keys, Store, and Grant or Grantee")
	}
	if p.GiveUp == nil {
		p.GiveUp = func(KeyReceipt) bool { return false }
	}
	r := &passRun{Pass: p}
	defer func() {
		if r.stop != nil {
			r.stop()
		}
	}()
	for wait := firstWait; ; wait = min(2*wait, longestWait) {
		progress, err := r.stream(ctx)
		if err == nil || ctx.Err() != nil || !resumable(err) {
			return r.result, named(err)
		}
		if progress {
			wait = firstWait
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return r.result, ctx.Err()
		}
	}
}

// A passRun is a pass under way, over one stream after the other.
type passRun struct {
	Pass
	result PassResult
	token  string
	// next reads Keys; stop ends that. Both are nil until the pass has begun.
	next func() (WrappedKey, error, bool)
	stop func()
	// unanswered are the messages without receipts, oldest first; the first sent of
	// them went over the present stream.
	unanswered [][]WrappedKey
	sent       int
	held       *WrappedKey // read, and too large for the last message
}

type passMessage = keybrokerv1.ReencryptStreamResponse

// stream goes on with the pass over one stream. progress says that something was
// answered.
func (r *passRun) stream(ctx context.Context) (progress bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := r.Broker.ReencryptStream(ctx)
	if err != nil {
		return false, err
	}
	in := receive(ctx, s)
	send := func(m *keybrokerv1.ReencryptStreamRequest) error {
		if err := s.Send(m); err != nil {
			return in.end() // Send does not know why
		}
		return nil
	}
	if err := send(r.header()); err != nil {
		return false, err
	}
	if err := r.opened(in.take()); err != nil {
		return false, err
	}
	for r.sent = 0; ; {
		if err := r.fill(send); err != nil {
			return progress, err
		}
		if len(r.unanswered) == 0 {
			break
		}
		if err := r.answered(ctx, in); err != nil {
			return progress, err
		}
		progress = true
	}
	if !r.Attest {
		return progress, errors.Join(s.CloseSend(), closed(in.end()))
	}
	if left := r.result.Failed - r.result.GivenUp; left > 0 {
		return progress, fmt.Errorf("%w: %d", ErrNotMoved, left)
	}
	if err := send(&keybrokerv1.ReencryptStreamRequest{Message: &keybrokerv1.ReencryptStreamRequest_Complete_{
		Complete: &keybrokerv1.ReencryptStreamRequest_Complete{GivenUpItems: r.result.GivenUp}}}); err != nil {
		return progress, err
	}
	m, err := in.take()
	if err != nil {
		return progress, err
	}
	if m.GetAttested() == nil {
		return progress, unexpected(m)
	}
	r.result.Attested = true
	return true, nil
}

func (r *passRun) header() *keybrokerv1.ReencryptStreamRequest {
	h := &keybrokerv1.ReencryptStreamRequest_Header{Parent: r.Domain, ResumeToken: r.token}
	if r.Grant != "" {
		h.Owner = &keybrokerv1.ReencryptStreamRequest_Header_Grant{Grant: r.Grant}
	} else {
		h.Owner = &keybrokerv1.ReencryptStreamRequest_Header_GranteePrincipal{GranteePrincipal: r.Grantee}
	}
	return &keybrokerv1.ReencryptStreamRequest{Message: &keybrokerv1.ReencryptStreamRequest_Header_{Header: h}}
}

// opened takes the answer to the header. The keys are read from now on: those of
// before are what the pass is about.
func (r *passRun) opened(m *passMessage, err error) error {
	if err != nil {
		return err
	}
	o := m.GetOpened()
	if o == nil {
		return unexpected(m)
	}
	r.token, r.result.KMSKey, r.result.OlderKMSKeys = o.GetResumeToken(), o.GetKmsKey(), o.GetOlderKmsKeys()
	if o.GetAttestAfter() != nil {
		r.result.AttestAfter = o.GetAttestAfter().AsTime()
	}
	if r.next == nil {
		r.next, r.stop = iter.Pull2(r.Keys)
	}
	return nil
}

// fill sends until the window is full or no keys are left.
func (r *passRun) fill(send func(*keybrokerv1.ReencryptStreamRequest) error) error {
	for r.sent < passWindow {
		if r.sent == len(r.unanswered) {
			keys, err := r.read()
			if err != nil || len(keys) == 0 {
				return err
			}
			r.unanswered = append(r.unanswered, keys)
		}
		items := &keybrokerv1.ReencryptStreamRequest_Items{}
		for _, k := range r.unanswered[r.sent] {
			items.Items = append(items.Items, itemOf(k))
		}
		r.sent++
		if err := send(&keybrokerv1.ReencryptStreamRequest{Message: &keybrokerv1.ReencryptStreamRequest_Items_{Items: items}}); err != nil {
			return err
		}
	}
	return nil
}

func itemOf(k WrappedKey) *keybrokerv1.ReencryptStreamRequest_Item {
	return &keybrokerv1.ReencryptStreamRequest_Item{ItemId: k.ID, CiphertextBlob: k.CiphertextBlob,
		Context: k.EncryptionContext, KmsKey: k.KMSKey, Proof: k.Proof}
}

// read gives the keys of one more message; none at the end.
func (r *passRun) read() (keys []WrappedKey, err error) {
	size := 0
	for len(keys) < passItems {
		k, err, ok := r.take()
		if err != nil || !ok {
			return keys, err
		}
		size += proto.Size(itemOf(k)) + 8
		if size > passBytes && len(keys) > 0 {
			r.held = &k
			break
		}
		keys = append(keys, k)
	}
	return keys, nil
}

func (r *passRun) take() (k WrappedKey, err error, ok bool) {
	if r.held != nil {
		k, r.held = *r.held, nil
		return k, nil, true
	}
	k, err, ok = r.next()
	if err != nil {
		err = &serviceError{fmt.Errorf("read the wrapped keys: %w", err)}
	}
	return k, err, ok
}

// answered takes the receipts of the oldest message, and stores them.
func (r *passRun) answered(ctx context.Context, in *inbox) error {
	m, err := in.take()
	if err != nil {
		return err
	}
	sent, answers := r.unanswered[0], m.GetReceipts().GetReceipts()
	if len(answers) != len(sent) {
		return unexpected(m)
	}
	receipts := make([]KeyReceipt, len(sent))
	counted := r.result
	for i, a := range answers {
		if a.GetItemId() != sent[i].ID {
			return unexpected(m)
		}
		receipts[i] = receiptOf(sent[i], a)
		switch {
		case receipts[i].Err == nil && receipts[i].Unchanged:
			counted.Unchanged++
		case receipts[i].Err == nil:
			counted.Moved++
		default:
			counted.Failed++
			if r.GiveUp(receipts[i]) {
				counted.GivenUp++
			}
		}
	}
	if err := r.Store(ctx, receipts); err != nil {
		return &serviceError{fmt.Errorf("store the receipts: %w", err)}
	}
	r.token, r.result = m.GetReceipts().GetResumeToken(), counted
	r.unanswered, r.sent = r.unanswered[1:], r.sent-1
	return nil
}

func receiptOf(sent WrappedKey, a *keybrokerv1.ReencryptStreamResponse_Receipt) KeyReceipt {
	w := a.GetWrapped()
	if w == nil {
		e := a.GetError()
		return KeyReceipt{Sent: sent, Err: fmt.Errorf("%s: %w", e.GetReason(), status.Error(codes.Code(e.GetCode()), e.GetMessage()))}
	}
	now := sent
	now.CiphertextBlob, now.KMSKey, now.Proof = w.GetCiphertextBlob(), w.GetKmsKey(), w.GetProof()
	return KeyReceipt{Sent: sent, Now: now, Unchanged: w.GetUnchanged()}
}

// An inbox is what a stream brings, heartbeats left out.
type inbox struct {
	messages chan *passMessage
	err      error // why messages was closed
}

// receive reads a stream beside the sending, as flow control asks for.
func receive(ctx context.Context, s grpc.BidiStreamingClient[keybrokerv1.ReencryptStreamRequest, passMessage]) *inbox {
	in := &inbox{messages: make(chan *passMessage, passWindow)}
	go func() {
		defer close(in.messages)
		for {
			m, err := s.Recv()
			if err != nil {
				in.err = err
				return
			}
			if m.GetHeartbeat() {
				continue
			}
			select {
			case in.messages <- m:
			case <-ctx.Done():
				in.err = ctx.Err()
				return
			}
		}
	}()
	return in
}

func (in *inbox) take() (*passMessage, error) {
	if m, ok := <-in.messages; ok {
		return m, nil
	}
	return nil, in.err
}

// end gives why the stream ends; what still comes before is dropped, and asked
// for again.
func (in *inbox) end() error {
	for range in.messages {
	}
	return in.err
}

// closed takes the regular end of a stream for none.
func closed(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func unexpected(m *passMessage) error {
	return fmt.Errorf("%w: an answer that does not fit: %T", ErrBroker, m.GetMessage())
}

// A serviceError is Keys' or Store's: whatever is in it, the broker did not say it.
type serviceError struct{ error }

func (e *serviceError) Unwrap() error { return e.error }

// resumable says whether a stream broke, rather than that it was refused.
func resumable(err error) bool {
	var own *serviceError
	return !errors.As(err, &own) && (status.Code(err) == codes.Unavailable || errors.Is(err, io.EOF))
}

// named gives the broker's refusals that a service acts on a name.
func named(err error) error {
	var own *serviceError
	if errors.As(err, &own) {
		return err
	}
	for _, d := range status.Convert(err).Details() {
		info, ok := d.(*errdetails.ErrorInfo)
		switch {
		case ok && info.GetReason() == "ATTESTATION_TOO_EARLY":
			return fmt.Errorf("%w: %w", ErrAttestTooEarly, err)
		case ok && info.GetReason() == "KEY_CHANGED_MEANWHILE":
			return fmt.Errorf("%w: %w", ErrKeyChanged, err)
		}
	}
	return err
}
