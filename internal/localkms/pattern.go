package localkms

import "strings"

// pattern is a value of a policy: text, in which wildcards may stand, and in which
// policy variables may stand for what a request has (IAM User Guide, "IAM policy
// elements: Variables and tags").
type pattern struct {
	text  string // as written
	parts []part // of a value with variables; else nil
}

// part is a piece of a pattern: text, or a variable when key is set.
type part struct {
	text       string // of a variable, its default
	literal    bool   // the text has no wildcards
	key        string // folded
	hasDefault bool
}

// literalByte, before a character of a pattern, takes its meaning away. No policy
// holds one (AWS KMS Developer Guide, "Creating a key policy", Key policy format).
const literalByte = '\x00'

// meaningful are the characters that a value has to be freed of. A colon is not
// among them: the ARN in a variable has parts like any other.
const meaningful = "*?" + string(literalByte)

// variables are the condition keys that may stand in a pattern: of those that a
// request has once, the ones that this package knows.
var variables = map[string]bool{
	"aws:currenttime": true, "aws:epochtime": true, "aws:principalaccount": true, "aws:principalarn": true,
	"aws:principaltype": true, "aws:requestedregion": true, "aws:resourceaccount": true, "aws:securetransport": true,
	"aws:sourceip": true, "aws:tokenissuetime": true, "aws:useragent": true, "aws:userid": true, "aws:username": true,
	"kms:calleraccount": true, "sts:externalid": true, "sts:rolesessionname": true,
}

// newPattern compiles a value. Variables are known by policies of the version of
// 2012 only; older ones mean the text. It errs on a variable it cannot fill.
func newPattern(text string, withVariables bool) (pattern, error) {
	p := pattern{text: text}
	if !withVariables || !strings.Contains(text, "${") {
		return p, nil
	}
	rest := text
	for rest != "" {
		before, after, found := strings.Cut(rest, "${")
		if before != "" {
			p.parts = append(p.parts, part{text: before})
		}
		if !found {
			break
		}
		inside, after, closed := strings.Cut(after, "}")
		if !closed {
			return pattern{}, malformed("Policy contains a policy variable without its end: " + text)
		}
		variable, err := newVariable(inside)
		if err != nil {
			return pattern{}, err
		}
		p.parts, rest = append(p.parts, variable), after
	}
	return p, nil
}

func newVariable(inside string) (part, error) {
	if inside == "*" || inside == "?" || inside == "$" {
		return part{text: inside, literal: true}, nil
	}
	name, quoted, hasDefault := strings.Cut(inside, ",")
	p := part{key: fold(strings.TrimSpace(name)), literal: true, hasDefault: hasDefault}
	if hasDefault {
		quoted = strings.TrimSpace(quoted)
		if len(quoted) < 2 || quoted[0] != '\'' || quoted[len(quoted)-1] != '\'' {
			return part{}, malformed("Policy contains a policy variable whose default is not in single quotes: ${" + inside + "}")
		}
		p.text = quoted[1 : len(quoted)-1]
	}
	if !variables[p.key] && !strings.HasPrefix(p.key, contextKeyPrefix) {
		return part{}, malformed("Policy contains a policy variable that localkms does not support: ${" + inside + "}")
	}
	return p, nil
}

// fill returns the pattern with the values of a request in it, each character of
// which stands for itself. Without the value of a variable there is none, and
// nothing is like it.
func (p *pattern) fill(q *query, wildcards bool) (filled string, ok bool) {
	if p.parts == nil {
		return p.text, true
	}
	var b strings.Builder
	for i := range p.parts {
		part := &p.parts[i]
		text := part.text
		if part.key != "" {
			if values := q.values(part.key); len(values) > 0 {
				text = values[0]
			} else if !part.hasDefault {
				return "", false
			}
		}
		for j := range len(text) {
			if part.literal && wildcards && strings.IndexByte(meaningful, text[j]) >= 0 {
				b.WriteByte(literalByte)
			}
			b.WriteByte(text[j])
		}
	}
	return b.String(), true
}

// like reports whether s matches the pattern, wildcards and all.
func (p *pattern) like(q *query, s string) bool {
	filled, ok := p.fill(q, true)
	return ok && wildcard(filled, s)
}

// wildcard matches s with a pattern in which * stands for any run of characters
// and ? for any one (IAM User Guide, "IAM JSON policy elements: Resource").
func wildcard(pattern, s string) bool {
	star, mark := -1, 0
	i, j := 0, 0
	for j < len(s) {
		switch {
		case i < len(pattern) && pattern[i] == '*':
			star, mark = i, j
			i++
		case i < len(pattern) && pattern[i] == '?':
			i++
			j++
		case i+1 < len(pattern) && pattern[i] == literalByte && pattern[i+1] == s[j]:
			i += 2
			j++
		case i < len(pattern) && pattern[i] == s[j]:
			i++
			j++
		case star >= 0:
			mark++
			i, j = star+1, mark
		default:
			return false
		}
	}
	return strings.Trim(pattern[i:], "*") == ""
}

// arnLike matches the six parts of an ARN one by one (IAM User Guide, "Condition
// operators", Amazon Resource Name (ARN) condition operators).
func arnLike(pattern, arn string) bool {
	const parts = 6
	want, have := strings.SplitN(pattern, ":", parts), strings.SplitN(arn, ":", parts)
	if len(want) != parts || len(have) != parts {
		return false
	}
	for i := range parts {
		if !wildcard(want[i], have[i]) {
			return false
		}
	}
	return true
}
