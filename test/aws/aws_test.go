package aws_test

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/brokertest"
	"github.com/keybroker/keybroker/internal/demo"
	"github.com/keybroker/keybroker/test/chaos/devserver"
)

// demoKeys is what the issue asks for; callsInAll what it allows.
const (
	demoKeys   = 100
	callsInAll = 2000
)

// cannot is what must not be done to somebody's own keys.
func cannot() map[brokertest.KMSNeed]string {
	return map[brokertest.KMSNeed]string{
		brokertest.NeedPolicies: "it needs keys under policies of its own, and no policy may be changed",
		brokertest.NeedDisable:  "it disables a key",
		brokertest.NeedQuota:    "AWS allows 50,000 grants on a key, which would cost as many calls",
	}
}

// TestMain lets all topics wait beside each other, however few cores there are.
func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getenv(variable) == "1" {
		if err := flag.Set("test.parallel", "64"); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

// TestAWS is `make test-aws`.
func TestAWS(t *testing.T) {
	if os.Getenv(variable) != "1" {
		t.Skipf("NOT RUN ON AWS: that is for make test-aws, with %s=1 and two keys of yours (docs/aws.md). TestTargetOnLocalKMS runs it on localkms", variable)
	}
	s := readSettings(t)
	w := newWorld(t, s)
	b := book{outcomes: map[string]outcome{}, where: w.caller.KMSEndpoint}
	fmt.Printf("As %s, with %s and %s.\nIt takes about %v, most of it until KMS shows every grant everywhere.\n",
		w.caller.ARN, s.oldKey, s.newKey, (5*s.visibility + 2*time.Minute).Round(time.Minute))

	tidy := context.WithoutCancel(t.Context())
	if n := w.retireGrants(t.Context(), t); n > 0 {
		fmt.Printf("Retired %d grants that an earlier run had left.\n", n)
	}
	t.Cleanup(func() { b.print(os.Stdout) }) // last
	t.Cleanup(func() {
		fmt.Printf("Retired the suite's grants: %d.\n", w.retireGrants(tidy, t))
		b.calls += w.fence.Calls()
		fmt.Printf("KMS calls of suite and claims: %d, %s.\n", w.fence.Calls(), counts(w.fence.Counts()))
		if b.calls >= callsInAll {
			t.Errorf("%d KMS calls in all, want fewer than %d", b.calls, callsInAll)
		}
	})
	t.Run("Suite", func(t *testing.T) {
		brokertest.RunKMS(t, cannot(), func(t *testing.T) brokertest.KMSBench {
			topic := t.Name()[strings.LastIndexByte(t.Name(), '/')+1:]
			t.Cleanup(func() { b.note(topic, t) })
			return w.bench(t)
		})
	})
	t.Run("Claims", func(t *testing.T) {
		for i, c := range claims() {
			if c.probe == nil {
				continue
			}
			t.Run(c.text, func(t *testing.T) {
				t.Cleanup(func() { b.note(c.text, t) })
				c.probe(w.probe(t, i))
			})
		}
	})
	t.Run("Demo", func(t *testing.T) {
		t.Cleanup(func() { b.note("broker demo", t) })
		b.calls += runDemo(t, s)
	})
}

func counts(of map[string]int) string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(of)) {
		all = append(all, fmt.Sprintf("%s %d", name, of[name]))
	}
	return strings.Join(all, ", ")
}

// runDemo is broker demo as a user calls it; its calls of KMS are counted.
func runDemo(t *testing.T, s settings) int {
	bin := os.Getenv(binaryVariable)
	if bin == "" {
		var err error
		if bin, err = devserver.Build(t.Context(), t.TempDir()); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	files := filepath.Join(dir, "files")
	if err := os.Mkdir(files, 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		if err := os.WriteFile(filepath.Join(files, fmt.Sprintf("%d.txt", i)), []byte(strings.Repeat("content", i)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	args := []string{
		"demo", "--kms", "aws", "--data", filepath.Join(dir, "demo"), "--old", s.oldKey, "--new", s.newKey,
		"--registrar-role", s.registrar, "--worker-role", s.worker, "--service-role", s.service, "--grant-visibility", s.visibility.String(),
	}
	ended := false
	t.Cleanup(func() {
		if ended {
			return
		}
		clean := exec.CommandContext(context.WithoutCancel(t.Context()), bin, append(args, "--clean")...)
		out, err := clean.CombinedOutput()
		fmt.Printf("%s", out)
		if err != nil {
			t.Errorf("grants of the demo may be left: %v", err)
		}
	})
	run := exec.CommandContext(t.Context(), bin, append(args, "--dir", files, "--keys", fmt.Sprint(demoKeys))...)
	run.Stderr = os.Stderr
	out, err := run.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	last := lastLine(out)
	if err := run.Wait(); err != nil {
		log, _ := os.ReadFile(filepath.Join(dir, "demo", "broker.log"))
		t.Fatalf("broker demo: %v\n%s", err, log)
	}
	ended = true
	var result demo.Result
	if err := json.Unmarshal([]byte(last), &result); err != nil {
		t.Fatalf("the last line is no result: %q: %v", last, err)
	}
	if err := result.Err(); err != nil || result.DataKeys < demoKeys+10 || result.Moved < demoKeys+10 || result.Files < 10 {
		t.Errorf("%+v: %v", result, err)
	}
	if result.KMSCalls < 2*demoKeys {
		t.Errorf("%d KMS calls: each data key takes two and more", result.KMSCalls)
	}
	return int(result.KMSCalls)
}

// lastLine shows what comes, and gives the end of it.
func lastLine(out io.Reader) (last string) {
	for lines := bufio.NewScanner(out); lines.Scan(); {
		last = lines.Text()
		fmt.Println(last)
	}
	return last
}

// An outcome is of a topic or a probe.
type outcome struct{ failed bool }

// book gathers outcomes for the table. It is safe for concurrent use.
type book struct {
	where string
	calls int

	mu       sync.Mutex
	outcomes map[string]outcome
}

func (b *book) note(name string, t *testing.T) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.outcomes[name] = outcome{failed: t.Failed()}
}

// verdict is of what is shown by several: one that failed says no, one that was
// not run says nothing.
func (b *book) verdict(names []string) string {
	verdict := b.yes()
	for _, name := range names {
		o, run := b.outcomes[name]
		switch {
		case run && o.failed:
			return "DIFFERS: see " + name
		case !run:
			verdict = "not run"
		}
	}
	return verdict
}

func (b *book) yes() string {
	if onAWS(b.where) {
		return "confirmed on AWS"
	}
	return "as claimed"
}

// print is the table, for docs/localkms.md.
func (b *book) print(w io.Writer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var text strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&text, format+"\n", args...) }
	line("\n%d KMS calls in all.", b.calls)
	if !onAWS(b.where) {
		line("ON %s, WHICH IS NOT AWS: this confirms nothing.", b.where)
	}
	line("\n| claim of docs/localkms.md | %s |\n|---|---|", time.Now().UTC().Format(time.DateOnly))
	for _, c := range claims() {
		names := slices.Clone(c.topics)
		if c.probe != nil {
			names = append(names, c.text)
		}
		line("| %s | %s |", c.text, b.verdict(names))
	}
	line("| broker demo: a key change under writes, on two keys that exist | %s |", b.verdict([]string{"broker demo"}))
	line("\n| topic of the suite | |\n|---|---|")
	for _, topic := range brokertest.KMSTopics() {
		verdict := b.verdict([]string{topic.Name})
		if reason := cannot()[topic.Needs]; reason != "" {
			verdict = "not run on AWS: " + reason
		}
		line("| %s | %s |", topic.Name, verdict)
	}
	_, _ = io.WriteString(w, text.String()) // there is nobody else to tell
}
