package grpcapi

import (
	"crypto/sha256"
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/keybroker/keybroker/internal/broker"
)

// requestIDField is the name of the field in every request that changes things.
const requestIDField = "request_id"

// A mutation is a request that is safe to repeat.
type mutation interface {
	proto.Message
	GetRequestId() string
}

// requestOf gives the idempotency token of a request: the zero value if its
// caller gave none.
//
// The hash is over the deterministic encoding of the message without its
// request_id. That encoding is not promised to stay the same from one version
// of the protobuf library to the next; a repeat across such an upgrade would be
// refused with REQUEST_ID_REUSED, which is safe.
func requestOf(method string, m mutation) (broker.Request, error) {
	if m.GetRequestId() == "" {
		return broker.Request{}, nil
	}
	// A shallow copy: an import has up to 4 MiB.
	from := m.ProtoReflect()
	body := from.New()
	from.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if f.Name() != requestIDField {
			body.Set(f, v)
		}
		return true
	})
	body.SetUnknown(from.GetUnknown())
	encoded, err := proto.MarshalOptions{Deterministic: true}.Marshal(body.Interface())
	if err != nil {
		return broker.Request{}, fmt.Errorf("encode the request for its hash: %w", err)
	}
	return broker.Request{Method: method, ID: m.GetRequestId(), Hash: sha256.Sum256(encoded)}, nil
}
