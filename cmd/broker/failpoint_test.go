package main

import (
	"log/slog"
	"strings"
	"testing"
)

func TestFailpoint(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	if f, err := readFailpoint(environment(), log); f != nil || err != nil {
		t.Errorf("none set: %v, %v", f, err)
	}
	for _, bad := range []string{":", "x", "batch", "batch:1", "batch.committed", "batch.committed:", "batch.committed:0",
		"batch.committed:-1", "batch.committed:+1", "batch.committed:1.5", "batch.committed:1 ", " batch.committed:1", "batch.committed:1:2",
		"Batch.committed:1", "batch.:1", ".committed:1", "batch.committed.twice:1", "batch.committed:99999999999999999999"} {
		if f, err := readFailpoint(environment(failpointVariable, bad), log); f != nil || err == nil || !strings.Contains(err.Error(), "batch.committed:3") {
			t.Errorf("%q: %v, %v; want an error with an example", bad, f, err)
		}
	}
	f, err := readFailpoint(environment(failpointVariable, "batch.committed:3"), log)
	if err != nil {
		t.Fatal(err)
	}
	killed := 0
	f.kill = func() { killed++ }
	for i, want := range []int{0, 0, 1, 1} {
		f.at("batch.reencrypted")
		if f.at("batch.committed"); killed != want {
			t.Errorf("killed %d times after hit %d, want %d", killed, i+1, want)
		}
	}
}
