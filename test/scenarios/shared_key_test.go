package scenarios_test

import (
	"slices"
	"testing"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/test/harness"
)

// Two domains share a key and leave it, one after the other. The report of the
// first does not call the key safe before the second has proved it too: not in the
// last minutes either, when it has no row and no grant there any more.
func TestReportWaitsForTheOtherDomain(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	for _, id := range []broker.DomainID{"acme", "beta"} {
		must[broker.Domain](t)(b.NewDomain(ctx, id))
	}
	shared := must[broker.KeyARN](t)(b.NewKey(ctx, "acme", "beta"))
	move := func(id broker.DomainID, key broker.KeyARN, until func(rotation.JobView) bool) rotation.JobView {
		return workUntil(t, b, must[rotation.JobView](t)(b.ChangeKey(ctx, id, key)), until)
	}
	succeeded := func(v rotation.JobView) bool { return v.State == rotation.Succeeded }
	move("acme", shared, succeeded)
	move("beta", shared, succeeded)
	createKeys(t, b, "beta", 3)
	first := move("acme", must[broker.KeyARN](t)(b.NewKey(ctx, "acme")), succeeded)
	second := move("beta", must[broker.KeyARN](t)(b.NewKey(ctx, "beta")), waitsForForgetting)
	blockers := reportOf(t, b, first).Blockers
	if !slices.ContainsFunc(blockers, func(b rotation.Blocker) bool { return b.Kind == rotation.BlockJob && b.Resource == "domains/beta" }) {
		t.Errorf("blockers while beta waits for KMS to forget its grants: %+v", blockers)
	}
	workUntil(t, b, second, succeeded)
	if r := reportOf(t, b, first); !r.Safe {
		t.Errorf("blockers after both have succeeded: %+v", r.Blockers)
	}
}

// A report speaks of each key by itself, also where two jobs shared the work: rows
// left a key by the job that moved them, and KMS's list of its grants was read by the
// job that retired it.
func TestReportTellsKeysApart(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	_, first, err := b.Onboard(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	createKeys(t, b, "acme", 4)
	serviceGrant(t, b, "acme", "GenerateDataKey") // so that changes drain
	change := func() (broker.KeyARN, rotation.JobView) {
		key := must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))
		return key, must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", key))
	}
	entries := func(job rotation.JobView, want ...broker.KeyARN) map[broker.KeyARN]rotation.KeyRetirement {
		t.Helper()
		byKey := map[broker.KeyARN]rotation.KeyRetirement{}
		report := must[rotation.Report](t)(b.Engine.RetirementReport(ctx, harness.Caller, "acme", job.ID))
		for _, k := range report.Keys {
			byKey[k.Key] = k
		}
		for _, key := range want {
			if _, ok := byKey[key]; !ok || len(byKey) != len(want) {
				t.Fatalf("the report is about %d keys, want %v: %s", len(byKey), want, report.Canonical)
			}
		}
		return byKey
	}
	succeeded := func(v rotation.JobView) bool { return v.State == rotation.Succeeded }

	// The second change takes over what the first has left to do.
	second, one := change()
	one = workUntil(t, b, one, func(v rotation.JobView) bool { return v.Phase == rotation.Draining })
	third, two := change()
	two = workUntil(t, b, two, succeeded)
	got := entries(two, first, second)
	if k := got[first]; !k.LastMoveTime.IsZero() || !k.ListTime.Equal(two.ListTime) {
		t.Errorf("the key that the first job emptied: last move %v, listed %v; want none, and %v", k.LastMoveTime, k.ListTime, two.ListTime)
	}
	if k := got[second]; !k.LastMoveTime.Equal(two.LastMoveTime) || !k.ListTime.Equal(two.ListTime) {
		t.Errorf("the key that the second job emptied: last move %v, listed %v", k.LastMoveTime, k.ListTime)
	}
	if k := entries(one, first)[first]; !k.LastMoveTime.Equal(one.LastMoveTime) || !k.ListTime.Equal(two.ListTime) {
		t.Errorf("as the first job's report has it: last move %v, listed %v", k.LastMoveTime, k.ListTime)
	}

	// The fourth change waits, before its switch, until the third has retired its key.
	fourth, three := change()
	three = workUntil(t, b, three, func(v rotation.JobView) bool { return v.Phase == rotation.Draining })
	_, four := change()
	act := rotation.JobAct{Domain: "acme", Job: four.ID}
	must[rotation.JobView](t)(b.Engine.PauseJob(ctx, harness.Caller, act))
	three = workUntil(t, b, three, succeeded)
	if k := entries(four, third, fourth)[fourth]; !k.ListTime.IsZero() || !k.LastMoveTime.IsZero() {
		t.Errorf("the present key: last move %v, listed %v", k.LastMoveTime, k.ListTime)
	}
	must[rotation.JobView](t)(b.Engine.ResumeJob(ctx, harness.Caller, act))
	four = workUntil(t, b, four, succeeded)
	got = entries(four, third, fourth)
	if k := got[third]; !k.LastMoveTime.IsZero() || !k.ListTime.Equal(three.ListTime) {
		t.Errorf("the key that the third job retired: last move %v, listed %v; want none, and %v", k.LastMoveTime, k.ListTime, three.ListTime)
	}
	if k := got[fourth]; !k.LastMoveTime.Equal(four.LastMoveTime) || !k.ListTime.Equal(four.ListTime) {
		t.Errorf("the key that the fourth job retired: last move %v, listed %v", k.LastMoveTime, k.ListTime)
	}
}
