package grpcapi

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

const (
	// passWindow is how many items messages of a stream are at work at a time (the
	// API's promise). While that many are, the next is not read, and gRPC's flow
	// control holds the client back: a stream takes the memory of a few messages.
	passWindow = 4
	// passHeartbeat is how often a stream speaks when nothing is ready (the API's
	// promise).
	passHeartbeat = 15 * time.Second
)

// ReencryptStream implements keybroker.v1.DataKeyService.
func (s *dataKeyService) ReencryptStream(stream keybrokerv1.DataKeyService_ReencryptStreamServer) error {
	ctx, cancel := context.WithCancel(stream.Context())
	first, err := stream.Recv()
	if err != nil && !errors.Is(err, io.EOF) {
		cancel()
		return unread(ctx, err)
	}
	p := &passStream{service: s, stream: stream, header: first.GetHeader()}
	defer p.work.Wait()
	defer cancel()
	if err := p.open(ctx); err != nil {
		return err
	}
	return p.run(ctx)
}

// A passStream is one stream of a pass. One goroutine reads, one per items
// message works, and the handler's own sends, in the order of what was read.
type passStream struct {
	service *dataKeyService
	stream  keybrokerv1.DataKeyService_ReencryptStreamServer
	header  *keybrokerv1.ReencryptStreamRequest_Header
	pass    rotation.Pass
	work    sync.WaitGroup
	// atWork are the items messages that are not answered yet, oldest first.
	atWork []chan worked
}

// worked is what became of one items message.
type worked struct {
	items    []*keybrokerv1.ReencryptStreamRequest_Item
	receipts []rotation.Receipt
	err      error
}

// received is what came in: a message, or the end; or the panic of its reading.
type received struct {
	message  *keybrokerv1.ReencryptStreamRequest
	err      error
	panicked error
}

func (p *passStream) open(ctx context.Context) error {
	if p.header == nil {
		return refuse(broker.ReasonFieldInvalid, "header", "must be the first message")
	}
	domain, err := broker.ParseDomainName("header.parent", p.header.GetParent())
	if err != nil {
		return err
	}
	owner := rotation.PassOwner{Grantee: p.header.GetGranteePrincipal()}
	if name := p.header.GetGrant(); name != "" {
		of, grant, err := broker.ParseGrantName("header.grant", name)
		if err != nil {
			return err
		}
		if of != domain {
			return refuse(broker.ReasonNameInvalid, "header.grant", "must be a grant of header.parent")
		}
		owner.Grant = grant
	}
	resume, err := p.service.tokens.open(p.header, owner)
	if err != nil {
		return err
	}
	view, err := p.service.passes.OpenPass(ctx, p.service.caller(ctx), rotation.OpenPass{Domain: domain, Owner: owner, Resume: resume})
	if err != nil {
		return err
	}
	p.pass = view.Pass
	token, err := p.service.tokens.seal(p.header, p.pass)
	if err != nil {
		return err
	}
	return p.stream.Send(openedMessage(view, token))
}

// run answers what the client sends until it attests, closes its side, or goes
// away.
func (p *passStream) run(ctx context.Context) error {
	in := p.read(ctx)
	beat := time.NewTicker(passHeartbeat)
	defer beat.Stop()
	var complete *keybrokerv1.ReencryptStreamRequest_Complete
	for ended := false; ; {
		if ended && len(p.atWork) == 0 {
			return p.end(ctx, complete)
		}
		read := in
		if ended || len(p.atWork) == passWindow {
			read = nil
		}
		var oldest chan worked
		if len(p.atWork) > 0 {
			oldest = p.atWork[0]
		}
		select {
		case r := <-read:
			if r.panicked != nil {
				return r.panicked
			}
			if r.err != nil && !errors.Is(r.err, io.EOF) {
				return unread(ctx, r.err)
			}
			if r.message.GetHeader() != nil {
				return refuse(broker.ReasonFieldInvalid, "header", "must be the first message, and no other")
			}
			complete = r.message.GetComplete()
			ended = r.err != nil || complete != nil
			if !ended {
				p.begin(ctx, r.message.GetItems().GetItems())
			}
		case w := <-oldest:
			p.atWork = p.atWork[1:]
			if err := p.answer(ctx, w); err != nil {
				return err
			}
			beat.Reset(passHeartbeat)
		case <-beat.C:
			if err := p.stream.Send(heartbeatMessage()); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// read gives what comes in, one message at a time, until the stream ends.
func (p *passStream) read(ctx context.Context) <-chan received {
	in := make(chan received)
	go func() { // it ends with the stream, which the handler's return ends
		for {
			r := p.receive(ctx)
			select {
			case in <- r:
			case <-ctx.Done():
				return
			}
			if r.err != nil || r.panicked != nil {
				return
			}
		}
	}()
	return in
}

// receive waits for one message. Its rules are checked within, and it is on a
// goroutine of its own: a panic there would end the process.
func (p *passStream) receive(ctx context.Context) (r received) {
	defer func() {
		if v := recover(); v != nil {
			r = received{panicked: p.service.panicked(ctx, keybrokerv1.DataKeyService_ReencryptStream_FullMethodName, v)}
		}
	}()
	r.message, r.err = p.stream.Recv()
	return r
}

// unread gives the error of a message that could not be read. What gRPC itself
// says is that the client went away, or that it does not speak the API.
func unread(ctx context.Context, err error) error {
	var ours *broker.Error
	switch {
	case errors.As(err, &ours):
		return err
	case ctx.Err() != nil:
		return ctx.Err()
	}
	switch status.Code(err) {
	case codes.Canceled, codes.Unavailable:
		return context.Canceled
	case codes.DeadlineExceeded:
		return context.DeadlineExceeded
	}
	return refuse(broker.ReasonFieldInvalid, "message", "cannot be read, or has more than 4 MiB")
}

// begin lets the engine work on items.
func (p *passStream) begin(ctx context.Context, items []*keybrokerv1.ReencryptStreamRequest_Item) {
	done, pass := make(chan worked, 1), p.pass
	p.atWork = append(p.atWork, done)
	in := make([]rotation.PassItem, len(items))
	for i, item := range items {
		in[i] = rotation.PassItem{ID: item.GetItemId(), Ciphertext: item.GetCiphertextBlob(), Context: item.GetContext(),
			KMSKey: broker.KeyARN(item.GetKmsKey()), Proven: p.service.tokens.proven(p.header.GetParent(), item)}
	}
	p.work.Go(func() {
		w := worked{items: items}
		defer func() {
			if v := recover(); v != nil {
				w.err = p.service.panicked(ctx, keybrokerv1.DataKeyService_ReencryptStream_FullMethodName, v)
			}
			done <- w
		}()
		w.receipts, w.err = p.service.passes.ReencryptItems(ctx, p.service.caller(ctx), pass, in)
	})
}

// answer sends the receipts of one items message, with a token that counts them.
func (p *passStream) answer(ctx context.Context, w worked) error {
	if w.err != nil {
		return w.err
	}
	p.pass = p.pass.With(w.receipts)
	token, err := p.service.tokens.seal(p.header, p.pass)
	if err != nil {
		return err
	}
	out := &keybrokerv1.ReencryptStreamResponse_Receipts{ResumeToken: token}
	for i, r := range w.receipts {
		out.Receipts = append(out.Receipts, p.receipt(ctx, w.items[i], r))
	}
	return p.stream.Send(&keybrokerv1.ReencryptStreamResponse{Message: &keybrokerv1.ReencryptStreamResponse_Receipts_{Receipts: out}})
}

// receipt tells what became of one item. The stream goes on, so the cause of an
// item's error that its caller is not told is logged here.
func (p *passStream) receipt(ctx context.Context, item *keybrokerv1.ReencryptStreamRequest_Item, r rotation.Receipt) *keybrokerv1.ReencryptStreamResponse_Receipt {
	if r.Err == nil {
		return &keybrokerv1.ReencryptStreamResponse_Receipt{ItemId: r.Item, Outcome: &keybrokerv1.ReencryptStreamResponse_Receipt_Wrapped{
			Wrapped: &keybrokerv1.ReencryptStreamResponse_Wrapped{CiphertextBlob: []byte(r.Ciphertext), KmsKey: string(r.KMSKey),
				KeyMaterialId: r.KeyMaterialID, Unchanged: r.Unchanged,
				Proof: p.service.tokens.proof(p.header.GetParent(), string(r.KMSKey), r.Ciphertext, item.GetContext())}}}
	}
	f := failureOf(r.Err)
	if !f.expected {
		p.service.log.LogAttrs(ctx, slog.LevelError, "an item of a pass failed", slog.String("call_id", callOf(ctx).id),
			slog.String("error", f.cause.Error()))
	}
	return &keybrokerv1.ReencryptStreamResponse_Receipt{ItemId: r.Item, Outcome: &keybrokerv1.ReencryptStreamResponse_Receipt_Error{
		Error: &keybrokerv1.Status{Code: int32(f.status.Code()), Message: f.status.Message(), Reason: string(f.reason)}}}
}

// end takes the service's word, if it gives one.
func (p *passStream) end(ctx context.Context, complete *keybrokerv1.ReencryptStreamRequest_Complete) error {
	if complete == nil {
		return nil
	}
	inventories, err := p.service.passes.Attest(ctx, p.service.caller(ctx), p.pass, complete.GetGivenUpItems())
	if err != nil {
		return err
	}
	return p.stream.Send(attestedMessage(inventories))
}
