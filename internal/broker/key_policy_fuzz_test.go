package broker_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/keybroker/keybroker/internal/broker"
)

// What a customer wrote survives: every statement that is not this domain's or
// a shared one, byte for byte but for the white space around its parts, in its
// place before ours.
func FuzzPolicyDocument(f *testing.F) {
	for _, text := range []string{
		`{"Version":"2012-10-17","Id":"x","Statement":[` + customers + `]}`,
		`{"Statement":` + customers + `}`,
		`{"Statement":[` + customers + `],"Statement":[]}`,
		`{"Statement":[` + customers + `],"STATEMENT":[]}`,
		`{"Statement":[{"Sid":"Mine","sid":"KeybrokerDescribeKey"}]}`,
		`{"Statement":[{"Sid":"KeybrokerDescribeKey"},{"Sid":"Keybrokerdescribekey"},{"Sid":"KeybrokerUID2345"},{"Sid":"KeybrokerUID"}]}`,
		`{"Statement":[{"Sid":null},{"Sid":1},{"Sid":["KeybrokerDescribeKey"]},{}]}`,
		`{"Statement":[{"Condition":{"x":"<&>\u2028\ud800","y":1e400,"z":-0}}]}`,
		`{"Statement":null}`, `{"Statement":[null]}`, `{"Statement":[]}}`, `[]`, `null`, ``, "\xff",
		"{\"Statement\":[{\"Sid\":\"\xff\"}]}",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if text == "" {
			return
		}
		p, err := policyOf(t, broker.KeyPolicyRequest{Existing: text})
		if err != nil {
			if r := broker.ReasonOf(err); r != broker.ReasonPolicyDocumentInvalid && r != broker.ReasonPolicyTooLarge {
				t.Fatal(err)
			}
			return
		}
		if len(p.Document) > 32768 {
			t.Fatalf("a document of %d bytes", len(p.Document))
		}
		before, after := statementsOf(t, text), statementsOf(t, p.Document)
		var kept []string
		for _, s := range before {
			if !ofOurs(s) {
				kept = append(kept, s)
			}
		}
		if len(after) != len(kept)+3 {
			t.Fatalf("%d statements of the customer became %d", len(kept), len(after)-3)
		}
		for i, s := range kept {
			if after[i] != s {
				t.Fatalf("statement %d became\n%s\nand was\n%s", i, after[i], s)
			}
		}
		again, err := policyOf(t, broker.KeyPolicyRequest{Existing: p.Document})
		if err != nil || again.Document != p.Document {
			t.Fatalf("a second merge made %q (%v) of %q", again.Document, err, p.Document)
		}
	})
}

func statementsOf(t *testing.T, text string) []string {
	t.Helper()
	var doc struct{ Statement json.RawMessage }
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatalf("accepted %q: %v", text, err)
	}
	list := doc.Statement
	if bytes.HasPrefix(list, []byte("{")) {
		list = append(append([]byte("["), list...), ']')
	}
	var statements []json.RawMessage
	if err := json.Unmarshal(list, &statements); err != nil {
		t.Fatalf("accepted %q: %v", text, err)
	}
	texts := make([]string, len(statements))
	for i, s := range statements {
		var out bytes.Buffer
		if err := json.Compact(&out, s); err != nil {
			t.Fatal(err)
		}
		texts[i] = out.String()
	}
	return texts
}

func ofOurs(statement string) bool {
	var s struct{ Sid any }
	if json.Unmarshal([]byte(statement), &s) != nil {
		return false
	}
	sid, _ := s.Sid.(string)
	return sid == "KeybrokerDescribeKey" || sid == "KeybrokerListGrants" || strings.HasPrefix(sid, "KeybrokerUID2345")
}
