package scenarios_test

import (
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
	tests := []struct {
		name   string
		key    *kms.CreateKeyInput
		reason broker.Reason
	}{
		{"no statement of ours", open(""), broker.ReasonKeyPolicyMissing},
		{"open to the broker for every domain", open(`,{"Effect":"Allow","Principal":{"AWS":["` + harness.RegistrarRole + `","` + harness.WorkerRole +
			`"]},"Action":"kms:*","Resource":"*"}`), broker.ReasonKeyPolicyTooBroad},
		{"open to the worker without grants", open(`,{"Effect":"Allow","Principal":{"AWS":"` + harness.WorkerRole + `"},"Action":"kms:GenerateDataKey*","Resource":"*"},
			{"Effect":"Allow","Principal":{"AWS":"` + harness.RegistrarRole + `"},"Action":["kms:DescribeKey","kms:ListGrants"],"Resource":"*"},
			{"Effect":"Allow","Principal":{"AWS":"` + harness.RegistrarRole + `"},"Action":"kms:CreateGrant","Resource":"*",
			 "Condition":{"StringEquals":{"kms:EncryptionContext:keybroker:domain":"UID"}}}`), broker.ReasonKeyPolicyTooBroad},
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
			job := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", target))
			view := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID))
			if view.State != rotation.Failed || view.FailReason != tt.reason {
				t.Errorf("job ended %s: %s %s, want FAILED %s", view.State, view.FailReason, view.FailMessage, tt.reason)
			}
			unchanged(t, b, d, old, target)
		})
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

// Until a change can be superseded, another one is refused while a job is open,
// and the same one answers the same job.
func TestChangeDuringChange(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	if _, _, err := b.Onboard(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	second := must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))
	third := must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))
	job := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", second))
	if same := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", second)); same.ID != job.ID {
		t.Errorf("the same change again made job %s, want %s", same.ID, job.ID)
	}
	if _, err := b.ChangeKey(ctx, "acme", third); broker.ReasonOf(err) != broker.ReasonKeyChangeInProgress {
		t.Errorf("another change: %v, want %s", err, broker.ReasonKeyChangeInProgress)
	}
	must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID))
	if _, err := b.ChangeKey(ctx, "acme", second); broker.ReasonOf(err) != broker.ReasonKeyUnchanged {
		t.Errorf("the present key again: %v, want %s", err, broker.ReasonKeyUnchanged)
	}
	stale := rotation.ChangeKey{Domain: "acme", KMSKey: string(third), Etag: "1", Reason: "stale"}
	if _, err := b.Engine.ChangeKey(ctx, harness.Caller, stale); broker.ReasonOf(err) != broker.ReasonEtagMismatch {
		t.Errorf("a stale etag: %v, want %s (I13)", err, broker.ReasonEtagMismatch)
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
