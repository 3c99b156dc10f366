package scenarios_test

import (
	"bytes"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/test/harness"
)

// The owner of a domain has good copies of rows that KMS cannot read, one of
// which was given up before. Imported in their place, by etag, they are rows like
// any other: the failed job is taken up and succeeds, the report has nothing
// against the old key, and what was encrypted with them can be read again (I9).
func TestPoisonRowIsReplaced(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	d, old, err := b.Onboard(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	createKeys(t, b, "acme", 8)
	good, plaintext := map[broker.DataKeyID]broker.Secret{}, map[broker.DataKeyID][]byte{}
	for _, id := range []broker.DataKeyID{"k0003", "k0005"} {
		plaintext[id] = decryptAsOwner(t, b, must[broker.DataKeyView](t)(b.Broker.GetDataKey(ctx, harness.Caller, "acme", id)))
		good[id] = spoil(t, b, d, id)
	}
	next := must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))
	job := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", next))
	if v := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID)); v.State != rotation.Failed || v.Progress.Failed != 2 {
		t.Fatalf("job ended %s with %d failures, want %s with 2", v.State, v.Progress.Failed, rotation.Failed)
	}
	must[int](t)(b.Engine.AcknowledgeFailures(ctx, harness.Caller, rotation.Acknowledge{Domain: "acme", Job: job.ID,
		DataKeys: []broker.DataKeyID{"k0005"}, Reason: "no copy is known"}))

	in := broker.ImportDataKeys{Domain: "acme"}
	for id, blob := range good {
		row := readRow(t, b, d, id)
		in.Items = append(in.Items, broker.ImportItem{ID: id, Etag: row.Etag(), Ciphertext: blob, SourceKey: old, SourceContext: row.Context.With(d.Reserved)})
	}
	for _, r := range must[[]broker.ImportResult](t)(b.Broker.ImportDataKeys(ctx, harness.Caller, in)) {
		if r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	must[rotation.JobView](t)(b.Engine.ResumeJob(ctx, harness.Caller, rotation.JobAct{Domain: "acme", Job: job.ID}))
	if v := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID)); v.State != rotation.Succeeded {
		t.Fatalf("after the replacement: %s in %s: %s", v.State, v.Phase, v.FailMessage)
	}
	report := must[rotation.Report](t)(b.Engine.RetirementReport(ctx, harness.Caller, "acme", job.ID))
	if got := report.Keys[0]; !got.Safe || len(got.Blockers) != 0 {
		t.Errorf("report: %s", report.Canonical)
	}
	for id, want := range plaintext {
		v := must[broker.DataKeyView](t)(b.Broker.GetDataKey(ctx, harness.Caller, "acme", id))
		if got := decryptAsOwner(t, b, v); v.KMSKey != next || !bytes.Equal(got, want) {
			t.Errorf("%s is under %s, and holds what it held: %t", id, v.KMSKey, bytes.Equal(got, want))
		}
	}
	if names := must[[]string](t)(b.GrantsAt(ctx, old, d)); len(names) != 0 {
		t.Errorf("grants left on the old key: %v", names)
	}
}

// A row is replaced while the job that failed on it still runs: the job ends
// well, without a resume.
func TestRowReplacedDuringTheJob(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{Shards: 1})
	d, old, err := b.Onboard(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	createKeys(t, b, "acme", 12)
	good := spoil(t, b, d, "k0001")
	next := must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))
	job := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", next))
	workUntil(t, b, job, func(v rotation.JobView) bool { return v.Progress.Failed == 1 })
	row := readRow(t, b, d, "k0001")
	results := must[[]broker.ImportResult](t)(b.Broker.ImportDataKeys(ctx, harness.Caller, broker.ImportDataKeys{Domain: "acme",
		Items: []broker.ImportItem{{ID: row.ID, Etag: row.Etag(), Ciphertext: good, SourceKey: old, SourceContext: row.Context.With(d.Reserved)}}}))
	if results[0].Err != nil {
		t.Fatal(results[0].Err)
	}
	if v := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID)); v.State != rotation.Succeeded {
		t.Errorf("job ended %s in %s: %s", v.State, v.Phase, v.FailMessage)
	}
}

func decryptAsOwner(t *testing.T, b *harness.Bench, v broker.DataKeyView) []byte {
	t.Helper()
	out, err := b.Customer.Decrypt(t.Context(), &kms.DecryptInput{CiphertextBlob: v.Ciphertext, EncryptionContext: v.EncryptionContext, KeyId: aws.String(string(v.KMSKey))})
	if err != nil {
		t.Fatal(err)
	}
	return out.Plaintext
}
