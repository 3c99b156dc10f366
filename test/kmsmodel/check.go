package kmsmodel

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode/utf8"
)

// findings are what a value has against the model.
type findings struct {
	faults  []string // it is wrong
	members []string // the model lacks them
	values  []string // of enums: the model lacks them
}

func (f *findings) fault(path, format string, args ...any) {
	f.faults = append(f.faults, path+" "+fmt.Sprintf(format, args...))
}

// check holds a JSON value against a shape.
func (m *Model) check(path, name string, value any, f *findings) {
	s := m.shapes[name]
	if s == nil {
		f.fault(path, "has the shape %s, which the model does not define", name)
		return
	}
	switch s.Type {
	case "structure":
		m.checkStructure(path, s, value, f)
	case "list":
		list, ok := value.([]any)
		if !ok {
			f.fault(path, "is %T, want a list", value)
			return
		}
		s.within(path, "length", float64(len(list)), f)
		for i, item := range list {
			m.check(fmt.Sprintf("%s[%d]", path, i), s.Member.Shape, item, f)
		}
	case "map":
		pairs, ok := value.(map[string]any)
		if !ok {
			f.fault(path, "is %T, want a map", value)
			return
		}
		for k, v := range pairs {
			m.check(path+".key", s.Key.Shape, k, f)
			m.check(path+".value", s.Value.Shape, v, f)
		}
	default:
		s.checkScalar(path, value, f)
	}
}

func (m *Model) checkStructure(path string, s *shape, value any, f *findings) {
	members, ok := value.(map[string]any)
	if !ok {
		f.fault(path, "is %T, want a structure", value)
		return
	}
	for _, name := range s.Required {
		if members[name] == nil {
			f.fault(path, "lacks %s", name)
		}
	}
	for name, member := range members {
		at, known := s.Members[name]
		switch {
		case !known:
			f.members = append(f.members, path+"."+name)
		case member != nil: // null is as if it were not there
			m.check(path+"."+name, at.Shape, member, f)
		}
	}
}

func (s *shape) checkScalar(path string, value any, f *findings) {
	switch s.Type {
	case "string":
		text, ok := value.(string)
		if !ok {
			f.fault(path, "is %T, want a string", value)
			return
		}
		s.within(path, "length", float64(utf8.RuneCountInString(text)), f)
		if s.pattern != nil && !s.pattern.MatchString(text) {
			f.fault(path, "does not match %s", s.Pattern)
		}
		if len(s.Enum) > 0 && !slices.Contains(s.Enum, text) {
			f.values = append(f.values, path+"="+text)
		}
	case "blob":
		text, ok := value.(string)
		if !ok {
			f.fault(path, "is %T, want base64", value)
			return
		}
		raw, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			f.fault(path, "is no base64: %v", err)
			return
		}
		s.within(path, "length", float64(len(raw)), f)
	case "boolean":
		if _, ok := value.(bool); !ok {
			f.fault(path, "is %T, want a boolean", value)
		}
	case "integer", "long":
		n, ok := value.(float64)
		if !ok || n != math.Trunc(n) {
			f.fault(path, "is %v, want a whole number", value)
			return
		}
		s.within(path, "value", n, f)
	case "timestamp":
		// Seconds since 1970, with milliseconds.
		if n, ok := value.(float64); !ok || n <= 0 {
			f.fault(path, "is %v, want seconds since 1970", value)
		}
	default:
		f.fault(path, "has the type %s, which is not checked", s.Type)
	}
}

func (s *shape) within(path, what string, n float64, f *findings) {
	if s.Min != nil && n < *s.Min || s.Max != nil && n > *s.Max {
		f.fault(path, "has the %s %v, want %s", what, n, s.limits())
	}
}

func (s *shape) limits() string {
	var parts []string
	if s.Min != nil {
		parts = append(parts, fmt.Sprintf("at least %v", *s.Min))
	}
	if s.Max != nil {
		parts = append(parts, fmt.Sprintf("at most %v", *s.Max))
	}
	return strings.Join(parts, " and ")
}

// commonErrors may answer any request, so no operation declares them (AWS KMS API
// Reference, Common Errors; those of the signature: IAM User Guide).
var commonErrors = []string{
	"AccessDeniedException", "IncompleteSignatureException", "InvalidSignatureException", "KMSInternalException",
	"MissingAuthenticationTokenException", "NotAuthorizedException", "SerializationException", "ThrottlingException",
	"UnknownOperationException", "UnrecognizedClientException", "ExpiredTokenException", "InvalidClientTokenId", "ValidationException",
}

// declares reports whether an operation may answer with an error code.
func (m *Model) declares(op operation, code string) bool {
	return slices.Contains(commonErrors, code) || slices.Contains(op.Errors, ref{code})
}

// decode reads a JSON object.
func decode(text []byte) (map[string]any, error) {
	var doc map[string]any
	if len(text) == 0 {
		return doc, nil
	}
	err := json.Unmarshal(text, &doc)
	return doc, err
}
