package badinput_test

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	pb "github.com/keybroker/keybroker/proto/keybroker/v1"
	"github.com/keybroker/keybroker/test/harness"
)

// places are where a caller gives an encryption context, by what changes a good
// call so. The context of an import is that of a blob which exists
// already, so it may have the domain's own reserved pair.
func places() map[string]func(pairs map[string]string) (c badCall, field string) {
	return map[string]func(pairs map[string]string) (badCall, string){
		"CreateDataKey": func(pairs map[string]string) (badCall, string) {
			return badCall{method: "CreateDataKey", change: spoiling(func(m *pb.CreateDataKeyRequest) { m.DataKey.Context = pairs })}, "data_key.context"
		},
		"CreateGrant, subset": func(pairs map[string]string) (badCall, string) {
			return badCall{method: "CreateGrant", change: spoiling(func(m *pb.CreateGrantRequest) {
				m.Grant.Constraints = &pb.Grant_Constraints{EncryptionContextSubset: pairs}
			})}, "grant.constraints.encryption_context_subset"
		},
		"CreateGrant, equals": func(pairs map[string]string) (badCall, string) {
			return badCall{method: "CreateGrant", change: spoiling(func(m *pb.CreateGrantRequest) {
				m.Grant.Constraints = &pb.Grant_Constraints{EncryptionContextEquals: pairs}
			})}, "grant.constraints.encryption_context_equals"
		},
		"ImportDataKeys": func(pairs map[string]string) (badCall, string) {
			return badCall{method: "ImportDataKeys", change: spoiling(func(m *pb.ImportDataKeysRequest) { m.Items[0].SourceEncryptionContext = pairs })}, "items[0].source_encryption_context"
		},
		"GenerateKeyPolicy": func(pairs map[string]string) (badCall, string) {
			return badCall{method: "GenerateKeyPolicy", change: spoiling(func(m *pb.GenerateKeyPolicyRequest) {
				m.Profile, m.ImportSourceContext = pb.GenerateKeyPolicyRequest_PROFILE_IMPORT_SOURCE, pairs
			})}, "import_source_context"
		},
	}
}

// clip shortens a field's path as the API does: a status has to fit the trailers.
func clip(field string) string {
	const most = 160 // bytes
	if len(field) <= most {
		return field
	}
	return field[:most] + "…"
}

func pairs(n int) map[string]string {
	m := map[string]string{}
	for i := range n {
		m[fmt.Sprint("k", i)] = "v"
	}
	return m
}

// TestBadContexts: wherever a caller gives a context, the same rules hold. KMS
// compares the keys of grant constraints without case (KMS API Reference,
// GrantConstraints), so two keys that differ in case alone are one.
func TestBadContexts(t *testing.T) {
	w := newWorld(t, harness.Config{})
	var calls []badCall
	// The rules of the schema name the entry, as a suffix of the field.
	add := func(what, reason, entry string, pairs map[string]string) {
		for where, at := range places() {
			c, field := at(pairs)
			c.name = where + ", " + what
			c.want = invalid(reason, clip(field+entry))
			calls = append(calls, c)
		}
	}
	for what, key := range map[string]string{
		"the reserved key": "keybroker:domain", "the reserved key in capitals": "KEYBROKER:DOMAIN", "the reserved key in both": "KeyBroker:Domain",
		"another key of ours": "keybroker:anything", "our prefix alone": "keybroker:", "our prefix in capitals": "Keybroker:x",
	} {
		add(what, "CONTEXT_KEY_RESERVED", "", map[string]string{key: "x"})
		add(what+" beside others", "CONTEXT_KEY_RESERVED", "", map[string]string{"tenant": "acme", key: "x"})
	}
	add("two keys that fold to one", "CONTEXT_DUPLICATE_KEY", "", map[string]string{"tenant": "a", "Tenant": "a"})
	add("two keys that fold to one", "CONTEXT_DUPLICATE_KEY", "", map[string]string{"tenant": "a", "TENANT": "b", "x": "y"})
	for what, key := range map[string]string{
		"no key": "", "a space": "a b", "a line end": "a\n", "an umlaut": "ä", "a quote": `a"b`, "a dollar": "a$b", "a Kelvin sign": "tenan\u212a",
		"129 characters": strings.Repeat("a", 129),
	} {
		add("a key with "+what, "CONTEXT_KEY_INVALID", fmt.Sprintf("[%q]", key), map[string]string{key: "x"})
	}
	for what, value := range map[string]string{
		"a control character": "a\x01", "a line end": "a\n", "a tab": "a\tb", "a NUL": "\x00", "a Latin-1 control": "\u0085", "another alphabet": "漢", "an emoji": "🔑",
	} {
		add("a value with "+what, "CONTEXT_VALUE_INVALID", `["tenant"]`, map[string]string{"tenant": value})
	}
	add("a value of 385 characters", "CONTEXT_TOO_LARGE", `["tenant"]`, map[string]string{"tenant": strings.Repeat("x", 385)})
	add("9 pairs", "CONTEXT_TOO_LARGE", "", pairs(9))
	add("8 pairs", "CONTEXT_TOO_LARGE", "", pairs(8))
	w.run(calls)
}

// TestForeignPairs: a blob that was made with a reserved pair is its domain's
// alone: else one tenant could import another's.
func TestForeignPairs(t *testing.T) {
	w := newWorld(t, harness.Config{})
	own, other := w.domain("acme").GetEncryptionContext(), w.domain("broken").GetEncryptionContext()
	with := func(key string, more map[string]string) func(*pb.ImportDataKeysRequest) {
		return func(m *pb.ImportDataKeysRequest) {
			if key != "" {
				m.Items[0].SourceKmsKey = key
			}
			for k, v := range more {
				m.Items[0].SourceEncryptionContext[k] = v
			}
		}
	}
	capitals := map[string]string{}
	for k, v := range own {
		capitals[strings.ToUpper(k)] = v
	}
	unproven := func(change func(*pb.ImportDataKeysRequest)) func(*pb.ImportDataKeysRequest) {
		return func(m *pb.ImportDataKeysRequest) {
			m.AllowUnproven = true
			change(m)
		}
	}
	reserved := invalid("CONTEXT_KEY_RESERVED", "items[0].source_encryption_context")
	notOurs := refusal{Code: codes.FailedPrecondition, Reason: "IMPORT_SOURCE_NOT_ALLOWED", Field: "items[0].source_kms_key"}
	w.run([]badCall{
		{"another domain's pair", "ImportDataKeys", spoiling(with("", other)), reserved},
		{"another domain's pair under our key", "ImportDataKeys", spoiling(with(string(w.key), other)), reserved},
		{"our value under the key in capitals", "ImportDataKeys", spoiling(with(string(w.key), capitals)), reserved},
		{"our pair, but not our blob", "ImportDataKeys", spoiling(with(string(w.key), own)), invalid("CIPHERTEXT_WRONG_KEY", "")},
		{"our pair under the import source", "ImportDataKeys", spoiling(with("", own)), notOurs},
		// To allow unproven rows allows none of this.
		{"another domain's pair, unproven", "ImportDataKeys", spoiling(unproven(with("", other))), reserved},
		{"another domain's pair under our key, unproven", "ImportDataKeys", spoiling(unproven(with(string(w.key), other))), reserved},
		{"no pair under our key, unproven", "ImportDataKeys", spoiling(unproven(with(string(w.key), nil))), notOurs},
		{"our pair under the import source, unproven", "ImportDataKeys", spoiling(unproven(with("", own))), notOurs},
		{"an import source's blob that is none, unproven", "ImportDataKeys", spoiling(unproven(func(m *pb.ImportDataKeysRequest) { m.Items[0].CiphertextBlob = []byte("words") })), invalid("CIPHERTEXT_INVALID", "")},
		{"our pair in place of a data key, unproven", "ImportDataKeys", spoiling(unproven(func(m *pb.ImportDataKeysRequest) {
			with(string(w.key), own)(m)
			m.Items[0].DataKeyId, m.Items[0].Etag = "k1", "1"
		})), invalid("CIPHERTEXT_WRONG_KEY", "")},
	})
}
