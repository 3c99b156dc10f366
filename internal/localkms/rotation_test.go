package localkms_test

import (
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/keybroker/keybroker/internal/localkms"
)

func rotate(t testing.TB, c *kms.Client, key string) {
	t.Helper()
	if got := *must[*kms.RotateKeyOnDemandOutput](t)(c.RotateKeyOnDemand(t.Context(), &kms.RotateKeyOnDemandInput{KeyId: &key})).KeyId; got != key {
		t.Errorf("rotated %s, answered %s", key, got)
	}
}

func currentMaterial(t testing.TB, c *kms.Client, key string) string {
	t.Helper()
	return *must[*kms.DescribeKeyOutput](t)(c.DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: &key})).KeyMetadata.CurrentKeyMaterialId
}

// AWS KMS API Reference, RotateKeyOnDemand; that old blobs still decrypt, and
// that CurrentKeyMaterialId changes, was recorded from AWS.
func TestRotation(t *testing.T) {
	dir := t.TempDir()
	h := reopen(t, dir)
	c, ctx := as(h, admin), t.Context()
	key, other := newKey(t, h, ""), newKey(t, h, "")
	var blobs [][]byte
	var materials []string
	for range 3 {
		materials = append(materials, currentMaterial(t, c, key))
		out := must[*kms.GenerateDataKeyOutput](t)(c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: &key, KeySpec: types.DataKeySpecAes256}))
		if *out.KeyMaterialId != materials[len(materials)-1] {
			t.Errorf("a data key under %s, want %s", *out.KeyMaterialId, materials[len(materials)-1])
		}
		blobs = append(blobs, out.CiphertextBlob,
			must[*kms.EncryptOutput](t)(c.Encrypt(ctx, &kms.EncryptInput{KeyId: &key, Plaintext: []byte("x")})).CiphertextBlob)
		rotate(t, c, key)
	}
	if materials[0] == materials[1] || materials[1] == materials[2] {
		t.Errorf("the material did not change: %v", materials)
	}
	closeKMS(t, h)
	h = reopen(t, dir)
	defer closeKMS(t, h)
	c = as(h, admin)
	newest := currentMaterial(t, c, key)
	for i, blob := range blobs {
		opened := must[*kms.DecryptOutput](t)(c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob}))
		if *opened.KeyMaterialId != materials[i/2] {
			t.Errorf("blob %d opened by %s, want %s", i, *opened.KeyMaterialId, materials[i/2])
		}
		for destination, material := range pairs(key, newest, other, currentMaterial(t, c, other)) {
			moved := must[*kms.ReEncryptOutput](t)(c.ReEncrypt(ctx, &kms.ReEncryptInput{CiphertextBlob: blob, DestinationKeyId: &destination}))
			if *moved.SourceKeyMaterialId != materials[i/2] || *moved.DestinationKeyMaterialId != material {
				t.Errorf("blob %d moved from %s to %s", i, *moved.SourceKeyMaterialId, *moved.DestinationKeyMaterialId)
			}
		}
	}
}

// AWS KMS API Reference, RotateKeyOnDemand: 25 rotations in the life of a key.
// The message was recorded.
func TestRotationLimit(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	c, ctx, key := as(h, admin), t.Context(), newKey(t, h, "")
	for range 25 {
		rotate(t, c, key)
	}
	_, err := c.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: &key})
	wantRefusal(t, err, "LimitExceededException", "The on-demand rotations limit has been reached for the given keyId. "+
		"No more on-demand rotations can be performed for this key: "+key)
}

func TestRotationIsRefused(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	c, ctx := as(h, admin), t.Context()
	disabled, pending := newKey(t, h, ""), newKey(t, h, "")
	must[*kms.DisableKeyOutput](t)(c.DisableKey(ctx, &kms.DisableKeyInput{KeyId: &disabled}))
	schedule(t, c, pending, 7)
	for key, want := range map[string]refusal{
		disabled: {"DisabledException", disabled + " is disabled."},
		pending:  {"KMSInvalidStateException", pending + " is pending deletion."},
		*newKeyOf(t, c, "HMAC_256", "GENERATE_VERIFY_MAC").Arn: {"UnsupportedOperationException", ""},
		*newKeyOf(t, c, "RSA_2048", "SIGN_VERIFY").Arn:         {"UnsupportedOperationException", ""},
		"alias/a": {"NotFoundException", "Invalid keyId 'alias/a'"},
	} {
		_, err := c.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: &key})
		wantRefusal(t, err, want.code, want.message)
	}
}

// AWS KMS API Reference, GetKeyRotationStatus and ListKeyRotations.
func TestRotationsAreListed(t *testing.T) {
	clock := newClock()
	h := newKMS(t, localkms.Config{Now: clock.Now})
	c, ctx, key := as(h, admin), t.Context(), newKey(t, h, brokerPolicy)
	first := types.RotationsListEntry{KeyId: &key, KeyMaterialId: aws.String(currentMaterial(t, c, key)), KeyMaterialState: "NON_CURRENT"}
	var want []types.RotationsListEntry
	for range 3 {
		clock.advance(time.Hour)
		rotate(t, c, key)
		want = append(want, types.RotationsListEntry{
			KeyId: &key, KeyMaterialId: aws.String(currentMaterial(t, c, key)), KeyMaterialState: "NON_CURRENT",
			RotationDate: aws.Time(clock.Now()), RotationType: "ON_DEMAND",
		})
	}
	want[2].KeyMaterialState = "CURRENT"
	list := func(in *kms.ListKeyRotationsInput) (all []types.RotationsListEntry) {
		for pages := kms.NewListKeyRotationsPaginator(c, in); pages.HasMorePages(); {
			all = append(all, must[*kms.ListKeyRotationsOutput](t)(pages.NextPage(ctx)).Rotations...)
		}
		return all
	}
	ignored := cmpopts.IgnoreUnexported(types.RotationsListEntry{})
	if diff := cmp.Diff(want, list(&kms.ListKeyRotationsInput{KeyId: &key, Limit: aws.Int32(2)}), ignored); diff != "" {
		t.Errorf("rotations (-want +got):\n%s", diff)
	}
	all := append([]types.RotationsListEntry{first}, want...)
	if diff := cmp.Diff(all, list(&kms.ListKeyRotationsInput{KeyId: &key, Limit: aws.Int32(1), IncludeKeyMaterial: "ALL_KEY_MATERIAL"}), ignored); diff != "" {
		t.Errorf("all material (-want +got):\n%s", diff)
	}
	mac := *newKeyOf(t, c, "HMAC_256", "GENERATE_VERIFY_MAC").Arn
	if n := len(list(&kms.ListKeyRotationsInput{KeyId: &mac})); n != 0 {
		t.Errorf("an HMAC key has %d rotations", n)
	}
	_, err := c.ListKeyRotations(ctx, &kms.ListKeyRotationsInput{KeyId: &key, Marker: aws.String("bTE6TGlzdEtleVJvdGF0aW9uczotMQ==")})
	wantCode(t, err, "InvalidMarkerException")

	status := must[*kms.GetKeyRotationStatusOutput](t)(c.GetKeyRotationStatus(ctx, &kms.GetKeyRotationStatusInput{KeyId: &key}))
	if *status.KeyId != key || status.KeyRotationEnabled || status.OnDemandRotationStartDate != nil {
		t.Errorf("status %+v", status)
	}
	_, err = as(h, registrar).GetKeyRotationStatus(ctx, &kms.GetKeyRotationStatusInput{KeyId: &key})
	wantCode(t, err, "AccessDeniedException")
	open := newKey(t, h, `{"Statement":{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*"}}`)
	must[*kms.GetKeyRotationStatusOutput](t)(as(h, registrar).GetKeyRotationStatus(ctx, &kms.GetKeyRotationStatusInput{KeyId: &open}))
}
