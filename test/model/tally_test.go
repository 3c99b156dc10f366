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

// These are the things that a test's walks have to come by, each by any of the
// words that its tally has for it: in calm, in a storm as well, and in a storm of
// many walks. A tally that lacks one is of walks which show less than they claim.
func inCalm() map[string][]string {
	return map[string][]string{
		"a change that succeeds":            {"KEY_CHANGE RETIRING SUCCEEDED"},
		"a change that is taken back":       {"KEY_CHANGE PREPARING CANCELLED", "KEY_CHANGE PREPARING SUPERSEDED"},
		"something in the middle of a call": {"meanwhile "},
		"a process that ends":               {"restart", "crash at "},
		"an unproven import":                {"import unproven"},
	}
}

func inAStorm() map[string][]string {
	return map[string][]string{
		"a process that ends between KMS and its commit": {"crash at "},
		"a job that KMS holds up":                        {" BLOCKED ", " FAILED "},
		"a job beside key changes":                       {"KEY_MATERIAL ", "VERIFY VERIFYING "},
		"a fault of KMS":                                 {"mishap", "hide grants"},
		"a sweep":                                        {"sweep"},
		"a grant that ends early":                        {"revoke a grant", "take a grant away"},
		"a request that is repeated or late":             {"repeat a request", "stale etag", "id again"},
	}
}

func inManyStorms() map[string][]string {
	return map[string][]string{
		"a lease that is taken over":   {"lease taken over"},
		"a key that is safe to let go": {"key called safe"},
		"a damaged row":                {"spoil "},
	}
}

// Walks enough that what is above comes by in any case: the default, and ten
// times as many. In four times 15 walks through storms the rarest of the second
// list came 3, 16, 16 and 17 times, of the third 0, 1, 1 and 2 times.
const (
	someWalks = 30
	manyWalks = 10 * someWalks
)

// missing names what walks of that number should have met and did not.
func (c *tally) missing(storm bool) (missing []string) {
	var wanted []map[string][]string
	if c.walks >= someWalks {
		wanted = append(wanted, inCalm())
	}
	if c.walks >= someWalks && storm {
		wanted = append(wanted, inAStorm())
	}
	if c.walks >= manyWalks && storm {
		wanted = append(wanted, inManyStorms())
	}
	for _, list := range wanted {
		for what, words := range list {
			if !c.has(words) {
				missing = append(missing, what)
			}
		}
	}
	return missing
}

func (c *tally) has(words []string) bool {
	for _, of := range []map[string]int{c.byName, c.meets} {
		for name := range of {
			if slices.ContainsFunc(words, func(word string) bool { return strings.Contains(name, word) }) {
				return true
			}
		}
	}
	return false
}

func counts(of map[string]int) string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(of)) {
		out = append(out, fmt.Sprintf("%s %d", name, of[name]))
	}
	return strings.Join(out, ", ")
}
