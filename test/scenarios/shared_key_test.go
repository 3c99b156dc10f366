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
