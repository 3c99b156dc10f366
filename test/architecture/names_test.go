package architecture

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// What a document says of a test or a check in backquotes, less what follows the
// name: a subtest, or the end of a pattern for -run.
var (
	quoted    = regexp.MustCompile("`[^`\n]+`")
	checkName = regexp.MustCompile(`\b(?:Test|Fuzz|check)[A-Z]\w*`)
	function  = regexp.MustCompile(`(?m)^func (?:\([^)]*\) )?((?:Test|Fuzz|check)[A-Z]\w*)\(`)
)

// TestNamedChecksExist: the tests and checks that the documents name are there.
// A document that promises one which is gone promises nothing.
func TestNamedChecksExist(t *testing.T) {
	root := filepath.Join("..", "..")
	there, err := functions(root)
	if err != nil {
		t.Fatal(err)
	}
	documents, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	named := 0
	for _, document := range append(documents, filepath.Join(root, "ARCHITECTURE.md"), filepath.Join(root, "SECURITY.md"), filepath.Join(root, "CONTRIBUTING.md")) {
		text, err := os.ReadFile(document)
		if err != nil {
			t.Fatal(err)
		}
		for _, quote := range quoted.FindAllString(string(text), -1) {
			for _, name := range checkName.FindAllString(quote, -1) {
				named++
				if !there[name] {
					t.Errorf("%s names %s, and the sources do not have it", filepath.Base(document), name)
				}
			}
		}
	}
	if named < 100 {
		t.Errorf("the documents name %d tests and checks: this test looks in the wrong place", named)
	}
}

// functions gives the names of all tests and checks below root.
func functions(root string) (map[string]bool, error) {
	there := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") {
			return err
		}
		source, err := os.ReadFile(path)
		for _, found := range function.FindAllSubmatch(source, -1) {
			there[string(found[1])] = true
		}
		return err
	})
	return there, err
}
