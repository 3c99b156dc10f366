package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

// raw are the figures behind a value, by what they are, in the order measured.
type raw map[string][]float64

// A metric is one line of the table and of bench.json.
type metric struct {
	Name   string  `json:"name"`
	Engine string  `json:"engine"`
	Value  float64 `json:"value"`
	Target string  `json:"target"` // "" where none is set
	Unit   string  `json:"unit"`
	Raw    raw     `json:"raw"`
}

const (
	atLeastSign = "≥ "
	atMostSign  = "≤ "
)

func atLeast(v float64) string { return atLeastSign + number(v) }
func atMost(v float64) string  { return atMostSign + number(v) }

// met says whether the value keeps its target, "" where there is none.
func (m metric) met() string {
	limit, err := strconv.ParseFloat(strings.TrimLeft(m.Target, "≥≤ "), 64)
	switch {
	case m.Target == "" || err != nil:
		return ""
	case strings.HasPrefix(m.Target, atLeastSign) == (m.Value >= limit) || m.Value == limit:
		return "met"
	}
	return "missed"
}

type report struct{ metrics []metric }

func (r *report) add(m metric) { r.metrics = append(r.metrics, m) }

func (r *report) writeJSON(path string) error {
	text, err := json.MarshalIndent(r.metrics, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

// writeTable writes Markdown that is also readable as it is.
func (r *report) writeTable(w io.Writer) error {
	fmt.Fprintf(w, "%s, %d CPUs, %s\n\n", runtime.Version(), runtime.NumCPU(), processor())
	t := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	fmt.Fprintf(t, "| what\t| engine\t| value\t| unit\t| target\t|\t| raw: median (lowest to highest)\t|\n")
	fmt.Fprintf(t, "|---\t|---\t|---:\t|---\t|---\t|---\t|---\t|\n")
	for _, m := range r.metrics {
		fmt.Fprintf(t, "| %s\t| %s\t| %s\t| %s\t| %s\t| %s\t| %s\t|\n", m.Name, m.Engine, number(m.Value), m.Unit, m.Target, m.met(), m.Raw)
	}
	return t.Flush()
}

// String sums the figures up for the table.
func (r raw) String() string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(r)) {
		figures := r[name]
		part := name + " " + number(median(figures))
		if low, high := number(slices.Min(figures)), number(slices.Max(figures)); low != high {
			part += " (" + low + " to " + high + ")"
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, "; ")
}

// number has three digits that say something, or all before the point.
func number(v float64) string {
	switch {
	case v >= 100 || v <= -100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 10 || v <= -10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	case v == float64(int64(v)):
		return strconv.FormatInt(int64(v), 10)
	}
	return strconv.FormatFloat(v, 'f', 3, 64)
}

// thousands is 200,000 for 200000.
func thousands(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func median(figures []float64) float64 {
	sorted := slices.Sorted(slices.Values(figures))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

func mean(figures []float64) float64 {
	var sum float64
	for _, f := range figures {
		sum += f
	}
	return sum / float64(len(figures))
}

// ratios divides pairs that were measured one after the other.
func ratios(a, b []float64) []float64 {
	out := make([]float64, len(a))
	for i := range a {
		out[i] = a[i] / b[i]
	}
	return out
}

// processor names the machine's, where Linux tells.
func processor() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return runtime.GOOS + "/" + runtime.GOARCH
	}
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOOS + "/" + runtime.GOARCH
}
