package badinput_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/keybroker/keybroker/proto/keybroker/v1"
	"github.com/keybroker/keybroker/test/harness"
)

// TestStaleEtags: every method that takes an etag compares it (I13). An etag is
// opaque: what is no number, too, is only one that is not the present one.
func TestStaleEtags(t *testing.T) {
	w := newWorld(t, harness.Config{})
	stale := refusal{Code: codes.Aborted, Reason: "ETAG_MISMATCH"}
	met := 0
	for _, m := range methods() {
		f := m.Input().Fields().ByName("etag")
		if f == nil {
			continue
		}
		met++
		for _, etag := range []string{"0", "999999", "-1", "1 ", "01", "x", "\x00", strings.Repeat("9", 64)} {
			in := w.good(m.Name())
			in.ProtoReflect().Set(f, textValue(etag))
			w.refused(fmt.Sprintf("%s with the etag %q", m.Name(), etag), m.Name(), in, stale)
		}
		in := w.good(m.Name())
		in.ProtoReflect().Set(f, textValue(strings.Repeat("9", 65)))
		w.refused(string(m.Name())+" with an etag of 65 characters", m.Name(), in, invalid("FIELD_INVALID", "etag"))
	}
	if met < 8 {
		t.Errorf("only %d methods take an etag", met)
	}
	w.run([]badCall{
		{"a stale etag", "ImportDataKeys", spoiling(func(m *pb.ImportDataKeysRequest) { m.Items[0].DataKeyId, m.Items[0].Etag = "k1", "999" }), stale},
		{"no number", "ImportDataKeys", spoiling(func(m *pb.ImportDataKeysRequest) { m.Items[0].DataKeyId, m.Items[0].Etag = "k1", "x" }), stale},
		{"an etag of 65 characters", "ImportDataKeys", spoiling(func(m *pb.ImportDataKeysRequest) { m.Items[0].Etag = strings.Repeat("9", 65) }), invalid("FIELD_INVALID", "items[0].etag")},
		{"no etag", "ChangeKey", spoiling(func(m *pb.ChangeKeyRequest) { m.Etag = "" }), invalid("ETAG_REQUIRED", "etag")},
	})
}

// another gives another request of the same method, as good as the first.
func another(m proto.Message) proto.Message {
	m = proto.Clone(m)
	switch m := m.(type) {
	case *pb.CreateDomainRequest:
		m.Domain.DisplayName = "another"
	case *pb.UpdateDomainRequest:
		m.Domain.DisplayName = "another"
	case *pb.CreateGrantRequest:
		m.Grant.Ttl = durationpb.New(2 * time.Hour)
	case *pb.RenewGrantRequest:
		m.Ttl = durationpb.New(2 * time.Hour)
	case *pb.CreateDataKeyRequest:
		m.DataKeyId = "another"
	case *pb.DeleteDataKeyRequest:
		m.Name = "domains/acme/dataKeys/k1"
	case *pb.ImportDataKeysRequest:
		m.Items[0].DataKeyId = "another"
	case *pb.CreateReencryptionJobRequest:
		m.ReencryptionJob.Kind = pb.ReencryptionJob_KIND_KEY_MATERIAL
	default: // the others take a reason
		r := m.ProtoReflect()
		r.Set(r.Descriptor().Fields().ByName("reason"), textValue("another"))
	}
	return m
}

// TestReusedRequestIDs: every method that changes something remembers the
// request_id with what was asked. Another request under it is refused; the same
// one has no second effect (I8). The methods come backwards, so that none stands
// in another's way.
func TestReusedRequestIDs(t *testing.T) {
	w := newWorld(t, harness.Config{})
	for _, m := range slices.Backward(methods()) {
		f := m.Input().Fields().ByName("request_id")
		if f == nil {
			continue
		}
		for what, id := range map[string]string{"65 characters": strings.Repeat("r", 65), "a space": "r 1", "a line end": "r\n", "an umlaut": "ä"} {
			in := w.good(m.Name())
			in.ProtoReflect().Set(f, textValue(id))
			w.refused(fmt.Sprintf("%s, a request_id with %s", m.Name(), what), m.Name(), in, invalid("FIELD_INVALID", "request_id"))
		}
		first := w.good(m.Name())
		first.ProtoReflect().Set(f, textValue("r1"))
		if _, r := w.send(t.Context(), m.Name(), first); r != (refusal{}) {
			t.Errorf("%s: %+v", m.Name(), r)
			continue
		}
		w.refused(string(m.Name())+", another request", m.Name(), another(first), invalid("REQUEST_ID_REUSED", "request_id"))
		before := w.state()
		if _, r := w.send(t.Context(), m.Name(), first); r != (refusal{}) {
			t.Errorf("%s, the same again: %+v", m.Name(), r)
		}
		if diff := cmp.Diff(before, w.state()); diff != "" {
			t.Errorf("%s, the same again, changed something:\n%s", m.Name(), diff)
		}
	}
}

// A gate stands on the road to KMS: shut, it holds calls of one operation.
type gate struct {
	mu        sync.Mutex
	operation string // "" is open
	reached   chan struct{}
	let       chan struct{}
}

func (g *gate) shut(operation string) (reached <-chan struct{}, open func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.operation, g.reached, g.let = operation, make(chan struct{}), make(chan struct{})
	return g.reached, func() { close(g.let) }
}

// over puts the gate before a road.
func (g *gate) over(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		g.mu.Lock()
		held := g.operation != "" && strings.HasSuffix(r.Header.Get("X-Amz-Target"), "."+g.operation)
		reached, let := g.reached, g.let
		if held {
			g.operation = "" // one call
		}
		g.mu.Unlock()
		if held {
			close(reached)
			<-let
		}
		return next.RoundTrip(r)
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestConcurrentRequestIDs: while a call is at KMS, one with the same request_id
// is told to come back; one with another body is told so. Calls that hold no
// claim while they are at KMS have one effect whoever comes first.
func TestConcurrentRequestIDs(t *testing.T) {
	var g gate
	w := newWorld(t, harness.Config{Transport: g.over})
	inProgress := refusal{Code: codes.Aborted, Reason: "REQUEST_IN_PROGRESS"}
	for _, test := range []struct {
		name string
		hold string // the KMS operation amid which the second call comes
		in   proto.Message
	}{
		{"CreateGrant", "CreateGrant", w.good("CreateGrant")},
		{"RenewGrant", "ListGrants", w.good("RenewGrant")},
	} {
		test.in.ProtoReflect().Set(test.in.ProtoReflect().Descriptor().Fields().ByName("request_id"), textValue("r1"))
		name := test.in.ProtoReflect().Descriptor().Name()
		method := name[:len(name)-len("Request")]
		reached, open := g.shut(test.hold)
		done := make(chan refusal, 1)
		go func() {
			_, r := w.send(t.Context(), method, test.in)
			done <- r
		}()
		select {
		case <-reached:
		case r := <-done:
			t.Fatalf("%s did not come to KMS: %+v", test.name, r)
		}
		w.refused(test.name+" at the same time", method, test.in, inProgress)
		w.refused(test.name+" at the same time, another request", method, another(test.in), invalid("REQUEST_ID_REUSED", "request_id"))
		open()
		if r := <-done; r != (refusal{}) {
			t.Errorf("%s: %+v", test.name, r)
		}
		if _, r := w.send(t.Context(), method, test.in); r != (refusal{}) {
			t.Errorf("%s, afterwards: %+v", test.name, r)
		}
	}
	for _, in := range []proto.Message{w.good("CreateDataKey"), w.good("ImportDataKeys")} {
		in.ProtoReflect().Set(in.ProtoReflect().Descriptor().Fields().ByName("request_id"), textValue("r2"))
		name := in.ProtoReflect().Descriptor().Name()
		method, operation := name[:len(name)-len("Request")], "GenerateDataKeyWithoutPlaintext"
		if method == "ImportDataKeys" {
			operation = "ReEncrypt"
		}
		reached, open := g.shut(operation)
		done := make(chan refusal, 1)
		go func() {
			_, r := w.send(t.Context(), method, in)
			done <- r
		}()
		select {
		case <-reached:
		case r := <-done:
			t.Fatalf("%s did not come to KMS: %+v", method, r)
		}
		if _, r := w.send(t.Context(), method, in); r != (refusal{}) { // overtakes
			t.Errorf("%s, the second: %+v", method, r)
		}
		before := w.state()
		open()
		if r := <-done; r != (refusal{}) {
			t.Errorf("%s, the first: %+v", method, r)
		}
		if diff := cmp.Diff(before, w.state()); diff != "" {
			t.Errorf("%s, the first, changed something after the second was answered:\n%s", method, diff)
		}
	}
}
