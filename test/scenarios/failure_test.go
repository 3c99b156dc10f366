package scenarios_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/test/harness"
)

// A row that KMS cannot read is recorded, named and stepped over: every other
// row moves, the job fails in VERIFYING, the old key keeps its grants, and the
// same ChangeKey takes the job up again once the row is mended.
func TestPoisonRow(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	d, old, err := b.Onboard(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	createKeys(t, b, "acme", 20)
	whole := spoil(t, b, d, "k0007")
	next := must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))
	job := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", next))
	view := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID))
	if view.State != rotation.Failed || view.Phase != rotation.Verifying || view.FailReason != broker.ReasonRowsFailed {
		t.Fatalf("job ended %s in %s: %s", view.State, view.Phase, view.FailReason)
	}
	if view.Progress.Done != 19 || view.Progress.Failed != 1 {
		t.Errorf("progress %+v, want 19 moved and 1 failed", view.Progress)
	}
	var failures []rotation.Failure
	view2(t, b, func(tx rotation.Tx) (err error) {
		failures, err = tx.Failures(ctx, view.Ref(), "", 10)
		return err
	})
	if len(failures) != 1 || failures[0].DataKey != "k0007" || failures[0].Class != broker.KMSInvalidCiphertext {
		t.Errorf("failures: %+v", failures)
	}
	report := must[rotation.Report](t)(b.Engine.RetirementReport(ctx, harness.Caller, "acme", job.ID))
	if report.Keys[0].Safe {
		t.Error("I6: the old key is called safe with a row under it")
	}
	if names := must[[]string](t)(b.GrantsAt(ctx, old, d)); len(names) == 0 {
		t.Error("the old key lost its grants although a row is still under it")
	}

	mend(t, b, d, "k0007", whole)
	again := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", next))
	if again.ID != job.ID {
		t.Errorf("the same ChangeKey made job %s, want %s taken up again", again.ID, job.ID)
	}
	view = must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID))
	if view.State != rotation.Succeeded {
		t.Errorf("job ended %s after the row was mended: %s", view.State, view.FailMessage)
	}
}

func view2(t *testing.T, b *harness.Bench, fn func(tx rotation.Tx) error) {
	t.Helper()
	if err := b.Store.Rotation().View(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

// spoil flips a bit of a row's blob in the database, and gives the blob it had.
func spoil(t *testing.T, b *harness.Bench, d broker.Domain, id broker.DataKeyID) broker.Secret {
	t.Helper()
	row := readRow(t, b, d, id)
	bad := append(broker.Secret(nil), row.Ciphertext...)
	bad[len(bad)-1] ^= 1
	writeBlob(t, b, row, bad)
	return row.Ciphertext
}

func mend(t *testing.T, b *harness.Bench, d broker.Domain, id broker.DataKeyID, blob broker.Secret) {
	t.Helper()
	writeBlob(t, b, readRow(t, b, d, id), blob)
}

func readRow(t *testing.T, b *harness.Bench, d broker.Domain, id broker.DataKeyID) (row broker.DataKey) {
	t.Helper()
	view2(t, b, func(tx rotation.Tx) (err error) {
		row, err = tx.DataKey(t.Context(), d.UID, id)
		return err
	})
	return row
}

// writeBlob stores a blob under the row's own epoch, as no use case would.
func writeBlob(t *testing.T, b *harness.Bench, row broker.DataKey, blob broker.Secret) {
	t.Helper()
	err := b.Store.Rotation().Update(t.Context(), func(tx rotation.Tx) error {
		_, err := tx.MoveDataKeys(t.Context(), row.Domain, row.Epoch, []rotation.Move{{ID: row.ID, UID: row.UID, Version: row.Version,
			FromEpoch: row.Epoch, Ciphertext: blob, KeyMaterialID: row.KeyMaterialID, KMSRequestID: row.KMSRequestID}})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A change to a key that is not the customer's to give, or not fit, fails in
// PREPARING, leaves the domain as it was and nothing on the new key (T2).
func TestUnfitTargets(t *testing.T) {
	open := func(statements string) *kms.CreateKeyInput {
		return &kms.CreateKeyInput{Policy: aws.String(`{"Version":"2012-10-17","Statement":[
			{"Effect":"Allow","Principal":{"AWS":"` + harness.CustomerRoot + `"},"Action":"kms:*","Resource":"*"}` + statements + `]}`)}
	}
	ours := func(worker string) *kms.CreateKeyInput { // our statements, and something for the worker
		return open(`,{"Effect":"Allow","Principal":{"AWS":"` + harness.WorkerRole + `"},"Action":"` + worker + `","Resource":"*"},
			{"Effect":"Allow","Principal":{"AWS":"` + harness.RegistrarRole + `"},"Action":["kms:DescribeKey","kms:ListGrants"],"Resource":"*"},
			{"Effect":"Allow","Principal":{"AWS":"` + harness.RegistrarRole + `"},"Action":"kms:CreateGrant","Resource":"*",
			 "Condition":{"StringEquals":{"kms:EncryptionContext:keybroker:domain":"UID"}}}`)
	}
	tests := []struct {
		name    string
		key     *kms.CreateKeyInput
		reason  broker.Reason
		planned bool // PlanKeyChange finds it, without grants on the key
	}{
		{"no statement of ours", open(""), broker.ReasonKeyPolicyMissing, true},
		{"open to the broker for every domain", open(`,{"Effect":"Allow","Principal":{"AWS":["` + harness.RegistrarRole + `","` + harness.WorkerRole +
			`"]},"Action":"kms:*","Resource":"*"}`), broker.ReasonKeyPolicyTooBroad, true},
		{"open to the worker without grants", ours("kms:GenerateDataKey*"), broker.ReasonKeyPolicyTooBroad, true},
		{"open to the worker, to move blobs", ours("kms:ReEncrypt*"), broker.ReasonKeyPolicyTooBroad, true},
		{"an import statement without a condition", ours("kms:ReEncryptFrom"), broker.ReasonKeyPolicyTooBroad, false},
		{"open to the worker, as a destination", ours("kms:ReEncryptTo"), broker.ReasonKeyPolicyTooBroad, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx := t.Context()
			b := newBench(t, harness.Config{})
			d, old, err := b.Onboard(ctx, "acme")
			if err != nil {
				t.Fatal(err)
			}
			in := *tt.key
			in.Policy = aws.String(replaceUID(*in.Policy, string(d.UID)))
			made, err := b.Customer.CreateKey(ctx, &in)
			if err != nil {
				t.Fatal(err)
			}
			target := broker.KeyARN(*made.KeyMetadata.Arn)
			plan := must[rotation.KeyChangePlan](t)(b.Engine.PlanKeyChange(ctx, harness.Caller, "acme", string(target)))
			if found := slices.ContainsFunc(plan.Problems, func(p rotation.Problem) bool { return p.Reason == tt.reason }); found != tt.planned {
				t.Errorf("the plan has the problems %+v; %s among them: %v, want %v", plan.Problems, tt.reason, found, tt.planned)
			}
			job := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", target))
			view := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID))
			if view.State != rotation.Failed || view.FailReason != tt.reason {
				t.Errorf("job ended %s: %s %s, want FAILED %s", view.State, view.FailReason, view.FailMessage, tt.reason)
			}
			unchanged(t, b, d, old, target)
		})
	}
}

// A grant's role was deleted, so KMS makes no grant for it on the new key
// (InvalidArnException). The change waits and names the grant; to revoke that is
// the way out.
func TestGranteeIsGone(t *testing.T) {
	ctx := t.Context()
	gone := &refusal{code: "InvalidArnException", naming: harness.ServiceRole}
	b := newBench(t, harness.Config{Transport: gone.over})
	d, _, err := b.Onboard(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	createKeys(t, b, "acme", 3)
	grant := serviceGrant(t, b, "acme", "Decrypt", "Encrypt")
	gone.operation = "CreateGrant"
	next := must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))
	job := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", next))
	blocked := workUntil(t, b, job, func(v rotation.JobView) bool { return v.State != rotation.Running })
	if blocked.State != rotation.Blocked || blocked.Block.Side != rotation.To || blocked.Block.Reason != broker.ReasonGranteeNotAllowed ||
		!strings.Contains(blocked.Block.Message, broker.GrantName("acme", grant.ID)) {
		t.Fatalf("the job is %s, blocked by %+v", blocked.State, blocked.Block)
	}
	now, _, err := b.Broker.GetDomain(ctx, harness.Caller, "acme")
	if err != nil || now.Epoch != d.Epoch {
		t.Fatalf("the domain has switched, %v", err)
	}
	must[broker.GrantView](t)(b.Broker.RevokeGrant(ctx, harness.Caller, broker.RevokeGrant{Domain: "acme", ID: grant.ID}))
	if v := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID)); v.State != rotation.Succeeded {
		t.Errorf("after the revocation: %s in %s: %+v", v.State, v.Phase, v.Block)
	}
}

// A key's policy lets the broker act for whatever looks like a domain of this
// deployment: it proves nothing about whose key it is. The probe has to look like
// one too, or the policy denies it for its form alone (T2).
func TestPolicyForAnyDomain(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{ReservedKey: "aws:voiceid:domain:arn", ReservedValue: "arn:aws:voiceid:{region}:111122223333:domain/{uid}"})
	d := must[broker.Domain](t)(b.NewDomain(ctx, "acme"))
	policy := must[broker.KeyPolicy](t)(b.Broker.GenerateKeyPolicy(ctx, harness.Caller, broker.KeyPolicyRequest{Domain: "acme", KeyAccount: harness.CustomerAccount}))
	pinned := `"kms:EncryptionContext:aws:voiceid:domain:arn":"` + d.Reserved.Value + `"`
	if strings.Count(policy.Document, pinned) != 1 {
		t.Fatalf("the policy does not pin the pair in the expected form:\n%s", policy.Document)
	}
	wide := `"kms:EncryptionContext:aws:voiceid:domain:arn":"` + strings.Replace(d.Reserved.Value, string(d.UID), "*", 1) + `"`
	document := strings.Replace(policy.Document, `"StringLike":{`, `"StringLike":{`+wide+`,`, 1)
	document = strings.Replace(strings.Replace(document, pinned+",", "", 1), ","+pinned, "", 1)
	for _, test := range []struct {
		policy string
		want   rotation.State
	}{{document, rotation.Failed}, {policy.Document, rotation.Succeeded}} {
		made, err := b.Customer.CreateKey(ctx, &kms.CreateKeyInput{Policy: &test.policy})
		if err != nil {
			t.Fatal(err)
		}
		job := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", broker.KeyARN(*made.KeyMetadata.Arn)))
		v := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID))
		if v.State != test.want || test.want == rotation.Failed && v.FailReason != broker.ReasonKeyPolicyTooBroad {
			t.Errorf("the job ended %s: %s %s, want %s", v.State, v.FailReason, v.FailMessage, test.want)
		}
	}
}

func replaceUID(policy, uid string) string {
	for i := 0; i+3 <= len(policy); i++ {
		if policy[i:i+3] == "UID" {
			return policy[:i] + uid + policy[i+3:]
		}
	}
	return policy
}

// unchanged checks that a failed change left the domain usable under its old
// key, ready for another change, and nothing of it on the target.
func unchanged(t *testing.T, b *harness.Bench, d broker.Domain, old, target broker.KeyARN) {
	t.Helper()
	now, _, err := b.Broker.GetDomain(t.Context(), harness.Caller, d.ID)
	if err != nil {
		t.Fatal(err)
	}
	if now.KMSKey != old || now.Epoch != d.Epoch || now.KeyChange != (broker.KeyChange{}) {
		t.Errorf("domain after the failed change: key %s, epoch %d, change %+v", now.KMSKey, now.Epoch, now.KeyChange)
	}
	if names := must[[]string](t)(b.GrantsAt(t.Context(), target, d)); len(names) != 0 {
		t.Errorf("grants left on the refused key: %v", names)
	}
	if _, err := b.Broker.CreateDataKey(t.Context(), harness.Caller, broker.NewDataKey{Domain: d.ID}); err != nil {
		t.Errorf("the domain cannot be used: %v", err)
	}
}

// The same change answers the same job; another one takes the place of a change
// in PREPARING; the present key takes it back; a stale etag changes nothing.
func TestChangeDuringChange(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	d, first, err := b.Onboard(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	createKeys(t, b, "acme", 6)
	serviceGrant(t, b, "acme", "Decrypt") // which lets a change wait before its switch
	second := must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))
	third := must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))
	granted := func(key broker.KeyARN) func(rotation.JobView) bool {
		return func(rotation.JobView) bool { return len(must[[]string](t)(b.GrantsAt(ctx, key, d))) == 3 }
	}
	job := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", second))
	if same := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", second)); same.ID != job.ID {
		t.Errorf("the same change again made job %s, want %s", same.ID, job.ID)
	}
	workUntil(t, b, job, granted(second))
	other := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", third))
	if other.TargetEpoch <= job.TargetEpoch {
		t.Errorf("epoch %d is given out again: it means another key already", other.TargetEpoch)
	}
	if view := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID)); view.State != rotation.Superseded {
		t.Errorf("the first change ended %s, want %s", view.State, rotation.Superseded)
	}
	if names := must[[]string](t)(b.GrantsAt(ctx, second, d)); len(names) != 0 {
		t.Errorf("the superseded change left %v on its key", names)
	}
	workUntil(t, b, other, granted(third))
	back := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", first))
	if back.ID != other.ID {
		t.Errorf("the present key made job %s, want %s taken back", back.ID, other.ID)
	}
	if view := must[rotation.JobView](t)(b.Finish(ctx, "acme", other.ID)); view.State != rotation.Cancelled {
		t.Errorf("the second change ended %s, want %s", view.State, rotation.Cancelled)
	}
	unchanged(t, b, d, first, third)
	if _, err := b.ChangeKey(ctx, "acme", first); broker.ReasonOf(err) != broker.ReasonKeyUnchanged {
		t.Errorf("the present key again: %v, want %s", err, broker.ReasonKeyUnchanged)
	}
	for etag, want := range map[string]broker.Reason{"1": broker.ReasonEtagMismatch, "": broker.ReasonEtagRequired} {
		in := rotation.ChangeKey{Domain: "acme", KMSKey: string(third), Etag: etag, Reason: "stale"}
		if _, err := b.Engine.ChangeKey(ctx, harness.Caller, in); broker.ReasonOf(err) != want {
			t.Errorf("etag %q: %v, want %s (I13)", etag, err, want)
		}
	}
}

// A change after the switch of another takes its rows over, wherever they are:
// in REENCRYPTING, in DRAINING, back to the first key, and over a superseder.
func TestSupersedeAfterSwitch(t *testing.T) {
	for _, at := range []rotation.Phase{rotation.Reencrypting, rotation.Draining} {
		t.Run(string(at), func(t *testing.T) {
			ctx := t.Context()
			b := newBench(t, harness.Config{})
			d, first, err := b.Onboard(ctx, "acme")
			if err != nil {
				t.Fatal(err)
			}
			createKeys(t, b, "acme", 30)
			serviceGrant(t, b, "acme", "Decrypt", "GenerateDataKey")
			keys := []broker.KeyARN{first}
			var jobs []rotation.JobView
			for range 2 {
				keys = append(keys, must[broker.KeyARN](t)(b.NewKey(ctx, "acme")))
			}
			for _, target := range []broker.KeyARN{keys[1], keys[2], first} {
				job := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", target))
				jobs = append(jobs, job)
				if target != first {
					workUntil(t, b, job, func(v rotation.JobView) bool {
						return v.Phase == at && (at != rotation.Reencrypting || v.Progress.Done > 0)
					})
				}
				if at == rotation.Reencrypting && target != first { // so that rows stay behind under each key
					must[rotation.JobView](t)(b.Engine.PauseJob(ctx, harness.Caller, rotation.JobAct{Domain: "acme", Job: job.ID}))
				}
			}
			last := must[rotation.JobView](t)(b.Finish(ctx, "acme", jobs[2].ID))
			if last.State != rotation.Succeeded {
				t.Fatalf("the last change ended %s in %s: %s", last.State, last.Phase, last.FailMessage)
			}
			for _, j := range jobs[:2] {
				if v := must[rotation.JobView](t)(b.Engine.GetJob(ctx, harness.Caller, "acme", j.ID)); v.State != rotation.Superseded {
					t.Errorf("change to %s ended %s, want %s", v.TargetKey, v.State, rotation.Superseded)
				}
			}
			for _, v := range must[[]broker.DataKeyView](t)(b.Broker.ListDataKeys(ctx, harness.Caller, "acme", broker.DataKeyCursor{}, 100)) {
				if v.KMSKey != first {
					t.Errorf("%s is under %s", v.ID, v.KMSKey)
				}
			}
			if at == rotation.Reencrypting && last.Progress.Relabelled == 0 {
				t.Error("rows that never left the first key should be relabelled without a call")
			}
			for _, key := range keys[1:] {
				if names := must[[]string](t)(b.GrantsAt(ctx, key, d)); len(names) != 0 {
					t.Errorf("grants left on %s: %v", key, names)
				}
			}
		})
	}
}

// Pause stops a job within a batch and keeps its phase; resume goes on. Cancel
// is for changes that have not switched, and says so otherwise.
func TestPauseResumeCancel(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	if _, _, err := b.Onboard(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	createKeys(t, b, "acme", 20)
	next := must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))
	job := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", next))
	act := rotation.JobAct{Domain: "acme", Job: job.ID, Reason: "test"}
	workUntil(t, b, job, func(v rotation.JobView) bool { return v.Progress.Done > 0 })
	paused := must[rotation.JobView](t)(b.Engine.PauseJob(ctx, harness.Caller, act))
	for range 20 {
		must[bool](t)(b.Step(ctx))
		b.Clock.Advance(time.Minute)
	}
	still := must[rotation.JobView](t)(b.Engine.GetJob(ctx, harness.Caller, "acme", job.ID))
	if still.State != rotation.Paused || still.Phase != rotation.Reencrypting || still.Progress != paused.Progress {
		t.Errorf("while paused: %s in %s, %+v (was %+v)", still.State, still.Phase, still.Progress, paused.Progress)
	}
	if _, err := b.Engine.CancelJob(ctx, harness.Caller, act); broker.ReasonOf(err) != broker.ReasonJobNotCancellable {
		t.Errorf("cancel after the switch: %v, want %s", err, broker.ReasonJobNotCancellable)
	}
	must[rotation.JobView](t)(b.Engine.ResumeJob(ctx, harness.Caller, act))
	if v := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID)); v.State != rotation.Succeeded || v.Progress.Done != 20 {
		t.Errorf("after resume: %s, %d rows", v.State, v.Progress.Done)
	}
	for _, verb := range []func() error{
		func() error { _, err := b.Engine.PauseJob(ctx, harness.Caller, act); return err },
		func() error { _, err := b.Engine.ResumeJob(ctx, harness.Caller, act); return err },
		func() error { _, err := b.Engine.CancelJob(ctx, harness.Caller, act); return err },
	} {
		if err := verb(); broker.ReasonOf(err) != broker.ReasonJobEnded {
			t.Errorf("a verb on an ended job: %v, want %s", err, broker.ReasonJobEnded)
		}
	}
}

// Whatever phase a job is paused in, it stays there, however many of its waits
// are over.
func TestPausedInEachPhase(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	if _, _, err := b.Onboard(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	createKeys(t, b, "acme", 12)
	serviceGrant(t, b, "acme", "Decrypt", "GenerateDataKey")
	job := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))))
	act := rotation.JobAct{Domain: "acme", Job: job.ID}
	for _, phase := range []rotation.Phase{rotation.Preparing, rotation.Reencrypting, rotation.Draining, rotation.Verifying, rotation.Retiring} {
		workUntil(t, b, job, func(v rotation.JobView) bool { return v.Phase == phase })
		paused := must[rotation.JobView](t)(b.Engine.PauseJob(ctx, harness.Caller, act))
		for range 10 {
			b.Clock.Advance(time.Hour)
			must[bool](t)(b.Step(ctx))
		}
		v := must[rotation.JobView](t)(b.Engine.GetJob(ctx, harness.Caller, "acme", job.ID))
		if v.State != rotation.Paused || v.Phase != phase || v.Progress != paused.Progress {
			t.Fatalf("paused in %s, and now %s in %s, %+v (was %+v)", phase, v.State, v.Phase, v.Progress, paused.Progress)
		}
		must[rotation.JobView](t)(b.Engine.ResumeJob(ctx, harness.Caller, act))
	}
	if v := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID)); v.State != rotation.Succeeded || v.Progress.Done != 12 {
		t.Errorf("after all pauses: %s, %d rows", v.State, v.Progress.Done)
	}
}

// A to B and back to A: "older" is by epoch, so the present key's own grants
// stay, and rows that are still under A from long ago need no call.
func TestThereAndBack(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{GrantDelay: time.Second})
	d, first, err := b.Onboard(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	createKeys(t, b, "acme", 10)
	grant := serviceGrant(t, b, "acme", "Decrypt")
	second := must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))
	for _, key := range []broker.KeyARN{second, first, second} {
		job := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", key))
		view := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID))
		if view.State != rotation.Succeeded {
			t.Fatalf("change to %s: %s %s", key, view.State, view.FailMessage)
		}
		fresh := must[broker.GrantView](t)(b.Broker.RenewGrant(ctx, harness.Caller, broker.RenewGrant{Domain: "acme", ID: grant.ID, TTL: time.Hour}))
		for _, v := range must[[]broker.DataKeyView](t)(b.Broker.ListDataKeys(ctx, harness.Caller, "acme", broker.DataKeyCursor{}, 100)) {
			if v.KMSKey != key {
				t.Errorf("%s is under %s after the change to %s", v.ID, v.KMSKey, key)
			}
			unwrap(t, b, v, fresh.Tokens)
		}
		for _, k := range []broker.KeyARN{first, second} {
			names := must[[]string](t)(b.GrantsAt(ctx, k, d))
			if k == key && len(names) != 3 || k != key && len(names) != 0 {
				t.Errorf("after the change to %s, %s has grants %v (want the worker's two and the service's one on the present key only)", key, k, names)
			}
		}
	}
}
