// Package bugs_test shows that the suites can fail: each seeded bug must be
// caught by the suite that is meant to catch it, and by the violation that it
// is. Bugs that need code of their own stand behind a build tag; a rule that is
// only left out or turned round is seeded by a build overlay, so that the
// product's source holds no trace of it.
package bugs_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// patience is for one run of one row, which takes seconds.
const patience = 3 * time.Minute

// TestSeededBugsAreCaught puts each bug in and runs what must catch it.
func TestSeededBugsAreCaught(t *testing.T) {
	var caught atomic.Int32
	t.Cleanup(func() { fmt.Printf("%d/%d caught\n", caught.Load(), len(bugs())) })
	for _, b := range bugs() {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			out, failed := run(t, build(t, b.suite, b.seed(t)...), b)
			switch line := regexp.MustCompile(b.says).FindString(out); {
			case !failed:
				t.Fatalf("%s: not caught", b.what)
			case line == "":
				t.Fatalf("%s: caught, but not by what it violates (%s):\n%s", b.what, b.says, tail(out))
			default:
				t.Logf("%s: %s: %s", b.name, b.suite, line)
				caught.Add(1)
			}
		})
	}
}

// TestSuitesPassWithoutBugs is the other half of the proof: what catches the bugs
// passes where none is in.
func TestSuitesPassWithoutBugs(t *testing.T) {
	suites := map[string][]seeded{}
	for _, b := range bugs() {
		if !slices.ContainsFunc(suites[b.suite], func(other seeded) bool { return other.run == b.run }) {
			suites[b.suite] = append(suites[b.suite], b)
		}
	}
	for suite, rows := range suites {
		t.Run(suite, func(t *testing.T) {
			t.Parallel()
			binary := build(t, suite)
			for _, b := range rows {
				if out, failed := run(t, binary, b); failed || !strings.Contains(out, "--- PASS: ") {
					t.Errorf("%s does not pass:\n%s", b.run, tail(out))
				}
			}
		})
	}
}

// seed gives the flags of go test that put the bug in.
func (b seeded) seed(t *testing.T) []string {
	t.Helper()
	if b.edit == nil {
		return []string{"-tags", b.name}
	}
	return []string{"-overlay", b.edit.overlay(t)}
}

// overlay writes the edited file and the description of it that go build takes.
func (e edit) overlay(t *testing.T) string {
	t.Helper()
	path := filepath.Join(root(t), e.file)
	src, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(src), e.old); n != 1 {
		t.Fatalf("the text to edit stands %d times in %s, want once: mend the table\n%s", n, e.file, e.old)
	}
	dir := t.TempDir()
	edited := filepath.Join(dir, "edited.go")
	if err := os.WriteFile(edited, []byte(strings.Replace(string(src), e.old, e.new, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	description, err := json.Marshal(map[string]map[string]string{"Replace": {path: edited}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(file, description, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// build gives the suite's test binary.
func build(t *testing.T, suite string, flags ...string) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "suite.test")
	args := append([]string{"test", "-c", "-vet=off", "-ldflags=-s -w", "-o", binary}, flags...)
	cmd := exec.CommandContext(t.Context(), "go", append(args, suite)...)
	cmd.Dir = root(t)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s does not build: %v\n%s", suite, err, out)
	}
	return binary
}

// run runs the row's tests. It skips a row whose suite lacks PostgreSQL; a suite
// that runs out of time has neither passed nor caught anything.
func run(t *testing.T, binary string, b seeded) (out string, failed bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience+10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "-test.v", "-test.timeout="+patience.String(), "-test.run="+b.run)
	cmd.Dir = filepath.Join(root(t), b.suite)
	cmd.WaitDelay = 10 * time.Second // for what the suite itself has started
	printed, err := cmd.CombinedOutput()
	// The lines about a test's beginning name it, whatever becomes of it.
	out = regexp.MustCompile(`(?m)^=== .*\n`).ReplaceAllString(string(printed), "")
	switch {
	case strings.Contains(out, "NOT TESTED ON POSTGRESQL") && os.Getenv("CI") != "true":
		t.Skip("!!! NOT TESTED: PostgreSQL is not installed")
	case ctx.Err() != nil || strings.Contains(out, "panic: test timed out"):
		t.Fatalf("%s: %s ran out of time\n%s", b.suite, b.run, tail(out))
	}
	return out, err != nil
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func tail(out string) string {
	const most = 3000
	if len(out) > most {
		out = out[len(out)-most:]
	}
	return out
}

// TestEveryEditFits finds in a moment what would fail its row in minutes: an edit
// whose text was changed.
func TestEveryEditFits(t *testing.T) {
	for _, b := range bugs() {
		t.Run(b.name, func(t *testing.T) { b.seed(t) })
	}
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
			if !slices.ContainsFunc(bugs(), func(b seeded) bool { return b.name == m[1] }) {
				t.Errorf("%s: %s is not in the table", path, m[1])
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if found == 0 {
		t.Error("no build tag found in the sources")
	}
}
