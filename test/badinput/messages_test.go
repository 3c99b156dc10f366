package badinput_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	pb "github.com/keybroker/keybroker/proto/keybroker/v1"
	"github.com/keybroker/keybroker/test/harness"
)

// TestBadBatches: calls about many things at once are of a bounded size, and
// about each thing once. What is wrong with one refuses all.
func TestBadBatches(t *testing.T) {
	w := newWorld(t, harness.Config{})
	items := func(ids ...string) func(proto.Message) {
		return spoiling(func(m *pb.ImportDataKeysRequest) {
			m.Items = nil
			for _, id := range ids {
				m.Items = append(m.Items, w.item(id))
			}
		})
	}
	keys := func(ids ...string) func(proto.Message) {
		return spoiling(func(m *pb.BatchGetDataKeysRequest) {
			m.Names = nil
			for _, id := range ids {
				m.Names = append(m.Names, "domains/acme/dataKeys/"+id)
			}
		})
	}
	failures := func(all bool, ids ...string) func(proto.Message) {
		return spoiling(func(m *pb.AcknowledgeReencryptionFailuresRequest) {
			m.All, m.Names = all, nil
			for _, id := range ids {
				m.Names = append(m.Names, w.brokenJob+"/failures/"+id)
			}
		})
	}
	many := make([]string, 501)
	for i := range many {
		many[i] = fmt.Sprint("k", i)
	}
	w.run([]badCall{
		{"none", "ImportDataKeys", items(), invalid("FIELD_INVALID", "items")},
		{"501", "ImportDataKeys", items(many...), invalid("FIELD_INVALID", "items")},
		{"one twice", "ImportDataKeys", items("new", "newer", "new"), invalid("IMPORT_DUPLICATE", "items[2].data_key_id")},
		{"one malformed", "ImportDataKeys", items("new", "n/w"), invalid("FIELD_INVALID", "items[1].data_key_id")},
		{"none", "BatchGetDataKeys", keys(), invalid("FIELD_INVALID", "names")},
		{"501", "BatchGetDataKeys", keys(many...), invalid("FIELD_INVALID", "names")},
		{"one twice", "BatchGetDataKeys", keys("k1", "k2", "k1"), invalid("FIELD_INVALID", "names")},
		{"none", "AcknowledgeReencryptionFailures", failures(false), invalid("FIELD_INVALID", "names")},
		{"501", "AcknowledgeReencryptionFailures", failures(false, many...), invalid("FIELD_INVALID", "names")},
		{"one twice", "AcknowledgeReencryptionFailures", failures(false, "bad", "worse", "bad"), invalid("FIELD_INVALID", "names")},
		{"some and all", "AcknowledgeReencryptionFailures", failures(true, "bad"), invalid("FIELD_INVALID", "names")},
		{"one that did not fail", "AcknowledgeReencryptionFailures", failures(false, "bad", "good"), invalid("FIELD_INVALID", "names[1]")},
	})
}

// padded adds a field that the schema does not know: size like any other.
func padded(m proto.Message, size int) proto.Message {
	field := protowire.AppendBytes(protowire.AppendTag(nil, 1000, protowire.BytesType), make([]byte, size))
	m.ProtoReflect().SetUnknown(field)
	return m
}

// TestOversizedMessages: 256 KiB, and for an import 4 MiB. Beyond that gRPC itself
// refuses, before it has read the message, so there is no reason of ours (gRPC,
// Status codes and their use in gRPC: message too large).
func TestOversizedMessages(t *testing.T) {
	w := newWorld(t, harness.Config{})
	for _, m := range methods() {
		if m.Name() != "ImportDataKeys" {
			w.refused(string(m.Name())+" of 257 KiB", m.Name(), padded(w.good(m.Name()), 257<<10), refusal{Code: codes.InvalidArgument, Reason: "FIELD_INVALID"})
		}
	}
	w.refused("an import of 4 MiB and more", "ImportDataKeys", padded(w.good("ImportDataKeys"), 4<<20), refusal{Code: codes.ResourceExhausted})
}

// rawCodec sends bytes as they are.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) ([]byte, error) {
	b, ok := v.([]byte)
	if !ok {
		return nil, errors.New("not bytes")
	}
	return b, nil
}

func (rawCodec) Unmarshal(b []byte, v any) error { return proto.Unmarshal(b, v.(proto.Message)) }

// TestUnreadableMessages: bytes that are no message of the method's type never
// reach the broker. gRPC answers them itself, with INTERNAL (gRPC, Status codes and
// their use in gRPC: error parsing request proto).
func TestUnreadableMessages(t *testing.T) {
	w := newWorld(t, harness.Config{})
	w.state()
	text := func(b ...byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), b)
	}
	for what, message := range map[string][]byte{
		"words":                 []byte("give me a data key, please"),
		"a field cut short":     text('d', 'o', 'm')[:3],
		"text that is no UTF-8": text(0xff, 0xfe),
		"a number cut short":    slices.Concat(protowire.AppendTag(nil, 1, protowire.Fixed32Type), []byte{1}),
		"an end of a group":     protowire.AppendTag(nil, 1, protowire.EndGroupType),
	} {
		for _, m := range methods() {
			if m.Name() == "ListDomains" && what == "text that is no UTF-8" {
				continue // its first field is a number
			}
			before := w.state()
			err := w.exchange(t.Context(), m, fmt.Sprintf("/%s/%s", m.Parent().FullName(), m.Name()), message, &pb.Domain{}, grpc.ForceCodec(rawCodec{}))
			if diff := cmp.Diff(refusal{Code: codes.Internal}, refusalOf(t, err)); diff != "" {
				t.Errorf("%s, %s (-want +got):\n%s", m.Name(), what, diff)
			}
			if diff := cmp.Diff(before, w.state()); diff != "" {
				t.Errorf("%s, %s, changed something:\n%s", m.Name(), what, diff)
			}
		}
	}
}

// TestUnknownMethods: what the schema does not have is gRPC's to refuse.
func TestUnknownMethods(t *testing.T) {
	w := newWorld(t, harness.Config{})
	for _, path := range []string{"/keybroker.v1.DataKeyService/DecryptDataKey", "/keybroker.v1.DataKeyService/GenerateDataKey",
		"/keybroker.v2.DataKeyService/GetDataKey", "/keybroker.v1.datakeyservice/getdatakey"} {
		before := w.state()
		err := w.conn.Invoke(t.Context(), path, w.good("GetDataKey"), &pb.DataKey{})
		if got := refusalOf(t, err); got != (refusal{Code: codes.Unimplemented}) {
			t.Errorf("%s: %+v", path, got)
		}
		if diff := cmp.Diff(before, w.state()); diff != "" {
			t.Errorf("%s changed something:\n%s", path, diff)
		}
	}
}
