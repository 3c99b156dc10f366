package scenarios_test

import (
	"encoding/base64"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/test/harness"
)

// Only what KMS says of a blob makes it poison: that it is under another key, or
// damaged (API Reference, ReEncrypt). A refusal of the request itself, with a code
// that nobody expects, blocks the job; no good row can be given up for it.
func TestRefusedRequestIsNoPoison(t *testing.T) {
	ctx := t.Context()
	odd := &refusal{code: "ValidationException"}
	b := newBench(t, harness.Config{Transport: odd.over})
	d, _, err := b.Onboard(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	createKeys(t, b, "acme", 10)
	odd.operation, odd.naming = "ReEncrypt", base64.StdEncoding.EncodeToString(readRow(t, b, d, "k0004").Ciphertext)
	job := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))))
	v := workUntil(t, b, job, func(v rotation.JobView) bool { return v.State != rotation.Running })
	if v.State != rotation.Blocked || v.Block.Reason != broker.ReasonKMSRefused || v.Progress.Failed != 0 {
		t.Fatalf("job %s, %d rows failed, blocked by %+v; want %s", v.State, v.Progress.Failed, v.Block, broker.ReasonKMSRefused)
	}
	for _, part := range []string{"k0004", odd.code} {
		if !strings.Contains(v.Block.Message, part) {
			t.Errorf("the message %q does not name %s", v.Block.Message, part)
		}
	}
	odd.operation = ""
	if v := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID)); v.State != rotation.Succeeded || v.Progress.Done != 10 {
		t.Errorf("after the refusals: %s in %s, %d rows", v.State, v.Phase, v.Progress.Done)
	}
}

// A row is not under the key that is recorded for it, and may be under one that
// cannot be used now: that is no poison either.
func TestRowUnderADisabledKey(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	d, first, err := b.Onboard(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	createKeys(t, b, "acme", 4)
	under := readRow(t, b, d, "k0002").Ciphertext
	serviceGrant(t, b, "acme", "GenerateDataKey") // so that the first change drains
	second := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))))
	workUntil(t, b, second, func(v rotation.JobView) bool { return v.Phase == rotation.Draining })
	mend(t, b, d, "k0002", under) // now it is under the first key, recorded under the second
	disable(t, b, first)
	third := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))))

	v := workUntil(t, b, third, func(v rotation.JobView) bool { return v.State != rotation.Running })
	if v.State != rotation.Blocked || v.Block.Side != rotation.From || v.Block.Reason != broker.ReasonKeyDisabled || v.Progress.Failed != 0 {
		t.Fatalf("job %s in %s, %d rows failed, blocked by %+v", v.State, v.Phase, v.Progress.Failed, v.Block)
	}
	enable(t, b, first)
	if v := must[rotation.JobView](t)(b.Finish(ctx, "acme", third.ID)); v.State != rotation.Succeeded || v.Progress.Done != 4 {
		t.Errorf("with the key back: %s in %s, %d rows", v.State, v.Phase, v.Progress.Done)
	}
}

// A key that a job has closed is not asked any more, by it or by the next change:
// the broker has retired its own grants there, so its refusal says nothing. A row
// that is under none of the others is a failure, which names it and can be given up.
func TestRowUnderAClosedKey(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	d, first, err := b.Onboard(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	createKeys(t, b, "acme", 4)
	under := readRow(t, b, d, "k0002").Ciphertext
	closer := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))))
	workUntil(t, b, closer, waitsForForgetting)
	must[rotation.JobView](t)(b.Engine.PauseJob(ctx, harness.Caller, rotation.JobAct{Domain: "acme", Job: closer.ID}))
	mend(t, b, d, "k0002", under)
	b.Calls()
	plan := must[rotation.KeyChangePlan](t)(b.Engine.PlanKeyChange(ctx, harness.Caller, "acme", string(must[broker.KeyARN](t)(b.NewKey(ctx, "acme")))))
	if len(plan.Problems) != 0 {
		t.Errorf("the plan of the next change: %+v", plan.Problems)
	}
	job := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))))
	v := workUntil(t, b, job, func(v rotation.JobView) bool { return v.State != rotation.Running })
	if v.State != rotation.Failed || v.FailReason != broker.ReasonRowsFailed || v.Progress.Failed != 1 {
		t.Fatalf("job %s in %s, %d rows failed, blocked by %+v", v.State, v.Phase, v.Progress.Failed, v.Block)
	}
	for _, c := range b.Calls() {
		if c.Operation == "ReEncrypt" && c.SourceKeyARN == string(first) {
			t.Fatalf("the closed key was asked, and answered %s", c.ErrorCode)
		}
	}
	must[int](t)(b.Engine.AcknowledgeFailures(ctx, harness.Caller, rotation.Acknowledge{Domain: "acme", Job: job.ID,
		DataKeys: []broker.DataKeyID{"k0002"}, Reason: "a test"}))
	must[rotation.JobView](t)(b.Engine.ResumeJob(ctx, harness.Caller, rotation.JobAct{Domain: "acme", Job: job.ID}))
	if v := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID)); v.State != rotation.Succeeded || v.Progress.Done != 3 {
		t.Errorf("after the acknowledgement: %s in %s, %d rows", v.State, v.Phase, v.Progress.Done)
	}
}

// A VERIFY job beside a key change that has failed over a poison row: the worker
// may not wrap under the old key any more, and need not.
func TestVerifyBesideAFailedChange(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	d, _, err := b.Onboard(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	createKeys(t, b, "acme", 8)
	spoil(t, b, d, "k0003")
	change := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))))
	if v := must[rotation.JobView](t)(b.Finish(ctx, "acme", change.ID)); v.State != rotation.Failed {
		t.Fatalf("change over a damaged row: %s", v.State)
	}
	verify := must[rotation.JobView](t)(b.Engine.CreateJob(ctx, harness.Caller, rotation.NewJob{Domain: "acme", Kind: rotation.KindVerify}))
	v := must[rotation.JobView](t)(b.Finish(ctx, "acme", verify.ID))
	if v.State != rotation.Failed || v.FailReason != broker.ReasonRowsFailed || v.Progress.Done != 7 || v.Progress.Failed != 1 {
		t.Errorf("verify ended %s (%s) with %+v, want one row of 8 failed", v.State, v.FailReason, v.Progress)
	}
}

func disable(t *testing.T, b *harness.Bench, key broker.KeyARN) {
	t.Helper()
	if _, err := b.Customer.DisableKey(t.Context(), &kms.DisableKeyInput{KeyId: aws.String(string(key))}); err != nil {
		t.Fatal(err)
	}
}

func enable(t *testing.T, b *harness.Bench, key broker.KeyARN) {
	t.Helper()
	if _, err := b.Customer.EnableKey(t.Context(), &kms.EnableKeyInput{KeyId: aws.String(string(key))}); err != nil {
		t.Fatal(err)
	}
}
