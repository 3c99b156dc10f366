package scenarios_test

import (
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/test/harness"
)

// The owner of a domain gives a poison row up: it is marked, named in the
// report, and stands in nobody's way.
func TestAcknowledgedRow(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	d, old, err := b.Onboard(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	createKeys(t, b, "acme", 8)
	spoil(t, b, d, "k0003")
	next := must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))
	job := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", next))
	if v := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID)); v.State != rotation.Failed {
		t.Fatalf("job ended %s, want %s", v.State, rotation.Failed)
	}
	ack := rotation.Acknowledge{Domain: "acme", Job: job.ID, DataKeys: []broker.DataKeyID{"k0003"}}
	if _, err := b.Engine.AcknowledgeFailures(ctx, harness.Caller, ack); broker.ReasonOf(err) != broker.ReasonFieldInvalid {
		t.Errorf("acknowledged without a reason: %v", err)
	}
	ack.Reason = "the customer has no use for it"
	ack.Request = broker.Request{Method: "AcknowledgeReencryptionFailures", ID: "r1"}
	for _, try := range []string{"first", "repeat"} {
		if n := must[int](t)(b.Engine.AcknowledgeFailures(ctx, harness.Caller, ack)); n != 1 {
			t.Errorf("%s: %d rows marked, want 1", try, n)
		}
	}
	must[rotation.JobView](t)(b.Engine.ResumeJob(ctx, harness.Caller, rotation.JobAct{Domain: "acme", Job: job.ID}))
	if v := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID)); v.State != rotation.Succeeded {
		t.Fatalf("after the acknowledgement: %s in %s: %s", v.State, v.Phase, v.FailMessage)
	}
	report := must[rotation.Report](t)(b.Engine.RetirementReport(ctx, harness.Caller, "acme", job.ID))
	if got := report.Keys[0]; !got.Safe || len(got.Blockers) != 1 || got.Blockers[0].Kind != rotation.BlockAbandoned || got.Blockers[0].Count != 1 ||
		!strings.HasSuffix(got.Blockers[0].Message, ": domains/acme/dataKeys/k0003") {
		t.Errorf("report: %s", report.Canonical)
	}
	if names := must[[]string](t)(b.GrantsAt(ctx, old, d)); len(names) != 0 {
		t.Errorf("grants left on the old key: %v", names)
	}
}

// Row after row that KMS cannot read is no accident: the job stops and asks,
// and only ResumeReencryptionJob lets it go on over them.
func TestManyPoisonRowsBlock(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{Shards: 1})
	d, _, err := b.Onboard(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	createKeys(t, b, "acme", 40)
	for _, v := range must[[]broker.DataKeyView](t)(b.Broker.ListDataKeys(ctx, harness.Caller, "acme", broker.DataKeyCursor{}, 30)) {
		spoil(t, b, d, v.ID)
	}
	next := must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))
	job := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", next))
	blocked := workUntil(t, b, job, func(v rotation.JobView) bool { return v.State == rotation.Blocked })
	if blocked.Block.Reason != broker.ReasonContextOrKeyMismatch || !blocked.Block.NextProbe.IsZero() || blocked.Progress.Failed >= 30 {
		t.Errorf("blocked by %+v after %d poison rows", blocked.Block, blocked.Progress.Failed)
	}
	for range 10 {
		b.Clock.Advance(time.Hour)
		must[bool](t)(b.Step(ctx))
	}
	if v := must[rotation.JobView](t)(b.Engine.GetJob(ctx, harness.Caller, "acme", job.ID)); v.State != rotation.Blocked || v.Progress != blocked.Progress {
		t.Errorf("time alone let the job go on: %s, %+v", v.State, v.Progress)
	}
	must[rotation.JobView](t)(b.Engine.ResumeJob(ctx, harness.Caller, rotation.JobAct{Domain: "acme", Job: job.ID}))
	v := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID))
	if v.State != rotation.Failed || v.Progress.Done != 10 || v.Progress.Failed != 30 {
		t.Errorf("after resume: %s, %+v", v.State, v.Progress)
	}
}

// With the old key disabled, a change fails before its switch; with
// allow_inaccessible_source it switches, new data is safe under the new key at
// once, and the job waits until the old key is back.
func TestInaccessibleSource(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	d, old, err := b.Onboard(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	createKeys(t, b, "acme", 10)
	next := must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))
	if _, err := b.Customer.DisableKey(ctx, &kms.DisableKeyInput{KeyId: aws.String(string(old))}); err != nil {
		t.Fatal(err)
	}
	job := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", next))
	if v := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID)); v.State != rotation.Failed || v.Phase != rotation.Preparing || v.FailReason != broker.ReasonKeyDisabled {
		t.Fatalf("without the flag: %s in %s: %s", v.State, v.Phase, v.FailReason)
	}
	now, _, err := b.Broker.GetDomain(ctx, harness.Caller, "acme")
	if err != nil || now.Epoch != d.Epoch {
		t.Fatalf("the failed change moved the domain: %+v, %v", now, err)
	}
	job = must[rotation.JobView](t)(b.Engine.ChangeKey(ctx, harness.Caller, rotation.ChangeKey{Domain: "acme", KMSKey: string(next),
		Etag: now.Etag(), AllowInaccessibleSource: true}))
	blocked := workUntil(t, b, job, func(v rotation.JobView) bool { return v.State == rotation.Blocked })
	if blocked.Phase != rotation.Reencrypting || blocked.Block.Side != rotation.From || blocked.Block.Reason != broker.ReasonKeyDisabled {
		t.Errorf("with the flag: %s in %s, %+v", blocked.State, blocked.Phase, blocked.Block)
	}
	fresh := must[broker.DataKeyView](t)(b.Broker.CreateDataKey(ctx, harness.Caller, broker.NewDataKey{Domain: "acme", ID: "fresh"}))
	if fresh.KMSKey != next {
		t.Errorf("new data is under %s, want the new key", fresh.KMSKey)
	}
	if _, err := b.Customer.EnableKey(ctx, &kms.EnableKeyInput{KeyId: aws.String(string(old))}); err != nil {
		t.Fatal(err)
	}
	if v := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID)); v.State != rotation.Succeeded || v.Progress.Done != 10 {
		t.Errorf("with the old key back: %s in %s, %d rows", v.State, v.Phase, v.Progress.Done)
	}
}

// A VERIFY job gives every row to KMS and moves none; it ends when a key change
// is accepted.
func TestVerifyJob(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	d, _, err := b.Onboard(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	createKeys(t, b, "acme", 12)
	before := must[[]broker.DataKeyView](t)(b.Broker.ListDataKeys(ctx, harness.Caller, "acme", broker.DataKeyCursor{}, 100))
	job := must[rotation.JobView](t)(b.Engine.CreateJob(ctx, harness.Caller, rotation.NewJob{Domain: "acme", Kind: rotation.KindVerify}))
	v := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID))
	if v.State != rotation.Succeeded || v.VerifiedRows != 12 {
		t.Errorf("verify: %s, %d rows", v.State, v.VerifiedRows)
	}
	after := must[[]broker.DataKeyView](t)(b.Broker.ListDataKeys(ctx, harness.Caller, "acme", broker.DataKeyCursor{}, 100))
	for i := range before {
		if before[i].Version != after[i].Version {
			t.Errorf("verify changed %s", before[i].ID)
		}
	}
	spoil(t, b, d, "k0005")
	job = must[rotation.JobView](t)(b.Engine.CreateJob(ctx, harness.Caller, rotation.NewJob{Domain: "acme", Kind: rotation.KindVerify}))
	if v := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID)); v.State != rotation.Failed || v.FailReason != broker.ReasonRowsFailed {
		t.Errorf("verify over a damaged row: %s %s", v.State, v.FailReason)
	}
	job = must[rotation.JobView](t)(b.Engine.CreateJob(ctx, harness.Caller, rotation.NewJob{Domain: "acme", Kind: rotation.KindVerify}))
	must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))))
	if v := must[rotation.JobView](t)(b.Engine.GetJob(ctx, harness.Caller, "acme", job.ID)); v.State != rotation.Superseded {
		t.Errorf("verify beside a key change: %s, want %s", v.State, rotation.Superseded)
	}
}

// A domain goes only empty, or shredded with a reason, also in the middle of a
// job: no row, no grant at KMS and no way back are left, and its id stays taken.
func TestDeleteDomain(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	d, old, err := b.Onboard(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	createKeys(t, b, "acme", 20)
	serviceGrant(t, b, "acme", "Decrypt")
	next := must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))
	job := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", next))
	workUntil(t, b, job, func(v rotation.JobView) bool { return v.Progress.Done > 0 })

	in := rotation.DeleteDomain{Domain: "acme"}
	if err := b.Engine.DeleteDomain(ctx, harness.Caller, in); broker.ReasonOf(err) != broker.ReasonDomainNotEmpty {
		t.Fatalf("delete of a domain with rows: %v, want %s", err, broker.ReasonDomainNotEmpty)
	}
	in.CryptoShred = true
	if err := b.Engine.DeleteDomain(ctx, harness.Caller, in); broker.ReasonOf(err) != broker.ReasonFieldInvalid {
		t.Fatalf("shred without a reason: %v", err)
	}
	in.Reason = "the tenant left"
	if err := b.Engine.DeleteDomain(ctx, harness.Caller, in); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		must[bool](t)(b.Step(ctx))
	}
	for _, key := range []broker.KeyARN{old, next} {
		if names := must[[]string](t)(b.GrantsAt(ctx, key, d)); len(names) != 0 {
			t.Errorf("grants left on %s: %v", key, names)
		}
	}
	view2(t, b, func(tx rotation.Tx) error {
		rows, err := tx.ListDataKeys(ctx, d.UID, "", 10)
		if len(rows) != 0 {
			t.Errorf("%d rows left", len(rows))
		}
		if err != nil {
			return err
		}
		grants, err := tx.LiveGrants(ctx, d.UID)
		if len(grants) != 0 {
			t.Errorf("live grants of the deleted domain: %+v", grants)
		}
		return err
	})
	if _, err := b.Broker.CreateDataKey(ctx, harness.Caller, broker.NewDataKey{Domain: "acme"}); broker.ReasonOf(err) != broker.ReasonDomainNotFound {
		t.Errorf("a store into the deleted domain: %v", err)
	}
	if _, err := b.NewDomain(ctx, "acme"); broker.ReasonOf(err) != broker.ReasonDomainAlreadyExists {
		t.Errorf("the id again: %v (I14)", err)
	}
}

// The keys of a domain that was deleted are listed at KMS for a day more, and
// nothing walks over the domain again.
func TestDeletedDomainIsForgotten(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	if _, _, err := b.Onboard(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	createKeys(t, b, "acme", 3)
	serviceGrant(t, b, "acme", "Decrypt")
	if err := b.Engine.DeleteDomain(ctx, harness.Caller, rotation.DeleteDomain{Domain: "acme", CryptoShred: true, Reason: "the tenant left"}); err != nil {
		t.Fatal(err)
	}
	b.Clock.Advance(25 * time.Hour)
	if err := b.Broker.SweepOrphans(ctx); err != nil {
		t.Fatal(err)
	}
	if n := must[int](t)(b.Count(ctx, "listed_key")); n != 0 {
		t.Errorf("%d keys of the deleted domain are listed still", n)
	}
	view2(t, b, func(tx rotation.Tx) error {
		left, err := tx.DeletedDomains(ctx, 10)
		if len(left) != 0 {
			t.Errorf("%d deleted domains are not done with", len(left))
		}
		return err
	})
}

// The plan tells counts and problems, and changes nothing.
func TestPlanKeyChange(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	_, old, err := b.Onboard(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	createKeys(t, b, "acme", 4)
	serviceGrant(t, b, "acme", "Decrypt")
	good := must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))
	plan := must[rotation.KeyChangePlan](t)(b.Engine.PlanKeyChange(ctx, harness.Caller, "acme", string(good)))
	if plan.Grants != 1 || len(plan.Problems) != 0 || len(plan.Sources) != 1 || plan.Sources[0] != (rotation.PlanSource{Key: old, Rows: 4}) {
		t.Errorf("plan: %+v", plan)
	}
	made, err := b.Customer.CreateKey(ctx, &kms.CreateKeyInput{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Customer.DisableKey(ctx, &kms.DisableKeyInput{KeyId: aws.String(string(old))}); err != nil {
		t.Fatal(err)
	}
	plan = must[rotation.KeyChangePlan](t)(b.Engine.PlanKeyChange(ctx, harness.Caller, "acme", *made.KeyMetadata.Arn))
	var reasons []broker.Reason
	for _, p := range plan.Problems {
		reasons = append(reasons, p.Reason)
	}
	if len(reasons) != 2 || reasons[0] != broker.ReasonKeyPolicyMissing || reasons[1] != broker.ReasonKeyDisabled {
		t.Errorf("problems: %v", reasons)
	}
}

// The customer takes the worker's grant away at KMS: the job waits, nothing
// makes the grant again unasked, and ResumeReencryptionJob with a reason does.
func TestCustomerTakesWorkerGrantAway(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	_, old, err := b.Onboard(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	createKeys(t, b, "acme", 20)
	next := must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))
	job := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", next))
	workUntil(t, b, job, func(v rotation.JobView) bool { return v.Progress.Done > 0 })
	listed, err := b.Customer.ListGrants(ctx, &kms.ListGrantsInput{KeyId: aws.String(string(old))})
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range listed.Grants {
		if _, err := b.Customer.RevokeGrant(ctx, &kms.RevokeGrantInput{KeyId: g.KeyId, GrantId: g.GrantId}); err != nil {
			t.Fatal(err)
		}
	}
	blocked := workUntil(t, b, job, func(v rotation.JobView) bool { return v.State == rotation.Blocked })
	if blocked.Block.Side != rotation.From || blocked.Block.Reason != broker.ReasonKeyAccessDenied {
		t.Errorf("blocked by %+v", blocked.Block)
	}
	for range 20 {
		b.Clock.Advance(10 * time.Minute)
		must[bool](t)(b.Step(ctx))
		if err := b.Broker.SweepOrphans(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if v := must[rotation.JobView](t)(b.Engine.GetJob(ctx, harness.Caller, "acme", job.ID)); v.State != rotation.Blocked {
		t.Fatalf("the grant was made again unasked: %s in %s", v.State, v.Phase)
	}
	must[rotation.JobView](t)(b.Engine.ResumeJob(ctx, harness.Caller, rotation.JobAct{Domain: "acme", Job: job.ID, Reason: "the customer agrees"}))
	if v := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID)); v.State != rotation.Succeeded || v.Progress.Done != 20 {
		t.Errorf("after the grant came back: %s in %s, %d rows", v.State, v.Phase, v.Progress.Done)
	}
}

// A KEY_MATERIAL job moves every row to the key's newest material, and leaves
// epoch and grants alone (KMS's own rotation re-encrypts nothing; KMS Developer
// Guide, Rotate keys).
func TestKeyMaterialJob(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	d, key, err := b.Onboard(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	createKeys(t, b, "acme", 12)
	grants := must[[]string](t)(b.GrantsAt(ctx, key, d))
	if _, err := b.Customer.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: aws.String(string(key))}); err != nil {
		t.Fatal(err)
	}
	described, err := b.Customer.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: aws.String(string(key))})
	if err != nil {
		t.Fatal(err)
	}
	newest := aws.ToString(described.KeyMetadata.CurrentKeyMaterialId)
	job := must[rotation.JobView](t)(b.Engine.CreateJob(ctx, harness.Caller, rotation.NewJob{Domain: "acme", Kind: rotation.KindKeyMaterial}))
	v := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID))
	if v.State != rotation.Succeeded || v.Progress.Done != 12 {
		t.Fatalf("job ended %s, %d rows: %s", v.State, v.Progress.Done, v.FailMessage)
	}
	for _, k := range must[[]broker.DataKeyView](t)(b.Broker.ListDataKeys(ctx, harness.Caller, "acme", broker.DataKeyCursor{}, 100)) {
		if k.KeyMaterialID != newest || k.Epoch != d.Epoch {
			t.Errorf("%s is under material %.8s in epoch %d", k.ID, k.KeyMaterialID, k.Epoch)
		}
	}
	if after := must[[]string](t)(b.GrantsAt(ctx, key, d)); len(after) != len(grants) {
		t.Errorf("grants changed from %v to %v", grants, after)
	}
}
