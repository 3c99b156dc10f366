package grpcapi_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/grpcapi"
	"github.com/keybroker/keybroker/internal/rotation"
	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

const headerJSON = `{"header":{"parent":"domains/acme","grant":"domains/acme/grants/orders"%s}}`

// A passClient is the client's end of a ReencryptStream.
type passClient struct {
	t *testing.T
	s keybrokerv1.DataKeyService_ReencryptStreamClient
}

func (d *door) pass(ctx context.Context, t *testing.T) *passClient {
	t.Helper()
	s, err := keybrokerv1.NewDataKeyServiceClient(d.conn).ReencryptStream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return &passClient{t, s}
}

// send types a message; io.EOF says that the stream has ended, which the next
// receive explains.
func (c *passClient) send(text string) {
	c.t.Helper()
	m := messageOf(c.t, (&keybrokerv1.ReencryptStreamRequest{}).ProtoReflect().Descriptor(), text)
	if err := c.s.Send(m.(*keybrokerv1.ReencryptStreamRequest)); err != nil && !errors.Is(err, io.EOF) {
		c.t.Fatal(err)
	}
}

func (c *passClient) receive() *keybrokerv1.ReencryptStreamResponse {
	c.t.Helper()
	m, err := c.s.Recv()
	if err != nil {
		c.t.Fatal(err)
	}
	return m
}

// end gives the stream's end; nothing may come before it.
func (c *passClient) end() error {
	c.t.Helper()
	m, err := c.s.Recv()
	if err == nil {
		c.t.Fatalf("the stream goes on with %v", m)
	}
	return err
}

// open sends a header with more fields, and gives the answer.
func (c *passClient) open(more string) *keybrokerv1.ReencryptStreamResponse_Opened {
	c.t.Helper()
	c.send(fmt.Sprintf(headerJSON, more))
	return c.receive().GetOpened()
}

func itemsJSON(ids ...string) string {
	items := make([]string, len(ids))
	for i, id := range ids {
		items[i] = fmt.Sprintf(`{"item_id":%q,"ciphertext_blob":"YmxvYg==","context":{"a":"b"},"kms_key":%q}`, id, keyOld)
	}
	return `{"items":{"items":[` + strings.Join(items, ",") + `]}}`
}

// A whole pass: what the engine is asked, what the client is answered.
func TestPass(t *testing.T) {
	f := newFake()
	d := serve(t, f, nil)
	c := d.pass(t.Context(), t)
	c.open("")
	f.receipts = []rotation.Receipt{
		{Item: "a", Ciphertext: broker.Secret("moved"), KMSKey: keyNew, KeyMaterialID: "m2"},
		{Item: "b", Err: &broker.Error{Kind: broker.ErrInvalid, Reason: broker.ReasonCiphertextInvalid, Detail: "KMS cannot read the blob"}},
		{Item: "c", Ciphertext: broker.Secret("same"), KMSKey: keyNew, Unchanged: true},
	}
	c.send(itemsJSON("a", "b", "c"))
	got := c.receive().GetReceipts()
	asked := f.last()[2].([]rotation.PassItem)
	if len(asked) != 3 || asked[0].ID != "a" || string(asked[0].Ciphertext) != "blob" || asked[0].KMSKey != keyOld || asked[0].Context["a"] != "b" || asked[0].Proven {
		t.Errorf("the engine was asked %+v", asked)
	}
	want := []*keybrokerv1.ReencryptStreamResponse_Receipt{
		{ItemId: "a", Outcome: &keybrokerv1.ReencryptStreamResponse_Receipt_Wrapped{Wrapped: &keybrokerv1.ReencryptStreamResponse_Wrapped{
			CiphertextBlob: []byte("moved"), KmsKey: string(keyNew), KeyMaterialId: "m2"}}},
		{ItemId: "b", Outcome: &keybrokerv1.ReencryptStreamResponse_Receipt_Error{Error: &keybrokerv1.Status{
			Code: int32(codes.InvalidArgument), Message: "KMS cannot read the blob", Reason: "CIPHERTEXT_INVALID"}}},
		{ItemId: "c", Outcome: &keybrokerv1.ReencryptStreamResponse_Receipt_Wrapped{Wrapped: &keybrokerv1.ReencryptStreamResponse_Wrapped{
			CiphertextBlob: []byte("same"), KmsKey: string(keyNew), Unchanged: true}}},
	}
	for i, r := range got.GetReceipts() {
		if w := r.GetWrapped(); w != nil {
			if len(w.GetProof()) != 32 {
				t.Errorf("the proof of %s has %d bytes", r.GetItemId(), len(w.GetProof()))
			}
			w.Proof = nil
		}
		if !proto.Equal(r, want[i]) {
			t.Errorf("receipt %v, want %v", r, want[i])
		}
	}
	c.send(`{"complete":{"given_up_items":"1"}}`)
	if m := c.receive().GetAttested(); len(m.GetSelfInventories()) != 1 || m.GetSelfInventories()[0].GetState() != keybrokerv1.SelfInventory_STATE_ATTESTED {
		t.Errorf("attested: %v", m)
	}
	// Two of the three items are somewhere.
	if asked := f.last(); asked[1].(rotation.Pass).Items != 2 || asked[2].(int64) != 1 {
		t.Errorf("the engine was told %+v", asked)
	}
	if err := c.end(); !errors.Is(err, io.EOF) {
		t.Errorf("the stream ends with %v", err)
	}
}

// A resume token carries the pass, for the same header, and for nothing else.
func TestResumeTokens(t *testing.T) {
	f := newFake()
	f.receipts = []rotation.Receipt{{Item: "a", Ciphertext: broker.Secret("moved"), KMSKey: keyNew}}
	d := serve(t, f, nil)
	c := d.pass(t.Context(), t)
	c.open("")
	c.send(itemsJSON("a"))
	token := c.receive().GetReceipts().GetResumeToken()
	if err := c.s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if err := c.end(); !errors.Is(err, io.EOF) {
		t.Errorf("a pass that nobody completes ends with %v", err)
	}
	resumed := d.pass(t.Context(), t)
	resumed.open(fmt.Sprintf(`,"resume_token":%q`, token))
	want := rotation.Pass{ID: "pass1", Domain: "uid1", Owner: rotation.PassOwner{Grant: "orders"}, Epoch: 2, BeginTime: at(2), Items: 1}
	if got := f.last()[1].(rotation.OpenPass).Resume; got == nil || *got != want {
		t.Errorf("resumed %+v, want %+v", got, want)
	}
	for what, header := range map[string]string{
		"of another domain": fmt.Sprintf(`{"header":{"parent":"domains/beta","grant":"domains/beta/grants/orders","resume_token":%q}}`, token),
		"of another grant":  fmt.Sprintf(`{"header":{"parent":"domains/acme","grant":"domains/acme/grants/other","resume_token":%q}}`, token),
		"of the role":       fmt.Sprintf(`{"header":{"parent":"domains/acme","grantee_principal":%q,"resume_token":%q}}`, roleARN, token),
		"cut short":         fmt.Sprintf(headerJSON, fmt.Sprintf(`,"resume_token":%q`, token[1:])),
		"not one":           fmt.Sprintf(headerJSON, `,"resume_token":"abc"`),
	} {
		c := d.pass(t.Context(), t)
		c.send(header)
		if err := c.end(); reasonOf(err) != "RESUME_TOKEN_INVALID" || status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// A proof stands for one blob, context, key and domain, and saves the engine's
// question for it.
func TestProofs(t *testing.T) {
	f := newFake()
	f.receipts = []rotation.Receipt{{Item: "a", Ciphertext: broker.Secret("moved"), KMSKey: keyNew}}
	d := serve(t, f, nil)
	c := d.pass(t.Context(), t)
	c.open("")
	c.send(itemsJSON("a"))
	w := c.receive().GetReceipts().GetReceipts()[0].GetWrapped()
	good := keybrokerv1.ReencryptStreamRequest_Item{ItemId: "a", CiphertextBlob: w.GetCiphertextBlob(), KmsKey: w.GetKmsKey(), Proof: w.GetProof(), Context: map[string]string{"a": "b"}}
	for what, edit := range map[string]func(*keybrokerv1.ReencryptStreamRequest_Item){
		"as it is":        func(*keybrokerv1.ReencryptStreamRequest_Item) {},
		"another blob":    func(i *keybrokerv1.ReencryptStreamRequest_Item) { i.CiphertextBlob = []byte("other") },
		"another context": func(i *keybrokerv1.ReencryptStreamRequest_Item) { i.Context = map[string]string{"a": "c"} },
		"another key":     func(i *keybrokerv1.ReencryptStreamRequest_Item) { i.KmsKey = string(keyOld) },
		"no key":          func(i *keybrokerv1.ReencryptStreamRequest_Item) { i.KmsKey = "" },
		"a bit less":      func(i *keybrokerv1.ReencryptStreamRequest_Item) { i.Proof = i.Proof[1:] },
		"none":            func(i *keybrokerv1.ReencryptStreamRequest_Item) { i.Proof = nil },
	} {
		item := proto.CloneOf(&good)
		edit(item)
		if err := c.s.Send(&keybrokerv1.ReencryptStreamRequest{Message: &keybrokerv1.ReencryptStreamRequest_Items_{
			Items: &keybrokerv1.ReencryptStreamRequest_Items{Items: []*keybrokerv1.ReencryptStreamRequest_Item{item}}}}); err != nil {
			t.Fatal(err)
		}
		c.receive()
		if got := f.last()[2].([]rotation.PassItem)[0].Proven; got != (what == "as it is") {
			t.Errorf("%s: proven %t", what, got)
		}
	}
}

// What breaks the order or the form of messages ends the stream; nothing of it
// reaches the engine.
func TestMalformedPasses(t *testing.T) {
	many := make([]string, 251)
	for i := range many {
		many[i] = fmt.Sprint("i", i)
	}
	for what, c := range map[string]struct {
		messages []string
		reason   string
	}{
		"items first":           {[]string{itemsJSON("a")}, "FIELD_INVALID"},
		"complete first":        {[]string{`{"complete":{}}`}, "FIELD_INVALID"},
		"nothing first":         {[]string{`{}`}, "FIELD_INVALID"},
		"nothing at all":        {nil, "FIELD_INVALID"},
		"no owner":              {[]string{`{"header":{"parent":"domains/acme"}}`}, "FIELD_INVALID"},
		"another domain's":      {[]string{`{"header":{"parent":"domains/acme","grant":"domains/beta/grants/orders"}}`}, "NAME_INVALID"},
		"a header twice":        {[]string{fmt.Sprintf(headerJSON, ""), fmt.Sprintf(headerJSON, "")}, "FIELD_INVALID"},
		"no items":              {[]string{fmt.Sprintf(headerJSON, ""), `{"items":{}}`}, "FIELD_INVALID"},
		"too many items":        {[]string{fmt.Sprintf(headerJSON, ""), itemsJSON(many...)}, "FIELD_INVALID"},
		"an item without an id": {[]string{fmt.Sprintf(headerJSON, ""), itemsJSON("")}, "FIELD_INVALID"},
		"too large": {[]string{fmt.Sprintf(headerJSON, ""), fmt.Sprintf(`{"items":{"items":[{"item_id":"a","ciphertext_blob":%q}]}}`, strings.Repeat("AAAA", 90_000))},
			"FIELD_INVALID"},
		"fewer than none given up": {[]string{fmt.Sprintf(headerJSON, ""), `{"complete":{"given_up_items":"-1"}}`}, "FIELD_INVALID"},
	} {
		t.Run(what, func(t *testing.T) {
			f := newFake()
			d := serve(t, f, nil)
			p := d.pass(t.Context(), t)
			for _, m := range c.messages {
				p.send(m)
			}
			if err := p.s.CloseSend(); err != nil {
				t.Fatal(err)
			}
			m, err := p.s.Recv()
			if m.GetOpened() != nil {
				_, err = p.s.Recv()
			}
			if reasonOf(err) != c.reason || status.Code(err) != codes.InvalidArgument {
				t.Errorf("%v", err)
			}
			if asked := f.last(); len(asked) > 2 {
				t.Errorf("the engine was asked %+v", asked)
			}
		})
	}
}

// Four messages are at work at a time, whatever the client sends; receipts come in
// the order of the items, whatever ends first.
func TestPassWindow(t *testing.T) {
	f := newFake()
	var atWork, most atomic.Int32
	begun, gates := make(chan struct{}, 100), make([]chan struct{}, 12)
	for i := range gates {
		gates[i] = make(chan struct{})
	}
	f.work = func(ctx context.Context, items []rotation.PassItem) ([]rotation.Receipt, error) {
		defer atWork.Add(-1)
		for n := atWork.Add(1); n > most.Load(); {
			most.Store(n)
		}
		var n int
		if _, err := fmt.Sscan(items[0].ID, &n); err != nil {
			return nil, err
		}
		begun <- struct{}{}
		select {
		case <-gates[n]:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		return []rotation.Receipt{{Item: items[0].ID, Ciphertext: broker.Secret("x"), KMSKey: keyNew}}, nil
	}
	d := serve(t, f, nil)
	c := d.pass(t.Context(), t)
	c.open("")
	for i := range gates {
		c.send(itemsJSON(fmt.Sprint(i)))
	}
	c.send(`{"complete":{}}`)
	for range 4 {
		<-begun
	}
	close(gates[3]) // the last of them ends first, and waits for its turn
	for i := range gates {
		if i != 3 {
			close(gates[i])
		}
		if got := c.receive().GetReceipts().GetReceipts()[0].GetItemId(); got != fmt.Sprint(i) {
			t.Fatalf("receipt of %s, want %d", got, i)
		}
	}
	if c.receive().GetAttested() == nil {
		t.Error("complete was not answered after the receipts")
	}
	if n := most.Load(); n != 4 {
		t.Errorf("up to %d messages were at work at a time, want 4", n)
	}
}

// When the server drains, open passes end, and say where to go on; what the engine
// fails with ends a pass too, and a panic takes down no more than its own stream.
func TestPassesEnd(t *testing.T) {
	hang := func(ctx context.Context, _ []rotation.PassItem) ([]rotation.Receipt, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	for what, c := range map[string]struct {
		work   func(context.Context, []rotation.PassItem) ([]rotation.Receipt, error)
		drain  bool
		code   codes.Code
		reason string
	}{
		"drain": {work: hang, drain: true, code: codes.Unavailable, reason: "SHUTTING_DOWN"},
		"the database is silent": {work: func(context.Context, []rotation.PassItem) ([]rotation.Receipt, error) {
			return nil, fmt.Errorf("commit: %w", broker.ErrUnavailable)
		}, code: codes.Unavailable, reason: "STORE_UNAVAILABLE"},
		"a panic": {work: func(context.Context, []rotation.PassItem) ([]rotation.Receipt, error) { panic(canary) }, code: codes.Internal, reason: "INTERNAL"},
	} {
		t.Run(what, func(t *testing.T) {
			f := newFake()
			f.work = c.work
			d := serve(t, f, nil)
			p := d.pass(t.Context(), t)
			p.open("")
			p.send(itemsJSON("a"))
			if c.drain {
				d.Drain()
			}
			err := p.end()
			if status.Code(err) != c.code || reasonOf(err) != c.reason {
				t.Errorf("%v", err)
			}
			if strings.Contains(d.log.String(), canary) {
				t.Errorf("the log tells what panicked: %s", d.log)
			}
		})
	}
}

// panicking is a stream that panics at its second message, as a rule that is
// checked might.
type panicking struct {
	grpc.ServerStream
	read int
}

func (s *panicking) RecvMsg(m any) error {
	if s.read++; s.read == 2 {
		panic(canary)
	}
	return s.ServerStream.RecvMsg(m)
}

// A panic while a message is read takes down no more than its own stream.
func TestPassPanicsWhileReading(t *testing.T) {
	d := serve(t, newFake(), func(c *grpcapi.Config) {
		c.ServerOptions = []grpc.ServerOption{grpc.ChainStreamInterceptor(
			func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
				return next(srv, &panicking{ServerStream: ss})
			})}
	})
	for range 2 { // the server goes on
		p := d.pass(t.Context(), t)
		p.open("")
		if err := p.end(); status.Code(err) != codes.Internal || reasonOf(err) != "INTERNAL" {
			t.Errorf("%v", err)
		}
	}
	if strings.Contains(d.log.String(), canary) || !strings.Contains(d.log.String(), "panic in a handler") {
		t.Errorf("the log says %s", d.log)
	}
}

// A client that goes away in the middle of its work leaves nothing behind, and no
// error in the log.
func TestPassClientGoesAway(t *testing.T) {
	f := newFake()
	begun, ended := make(chan struct{}), make(chan struct{})
	f.work = func(ctx context.Context, _ []rotation.PassItem) ([]rotation.Receipt, error) {
		defer close(ended)
		close(begun)
		<-ctx.Done()
		return nil, ctx.Err()
	}
	d := serve(t, f, nil)
	ctx, cancel := context.WithCancel(t.Context())
	c := d.pass(ctx, t)
	c.open("")
	c.send(itemsJSON("a"))
	<-begun
	cancel()
	<-ended
	if err := c.end(); status.Code(err) != codes.Canceled {
		t.Errorf("%v", err)
	}
	if err := d.Shutdown(t.Context()); err != nil { // waits for the handler, and so for its line
		t.Fatal(err)
	}
	if log := d.log.String(); !strings.Contains(log, `"code":"Canceled"`) || strings.Contains(log, `"level":"ERROR"`) || !strings.Contains(log, `"resource":"domains/acme/grants/orders"`) {
		t.Errorf("%s", log)
	}
}
