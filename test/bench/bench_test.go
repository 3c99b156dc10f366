package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/keybroker/keybroker/internal/localkms"
)

// TestMain lets the test binary be the processes that a bench starts of itself.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		if part, ok := parts()[os.Args[1]]; ok {
			if err := part(context.Background(), os.Args[2:], os.Stdout); err != nil {
				fmt.Fprintln(os.Stderr, "bench:", err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

// TestQuickRun looks at the form of what comes out; its figures mean nothing.
func TestQuickRun(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	output := filepath.Join(t.TempDir(), "bench.json")
	var table, progress bytes.Buffer
	if err := run(t.Context(), []string{"-quick", "-full=false", "-dir", t.TempDir(), "-o", output}, &table, &progress); err != nil {
		t.Fatalf("%v\n%s", err, &progress)
	}
	text, err := os.ReadFile(output)
	if err != nil {
		t.Fatal(err)
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	var metrics []metric
	if err := decoder.Decode(&metrics); err != nil {
		t.Fatal(err)
	}
	for _, operation := range localkms.Operations() {
		if !slices.ContainsFunc(metrics, func(m metric) bool { return m.Name == operation && m.Engine == "localkms" && len(m.Raw) == 4 }) {
			t.Errorf("%s of localkms is not measured", operation)
		}
	}
	targets := 0
	for _, m := range metrics {
		if m.Name == "" || m.Engine == "" || m.Unit == "" || len(m.Raw) == 0 || math.IsNaN(m.Value) || math.IsInf(m.Value, 0) {
			t.Errorf("incomplete: %+v", m)
		}
		for name, figures := range m.Raw {
			if name == "" || len(figures) == 0 {
				t.Errorf("%s has no figures of %q", m.Name, name)
			}
		}
		if m.Target != "" {
			targets++
			if m.met() == "" {
				t.Errorf("%s: the target %q cannot be read", m.Name, m.Target)
			}
		}
		if !strings.Contains(table.String(), "| "+m.Name+" ") {
			t.Errorf("the table lacks %s", m.Name)
		}
	}
	if targets < 8 {
		t.Errorf("%d lines have targets, want all of the targets", targets)
	}
	lines := strings.Split(strings.TrimSpace(table.String()), "\n")
	const heading = 4 // machine, blank line, names, rule
	if len(lines) != heading+len(metrics) {
		t.Errorf("%d lines for %d metrics:\n%s", len(lines), len(metrics), &table)
	}
	for _, line := range lines[heading-2:] {
		if n := strings.Count(line, "|"); n != 8 {
			t.Errorf("%d bars instead of 8: %s", n, line)
		}
	}
}

func TestTargets(t *testing.T) {
	for _, c := range []struct {
		target string
		value  float64
		want   string
	}{
		{atLeast(0.9), 0.9, "met"}, {atLeast(0.9), 0.95, "met"}, {atLeast(0.9), 0.89, "missed"},
		{atMost(40), 40, "met"}, {atMost(40), 39, "met"}, {atMost(1.5), 1.6, "missed"}, {"", 1, ""},
	} {
		if got := (metric{Target: c.target, Value: c.value}).met(); got != c.want {
			t.Errorf("%v against %q: %q, want %q", c.value, c.target, got, c.want)
		}
	}
}

func TestFigures(t *testing.T) {
	if got := median([]float64{3, 1, 2}); got != 2 {
		t.Errorf("median of three: %v", got)
	}
	if got := median([]float64{4, 1, 2, 3}); got != 2.5 {
		t.Errorf("median of four: %v", got)
	}
	if got := thousands(1_000_000) + " " + thousands(999); got != "1,000,000 999" {
		t.Error(got)
	}
	if got := (raw{"a": {1, 3, 2}, "b": {5}}).String(); got != "a 2 (1 to 3); b 5" {
		t.Error(got)
	}
}
