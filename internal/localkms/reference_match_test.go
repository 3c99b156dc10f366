package localkms

import (
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// met evaluates one condition: an operator on a key.
func (r *reference) met(operator, key string, wanted []any, c *refCase, modern bool) bool {
	set, base := "", operator
	if prefix, rest, found := strings.Cut(operator, ":"); found {
		set, base = prefix, rest
	}
	base, optional := strings.CutSuffix(base, "IfExists")
	values := c.context[strings.ToLower(key)]
	r.hit("S7", len(values) > 0 && key != strings.ToLower(key))
	if base == "Null" {
		r.hits["S6"]++
		return (len(values) == 0) == (strings.EqualFold(refText(wanted[0]), "true"))
	}
	negated := strings.Contains(base, "Not")
	if r.hit("S4", len(values) == 0) {
		return optional || set == "ForAllValues" || (negated && set == "")
	}
	r.hit("S5", set != "")
	any, all := false, true
	for _, value := range values {
		matched := false
		for _, want := range wanted {
			matched = matched || r.compare(strings.Replace(base, "Not", "", 1), refText(want), value, c, modern)
		}
		ok := matched != negated
		any, all = any || ok, all && ok
	}
	if set == "ForAnyValue" || (set == "" && !negated) {
		return any
	}
	return all
}

func refText(v any) string {
	switch v := v.(type) {
	case bool:
		return strconv.FormatBool(v)
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64)
	}
	return v.(string)
}

// compare is one operator on one value of the policy and one of the request.
func (r *reference) compare(operator, want, have string, c *refCase, modern bool) bool {
	switch operator {
	case "StringEquals", "StringEqualsIgnoreCase", "StringLike", "ArnEquals", "ArnLike":
		p, ok := r.pattern(want, c, modern)
		if !ok {
			return false
		}
		switch operator {
		case "StringEquals":
			return p.literal() == have
		case "StringEqualsIgnoreCase":
			return strings.EqualFold(p.literal(), have)
		case "StringLike":
			return p.matches(have)
		}
		r.hits["S8"]++
		return p.matchesParts(have)
	case "Bool":
		return r.hit("S8", strings.EqualFold(want, have))
	case "IpAddress":
		r.hits["S8"]++
		if !strings.Contains(want, "/") {
			want += "/32"
		}
		return netip.MustParsePrefix(want).Contains(netip.MustParseAddr(have))
	}
	r.hits["S8"]++
	var sign int
	if strings.HasPrefix(operator, "Date") {
		sign = refTime(have).Compare(refTime(want))
	} else {
		w, _ := strconv.ParseFloat(want, 64)
		h, err := strconv.ParseFloat(have, 64)
		if err != nil {
			return false
		}
		sign = int(min(max(h-w, -1), 1))
	}
	switch strings.TrimPrefix(strings.TrimPrefix(operator, "Date"), "Numeric") {
	case "Equals":
		return sign == 0
	case "LessThan":
		return sign < 0
	case "LessThanEquals":
		return sign <= 0
	case "GreaterThan":
		return sign > 0
	}
	return sign >= 0
}

func refTime(s string) time.Time {
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t
	}
	seconds, _ := strconv.ParseInt(s, 10, 64)
	return time.Unix(seconds, 0)
}

// refPattern is a pattern character by character; wild ones are * and ?.
type refPattern []struct {
	char byte
	wild bool
}

// pattern fills the variables of a text in.
func (r *reference) pattern(text string, c *refCase, variables bool) (p refPattern, ok bool) {
	add := func(s string, plain bool) {
		for i := range len(s) {
			p = append(p, struct {
				char byte
				wild bool
			}{s[i], !plain && (s[i] == '*' || s[i] == '?')})
		}
	}
	for variables {
		before, rest, found := strings.Cut(text, "${")
		if !found {
			break
		}
		r.hits["S9"]++
		add(before, false)
		name, after, _ := strings.Cut(rest, "}")
		text = after
		name, preset, hasPreset := strings.Cut(name, ", ")
		values := c.context[strings.ToLower(name)]
		switch {
		case name == "*" || name == "?" || name == "$":
			add(name, true)
		case len(values) > 0:
			add(values[0], true)
		case hasPreset:
			add(strings.Trim(preset, "'"), true)
		default:
			return nil, false
		}
	}
	add(text, false)
	return p, true
}

func (p refPattern) literal() string {
	var b strings.Builder
	for _, c := range p {
		b.WriteByte(c.char)
	}
	return b.String()
}

func (p refPattern) matches(s string) bool {
	switch {
	case len(p) == 0:
		return s == ""
	case p[0].wild && p[0].char == '*':
		return p[1:].matches(s) || (s != "" && p.matches(s[1:]))
	case s == "":
		return false
	}
	return (p[0].wild || p[0].char == s[0]) && p[1:].matches(s[1:])
}

// matchesParts compares the six parts of ARNs.
func (p refPattern) matchesParts(s string) bool {
	for range 5 {
		i, j := 0, strings.IndexByte(s, ':')
		for i < len(p) && p[i].char != ':' {
			i++
		}
		if i == len(p) || j < 0 || !p[:i].matches(s[:j]) {
			return false
		}
		p, s = p[i+1:], s[j+1:]
	}
	return p.matches(s)
}
