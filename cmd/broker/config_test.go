package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keybroker/keybroker/test/harness"
)

// deployment is the page that operators read.
const deployment = "../../docs/deploy.md"

func TestDocumentedConfiguration(t *testing.T) {
	text, err := harness.Document(deployment, "keybroker.json")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "keybroker.json")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := call(t.Context(), environment(), "check-config", "--config", path); code != 0 {
		t.Errorf("exit %d: %s", code, stderr)
	}
	if c, err := readConfig(path); err != nil || len(c.GranteeAccounts) == 0 {
		t.Errorf("no service could get a grant: grantee_accounts is %q, %v", c.GranteeAccounts, err)
	}
}

// fieldRow is a row of the table of fields: name and default.
var fieldRow = regexp.MustCompile("(?m)^\\| `([a-z_.]+)` \\| (.*?) \\| .+ \\|$")

// TestEveryFieldIsDocumented compares the table of fields with Config: each field
// has one row, and what the rows give as defaults, taken together, is what an empty
// file gets.
func TestEveryFieldIsDocumented(t *testing.T) {
	text, err := os.ReadFile(deployment)
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "\n## The configuration file\n")
	section, _, _ = strings.Cut(section, "\n## ")
	var documented []string
	defaults := map[string]any{}
	for _, row := range fieldRow.FindAllStringSubmatch(section, -1) {
		documented = append(documented, row[1])
		value, isCode := strings.CutPrefix(row[2], "`")
		if !isCode {
			continue // required
		}
		into, name := defaults, row[1]
		if group, field, nested := strings.Cut(name, "."); nested {
			if defaults[group] == nil {
				defaults[group] = map[string]any{}
			}
			into, name = defaults[group].(map[string]any), field
		}
		into[name] = json.RawMessage(strings.TrimSuffix(value, "`"))
	}
	slices.Sort(documented)
	if diff := cmp.Diff(configFields("", reflect.TypeFor[Config]()), documented); diff != "" {
		t.Errorf("the fields (-in Config +in the table of %s):\n%s", deployment, diff)
	}

	raw, err := json.Marshal(defaults)
	if err != nil {
		t.Fatal(err)
	}
	var got, want Config
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatalf("the defaults of the table: %v in %s", err, raw)
	}
	want.setDefaults()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the defaults (-in force +in the table of %s):\n%s", deployment, diff)
	}
}

// configFields gives the names of all fields, sorted.
func configFields(group string, of reflect.Type) []string {
	var names []string
	for f := range of.Fields() {
		name := group + f.Tag.Get("json")
		if f.Type.Kind() == reflect.Struct {
			names = append(names, configFields(name+".", f.Type)...)
		} else {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
