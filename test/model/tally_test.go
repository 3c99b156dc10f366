package model_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

// A tally counts what a test's walks did and met, so that everybody can see
// whether they came by what they are meant to try.
type tally struct {
	begun         time.Time
	walks, acts   int
	byName, meets map[string]int
}

func newTally() *tally {
	return &tally{begun: time.Now(), byName: map[string]int{}, meets: map[string]int{}}
}

func (c *tally) walked()           { c.walks++ }
func (c *tally) acted(name string) { c.acts++; c.byName[name]++ }
func (c *tally) met(what string)   { c.meets[what]++ }

// log tells the speed, which docs/testing.md quotes, and how often what came.
func (c *tally) log(t *testing.T) {
	s := time.Since(c.begun).Seconds()
	t.Logf("%d cases, %d actions in %.1f s: %.1f cases/s, %.0f actions/s", c.walks, c.acts, s, float64(c.walks)/s, float64(c.acts)/s)
	t.Logf("actions: %s", counts(c.byName))
	t.Logf("met: %s", counts(c.meets))
}

func counts(of map[string]int) string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(of)) {
		out = append(out, fmt.Sprintf("%s %d", name, of[name]))
	}
	return strings.Join(out, ", ")
}
