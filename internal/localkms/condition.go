package localkms

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// condition is one operator on one condition key of a statement. Operators and
// their treatment of absent keys: IAM User Guide, "IAM JSON policy elements:
// Condition operators" and "Single-valued vs. multivalued context keys".
type condition struct {
	name       string // as written: operator, space, key
	key        string // folded
	quantifier quantifier
	ifExists   bool // met when the request does not have the key
	operator   operator
	values     []pattern
}

type quantifier int8

const (
	single quantifier = iota
	forAll
	forAny
)

// operator compares a value of the policy with a value of the request.
type operator struct {
	match     func(policy, request string) bool
	negated   bool // met when no value of the policy matches
	null      bool // Null: tests whether the request has the key
	variables bool // values may hold policy variables
	wildcards bool // values may hold wildcards
	check     func(policy string) bool
}

// operators returns what a condition may compare with, by name. BinaryEquals is not
// among it: it is for attestation documents.
func operators() map[string]operator {
	equal := operator{match: func(policy, request string) bool { return policy == request }, variables: true}
	folded := operator{match: strings.EqualFold, variables: true}
	like := operator{match: wildcard, variables: true, wildcards: true}
	arn := operator{match: arnLike, variables: true, wildcards: true}
	address := operator{match: inNetwork, check: isNetwork}
	numeric := func(compare func(policy, request float64) bool) operator {
		return typed(parseNumber, compare)
	}
	date := func(compare func(policy, request time.Time) bool) operator { return typed(parseDate, compare) }
	sameNumber := numeric(func(p, r float64) bool { return r == p })
	sameDate := date(func(p, r time.Time) bool { return r.Equal(p) })
	return map[string]operator{
		"StringEquals":              equal,
		"StringNotEquals":           negate(equal),
		"StringEqualsIgnoreCase":    folded,
		"StringNotEqualsIgnoreCase": negate(folded),
		"StringLike":                like,
		"StringNotLike":             negate(like),
		"ArnEquals":                 arn,
		"ArnLike":                   arn,
		"ArnNotEquals":              negate(arn),
		"ArnNotLike":                negate(arn),
		"Bool":                      {match: strings.EqualFold, check: isBool},
		"Null":                      {null: true, check: isBool},
		"NumericEquals":             sameNumber,
		"NumericNotEquals":          negate(sameNumber),
		"NumericLessThan":           numeric(func(p, r float64) bool { return r < p }),
		"NumericLessThanEquals":     numeric(func(p, r float64) bool { return r <= p }),
		"NumericGreaterThan":        numeric(func(p, r float64) bool { return r > p }),
		"NumericGreaterThanEquals":  numeric(func(p, r float64) bool { return r >= p }),
		"DateEquals":                sameDate,
		"DateNotEquals":             negate(sameDate),
		"DateLessThan":              date(func(p, r time.Time) bool { return r.Before(p) }),
		"DateLessThanEquals":        date(func(p, r time.Time) bool { return !r.After(p) }),
		"DateGreaterThan":           date(func(p, r time.Time) bool { return r.After(p) }),
		"DateGreaterThanEquals":     date(func(p, r time.Time) bool { return !r.Before(p) }),
		"IpAddress":                 address,
		"NotIpAddress":              negate(address),
	}
}

// typed is an operator on values that have to be read first. A value of a request
// that cannot be read matches nothing.
func typed[T any](parse func(string) (T, error), compare func(policy, request T) bool) operator {
	return operator{
		match: func(policy, request string) bool {
			p, err := parse(policy)
			r, err2 := parse(request)
			return err == nil && err2 == nil && compare(p, r)
		},
		check: func(policy string) bool {
			_, err := parse(policy)
			return err == nil
		},
	}
}

func negate(o operator) operator {
	o.negated = true
	return o
}

func isBool(s string) bool { return strings.EqualFold(s, "true") || strings.EqualFold(s, "false") }

func parseNumber(s string) (float64, error) { return strconv.ParseFloat(s, 64) }

// parseDate reads a W3C date of ISO 8601, or seconds since 1970 (IAM User Guide,
// "Condition operators", Date condition operators).
func parseDate(s string) (time.Time, error) {
	if seconds, err := strconv.ParseInt(s, 10, 64); err == nil && len(s) > len("2006") {
		return time.Unix(seconds, 0), nil
	}
	var err error
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04Z07:00", time.DateOnly, "2006-01", "2006"} {
		var t time.Time
		if t, err = time.Parse(layout, s); err == nil {
			return t, nil
		}
	}
	return time.Time{}, err
}

// parseNetwork reads an address or a range of them.
func parseNetwork(s string) (netip.Prefix, error) {
	if address, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(address, address.BitLen()), nil
	}
	return netip.ParsePrefix(s)
}

func isNetwork(s string) bool {
	_, err := parseNetwork(s)
	return err == nil
}

func inNetwork(policy, request string) bool {
	network, err := parseNetwork(policy)
	address, err2 := netip.ParseAddr(request)
	return err == nil && err2 == nil && network.Contains(address.Unmap())
}

// met reports whether a request meets the condition.
func (c *condition) met(q *query) bool {
	values := q.values(c.key)
	if c.operator.null {
		absent := strconv.FormatBool(len(values) == 0)
		return slices.ContainsFunc(c.values, func(want pattern) bool { return strings.EqualFold(want.text, absent) })
	}
	if len(values) == 0 {
		return c.ifExists || c.quantifier == forAll || (c.operator.negated && c.quantifier == single)
	}
	accepts := func(value string) bool { return c.accepts(q, value) }
	if c.quantifier == forAny || (c.quantifier == single && !c.operator.negated) {
		return slices.ContainsFunc(values, accepts)
	}
	return !slices.ContainsFunc(values, func(value string) bool { return !accepts(value) })
}

// accepts tests one value of the request.
func (c *condition) accepts(q *query, value string) bool {
	for i := range c.values {
		filled, ok := c.values[i].fill(q, c.operator.wildcards)
		if ok && c.operator.match(filled, value) {
			return !c.operator.negated
		}
	}
	return c.operator.negated
}

// conditionValue is a value in a policy: a string, or a number or boolean that
// stands for one.
type conditionValue string

func (v *conditionValue) UnmarshalJSON(b []byte) error {
	var value any
	d := json.NewDecoder(strings.NewReader(string(b)))
	d.UseNumber()
	if err := d.Decode(&value); err != nil {
		return err
	}
	switch value := value.(type) {
	case string:
		*v = conditionValue(value)
	case bool, json.Number:
		*v = conditionValue(fmt.Sprint(value))
	default:
		return errors.New("a condition value must be a string, a number or a boolean")
	}
	return nil
}

// conditionBlock is a Condition element: operator, key, values.
type conditionBlock map[string]map[string]oneOrMore[conditionValue]

// compile makes conditions of a block, in a stable order.
func (block conditionBlock) compile(withVariables bool) ([]condition, error) {
	var conditions []condition
	known := operators()
	for _, name := range slices.Sorted(maps.Keys(block)) {
		for _, key := range slices.Sorted(maps.Keys(block[name])) {
			c, err := newCondition(known, name, key, block[name][key], withVariables)
			if err != nil {
				return nil, err
			}
			conditions = append(conditions, c)
		}
	}
	return conditions, nil
}

func newCondition(known map[string]operator, name, key string, values []conditionValue, withVariables bool) (condition, error) {
	c := condition{name: name + " " + key, key: fold(key)}
	base := name
	if rest, ok := strings.CutPrefix(base, "ForAllValues:"); ok {
		base, c.quantifier = rest, forAll
	} else if rest, ok := strings.CutPrefix(base, "ForAnyValue:"); ok {
		base, c.quantifier = rest, forAny
	}
	if rest, ok := strings.CutSuffix(base, "IfExists"); ok && rest != "Null" {
		base, c.ifExists = rest, true
	}
	var ok bool
	if c.operator, ok = known[base]; !ok || (c.operator.null && c.quantifier != single) {
		return condition{}, malformed("Policy contains an unsupported condition operator: " + name)
	}
	if c.quantifier == forAll && (strings.HasPrefix(c.key, contextKeyPrefix) || strings.HasPrefix(c.key, requestTagPrefix)) {
		return condition{}, errOverlyPermissive()
	}
	if len(values) == 0 {
		return condition{}, malformed("Policy contains a condition without a value: " + name + " " + key)
	}
	for _, value := range values {
		if c.operator.check != nil && !c.operator.check(string(value)) {
			return condition{}, malformed("Policy contains an invalid value for " + name + ": " + string(value))
		}
		want, err := newPattern(string(value), withVariables && c.operator.variables)
		if err != nil {
			return condition{}, err
		}
		c.values = append(c.values, want)
	}
	return c, nil
}

// errOverlyPermissive has the text of the AWS KMS Developer Guide, "AWS KMS
// condition keys", Using set operators with condition keys.
func errOverlyPermissive() error {
	return malformed("OverlyPermissiveCondition: Using the ForAllValues set operator with a single-valued condition key " +
		"matches requests without the specified [encryption context or tag] or with an unspecified [encryption context or tag]. " +
		"To fix, remove ForAllValues.")
}
