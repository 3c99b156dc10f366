// Package kmsmodel checks what goes over the wire against AWS's own model of KMS,
// as an installed botocore carries it. It holds no copy of the model.
//
// A model knows only what its botocore knew when it was released. What a newer
// client sends and an older model lacks is noted, not judged.
package kmsmodel

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
)

// ErrNotInstalled means that no botocore was found.
var ErrNotInstalled = errors.New("no python3 here has botocore (Debian: python3-boto3)")

// Model is the service model. It never changes once it is loaded.
type Model struct {
	Version string // of botocore

	operations map[string]operation
	shapes     map[string]*shape
}

type operation struct {
	Input  *ref
	Output *ref
	Errors []ref
}

type ref struct{ Shape string }

// shape is a type of the model. Which members are set follows from Type.
type shape struct {
	Type      string
	Members   map[string]ref // of a structure
	Required  []string
	Member    ref // of a list
	Key       ref // of a map
	Value     ref
	Enum      []string // of a string
	Pattern   string
	Min, Max  *float64 // length, or value of a number
	Exception bool

	pattern *regexp.Regexp
}

// The interpreters to ask. Debian's is asked too where another comes first in
// PATH.
var interpreters = []string{"python3", "/usr/bin/python3"}

// find prints where botocore is and which one.
const find = `import botocore, os
print(os.path.join(os.path.dirname(botocore.__file__), "data", "kms", "2014-11-01", "service-2.json"))
print(botocore.__version__)`

// Load reads the model of the botocore that is installed. The error is
// ErrNotInstalled if there is none.
func Load() (*Model, error) {
	for _, python := range interpreters {
		out, err := exec.Command(python, "-c", find).Output()
		if err != nil {
			continue
		}
		path, version, ok := strings.Cut(strings.TrimSpace(string(out)), "\n")
		if !ok {
			return nil, fmt.Errorf("%s answered %q", python, out)
		}
		m, err := read(path)
		if err != nil {
			return nil, fmt.Errorf("botocore %s: %w", version, err)
		}
		m.Version = version
		return m, nil
	}
	return nil, ErrNotInstalled
}

// read reads a model, which is compressed in newer botocores.
func read(path string) (*Model, error) {
	f, err := os.Open(path + ".gz")
	if errors.Is(err, os.ErrNotExist) {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		return parse(text)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, err
	}
	var doc json.RawMessage
	if err := json.NewDecoder(z).Decode(&doc); err != nil {
		return nil, err
	}
	return parse(doc)
}

func parse(text []byte) (*Model, error) {
	var doc struct {
		Operations map[string]operation
		Shapes     map[string]*shape
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		return nil, err
	}
	if len(doc.Operations) == 0 || len(doc.Shapes) == 0 {
		return nil, errors.New("the model has no operations or no shapes")
	}
	for name, s := range doc.Shapes {
		if s.Pattern == "" {
			continue
		}
		// The whole text has to match, and Go writes a code point otherwise.
		pattern := `^(?:` + codePoint.ReplaceAllString(s.Pattern, `\x{$1}`) + `)$`
		var err error
		if s.pattern, err = regexp.Compile(pattern); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return &Model{operations: doc.Operations, shapes: doc.Shapes}, nil
}

var codePoint = regexp.MustCompile(`\\u([0-9A-Fa-f]{4})`)

// Knows reports whether the model has an operation.
func (m *Model) Knows(operation string) bool {
	_, ok := m.operations[operation]
	return ok
}

// current reports whether the model is new enough to be a judge of what it lacks:
// GetKeyLastUsage is of 2026-04.
func (m *Model) current() bool { return m.Knows("GetKeyLastUsage") }
