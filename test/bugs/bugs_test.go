// Package bugs_test shows that the suites can fail: each seeded bug, compiled in
// by its build tag, must be caught by the suite that is meant to catch it, and
// by the violation that it is.
package bugs_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// A seeded bug: its tag, where it is caught, and what the failure must say.
type seeded struct {
	tag, what, suite, run, says string
}

var bugs = []seeded{
	{"bug_no_cas", "a move does not compare uid, version and epoch", "./internal/sqlstore", "TestSQLite/MoveDataKeys", "MoveDataKeys"},
	{"bug_no_store_check", "a store does not check the domain's key", "./test/model", "TestKeyChangeModel", "I1: data key"},
	{"bug_no_drain", "nobody waits for what services still hold", "./test/model", "TestKeyChangeModel", "import of .* refused"},
	{"bug_no_reserved_pair", "a ReEncrypt lacks the reserved pair", "./test/model", "TestKeyChangeModel", "I4: ReEncrypt|did not end well|job failed|job blocked"},
	{"bug_early_report", "a report does not wait for the final pass", "./test/model", "TestKeyChangeModel", "I6: the report of a job"},
}

// patience is for a suite that runs as often as the check needs; a bug that is
// there is found in seconds.
const patience = 5 * time.Minute

func TestSeededBugsAreCaught(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	caught := 0
	for _, b := range bugs {
		t.Run(b.tag, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			args := []string{"test", "-count=1", "-tags", b.tag, "-run", b.run, b.suite}
			if b.suite == "./test/model" {
				args = append(args, "-rapid.checks=2000", "-rapid.nofailfile", "-rapid.shrinktime=1s")
			}
			cmd := exec.CommandContext(ctx, "go", args...)
			cmd.Dir = root
			out, err := cmd.CombinedOutput()
			switch {
			case err == nil:
				t.Fatalf("%s: not caught", b.what)
			case strings.Contains(string(out), "[build failed]") || ctx.Err() != nil:
				t.Fatalf("%s: the suite did not run: %v\n%s", b.what, ctx.Err(), tail(out))
			case !regexp.MustCompile(b.says).Match(out):
				t.Fatalf("%s: caught, but not by what it violates (%s):\n%s", b.what, b.says, tail(out))
			}
			caught++
		})
	}
	fmt.Printf("%d/%d caught\n", caught, len(bugs))
}

// TestEveryTagIsListed keeps the table whole: a build tag bug_… in the sources
// that is not in it fails.
func TestEveryTagIsListed(t *testing.T) {
	tag := regexp.MustCompile(`(?m)^//go:build (bug_[a-z_]+)$`)
	found := 0
	err := filepath.WalkDir("../../internal", func(path string, _ os.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") {
			return err
		}
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range tag.FindAllStringSubmatch(string(src), -1) {
			found++
			if !slices.ContainsFunc(bugs, func(b seeded) bool { return b.tag == m[1] }) {
				t.Errorf("%s: %s is not in the table", path, m[1])
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if found < len(bugs) {
		t.Errorf("%d tags in the sources, %d in the table", found, len(bugs))
	}
}

func tail(out []byte) string {
	const most = 3000
	if len(out) > most {
		out = out[len(out)-most:]
	}
	return string(out)
}
