package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keybroker/keybroker/internal/demo"
)

// someFiles makes n files, and things that a demo must leave alone.
func someFiles(t *testing.T, n int) string {
	t.Helper()
	dir := t.TempDir()
	write := func(name, content string) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for i := range n {
		write(fmt.Sprintf("docs/%d/file é %d.txt", i%3, i), strings.Repeat("content ", i))
	}
	write(".git/config", "not this")
	write("large", strings.Repeat("x", 1<<20+1))
	return dir
}

func wantClean(t *testing.T, r demo.Result, files, keys int) {
	t.Helper()
	if err := r.Err(); err != nil {
		t.Error(err)
	}
	if r.Files < files || r.Imported != 1000 || r.DataKeys != r.Files+r.Imported+keys {
		t.Errorf("%d files, %d data keys, %d imported, want at least %d files and %d other keys", r.Files, r.DataKeys, r.Imported, files, keys)
	}
	// What the writer added after the switch was never under the old key.
	if r.Moved < files+1000+keys || r.Moved > r.DataKeys {
		t.Errorf("%d of %d data keys moved, want at least %d", r.Moved, r.DataKeys, files+1000+keys)
	}
	if r.Left != 0 || r.LiveOldGrants != 0 || r.Differing != 0 || r.ReaderErrors != 0 || !r.SafeToRetire || r.KMSCalls < int64(r.Moved) {
		t.Errorf("%+v", r)
	}
}

func TestDemo(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "demo")
	dir := someFiles(t, 12)
	code, stdout, stderr := call(t.Context(), environment(), "demo", "--dir", dir, "--data", data, "--keys", "200")
	if code != 0 || stderr != "" {
		t.Fatalf("exit %d: %s\n%s", code, stderr, stdout)
	}
	lines := strings.Split(strings.TrimSpace(stdout), "\n")
	last := []byte(lines[len(lines)-1])
	var result demo.Result
	decoder := json.NewDecoder(bytes.NewReader(last))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&result); err != nil {
		t.Fatalf("the last line is no result: %s: %v", last, err)
	}
	wantClean(t, result, 12, 200)
	var fields map[string]any
	if err := json.Unmarshal(last, &fields); err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Split("files data_keys imported moved left live_old_grants differing reader_errors kms_calls safe_to_retire seconds", " ") {
		if _, ok := fields[name]; !ok {
			t.Errorf("the last line lacks %s", name)
		}
	}
	log, err := os.ReadFile(demoLog(data))
	if err != nil || strings.Contains(string(log), "level=ERROR") {
		t.Errorf("the broker's log: %s, %v", log, err)
	}
	// A finished run gives way to the next.
	begun, err := demo.Open(data, dir, 3, demo.OwnKeys{})
	if err != nil || begun.Resumed || begun.Keys != 3 {
		t.Errorf("%+v, %v", begun, err)
	}
}

func TestDemoGoesOnWhereItWasStopped(t *testing.T) {
	t.Parallel()
	const files, keys = 6, 60
	data := filepath.Join(t.TempDir(), "demo")
	dir := someFiles(t, files)
	stops := []struct {
		stage demo.Stage
		act   int64
	}{
		{demo.StageDomain, 0}, {demo.StageDomain, 1}, {demo.StageKeys, 1}, {demo.StageOnboard, 1}, {demo.StageOnboard, 2},
		{demo.StageFiles, 3}, {demo.StageImport, 2}, {demo.StageFill, 25},
		{demo.StageChange, 0}, {demo.StageChange, 1}, {demo.StageChange, 3}, {demo.StageChange, 4},
		{demo.StageDisable, 1}, {demo.StageVerify, 0}, {demo.StageVerify, 2},
	}
	for _, stop := range stops {
		begun, err := demo.Open(data, dir, keys, demo.OwnKeys{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		reached := false
		c := command{getenv: environment(), stdout: &bytes.Buffer{}, stderr: &bytes.Buffer{}}
		result, err := c.runDemo(ctx, data, begun, func(stage demo.Stage, act int64) {
			if stage == stop.stage && act == stop.act {
				reached = true
				cancel()
			}
		})
		cancel()
		if !reached || err == nil {
			t.Fatalf("not stopped in %s at act %d: %v, %+v\n%s", stop.stage, stop.act, err, result, c.stdout)
		}
	}
	begun, err := demo.Open(data, "elsewhere/../"+"..", 1, demo.OwnKeys{})
	if err != nil || !begun.Resumed || begun.Keys != keys || begun.Dir != dir {
		t.Fatalf("%+v, %v", begun, err)
	}
	if code, _, stderr := call(t.Context(), environment(), "demo", "--data", data, "--keys", "7"); code != 2 || !strings.Contains(stderr, "--keys 60") {
		t.Errorf("another --keys for a stopped run: exit %d, %s", code, stderr)
	}
	c := command{getenv: environment(), stdout: &bytes.Buffer{}, stderr: &bytes.Buffer{}}
	result, err := c.runDemo(t.Context(), data, begun, nil)
	if err != nil {
		t.Fatalf("%v\n%s", err, c.stdout)
	}
	wantClean(t, result, files, keys)
}
