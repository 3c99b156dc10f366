package grpcapi

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/keybroker/keybroker/internal/broker"
)

// checkText refuses the one character that no text of PostgreSQL can hold
// (PostgreSQL documentation, Character Types), whatever the engine is: U+0000.
// Names and ids have rules of their own; this is for what people write.
func checkText(m protoreflect.Message) error {
	path := zeroIn(m)
	if path == "" {
		return nil
	}
	return &broker.Error{Kind: broker.ErrInvalid, Reason: reasonOfField(path, "", false), Detail: "the request is invalid",
		Violations: []broker.Violation{{Field: path, Description: "must not hold the character U+0000"}}}
}

// zeroIn gives the path of a field whose text holds U+0000, "" if there is none.
func zeroIn(m protoreflect.Message) (path string) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		name := string(f.Name())
		switch {
		case name == "etag": // is compared, and not stored
		case f.IsMap():
			v.Map().Range(func(key protoreflect.MapKey, value protoreflect.Value) bool {
				entry := fmt.Sprintf("%s[%q]", name, key.String())
				if path = zeroInValue(f.MapKey(), entry, key.Value()); path == "" {
					path = zeroInValue(f.MapValue(), entry, value)
				}
				return path == ""
			})
		case f.IsList():
			for i := 0; i < v.List().Len() && path == ""; i++ {
				path = zeroInValue(f, fmt.Sprintf("%s[%d]", name, i), v.List().Get(i))
			}
		default:
			path = zeroInValue(f, name, v)
		}
		return path == ""
	})
	return path
}

// zeroInValue is zeroIn for one value of a field of this name.
func zeroInValue(f protoreflect.FieldDescriptor, name string, v protoreflect.Value) string {
	switch f.Kind() {
	case protoreflect.StringKind:
		if strings.ContainsRune(v.String(), 0) {
			return name
		}
	case protoreflect.MessageKind:
		if inside := zeroIn(v.Message()); inside != "" {
			return name + "." + inside
		}
	}
	return ""
}
