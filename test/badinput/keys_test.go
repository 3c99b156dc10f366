package badinput_test

import (
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	pb "github.com/keybroker/keybroker/proto/keybroker/v1"
	"github.com/keybroker/keybroker/test/harness"
)

const keyID = "1234abcd-12ab-34cd-56ef-1234567890ab"

// noARNs are no ARNs of a KMS key: an id or an alias alone means another key in
// the broker's account than in the customer's.
func noARNs() map[string]string {
	good := "arn:aws:kms:us-east-1:111122223333:key/" + keyID
	return map[string]string{
		"none":                 "",
		"an id":                keyID,
		"an alias":             "alias/orders",
		"words":                "the new key",
		"11 digits of account": strings.Replace(good, "111122223333", "11112222333", 1),
		"no account":           strings.Replace(good, "111122223333", "", 1),
		"letters as account":   strings.Replace(good, "111122223333", "aaaabbbbcccc", 1),
		"no region":            strings.Replace(good, "us-east-1", "", 1),
		"another service":      strings.Replace(good, ":kms:", ":s3:", 1),
		"a role":               harness.ServiceRole,
		"another vendor":       strings.Replace(good, "arn:aws", "arn:gcp", 1),
		"in capitals":          strings.ToUpper(good),
		"no key":               "arn:aws:kms:us-east-1:111122223333:key/",
		"every key":            "arn:aws:kms:us-east-1:111122223333:key/*",
		"a path":               good + "/1",
		"a space behind":       good + " ",
		"a line end":           good + "\n",
		"two in one":           good + "," + good,
		"an id of 4 KiB":       good + strings.Repeat("a", 4096),
	}
}

// elsewhere are well-formed ARNs of keys that no domain of us-east-1 can have.
func elsewhere() map[string]string {
	return map[string]string{
		"another Region":          "arn:aws:kms:eu-central-1:111122223333:key/" + keyID,
		"no Region of AWS":        "arn:aws:kms:us-east-11:111122223333:key/" + keyID,
		"China":                   "arn:aws-cn:kms:cn-north-1:111122223333:key/" + keyID,
		"GovCloud":                "arn:aws-us-gov:kms:us-gov-west-1:111122223333:key/" + keyID,
		"the partition of China":  "arn:aws-cn:kms:us-east-1:111122223333:key/" + keyID,
		"the partition of no one": "arn:aws-us-gov:kms:us-east-1:111122223333:key/" + keyID,
	}
}

// TestMalformedKeyARNs: wherever a call names a key.
func TestMalformedKeyARNs(t *testing.T) {
	w := newWorld(t, harness.Config{})
	var calls []badCall
	for what, arn := range noARNs() {
		calls = append(calls,
			badCall{what, "ChangeKey", spoiling(func(m *pb.ChangeKeyRequest) { m.KmsKey = arn }), invalid("KEY_ARN_INVALID", "kms_key")},
			badCall{what, "PlanKeyChange", spoiling(func(m *pb.PlanKeyChangeRequest) { m.KmsKey = arn }), invalid("KEY_ARN_INVALID", "kms_key")})
	}
	noKeys := noARNs()
	noKeys["an alias ARN"] = "arn:aws:kms:us-east-1:111122223333:alias/orders"
	for what, arn := range noKeys {
		calls = append(calls,
			badCall{what, "ImportDataKeys", spoiling(func(m *pb.ImportDataKeysRequest) { m.Items[0].SourceKmsKey = arn }), invalid("KEY_ARN_INVALID", "items[0].source_kms_key")},
			badCall{what, "CreateDomain", spoiling(func(m *pb.CreateDomainRequest) { m.Domain.ImportSourceKeys = []string{arn} }), invalid("KEY_ARN_INVALID", "domain.import_source_keys[0]")},
			badCall{what, "UpdateDomain", spoiling(func(m *pb.UpdateDomainRequest) { m.Domain.ImportSourceKeys = []string{arn} }), invalid("KEY_ARN_INVALID", "domain.import_source_keys[0]")})
	}
	w.run(calls)
}

// TestKeysElsewhere: keys that a domain cannot have are refused by their ARNs
// alone; KMS is not asked.
func TestKeysElsewhere(t *testing.T) {
	w := newWorld(t, harness.Config{})
	var calls []badCall
	for what, arn := range elsewhere() {
		calls = append(calls,
			badCall{what, "ChangeKey", spoiling(func(m *pb.ChangeKeyRequest) { m.KmsKey = arn }), invalid("KEY_REGION_MISMATCH", "kms_key")},
			badCall{what + ", alias", "ChangeKey", spoiling(func(m *pb.ChangeKeyRequest) { m.KmsKey = strings.Replace(arn, "key/", "alias/", 1) }), invalid("KEY_REGION_MISMATCH", "kms_key")},
			badCall{what + ", first key", "ChangeKey", spoiling(func(m *pb.ChangeKeyRequest) { m.Name, m.KmsKey, m.Etag = "domains/pending", arn, "" }), invalid("KEY_REGION_MISMATCH", "kms_key")},
			badCall{what, "CreateDomain", spoiling(func(m *pb.CreateDomainRequest) { m.Domain.ImportSourceKeys = []string{arn} }), invalid("KEY_REGION_MISMATCH", "domain.import_source_keys")},
			badCall{what, "UpdateDomain", spoiling(func(m *pb.UpdateDomainRequest) { m.Domain.ImportSourceKeys = []string{arn} }), invalid("KEY_REGION_MISMATCH", "domain.import_source_keys")},
			badCall{what, "ImportDataKeys", spoiling(func(m *pb.ImportDataKeysRequest) { m.Items[0].SourceKmsKey = arn }),
				refusal{codes.FailedPrecondition, "IMPORT_SOURCE_NOT_ALLOWED", "items[0].source_kms_key"}})
		if problems := w.plan(arn); !cmp.Equal(problems, []string{"KEY_REGION_MISMATCH"}) {
			t.Errorf("%s: the plan names %v", what, problems)
		}
	}
	for what, arn := range map[string]string{"another account": "arn:aws:kms:us-east-1:444455556666:key/" + keyID, "no import source": string(w.next), "the present key": string(w.key)} {
		calls = append(calls, badCall{what, "ImportDataKeys", spoiling(func(m *pb.ImportDataKeysRequest) { m.Items[0].SourceKmsKey = arn }),
			refusal{codes.FailedPrecondition, "IMPORT_SOURCE_NOT_ALLOWED", "items[0].source_kms_key"}})
	}
	if _, r := w.send(t.Context(), "UpdateDomain", &pb.UpdateDomainRequest{Domain: &pb.Domain{Name: "domains/acme", KeyAccounts: []string{"444455556666"}}}); r != (refusal{}) {
		t.Fatal(r)
	}
	calls = append(calls,
		badCall{"an account that is not listed", "ChangeKey", func(proto.Message) {}, refusal{codes.FailedPrecondition, "KEY_ACCOUNT_NOT_ALLOWED", "kms_key"}},
		badCall{"a listed account that is none", "UpdateDomain", spoiling(func(m *pb.UpdateDomainRequest) { m.Domain.KeyAccounts = []string{"acme"} }), invalid("FIELD_INVALID", "domain.key_accounts[0]")})
	if problems := w.plan(string(w.next)); !cmp.Equal(problems, []string{"KEY_ACCOUNT_NOT_ALLOWED"}) {
		t.Errorf("the plan names %v", problems)
	}
	w.KMSCalls() // forgets those of the making
	w.run(calls)
	for _, c := range w.KMSCalls() {
		t.Errorf("KMS was asked to %s", c)
	}
}

// KMSCalls gives what the broker asked of KMS since it was last asked.
func (w *world) KMSCalls() (calls []string) {
	for _, c := range w.Calls() {
		if c.Principal == harness.RegistrarRole || c.Principal == harness.WorkerRole {
			calls = append(calls, c.Operation)
		}
	}
	return calls
}

// plan gives the reasons of what PlanKeyChange finds against acme's change to a
// key; it must change nothing.
func (w *world) plan(key string) (reasons []string) {
	w.t.Helper()
	before := w.state()
	out, r := w.send(w.t.Context(), "PlanKeyChange", &pb.PlanKeyChangeRequest{Name: "domains/acme", KmsKey: key})
	if r != (refusal{}) {
		w.t.Fatalf("PlanKeyChange: %+v", r)
	}
	if diff := cmp.Diff(before, w.state()); diff != "" {
		w.t.Errorf("PlanKeyChange changed something:\n%s", diff)
	}
	for _, p := range as(w.t, out, &pb.PlanKeyChangeResponse{}).GetProblems() {
		reasons = append(reasons, p.GetReason())
	}
	return reasons
}

// TestUnfitKeys: what only KMS knows of a key, the job says; it leaves the domain
// and the grants as they were. Kinds and states of keys are KMS's (KMS Developer
// Guide, Key states, and Key type reference).
func TestUnfitKeys(t *testing.T) {
	w := newWorld(t, harness.Config{})
	ctx := t.Context()
	policy, err := w.Broker.GenerateKeyPolicy(ctx, harness.Caller, broker.KeyPolicyRequest{Domain: "acme", KeyAccount: harness.CustomerAccount})
	w.must(err)
	keyOf := func(spec types.KeySpec, usage types.KeyUsageType) string {
		out, err := w.Customer.CreateKey(ctx, &kms.CreateKeyInput{KeySpec: spec, KeyUsage: usage, Policy: &policy.Document})
		w.must(err)
		return aws.ToString(out.KeyMetadata.Arn)
	}
	disabled := keyOf(types.KeySpecSymmetricDefault, types.KeyUsageTypeEncryptDecrypt)
	_, err = w.Customer.DisableKey(ctx, &kms.DisableKeyInput{KeyId: &disabled})
	w.must(err)
	doomed := keyOf(types.KeySpecSymmetricDefault, types.KeyUsageTypeEncryptDecrypt)
	_, err = w.Customer.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: &doomed, PendingWindowInDays: aws.Int32(7)})
	w.must(err)
	foreign, err := w.Customer.CreateKey(ctx, &kms.CreateKeyInput{})
	w.must(err)

	for _, test := range []struct {
		name, key string
		state     rotation.State
		reason    broker.Reason
	}{
		{"RSA", keyOf(types.KeySpecRsa2048, types.KeyUsageTypeEncryptDecrypt), rotation.Failed, broker.ReasonKeyNotSymmetric},
		{"signing", keyOf(types.KeySpecEccNistP256, types.KeyUsageTypeSignVerify), rotation.Failed, broker.ReasonKeyNotSymmetric},
		{"HMAC", keyOf(types.KeySpecHmac256, types.KeyUsageTypeGenerateVerifyMac), rotation.Failed, broker.ReasonKeyNotSymmetric},
		{"disabled", disabled, rotation.Blocked, broker.ReasonKeyDisabled},
		{"pending deletion", doomed, rotation.Blocked, broker.ReasonKeyStateInvalid},
		{"nonexistent", "arn:aws:kms:us-east-1:111122223333:key/" + keyID, rotation.Failed, broker.ReasonKeyNotFound},
		{"an alias of nothing", "arn:aws:kms:us-east-1:111122223333:alias/none", rotation.Failed, broker.ReasonKeyNotFound},
		{"without our statements", aws.ToString(foreign.KeyMetadata.Arn), rotation.Failed, broker.ReasonKeyPolicyMissing},
	} {
		if problems := w.plan(test.key); !cmp.Equal(problems, []string{string(test.reason)}) {
			t.Errorf("%s: the plan names %v, want %s", test.name, problems, test.reason)
		}
		const ownRows = "domain job audit_event"
		domain, before := w.domain("acme"), w.state(strings.Fields(ownRows)...)
		job := broker.JobName("acme", w.change("acme", broker.KeyARN(test.key)))
		w.steps()
		_, id, err := broker.ParseJobName("name", job)
		w.must(err)
		view, err := w.Engine.GetJob(ctx, harness.Caller, "acme", id)
		w.must(err)
		reason := view.FailReason
		if view.State == rotation.Blocked {
			reason = view.Block.Reason
			if view.Block.Side != rotation.To {
				t.Errorf("%s: blocked on %s", test.name, view.Block.Side)
			}
			if _, r := w.send(ctx, "CancelReencryptionJob", &pb.CancelReencryptionJobRequest{Name: job}); r != (refusal{}) {
				t.Errorf("%s: cancel: %+v", test.name, r)
			}
			w.steps()
		}
		if view.State != test.state || reason != test.reason {
			t.Errorf("%s: the job is %s for %s, want %s for %s", test.name, view.State, reason, test.state, test.reason)
		}
		if diff := cmp.Diff(domain, w.domain("acme"), protocmp.Transform(), protocmp.IgnoreFields(&pb.Domain{}, "etag", "update_time")); diff != "" {
			t.Errorf("%s: the domain changed:\n%s", test.name, diff)
		}
		if diff := cmp.Diff(before, w.state(strings.Fields(ownRows)...)); diff != "" {
			t.Errorf("%s left something (-before +after):\n%s", test.name, diff)
		}
	}
}

// steps works on acme's jobs until nothing moves without time.
func (w *world) steps() {
	w.t.Helper()
	for moved := true; moved; {
		moved = false
		var jobs []rotation.Job
		w.must(w.Store.Rotation().View(w.t.Context(), func(tx rotation.Tx) error {
			d, err := tx.Domain(w.t.Context(), "acme")
			if err != nil {
				return err
			}
			jobs, err = tx.UnfinishedJobs(w.t.Context(), d.UID)
			return err
		}))
		for _, j := range jobs {
			stepped, err := w.Engine.StepJob(w.t.Context(), j.Ref())
			w.must(err)
			moved = moved || stepped
		}
	}
}

func (w *world) domain(id string) *pb.Domain {
	w.t.Helper()
	out, r := w.send(w.t.Context(), "GetDomain", &pb.GetDomainRequest{Name: "domains/" + id})
	if r != (refusal{}) {
		w.t.Fatal(r)
	}
	return as(w.t, out, &pb.Domain{})
}

// TestUnfitImportSources: an import source that KMS does not use refuses its
// items; nothing of them is kept.
func TestUnfitImportSources(t *testing.T) {
	w := newWorld(t, harness.Config{})
	ctx, legacy := t.Context(), string(w.legacy)
	good := func(proto.Message) {}
	refused := func(reason string) refusal { return refusal{Code: codes.FailedPrecondition, Reason: reason} }
	_, err := w.Customer.DisableKey(ctx, &kms.DisableKeyInput{KeyId: &legacy})
	w.must(err)
	w.run([]badCall{{"disabled", "ImportDataKeys", good, refused("KEY_DISABLED")}})
	_, err = w.Customer.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: &legacy, PendingWindowInDays: aws.Int32(7)})
	w.must(err)
	w.run([]badCall{{"pending deletion", "ImportDataKeys", good, refused("KEY_STATE_INVALID")}})
	policy := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"` + harness.CustomerRoot + `"},"Action":"kms:*","Resource":"*"}]}`
	_, err = w.Customer.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: &legacy, Policy: &policy})
	w.must(err)
	w.run([]badCall{{"not ours to use", "ImportDataKeys", good, refused("KEY_ACCESS_DENIED")}})
}

// TestBadBlobs: what KMS cannot read, or not under that key and context.
func TestBadBlobs(t *testing.T) {
	w := newWorld(t, harness.Config{})
	item := func(change func(*pb.ImportDataKeysRequest_Item)) func(proto.Message) {
		return spoiling(func(m *pb.ImportDataKeysRequest) { change(m.Items[0]) })
	}
	other, err := w.Customer.GenerateDataKey(t.Context(), &kms.GenerateDataKeyInput{KeyId: aws.String(string(w.next)), KeySpec: "AES_256",
		EncryptionContext: map[string]string{"tenant": "acme"}})
	w.must(err)
	w.run([]badCall{
		{"none", "ImportDataKeys", item(func(i *pb.ImportDataKeysRequest_Item) { i.CiphertextBlob = nil }), invalid("FIELD_INVALID", "items[0].ciphertext_blob")},
		{"6,145 bytes", "ImportDataKeys", item(func(i *pb.ImportDataKeysRequest_Item) { i.CiphertextBlob = make([]byte, 6145) }), invalid("FIELD_INVALID", "items[0].ciphertext_blob")},
		{"words", "ImportDataKeys", item(func(i *pb.ImportDataKeysRequest_Item) { i.CiphertextBlob = []byte("words") }), invalid("CIPHERTEXT_INVALID", "")},
		{"cut short", "ImportDataKeys", item(func(i *pb.ImportDataKeysRequest_Item) { i.CiphertextBlob = w.blob[:len(w.blob)-1] }), invalid("CIPHERTEXT_INVALID", "")},
		{"one pair more than it was made with", "ImportDataKeys", item(func(i *pb.ImportDataKeysRequest_Item) { i.SourceEncryptionContext["a"] = "b" }), invalid("CIPHERTEXT_INVALID", "")},
		{"made under another key", "ImportDataKeys", item(func(i *pb.ImportDataKeysRequest_Item) { i.CiphertextBlob = other.CiphertextBlob }), invalid("CIPHERTEXT_WRONG_KEY", "")},
		{"another kind of key", "ImportDataKeys", item(func(i *pb.ImportDataKeysRequest_Item) { i.KeySpec = "RSA_2048" }), invalid("FIELD_INVALID", "items[0].key_spec")},
		{"another kind of key", "CreateDataKey", spoiling(func(m *pb.CreateDataKeyRequest) { m.DataKey.KeySpec = "AES_192" }), invalid("FIELD_INVALID", "data_key.key_spec")},
	})
}
