package localkms

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

var errTrailingText = errors.New("text after the end of the document")

// condition is one operator on one condition key of a statement. Operators and
// their treatment of absent keys: IAM User Guide, "IAM JSON policy elements:
// Condition operators" and "Single-valued vs. multivalued context keys".
type condition struct {
	key        string // folded
	quantifier quantifier
	ifExists   bool // met when the request does not have the key
	operator   operator
	values     []string
}

type quantifier int8

const (
	single quantifier = iota
	forAll
	forAny
)

// operator compares a value of the policy with a value of the request.
type operator struct {
	match   func(policy, request string) bool
	negated bool // met when no value of the policy matches
	null    bool // Null: tests whether the request has the key
	check   func(policy string) bool
}

// operators returns what a condition may compare with, by name.
func operators() map[string]operator {
	equal := func(policy, request string) bool { return policy == request }
	like := wildcard
	return map[string]operator{
		"StringEquals":              {match: equal},
		"StringNotEquals":           {match: equal, negated: true},
		"StringEqualsIgnoreCase":    {match: strings.EqualFold},
		"StringNotEqualsIgnoreCase": {match: strings.EqualFold, negated: true},
		"StringLike":                {match: like},
		"StringNotLike":             {match: like, negated: true},
		"ArnEquals":                 {match: like},
		"ArnLike":                   {match: like},
		"ArnNotEquals":              {match: like, negated: true},
		"ArnNotLike":                {match: like, negated: true},
		"Bool":                      {match: strings.EqualFold, check: isBool},
		"Null":                      {null: true, check: isBool},
		"NumericEquals":             numeric(func(p, r float64) bool { return r == p }),
		"NumericNotEquals":          negate(numeric(func(p, r float64) bool { return r == p })),
		"NumericLessThan":           numeric(func(p, r float64) bool { return r < p }),
		"NumericLessThanEquals":     numeric(func(p, r float64) bool { return r <= p }),
		"NumericGreaterThan":        numeric(func(p, r float64) bool { return r > p }),
		"NumericGreaterThanEquals":  numeric(func(p, r float64) bool { return r >= p }),
	}
}

func numeric(compare func(policy, request float64) bool) operator {
	return operator{
		match: func(policy, request string) bool {
			p, err := strconv.ParseFloat(policy, 64)
			r, err2 := strconv.ParseFloat(request, 64)
			return err == nil && err2 == nil && compare(p, r)
		},
		check: func(policy string) bool {
			_, err := strconv.ParseFloat(policy, 64)
			return err == nil
		},
	}
}

func negate(o operator) operator {
	o.negated = true
	return o
}

func isBool(s string) bool { return strings.EqualFold(s, "true") || strings.EqualFold(s, "false") }

// met reports whether a request meets the condition.
func (c *condition) met(q *query) bool {
	values, known := q.values(c.key)
	if !known {
		return false
	}
	if c.operator.null {
		absent := strconv.FormatBool(len(values) == 0)
		return slices.ContainsFunc(c.values, func(want string) bool { return strings.EqualFold(want, absent) })
	}
	if len(values) == 0 {
		return c.ifExists || c.quantifier == forAll || (c.operator.negated && c.quantifier == single)
	}
	if c.quantifier == forAny || (c.quantifier == single && !c.operator.negated) {
		return slices.ContainsFunc(values, c.accepts)
	}
	return !slices.ContainsFunc(values, func(value string) bool { return !c.accepts(value) })
}

// accepts tests one value of the request.
func (c *condition) accepts(value string) bool {
	matched := slices.ContainsFunc(c.values, func(want string) bool { return c.operator.match(want, value) })
	return matched != c.operator.negated
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

// parseConditions compiles a Condition block, in a stable order.
func parseConditions(block map[string]map[string]oneOrMore[conditionValue]) ([]condition, error) {
	var conditions []condition
	known := operators()
	for _, name := range slices.Sorted(maps.Keys(block)) {
		for _, key := range slices.Sorted(maps.Keys(block[name])) {
			c, err := parseCondition(known, name, key, block[name][key])
			if err != nil {
				return nil, err
			}
			conditions = append(conditions, c)
		}
	}
	return conditions, nil
}

func parseCondition(known map[string]operator, name, key string, values []conditionValue) (condition, error) {
	c := condition{key: fold(key)}
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
	if c.operator, ok = known[base]; !ok {
		return condition{}, malformed("Policy contains an unsupported condition operator: " + name)
	}
	// "OverlyPermissiveCondition" of the Developer Guide: such a condition is met
	// by a request without the pair.
	if c.quantifier == forAll && strings.HasPrefix(c.key, contextKeyPrefix) {
		return condition{}, malformed("Policy contains ForAllValues with the single-valued condition key " + key)
	}
	if len(values) == 0 {
		return condition{}, malformed("Policy contains a condition without a value: " + name + " " + key)
	}
	for _, value := range values {
		if c.operator.check != nil && !c.operator.check(string(value)) {
			return condition{}, malformed("Policy contains an invalid value for " + name + ": " + string(value))
		}
		c.values = append(c.values, string(value))
	}
	return c, nil
}
