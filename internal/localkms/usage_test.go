package localkms_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/google/go-cmp/cmp"

	"github.com/keybroker/keybroker/internal/localkms"
)

// lastUse is what GetKeyLastUsage says, in short; the zero value of an unused key.
type lastUse struct {
	Operation string
	Time      time.Time
}

func lastUseOf(t *testing.T, c *kms.Client, key string) (lastUse, *kms.GetKeyLastUsageOutput) {
	t.Helper()
	out := must[*kms.GetKeyLastUsageOutput](t)(c.GetKeyLastUsage(t.Context(), &kms.GetKeyLastUsageInput{KeyId: &key}))
	return lastUse{string(out.KeyLastUsage.Operation), aws.ToTime(out.KeyLastUsage.Timestamp)}, out
}

// AWS KMS Developer Guide, "Determine past usage of a KMS key": the operations that
// count, and only their successes; of a ReEncrypt both keys.
func TestLastUse(t *testing.T) {
	var requests []localkms.Call
	clock := newClock()
	h := newKMS(t, localkms.Config{Now: clock.Now, Observe: func(c localkms.Call) { requests = append(requests, c) }})
	c, ctx := as(h, admin), t.Context()
	key, other, mac := newKey(t, h, ""), newKey(t, h, ""), *newKeyOf(t, c, "HMAC_256", "GENERATE_VERIFY_MAC").Arn
	created := clock.Now()
	if got, out := lastUseOf(t, c, key); got != (lastUse{}) || !out.KeyCreationDate.Equal(created) || !out.TrackingStartDate.Equal(created) || *out.KeyId != key[len(key)-36:] {
		t.Errorf("unused: %+v, %+v", got, out)
	}
	var blob, tag []byte
	check := func(operation string, err error, keys ...string) {
		t.Helper()
		wantCode(t, err, "")
		for _, key := range keys {
			request := requests[len(requests)-1].RequestID
			got, out := lastUseOf(t, c, key)
			if diff := cmp.Diff(lastUse{operation, clock.Now()}, got); diff != "" || *out.KeyLastUsage.KmsRequestId != request {
				t.Errorf("%s: request %s, want %s; (-want +got):\n%s", operation, *out.KeyLastUsage.KmsRequestId, request, diff)
			}
			_, again := lastUseOf(t, c, key)
			if event := *out.KeyLastUsage.CloudTrailEventId; event != *again.KeyLastUsage.CloudTrailEventId || event == request || len(event) != 36 {
				t.Errorf("%s: event %s, then %s", operation, event, *again.KeyLastUsage.CloudTrailEventId)
			}
			requests = requests[:len(requests)-2]
		}
		clock.advance(time.Minute)
	}
	encrypted, err := c.Encrypt(ctx, &kms.EncryptInput{KeyId: &key, Plaintext: []byte("x")})
	check("Encrypt", err, key)
	blob = encrypted.CiphertextBlob
	_, err = c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: &key, KeySpec: "AES_256"})
	check("GenerateDataKey", err, key)
	_, err = c.GenerateDataKeyWithoutPlaintext(ctx, &kms.GenerateDataKeyWithoutPlaintextInput{KeyId: &key, KeySpec: "AES_256"})
	check("GenerateDataKeyWithoutPlaintext", err, key)
	_, err = c.GenerateDataKeyPair(ctx, &kms.GenerateDataKeyPairInput{KeyId: &key, KeyPairSpec: "ECC_NIST_P256"})
	check("GenerateDataKeyPair", err, key)
	_, err = c.GenerateDataKeyPairWithoutPlaintext(ctx, &kms.GenerateDataKeyPairWithoutPlaintextInput{KeyId: &key, KeyPairSpec: "ECC_NIST_P256"})
	check("GenerateDataKeyPairWithoutPlaintext", err, key)
	_, err = c.ReEncrypt(ctx, &kms.ReEncryptInput{CiphertextBlob: blob, DestinationKeyId: &other})
	check("ReEncrypt", err, key, other)
	made, err := c.GenerateMac(ctx, &kms.GenerateMacInput{KeyId: &mac, MacAlgorithm: "HMAC_SHA_256", Message: []byte("x")})
	check("GenerateMac", err, mac)
	tag = made.Mac
	_, err = c.VerifyMac(ctx, &kms.VerifyMacInput{KeyId: &mac, MacAlgorithm: "HMAC_SHA_256", Message: []byte("x"), Mac: tag})
	check("VerifyMac", err, mac)
	_, err = c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob})
	check("Decrypt", err, key)
	before := clock.Now().Add(-time.Minute)

	// None of these is a use.
	_, err = c.Encrypt(ctx, &kms.EncryptInput{KeyId: &key, Plaintext: []byte("x"), DryRun: aws.Bool(true)})
	wantCode(t, err, "DryRunOperationException")
	_, err = c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob, EncryptionContext: pairs("a", "1")})
	wantCode(t, err, "InvalidCiphertextException")
	_, err = as(h, stranger).Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob})
	wantCode(t, err, "AccessDeniedException")
	must[*kms.CreateGrantOutput](t)(c.CreateGrant(ctx, decryptGrant(key, worker)))
	must[*kms.DescribeKeyOutput](t)(c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &key}))
	if got, _ := lastUseOf(t, c, key); got != (lastUse{"Decrypt", before}) {
		t.Errorf("after what is no use: %+v", got)
	}
}

// What was told of the last use is never taken back, and without that a crash costs
// an hour of it at most. A journal of before notes uses from its opening on.
func TestLastUseAndCrash(t *testing.T) {
	clock := newClock()
	dir, cut := t.TempDir(), t.TempDir()
	h := reopenAt(t, dir, clock)
	key := newKey(t, h, "")
	created := clock.Now()
	encrypt := func(h *localkms.KMS, after time.Duration) {
		t.Helper()
		clock.advance(after)
		must[*kms.EncryptOutput](t)(as(h, admin).Encrypt(t.Context(), &kms.EncryptInput{KeyId: &key, Plaintext: []byte("x")}))
	}
	afterKill := func(want time.Duration) {
		t.Helper()
		journal, err := os.ReadFile(filepath.Join(dir, "journal"))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(cut, "journal"), journal, 0o600); err != nil {
			t.Fatal(err)
		}
		h := reopenAt(t, cut, clock)
		defer closeKMS(t, h)
		if got, _ := lastUseOf(t, as(h, admin), key); !got.Time.Equal(created.Add(want)) {
			t.Errorf("last used %s after its creation, want %s", got.Time.Sub(created), want)
		}
	}
	encrypt(h, time.Minute)
	afterKill(time.Minute)
	encrypt(h, 58*time.Minute)
	afterKill(time.Minute)
	lastUseOf(t, as(h, admin), key)
	afterKill(59 * time.Minute)
	encrypt(h, time.Hour)
	afterKill(119 * time.Minute)
	closeKMS(t, h)

	old, err := os.ReadFile("testdata/journal_kinds")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(cut, "journal"), old, 0o600); err != nil {
		t.Fatal(err)
	}
	opened := clock.Now()
	for range 2 {
		h := reopenAt(t, cut, clock)
		keys := must[*kms.ListKeysOutput](t)(as(h, admin).ListKeys(t.Context(), &kms.ListKeysInput{})).Keys
		if _, out := lastUseOf(t, as(h, admin), *keys[0].KeyArn); !out.TrackingStartDate.Equal(opened) || !out.KeyCreationDate.Before(opened) {
			t.Errorf("created %s, tracked since %s, want %s", out.KeyCreationDate, out.TrackingStartDate, opened)
		}
		closeKMS(t, h)
		clock.advance(time.Hour)
	}
}
