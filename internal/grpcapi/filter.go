package grpcapi

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/keybroker/keybroker/internal/broker"
)

// The grammar of filters is the part of AIP-160 that the API promises:
//
//	filter     = comparison { "AND" comparison }
//	comparison = field "=" value
//	value      = bare word | "quoted text, with \" and \\"
//
// An absent field equals "".
var (
	comparisonPattern = regexp.MustCompile(`^([a-z_]+(?:\.[a-z0-9_-]+)?)\s*=\s*("(?:[^"\\]|\\["\\])*"|[A-Za-z0-9:/_.@-]+)`)
	andPattern        = regexp.MustCompile(`^\s+AND\s+`)
	unquote           = strings.NewReplacer(`\"`, `"`, `\\`, `\`)
)

// filterFields are the fields of M that a method's filter may name, and how to
// read them. A name that ends in ".*" stands for all keys of a map.
type filterFields[M any] map[string]func(m M, key string) string

type comparison[M any] struct {
	get        func(m M, key string) string
	key, value string
}

// parseFilter gives a test for a filter, or nil for the empty one, which all
// pass. allowed is for people: what the fields are.
func parseFilter[M any](filter string, fields filterFields[M], allowed string) (keep func(M) bool, err error) {
	rest := strings.TrimSpace(filter)
	if rest == "" {
		return nil, nil
	}
	wrong := func(what string) (func(M) bool, error) {
		return nil, refuse(broker.ReasonFilterInvalid, "filter",
			fmt.Sprintf(`%s: write comparisons field = "value", joined by AND, on %s`, what, allowed))
	}
	var all []comparison[M]
	for {
		match := comparisonPattern.FindStringSubmatch(rest)
		if match == nil {
			return wrong("is not understood")
		}
		name, key := match[1], ""
		if root, sub, ok := strings.Cut(name, "."); ok {
			name, key = root+".*", sub
		}
		get, ok := fields[name]
		if !ok {
			return wrong(fmt.Sprintf("the field %q cannot be compared", clip(match[1], maxField)))
		}
		value := match[2]
		if strings.HasPrefix(value, `"`) {
			value = unquote.Replace(value[1 : len(value)-1])
		}
		all = append(all, comparison[M]{get: get, key: key, value: value})
		rest = rest[len(match[0]):]
		if rest == "" {
			break
		}
		and := andPattern.FindString(rest)
		if and == "" {
			return wrong("is not understood")
		}
		rest = rest[len(and):]
	}
	return func(m M) bool {
		for _, c := range all {
			if c.get(m, c.key) != c.value {
				return false
			}
		}
		return true
	}, nil
}
