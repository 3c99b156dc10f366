package broker

import (
	"fmt"
	"io"
	"log/slog"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// Context is an encryption context: KMS's additional authenticated data. It is
// public (CloudTrail shows it), yet its values stay out of our logs and errors:
// printed, a Context tells its keys only. Its JSON form has the values.
type Context map[string]string

// String tells the keys, sorted.
func (c Context) String() string { return fmt.Sprintf("%q", slices.Sorted(maps.Keys(c))) }

// GoString is String.
func (c Context) GoString() string { return c.String() }

// Format is String under every verb.
func (c Context) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, c.String()) }

// LogValue is String, for log handlers.
func (c Context) LogValue() slog.Value { return slog.StringValue(c.String()) }

// A Pair is one entry of an encryption context.
type Pair struct {
	Key, Value string
}

// Limits of contexts.
const (
	// MaxContextPairs is KMS's 8 pairs of a grant constraint less the reserved
	// one (KMS API Reference, GrantConstraints).
	MaxContextPairs = 7
	// MaxContextValue is KMS's length limit of a constraint's value, in
	// characters (KMS API Reference, GrantConstraints).
	MaxContextValue = 384
)

// reservedPrefix is ours in every deployment, whatever its template says.
const reservedPrefix = "keybroker:"

var contextKeyPattern = regexp.MustCompile(`^[A-Za-z0-9_.:/@-]{1,128}$`)

// fold gives the form in which KMS compares the keys of grant constraints and
// of kms:EncryptionContext conditions: without case. Keys are ASCII by then.
func fold(key string) string { return strings.ToLower(key) }

// With gives the context that goes to KMS: the caller's pairs and, added last,
// the reserved one.
func (c Context) With(reserved Pair) Context {
	full := make(Context, len(c)+1)
	maps.Copy(full, c)
	full[reserved.Key] = reserved.Value
	return full
}

// validateContext checks a caller's pairs (T4): keys that a key policy can
// express, none reserved, no two equal under folding; values that it can too.
func validateContext(field string, c Context, reserved Pair) error {
	if len(c) > MaxContextPairs {
		return invalidField(ReasonContextTooLarge, field, "has %d pairs, at most %d are allowed beside the reserved one", len(c), MaxContextPairs)
	}
	seen := make(map[string]bool, len(c))
	for key, value := range c {
		if !contextKeyPattern.MatchString(key) {
			return invalidField(ReasonContextKeyInvalid, field, "each key must be 1 to 128 characters of A-Z a-z 0-9 _ . : / @ -")
		}
		folded := fold(key)
		if strings.HasPrefix(folded, reservedPrefix) || folded == fold(reserved.Key) {
			return invalidField(ReasonContextKeyReserved, field, "key %q is reserved: the broker adds its own pair to every call", key)
		}
		if seen[folded] {
			return invalidField(ReasonContextDuplicateKey, field, "key %q stands twice when case is ignored, as KMS does in grant constraints", key)
		}
		seen[folded] = true
		if err := validateContextValue(field, key, value); err != nil {
			return err
		}
	}
	return nil
}

// validateContextValue keeps to the characters that a key policy can express:
// ASCII and Latin-1 without control characters (KMS Developer Guide, Encryption
// context).
func validateContextValue(field, key, value string) error {
	if n := utf8.RuneCountInString(value); n > MaxContextValue {
		return invalidField(ReasonContextTooLarge, field, "the value of key %q has %d characters, at most %d are allowed", key, n, MaxContextValue)
	}
	for _, r := range value {
		if r < 0x20 || (r >= 0x7f && r < 0xa0) || r > 0xff {
			return invalidField(ReasonContextValueInvalid, field, "the value of key %q holds a character that a key policy cannot express (use printable ASCII or Latin-1)", key)
		}
	}
	return nil
}

// OwnContext checks the context of a blob that was made with a domain's reserved
// pair, and gives the caller's own pairs; the reserved one may be left out.
func (b *Broker) OwnContext(field string, given Context, d Domain) (Context, error) {
	own, _, err := importContext(field, given, d.Reserved, b.reserved)
	return own, err
}

// importContext checks the exact context that a blob was made with and gives
// the pairs to store. own reports whether it holds exactly this domain's
// reserved pair; any other reserved pair, of this domain or another, is refused:
// else one tenant could import another's blob.
func importContext(field string, source Context, reserved Pair, isReserved func(foldedKey string) bool) (stored Context, own bool, err error) {
	stored = make(Context, len(source))
	for key, value := range source {
		if key == reserved.Key && value == reserved.Value {
			own = true
			continue
		}
		if isReserved(fold(key)) {
			return nil, false, invalidField(ReasonContextKeyReserved, field, "key %q is reserved for a domain's own pair, and this is not this domain's", key)
		}
		stored[key] = value
	}
	return stored, own, validateContext(field, stored, reserved)
}
