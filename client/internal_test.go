package client

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What parses encodes to the same bytes: an envelope has one form only.
func FuzzParse(f *testing.F) {
	seeds, err := filepath.Glob("testdata/fuzz/FuzzParse/*")
	if err != nil || len(seeds) == 0 {
		f.Fatalf("no seeds in testdata/fuzz/FuzzParse: %v", err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := parse(b)
		if err != nil {
			return
		}
		if again := append(e.header(0), e.sealed...); !bytes.Equal(again, b) {
			t.Errorf("parsed %x, encoded %x", b, again)
		}
		if err := checkName(e.name); err != nil {
			t.Errorf("accepted the name %q", e.name)
		}
	})
}

// The seeds reach past the parser's every check.
func TestSeedsParse(t *testing.T) {
	good := 0
	seeds, _ := filepath.Glob("testdata/fuzz/FuzzParse/*")
	for _, seed := range seeds {
		text, err := os.ReadFile(seed)
		if err != nil {
			t.Fatal(err)
		}
		var b []byte
		if _, err := fmt.Sscanf(strings.SplitN(string(text), "\n", 2)[1], "[]byte(%q)", &b); err != nil {
			t.Fatalf("%s: %v", seed, err)
		}
		if _, err := parse(b); err == nil {
			good++
		}
	}
	if good == 0 {
		t.Error("no seed is a good envelope")
	}
}

// No way of printing shows the key, alone or inside something else.
func TestSecretDoesNotShow(t *testing.T) {
	key := []byte("0123456789abcdef0123456789abcdef")
	s := newSecret(key)
	inside := &cachedKey{key: &dataKey{uid: "u", secret: s}}
	var out bytes.Buffer
	for _, v := range []any{s, &s, []secret{s}, map[string]secret{"k": s}, *inside.key, inside.key, *inside, inside} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		slog.New(slog.NewTextHandler(&out, nil)).Info("m", "v", v)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("m", "v", v)
		if err := json.NewEncoder(&out).Encode(v); err != nil {
			out.WriteString(err.Error())
		}
	}
	for _, form := range []string{string(key), fmt.Sprintf("%x", key), fmt.Sprintf("%X", key), "48 49 50", "48, 49", "0x30, 0x31", "MDEyMzQ1"} {
		if strings.Contains(out.String(), form) {
			t.Errorf("the key shows as %q in:\n%s", form, out.String())
		}
	}
	if !strings.Contains(out.String(), redacted) {
		t.Error("nothing was redacted")
	}
}
