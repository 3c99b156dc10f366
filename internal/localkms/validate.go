package localkms

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Limits of the KMS service model (AWS KMS API Reference, request parameters).
const (
	maxKeyID       = 2048   // characters
	maxGrantTokens = 10     // in one request
	maxGrantToken  = 8192   // characters
	maxGrantID     = 128    // characters
	maxName        = 256    // characters, of a grant, an alias, a principal
	maxMarker      = 1024   // characters
	maxDescription = 8192   // characters
	maxPolicyText  = 131072 // characters, by the model; the quota is maxPolicy
	maxPlaintext   = 4096   // bytes
	maxCiphertext  = 6144   // bytes
	maxDataKey     = 1024   // bytes
	maxTagKey      = 128    // characters
	maxTagValue    = 256    // characters

	// Items on a page of ListGrants, ListRetirableGrants and ListAliases.
	maxPage, defaultPage = 100, 50
	// Items on a page of ListKeys, ListKeyPolicies and ListKeyRotations.
	maxLongPage, defaultLongPage = 1000, 100
)

const namePatternText = `^[a-zA-Z0-9:/_-]+$`

var namePattern = regexp.MustCompile(namePatternText)

// validation gathers what a request has against the service model, and reports
// it in the words of AWS.
type validation struct {
	faults []string
	plain  string // a rule that the model does not express; its message stands alone
}

func (v *validation) err() error {
	switch n := len(v.faults); {
	case n == 1:
		return fault(codeValidation, "1 validation error detected: "+v.faults[0])
	case n > 1:
		return faultf(codeValidation, "%d validation errors detected: %s", n, strings.Join(v.faults, "; "))
	case v.plain != "":
		return fault(codeValidation, v.plain)
	}
	return nil
}

// rule adds a fault that stands alone unless the model is violated too.
func (v *validation) rule(ok bool, message string) {
	if !ok && v.plain == "" {
		v.plain = message
	}
}

func (v *validation) fail(value, member, constraint string) {
	v.faults = append(v.faults,
		fmt.Sprintf("Value%s at '%s' failed to satisfy constraint: %s", value, member, constraint))
}

func quoted(value string) string { return " '" + value + "'" }

func (v *validation) required(present bool, member string) {
	if !present {
		v.fail(" null", member, "Member must not be null")
	}
}

// text checks the length of an optional string, in characters.
func (v *validation) text(value *string, member string, most int) {
	if value != nil {
		v.length(utf8.RuneCountInString(*value), 1, most, quoted(*value), member)
	}
}

// between checks the length of an optional string that has a least one too.
func (v *validation) between(value *string, member string, least, most int) {
	if value != nil {
		v.length(utf8.RuneCountInString(*value), least, most, quoted(*value), member)
	}
}

// pattern checks an optional string against what the model says in its own words.
func (v *validation) pattern(value *string, member string, matcher *regexp.Regexp, words string) {
	if value != nil && !matcher.MatchString(*value) {
		v.fail(quoted(*value), member, "Member must satisfy regular expression pattern: "+words)
	}
}

func (v *validation) requiredText(value *string, member string, most int) {
	v.required(value != nil, member)
	v.text(value, member, most)
}

// blob checks the length of binary data, whose value is never repeated.
func (v *validation) blob(value []byte, member string, most int) {
	v.required(value != nil, member)
	if value != nil {
		v.length(len(value), 1, most, "", member)
	}
}

func (v *validation) length(n, least, most int, value, member string) {
	if n < least {
		v.fail(value, member, "Member must have length greater than or equal to "+strconv.Itoa(least))
	}
	if n > most {
		v.fail(value, member, "Member must have length less than or equal to "+strconv.Itoa(most))
	}
}

func (v *validation) number(value *int, member string, least, most int) {
	switch {
	case value == nil:
	case *value < least:
		v.fail(quoted(strconv.Itoa(*value)), member, "Member must have value greater than or equal to "+strconv.Itoa(least))
	case *value > most:
		v.fail(quoted(strconv.Itoa(*value)), member, "Member must have value less than or equal to "+strconv.Itoa(most))
	}
}

// description checks the length of an optional description, which may be empty.
func (v *validation) description(value *string) {
	if value != nil {
		v.length(utf8.RuneCountInString(*value), 0, maxDescription, quoted(*value), "description")
	}
}

// name checks the pattern that grant names and alias names share.
func (v *validation) name(value *string, member string) {
	v.text(value, member, maxName)
	if value != nil && *value != "" && !namePattern.MatchString(*value) {
		v.fail(quoted(*value), member, "Member must satisfy regular expression pattern: "+namePatternText)
	}
}

// alias checks the name of an alias that is to be made, changed or deleted.
func (v *validation) alias(name *string) {
	v.required(name != nil, "aliasName")
	v.name(name, "aliasName")
	v.rule(strings.HasPrefix(text(name), "alias/") && text(name) != "alias/", `Alias must start with the prefix "alias/". `+
		`Please see https://docs.aws.amazon.com/kms/latest/developerguide/kms-alias.html`)
}

func (v *validation) oneOf(value *string, member string, allowed []string) {
	if value != nil && !slices.Contains(allowed, *value) {
		v.fail(quoted(*value), member, "Member must satisfy enum value set: ["+strings.Join(allowed, ", ")+"]")
	}
}

func (v *validation) allOf(values []string, member string, allowed []string) {
	for _, value := range values {
		if !slices.Contains(allowed, value) {
			v.fail(quoted("["+strings.Join(values, ", ")+"]"), member,
				"Member must satisfy constraint: [Member must satisfy enum value set: ["+strings.Join(allowed, ", ")+"]]")
			return
		}
	}
}

func (v *validation) grantTokens(tokens []string) {
	v.length(len(tokens), 0, maxGrantTokens, quoted("["+strings.Join(tokens, ", ")+"]"), "grantTokens")
	for _, token := range tokens {
		if n := len(token); n < 1 || n > maxGrantToken {
			v.fail(quoted("["+strings.Join(tokens, ", ")+"]"), "grantTokens",
				fmt.Sprintf("Member must satisfy constraint: [Member must have length less than or equal to %d, "+
					"Member must have length greater than or equal to 1]", maxGrantToken))
			return
		}
	}
}

// text returns what an optional string holds, or nothing.
func text(value *string) string {
	if value == nil {
		return ""
	}
	return *value
}
