package badinput_test

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	pb "github.com/keybroker/keybroker/proto/keybroker/v1"
	"github.com/keybroker/keybroker/test/harness"
)

// lists are the methods that answer in pages.
func lists() (all []protoreflect.MethodDescriptor) {
	for _, m := range methods() {
		if has(m, "page_token") {
			all = append(all, m)
		}
	}
	return all
}

// withField gives a copy of a request with one field set.
func withField(m proto.Message, field protoreflect.Name, v protoreflect.Value) proto.Message {
	m = proto.Clone(m)
	m.ProtoReflect().Set(m.ProtoReflect().Descriptor().Fields().ByName(field), v)
	return m
}

// token gives the token that leads to a list's second page.
func (w *world) token(m protoreflect.MethodDescriptor, in proto.Message) string {
	w.t.Helper()
	out, r := w.send(w.t.Context(), m.Name(), withField(in, "page_size", protoreflect.ValueOfInt32(1)))
	if r != (refusal{}) {
		w.t.Fatalf("%s: %+v", m.Name(), r)
	}
	token := out.ProtoReflect().Get(m.Output().Fields().ByName("next_page_token")).String()
	if token == "" {
		w.t.Fatalf("%s: the world has one page only", m.Name())
	}
	return token
}

// list gives a request for a list that has two entries at least.
func (w *world) list(m protoreflect.MethodDescriptor) proto.Message {
	in := w.good(m.Name())
	switch in := in.(type) {
	case *pb.ListReencryptionJobsRequest:
		in.Parent = "domains/-"
	}
	return in
}

// TestBadPages: page sizes and page tokens of every list.
func TestBadPages(t *testing.T) {
	w := newWorld(t, harness.Config{})
	tokens := map[protoreflect.Name]string{}
	for _, m := range lists() {
		tokens[m.Name()] = w.token(m, w.list(m))
	}
	bad := invalid("PAGE_TOKEN_INVALID", "page_token")
	for _, m := range lists() {
		in, token := w.list(m), tokens[m.Name()]
		refused := func(what, token string, in proto.Message) {
			t.Helper()
			w.refused(fmt.Sprintf("%s, %s", m.Name(), what), m.Name(), withField(in, "page_token", textValue(token)), bad)
		}
		for _, size := range []int32{-1, math.MinInt32} {
			w.refused(fmt.Sprintf("%s, page_size %d", m.Name(), size), m.Name(), withField(in, "page_size", protoreflect.ValueOfInt32(size)), invalid("FIELD_INVALID", "page_size"))
		}
		if _, r := w.send(t.Context(), m.Name(), withField(in, "page_size", protoreflect.ValueOfInt32(math.MaxInt32))); r != (refusal{}) {
			t.Errorf("%s, a page size beyond the most: %+v, want as many as there may be", m.Name(), r)
		}
		refused("words", "the second page", in)
		refused("a number", "2", in)
		refused("base64 of nothing of ours", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", in)
		refused("cut short", token[:len(token)-1], in)
		refused("one letter more", token+"A", in)
		refused("padding", token+"==", in)
		refused("a line end", token+"\n", in)
		refused("one bit turned", flipped(token), in)
		refused("1,025 letters", strings.Repeat("A", 1025), in)
		for other, foreign := range tokens {
			if other != m.Name() {
				refused("that of "+string(other), foreign, in)
			}
		}
		if has(m, "parent") {
			refused("another parent's", token, withField(in, "parent", textValue(w.otherParent(m))))
		}
		refused("another filter's", token, withField(in, "filter", textValue(someFilter(m))))
		w.refusedTo(metadata.AppendToOutgoingContext(t.Context(), harness.CallerHeader, "somebody else"), string(m.Name())+", another caller's",
			m.Name(), withField(in, "page_token", textValue(token)), bad)
		for _, filter := range []string{"state", "state =", "state = STATE_ACTIVE OR state = STATE_FAILED", "no_such_field = 1", "state != STATE_ACTIVE", "state = \"", "=", "AND",
			"ciphertext_blob = x", "' or 1 = 1 --", strings.Repeat("a", 1025)} {
			w.refused(fmt.Sprintf("%s, filter %.40q", m.Name(), filter), m.Name(), withField(in, "filter", textValue(filter)), invalid("FILTER_INVALID", "filter"))
		}
	}
	w.Clock.Advance(24*time.Hour + time.Second)
	for _, m := range lists() {
		w.refused(string(m.Name())+", yesterday's", m.Name(), withField(w.list(m), "page_token", textValue(tokens[m.Name()])), bad)
	}
}

func flipped(token string) string {
	at := len(token) / 2
	letter := byte('A')
	if token[at] == letter {
		letter = 'B'
	}
	return token[:at] + string(letter) + token[at+1:]
}

// otherParent gives another parent that a list takes.
func (w *world) otherParent(m protoreflect.MethodDescriptor) string {
	if m.Name() == "ListReencryptionFailures" {
		return w.changingJob
	}
	return "domains/broken"
}

func someFilter(m protoreflect.MethodDescriptor) string {
	switch m.Name() {
	case "ListDataKeys":
		return "key_spec = AES_256"
	case "ListReencryptionFailures":
		return "acknowledged = false"
	}
	return "state = STATE_ACTIVE"
}
