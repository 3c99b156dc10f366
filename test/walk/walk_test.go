//go:build unix

// Package walk_test types the README's tour into a shell, word for word, against
// a server that was built from this tree. Documentation that nobody runs is
// wrong within a month.
//
// What runs: each fenced block marked sh between <!-- walk:begin --> and
// <!-- walk:end -->, all in one bash session that ends at the first command that
// fails. What must come: each line of a fenced block marked text or json there,
// in the order of the README ("…" stands for anything), and what the README's
// sentences promise, see promises.
package walk_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/keybroker/keybroker/test/chaos/devserver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// limit is far above the 20 s that the tour takes.
const limit = 5 * time.Minute

func TestREADME(t *testing.T) {
	needTools(t, "bash", "jq", "aws")
	root, err := devserver.Root()
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	w, err := parse(string(readme))
	if err != nil {
		t.Fatal(err)
	}
	tools := t.TempDir()
	// Also where the README calls it by `go tool`: that takes it from Go's cache.
	if err := devserver.Go(t.Context(), root, "build", "-modfile=tools.mod", "-o", filepath.Join(tools, "grpcurl"),
		"github.com/fullstorydev/grpcurl/cmd/grpcurl"); err != nil {
		t.Fatal(err)
	}
	bin, err := devserver.Build(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	data, log := filepath.Join(dir, "dev"), filepath.Join(dir, "broker.log")
	server, err := devserver.Spawn(bin, data, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Kill(); err != nil {
			t.Error(err)
		}
		if text, err := os.ReadFile(log); t.Failed() {
			t.Logf("the broker's log: %v\n%s", err, text)
		}
	})
	ctx, cancel := context.WithTimeoutCause(t.Context(), limit, fmt.Errorf("the tour is not over after %v", limit))
	defer cancel()
	if err := server.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	// The ports and the directory are ours, so that the test can run beside a
	// server that somebody tries out by hand; both are the README's own variables.
	out, err := bash(ctx, root, w.script, append(devserver.Environ(),
		"A="+server.API, "DEV="+data, "AWS_CONFIG_FILE="+server.AWSConfig,
		"AWS_SHARED_CREDENTIALS_FILE="+os.DevNull, "AWS_PAGER=", "AWS_EC2_METADATA_DISABLED=true",
		"PATH="+tools+string(os.PathListSeparator)+os.Getenv("PATH")))
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("the tour took %v and wrote:\n%s", time.Since(begun).Round(time.Millisecond), out)
	w.check(t, out)
	if err := server.Stop(ctx); err != nil {
		t.Errorf("the server did not end well: %v", err)
	}
}

// needTools skips the test where a tool is missing, loudly; in CI that is a
// failure, or the README would go untested for years.
func needTools(t *testing.T, tools ...string) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("CI must run the README's tour: %v", err)
			}
			t.Skipf("!!! THE README'S TOUR IS NOT TESTED: %s is not installed", tool)
		}
	}
}

// bash runs a script in one session and gives all of its output.
func bash(ctx context.Context, dir, script string, env []string) (string, error) {
	cmd := exec.CommandContext(ctx, "bash", "-c", script)
	cmd.Dir, cmd.Env = dir, env
	cmd.SysProcAttr = devserver.OwnGroup() // a pipeline ends with its longest-lived part
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return out.String(), err
}

// A walk is what the README has between its marks.
type walk struct {
	script string
	expect []string // lines, in their order
}

// The frame of the session. The trap names the line of the README: the script
// has each command on the line that it has there.
const frame = `set -Eeuo pipefail; trap 'echo "README.md:$LINENO: failed with $?: $BASH_COMMAND" >&2' ERR;`

// parse takes the walk out of a README. It fails if there is none: marks that
// were lost in an edit are not to pass for a tour without steps.
func parse(readme string) (walk, error) {
	var w walk
	lines := strings.Split(readme, "\n")
	script := make([]string, len(lines))
	inside, fence, commands := false, "", 0
	for i, line := range lines {
		info, isFence := strings.CutPrefix(line, "```")
		switch {
		case strings.TrimSpace(line) == "<!-- walk:begin -->":
			if inside {
				return w, fmt.Errorf("README.md:%d: walk:begin within a walk", i+1)
			}
			inside = true
		case strings.TrimSpace(line) == "<!-- walk:end -->":
			if !inside || fence != "" {
				return w, fmt.Errorf("README.md:%d: walk:end without a begin, or within a block", i+1)
			}
			inside = false
		case !inside:
		case isFence && fence != "":
			fence = ""
		case isFence:
			fence = info
			if fence != "sh" && fence != "text" && fence != "json" {
				return w, fmt.Errorf("README.md:%d: a block in the walk is sh (is run), text or json (must come), not %q", i+1, info)
			}
		case fence == "sh":
			script[i] = line
			commands++
		case fence != "" && strings.TrimSpace(line) != "":
			w.expect = append(w.expect, strings.TrimSpace(line))
		}
	}
	if inside || commands == 0 {
		return w, fmt.Errorf("README.md has no whole walk with commands between <!-- walk:begin --> and <!-- walk:end -->")
	}
	script[0] = frame // line 1 is the title, which is no command
	w.script = strings.Join(script, "\n")
	return w, nil
}

// promises are what the README's sentences say about the outputs.
var promises = []struct {
	says    string
	pattern *regexp.Regexp
	times   int // at least
}{
	{"both key changes succeed", regexp.MustCompile(`STATE_SUCCEEDED`), 2},
	{"three data keys are made", regexp.MustCompile(`"name": "domains/tour/dataKeys/invoice-[123]"`), 3},
	{"the old key may go", regexp.MustCompile(`"safeToRetire": true`), 1},
	{"the service unwraps, before and after", regexp.MustCompile(`(?m)^[0-9a-f]{64}  -$`), 2},
	{"a tenant of one's own waits for its key", regexp.MustCompile(`"STATE_PENDING_KEY"`), 2},
	{"its key is made with the policy", regexp.MustCompile(`(?m)^arn:aws:kms:us-east-1:111122223333:key/\S+$`), 1},
}

// check holds the output against what the README says of it.
func (w walk) check(t *testing.T, out string) {
	t.Helper()
	rest := out
	for _, line := range w.expect {
		parts := strings.Split(line, "…")
		for i, p := range parts {
			parts[i] = regexp.QuoteMeta(p)
		}
		at := regexp.MustCompile(strings.Join(parts, ".*")).FindStringIndex(rest)
		if at == nil {
			t.Errorf("the README shows %q, which does not come (any more, at that place)", line)
			continue
		}
		rest = rest[at[1]:]
	}
	for _, p := range promises {
		if n := len(p.pattern.FindAllString(out, -1)); n < p.times {
			t.Errorf("%s: %q comes %d times, want %d", p.says, p.pattern, n, p.times)
		}
	}
	// "The same data key comes out of the new one."
	if sums := regexp.MustCompile(`(?m)^[0-9a-f]{64}  -$`).FindAllString(out, -1); len(sums) > 1 {
		for _, sum := range sums[1:] {
			if sum != sums[0] {
				t.Errorf("the data key was %s before the change and is %s after it", sums[0], sum)
			}
		}
	}
	for _, bad := range []string{"skipped", "STATE_FAILED", "STATE_BLOCKED", "Traceback"} {
		if strings.Contains(out, bad) {
			t.Errorf("the tour's output contains %q", bad)
		}
	}
}

func TestParse(t *testing.T) {
	const good = "# t\n<!-- walk:begin -->\n```sh\necho a\n```\n\n```text\na…\n```\n<!-- walk:end -->\n```sh\nfalse\n```\n"
	w, err := parse(good)
	if err != nil || len(w.expect) != 1 || strings.Contains(w.script, "false") {
		t.Errorf("%+v, %v", w, err)
	}
	if out, err := bash(t.Context(), ".", w.script, os.Environ()); err != nil || out != "a\n" {
		t.Errorf("%q, %v", out, err)
	}
	failing, err := parse(strings.Replace(good, "echo a", "echo a | grep b | cat", 1))
	if err != nil {
		t.Fatal(err)
	}
	if out, err := bash(t.Context(), ".", failing.script, os.Environ()); err == nil || !strings.Contains(out, "README.md:4:") {
		t.Errorf("a failing pipeline: %q, %v", out, err)
	}
	for what, bad := range map[string]string{
		"no walk":             "# t\n```sh\necho\n```\n",
		"no end":              "<!-- walk:begin -->\n```sh\necho\n```\n",
		"no begin":            "```sh\necho\n```\n<!-- walk:end -->\n",
		"an unmarked block":   "<!-- walk:begin -->\n```\necho\n```\n<!-- walk:end -->\n",
		"nothing but a frame": "<!-- walk:begin -->\n```sh\n```\n<!-- walk:end -->\n",
	} {
		if _, err := parse(bad); err == nil {
			t.Errorf("%s is taken for a walk", what)
		}
	}
}
