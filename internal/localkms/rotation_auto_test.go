package localkms_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/google/go-cmp/cmp"

	"github.com/keybroker/keybroker/internal/localkms"
)

// plan is a key's rotation status in short.
type plan struct {
	Enabled bool
	Days    int32
	Next    time.Time
}

func planOf(t testing.TB, c *kms.Client, key string) plan {
	t.Helper()
	s := must[*kms.GetKeyRotationStatusOutput](t)(c.GetKeyRotationStatus(t.Context(), &kms.GetKeyRotationStatusInput{KeyId: &key}))
	return plan{s.KeyRotationEnabled, aws.ToInt32(s.RotationPeriodInDays), aws.ToTime(s.NextRotationDate)}
}

// rotations are the dates of a key's rotations, by type.
func rotations(t *testing.T, c *kms.Client, key string) (dates map[types.RotationType][]time.Time) {
	t.Helper()
	dates = map[types.RotationType][]time.Time{}
	for _, r := range must[*kms.ListKeyRotationsOutput](t)(c.ListKeyRotations(t.Context(), &kms.ListKeyRotationsInput{KeyId: &key})).Rotations {
		dates[r.RotationType] = append(dates[r.RotationType], *r.RotationDate)
	}
	return dates
}

func enableRotation(t testing.TB, c *kms.Client, key string, days *int32) {
	t.Helper()
	must[*kms.EnableKeyRotationOutput](t)(c.EnableKeyRotation(t.Context(), &kms.EnableKeyRotationInput{KeyId: &key, RotationPeriodInDays: days}))
}

// AWS KMS Developer Guide, "Rotate AWS KMS keys", Rotation period and Rotation date;
// that a rotation on demand leaves the next date alone was recorded, 2025-03.
func TestRotationPlan(t *testing.T) {
	clock := newClock()
	h := newKMS(t, localkms.Config{Now: clock.Now})
	c, ctx, key := as(h, admin), t.Context(), newKey(t, h, "")
	expect := func(want plan) {
		t.Helper()
		if diff := cmp.Diff(want, planOf(t, c, key)); diff != "" {
			t.Errorf("status (-want +got):\n%s", diff)
		}
	}
	expect(plan{})
	enableRotation(t, c, key, nil)
	first := clock.Now()
	expect(plan{true, 365, first.Add(365 * day)})
	clock.advance(10 * day)
	enableRotation(t, c, key, nil)
	rotate(t, c, key)
	expect(plan{true, 365, first.Add(365 * day)})
	enableRotation(t, c, key, aws.Int32(180))
	expect(plan{true, 180, clock.Now().Add(180 * day)})
	must[*kms.DisableKeyRotationOutput](t)(c.DisableKeyRotation(ctx, &kms.DisableKeyRotationInput{KeyId: &key}))
	expect(plan{})
	clock.advance(1000 * day)
	if got := rotations(t, c, key); len(got["AUTOMATIC"]) != 0 || len(got["ON_DEMAND"]) != 1 {
		t.Errorf("rotations %v", got)
	}
	enableRotation(t, c, key, aws.Int32(90))
	schedule(t, c, key, 7)
	expect(plan{})
	must[*kms.CancelKeyDeletionOutput](t)(c.CancelKeyDeletion(ctx, &kms.CancelKeyDeletionInput{KeyId: &key}))
	expect(plan{true, 90, clock.Now().Add(90 * day)})
}

// Rotation happens when it is due, to the material that encrypts; what was
// encrypted before still opens.
func TestAutomaticRotation(t *testing.T) {
	clock := newClock()
	dir := t.TempDir()
	h := reopenAt(t, dir, clock)
	c, ctx, key := as(h, admin), t.Context(), newKey(t, h, "")
	enableRotation(t, c, key, aws.Int32(90))
	start := clock.Now()
	first := currentMaterial(t, c, key)
	old := must[*kms.EncryptOutput](t)(c.Encrypt(ctx, &kms.EncryptInput{KeyId: &key, Plaintext: []byte("x")})).CiphertextBlob

	clock.advance(90*day - time.Millisecond)
	if got := currentMaterial(t, c, key); got != first {
		t.Error("rotated too early")
	}
	clock.advance(time.Millisecond)
	made := must[*kms.GenerateDataKeyOutput](t)(c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: &key, KeySpec: "AES_256"}))
	if *made.KeyMaterialId == first || *made.KeyMaterialId != currentMaterial(t, c, key) {
		t.Errorf("a data key under %s, key material is %s, was %s", *made.KeyMaterialId, currentMaterial(t, c, key), first)
	}
	clock.advance(200 * day) // two more were due
	for range 2 {
		if diff := cmp.Diff(map[types.RotationType][]time.Time{"AUTOMATIC": {start.Add(90 * day), start.Add(180 * day), start.Add(270 * day)}}, rotations(t, c, key)); diff != "" {
			t.Errorf("rotations (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(plan{true, 90, start.Add(360 * day)}, planOf(t, c, key)); diff != "" {
			t.Errorf("status (-want +got):\n%s", diff)
		}
		opened := must[*kms.DecryptOutput](t)(c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: old}))
		again := must[*kms.DecryptOutput](t)(c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: made.CiphertextBlob}))
		if *opened.KeyMaterialId != first || *again.KeyMaterialId != *made.KeyMaterialId {
			t.Errorf("opened by %s and %s", *opened.KeyMaterialId, *again.KeyMaterialId)
		}
		closeKMS(t, h)
		h = reopenAt(t, dir, clock)
		c = as(h, admin)
	}
	closeKMS(t, h)
}

// AWS KMS Developer Guide, "Rotate AWS KMS keys", Disabled KMS keys: none while it
// is disabled, one at once when it was due meanwhile, else the old schedule.
func TestRotationOfDisabledKey(t *testing.T) {
	clock := newClock()
	h := newKMS(t, localkms.Config{Now: clock.Now})
	c, ctx, key := as(h, admin), t.Context(), newKey(t, h, "")
	enableRotation(t, c, key, aws.Int32(90))
	start := clock.Now()
	disable := func() {
		t.Helper()
		must[*kms.DisableKeyOutput](t)(c.DisableKey(ctx, &kms.DisableKeyInput{KeyId: &key}))
	}
	enable := func() {
		t.Helper()
		must[*kms.EnableKeyOutput](t)(c.EnableKey(ctx, &kms.EnableKeyInput{KeyId: &key}))
	}
	disable()
	clock.advance(30 * day)
	enable()
	if diff := cmp.Diff(plan{true, 90, start.Add(90 * day)}, planOf(t, c, key)); diff != "" {
		t.Errorf("enabled in time (-want +got):\n%s", diff)
	}
	clock.advance(65 * day)
	disable() // on day 95: the one of day 90 was due before
	clock.advance(400 * day)
	if diff := cmp.Diff(plan{true, 90, start.Add(180 * day)}, planOf(t, c, key)); diff != "" {
		t.Errorf("disabled (-want +got):\n%s", diff)
	}
	enable()
	enabled := clock.Now()
	if diff := cmp.Diff(map[types.RotationType][]time.Time{"AUTOMATIC": {start.Add(90 * day), enabled}}, rotations(t, c, key)); diff != "" {
		t.Errorf("rotations (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(plan{true, 90, enabled.Add(90 * day)}, planOf(t, c, key)); diff != "" {
		t.Errorf("enabled late (-want +got):\n%s", diff)
	}
}

// AWS KMS API Reference, EnableKeyRotation: the limits of the period, and what keys
// cannot. Automatic rotations do not count against those on demand.
func TestRotationPlanIsRefused(t *testing.T) {
	clock := newClock()
	h := newKMS(t, localkms.Config{Now: clock.Now})
	c, ctx, key := as(h, admin), t.Context(), newKey(t, h, "")
	for days, constraint := range map[int32]string{89: "greater than or equal to 90", 2561: "less than or equal to 2560"} {
		_, err := c.EnableKeyRotation(ctx, &kms.EnableKeyRotationInput{KeyId: &key, RotationPeriodInDays: &days})
		wantRefusal(t, err, "ValidationException", "1 validation error detected: Value '"+map[int32]string{89: "89", 2561: "2561"}[days]+
			"' at 'rotationPeriodInDays' failed to satisfy constraint: Member must have value "+constraint)
	}
	mac := *newKeyOf(t, c, "HMAC_256", "GENERATE_VERIFY_MAC").Arn
	_, err := c.EnableKeyRotation(ctx, &kms.EnableKeyRotationInput{KeyId: &mac})
	wantRefusal(t, err, "UnsupportedOperationException", "") // terraform-aws-kms issue 20, 2023-08
	_, err = c.DisableKeyRotation(ctx, &kms.DisableKeyRotationInput{KeyId: &mac})
	wantRefusal(t, err, "UnsupportedOperationException", "")
	_, err = c.ListKeyRotations(ctx, &kms.ListKeyRotationsInput{KeyId: &mac, IncludeKeyMaterial: "ALL_KEY_MATERIAL"})
	wantRefusal(t, err, "UnsupportedOperationException", "")
	if got := planOf(t, c, mac); got != (plan{}) {
		t.Errorf("an HMAC key rotates: %v", got)
	}

	enableRotation(t, c, key, aws.Int32(90))
	clock.advance(30 * 90 * day)
	for range 25 {
		rotate(t, c, key)
	}
	if got := rotations(t, c, key); len(got["AUTOMATIC"]) != 30 || len(got["ON_DEMAND"]) != 25 {
		t.Errorf("%d automatic rotations, %d on demand", len(got["AUTOMATIC"]), len(got["ON_DEMAND"]))
	}
}

// Whatever a crash leaves of the journal, what was encrypted in time opens: the
// material is on disk before anything under it leaves.
func TestRotationAndCrash(t *testing.T) {
	clock := newClock()
	dir, cut := t.TempDir(), t.TempDir()
	h := reopenAt(t, dir, clock)
	key := newKey(t, h, "")
	enableRotation(t, as(h, admin), key, aws.Int32(90))
	for range 3 {
		clock.advance(90 * day)
		blob := must[*kms.EncryptOutput](t)(as(h, admin).Encrypt(t.Context(), &kms.EncryptInput{KeyId: &key, Plaintext: []byte("x")})).CiphertextBlob
		journal, err := os.ReadFile(filepath.Join(dir, "journal")) // what a kill now would leave
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(cut, "journal"), journal, 0o600); err != nil {
			t.Fatal(err)
		}
		after := reopenAt(t, cut, clock)
		must[*kms.DecryptOutput](t)(as(after, admin).Decrypt(t.Context(), &kms.DecryptInput{CiphertextBlob: blob}))
		closeKMS(t, after)
	}
	closeKMS(t, h)
}
