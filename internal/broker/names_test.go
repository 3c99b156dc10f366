package broker_test

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/keybroker/keybroker/internal/broker"
)

// A resourceKind reads and writes the names of one kind of resource.
type resourceKind struct {
	kind  string
	parse func(name string) (formatted string, err error)
}

func resourceKinds() []resourceKind {
	return []resourceKind{
		{"domain", func(n string) (string, error) {
			d, err := broker.ParseDomainName("name", n)
			return d.Name(), err
		}},
		{"grant", func(n string) (string, error) {
			d, g, err := broker.ParseGrantName("name", n)
			return broker.GrantName(d, g), err
		}},
		{"data key", func(n string) (string, error) {
			d, k, err := broker.ParseDataKeyName("name", n)
			return broker.DataKeyName(d, k), err
		}},
		{"job", func(n string) (string, error) {
			d, j, err := broker.ParseJobName("name", n)
			return broker.JobName(d, j), err
		}},
		{"failure", func(n string) (string, error) {
			d, j, k, err := broker.ParseFailureName("name", n)
			return broker.FailureName(d, j, k), err
		}},
		{"report", func(n string) (string, error) {
			d, j, err := broker.ParseReportName("name", n)
			return broker.JobName(d, j) + "/retirementReport", err
		}},
	}
}

// T17: what is legal reads back as it was written.
func TestResourceNamesRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := broker.DomainID(rapid.StringMatching(`[a-z]([a-z0-9-]{0,61}[a-z0-9])?`).Draw(t, "domain"))
		child := rapid.StringMatching(`[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?`).Draw(t, "child")
		key := rapid.StringMatching(`[A-Za-z0-9][A-Za-z0-9._-]{0,127}`).Draw(t, "key")
		names := []string{d.Name(), broker.GrantName(d, broker.GrantID(child)), broker.DataKeyName(d, broker.DataKeyID(key)),
			broker.JobName(d, broker.JobID(child)), broker.FailureName(d, broker.JobID(child), broker.DataKeyID(key)),
			broker.JobName(d, broker.JobID(child)) + "/retirementReport"}
		for i, k := range resourceKinds() {
			for j, name := range names {
				got, err := k.parse(name)
				switch {
				case i == j && err != nil:
					t.Fatalf("%s %q: %v", k.kind, name, err)
				case i == j && got != name:
					t.Fatalf("%s %q reads back as %q", k.kind, name, got)
				case i != j && err == nil:
					t.Fatalf("%q was taken for the name of a %s", name, k.kind)
				}
			}
		}
	})
}

// confusedNames are other spellings of something, all refused (T17).
var confusedNames = []string{
	"", "/", "domains", "domains/", "/domains/a", "domains/a/", "domains//a", "domains/-", "domains/a/grants/-", "domains/a/dataKeys/-",
	"domains/a/../b", "domains/..", "domains/.", "domains/a/dataKeys/..", "domains/a/dataKeys/.", "domains/%61", "domains/a%2Fb",
	"domains/a%2fdataKeys%2fk", "Domains/a", "domains/A", "domains/aB", "domains/1a", "domains/a-", "domains/-a", "domains/a_b",
	"domains/a.b", "domains/ａ", "domains/а", "domains/aı", "domains/a\u200b", "domains/a\n", "domains/a ", " domains/a", "domains/a\x00",
	"domains/" + strings.Repeat("a", 64), "domains/a/datakeys/k", "domains/a/dataKeys/k/", "domains/a/dataKeys/-k", "domains/a/dataKeys/k k",
	"domains/a/grants/G", "domains/a/grants/g.", "domains/a/grants/g-", "domains/a/reencryptionJobs/J", "domains/a/grants/" + strings.Repeat("g", 64),
	"domains/a/dataKeys/k\n", "domains/a/dataKeys/\u212a", "domains/a/dataKeys/" + strings.Repeat("k", 129), "domains/a/grants/k/dataKeys/k",
	"domains/a/reencryptionJobs/j/retirementReport/", "domains/a/reencryptionJobs/j/RetirementReport", "domains/a/reencryptionJobs/retirementReport",
}

func TestConfusedNamesAreRefused(t *testing.T) {
	for _, name := range confusedNames {
		for _, k := range resourceKinds() {
			_, err := k.parse(name)
			if got := broker.ReasonOf(err); got != broker.ReasonNameInvalid {
				t.Errorf("%s %q: got %q, want %q", k.kind, name, got, broker.ReasonNameInvalid)
			}
		}
	}
}

// T17: parse∘format is the identity on what is accepted, and so two accepted
// names are the same resource exactly if their bytes are equal.
func FuzzResourceName(f *testing.F) {
	for _, name := range confusedNames {
		f.Add(name, "domains/a")
	}
	f.Add("domains/a/dataKeys/k", "domains/a/dataKeys/K")
	f.Add("domains/a/reencryptionJobs/j/retirementReport", "domains/a/reencryptionJobs/j")
	f.Fuzz(func(t *testing.T, a, b string) {
		for _, k := range resourceKinds() {
			ra, errA := k.parse(a)
			rb, errB := k.parse(b)
			if errA != nil || errB != nil {
				continue
			}
			if ra != a || rb != b {
				t.Fatalf("%s: %q reads back as %q, %q as %q", k.kind, a, ra, b, rb)
			}
			if (ra == rb) != (a == b) {
				t.Fatalf("%s: %q and %q are confused", k.kind, a, b)
			}
			if strings.ContainsAny(a, "%\\ \x00\n") || strings.Contains(a, "/../") {
				t.Fatalf("%s: accepted %q", k.kind, a)
			}
		}
	})
}

// The Names of KMS grants: what is ours reads back as it was written, and
// nothing else is ours.
func TestKMSGrantNames(t *testing.T) {
	b := newUnwired(t, broker.Config{})
	for name, ours := range map[string]bool{
		"kb/test/GRANT/wrap/1/1":     true,
		"kb/test/GRANT/unwrap/12/3":  true,
		"kb/test/GRANT/wrap/+1/1":    false,
		"kb/test/GRANT/wrap/01/1":    false,
		"kb/test/GRANT/wrap/1/1 ":    false,
		"kb/test/GRANT/wrap/1/1/1":   false,
		"kb/test/GRANT/wrap/1":       false,
		"kb/test/GRANT/Wrap/1/1":     false,
		"kb/test2/GRANT/wrap/1/1":    false,
		"KB/test/GRANT/wrap/1/1":     false,
		"kb/test/GRANT/wrap/1/0x1":   false,
		"kb/test/GRANT/wrap/1e3/1":   false,
		"kb/test/GR/ANT/wrap/1/1":    false,
		"kb//GRANT/wrap/1/1":         false,
		"customer's own":             false,
		"":                           false,
		"kb/test/GRANT/unwrap/１/1":   false,
		"kb/test/GRANT/unwrap/1/1\n": false,
	} {
		parts, ok := b.ParseKMSGrantName(name)
		if ok != ours {
			t.Errorf("%q: ours is %t, want %t (%+v)", name, ok, ours, parts)
		}
	}
}
