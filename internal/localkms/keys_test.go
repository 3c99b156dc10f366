package localkms_test

import (
	"encoding/hex"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/keybroker/keybroker/internal/localkms"
)

// Shape: AWS KMS API Reference, KeyMetadata.
func TestKeyMetadata(t *testing.T) {
	clock := newClock()
	h := newKMS(t, localkms.Config{Now: clock.Now})
	out := must[*kms.CreateKeyOutput](t)(as(h, admin).CreateKey(t.Context(), &kms.CreateKeyInput{
		Description: aws.String("papers"),
		KeySpec:     types.KeySpecSymmetricDefault,
		KeyUsage:    types.KeyUsageTypeEncryptDecrypt,
	}))
	got := out.KeyMetadata
	want := &types.KeyMetadata{
		AWSAccountId:          aws.String(customerAccount),
		Arn:                   aws.String("arn:aws:kms:us-west-2:111122223333:key/" + *got.KeyId),
		CreationDate:          aws.Time(clock.Now()),
		CurrentKeyMaterialId:  got.CurrentKeyMaterialId,
		CustomerMasterKeySpec: types.CustomerMasterKeySpecSymmetricDefault, //nolint:staticcheck // deprecated, and AWS still answers with it
		Description:           aws.String("papers"),
		Enabled:               true,
		EncryptionAlgorithms:  []types.EncryptionAlgorithmSpec{types.EncryptionAlgorithmSpecSymmetricDefault},
		KeyId:                 got.KeyId,
		KeyManager:            types.KeyManagerTypeCustomer,
		KeySpec:               types.KeySpecSymmetricDefault,
		KeyState:              types.KeyStateEnabled,
		KeyUsage:              types.KeyUsageTypeEncryptDecrypt,
		MultiRegion:           aws.Bool(false),
		Origin:                types.OriginTypeAwsKms,
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(types.KeyMetadata{})); diff != "" {
		t.Errorf("metadata (-want +got):\n%s", diff)
	}
	if raw, err := hex.DecodeString(*got.CurrentKeyMaterialId); err != nil || len(raw) != 32 {
		t.Errorf("key material id %q is not 64 hexadecimal digits", *got.CurrentKeyMaterialId)
	}
	described := must[*kms.DescribeKeyOutput](t)(as(h, admin).DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: got.KeyId}))
	if diff := cmp.Diff(got, described.KeyMetadata, cmpopts.IgnoreUnexported(types.KeyMetadata{})); diff != "" {
		t.Errorf("CreateKey and DescribeKey differ:\n%s", diff)
	}
}

// The texts about KeyUsage are those that public recordings of AWS have.
func TestCreateKeyRefusesOtherKinds(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	for name, tc := range map[string]struct {
		in            *kms.CreateKeyInput
		code, message string
	}{
		"spec":         {&kms.CreateKeyInput{KeySpec: types.KeySpecSm2, KeyUsage: types.KeyUsageTypeSignVerify}, "UnsupportedOperationException", "localkms does not support KeySpec SM2."},
		"no usage":     {&kms.CreateKeyInput{KeySpec: types.KeySpecRsa2048}, "ValidationException", "You must specify a KeyUsage value for all KMS keys except for symmetric encryption keys."},
		"usage":        {&kms.CreateKeyInput{KeyUsage: types.KeyUsageTypeSignVerify}, "ValidationException", "KeyUsage SIGN_VERIFY is not compatible with KeySpec SYMMETRIC_DEFAULT"},
		"HMAC usage":   {&kms.CreateKeyInput{KeySpec: types.KeySpecHmac256, KeyUsage: types.KeyUsageTypeEncryptDecrypt}, "ValidationException", "KeyUsage ENCRYPT_DECRYPT is not compatible with KeySpec HMAC_256"},
		"origin":       {&kms.CreateKeyInput{Origin: types.OriginTypeExternal}, "UnsupportedOperationException", "localkms does not support Origin EXTERNAL."},
		"multi-Region": {&kms.CreateKeyInput{MultiRegion: aws.Bool(true)}, "UnsupportedOperationException", "localkms does not support MultiRegion keys."},
		"store":        {&kms.CreateKeyInput{CustomKeyStoreId: aws.String("cks-1")}, "UnsupportedOperationException", "localkms does not support CustomKeyStoreId cks-1."},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := as(h, admin).CreateKey(t.Context(), tc.in)
			wantRefusal(t, err, tc.code, tc.message)
		})
	}
}

// Identifier forms: AWS KMS API Reference, KeyId of each operation. DescribeKey
// takes four, CreateGrant and the administrative operations take two.
func TestKeyIdentifiers(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	arn := newKey(t, h, brokerPolicy)
	id := arn[strings.LastIndex(arn, "/")+1:]
	aliasARN := "arn:aws:kms:us-west-2:111122223333:alias/papers"
	must[*kms.CreateAliasOutput](t)(as(h, admin).CreateAlias(t.Context(),
		&kms.CreateAliasInput{AliasName: aws.String("alias/papers"), TargetKeyId: &id}))
	const absent = "12345678-1234-1234-1234-123456789012"

	for name, tc := range map[string]struct {
		caller, id    string
		describe, two refusal
	}{
		"key id":       {caller: admin, id: id},
		"key ARN":      {caller: admin, id: arn},
		"foreign ARN":  {caller: registrar, id: arn},
		"alias name":   {admin, "alias/papers", refusal{}, refusal{"NotFoundException", "Invalid keyId 'alias/papers'"}},
		"alias ARN":    {admin, aliasARN, refusal{}, refusal{"NotFoundException", "Invalid keyId '" + aliasARN + "'"}},
		"not a UUID":   both(admin, "fake-key-id", "NotFoundException", "Invalid keyId 'fake-key-id'"),
		"unknown":      both(admin, absent, "NotFoundException", "Key 'arn:aws:kms:us-west-2:111122223333:key/"+absent+"' does not exist"),
		"multi-Region": both(admin, "mrk-12345678123412341234123456789012", "NotFoundException", "Key 'arn:aws:kms:us-west-2:111122223333:key/mrk-12345678123412341234123456789012' does not exist"),
		"other region": both(admin, strings.Replace(arn, "us-west-2", "eu-west-1", 1), "NotFoundException", "Invalid arn eu-west-1"),
		"foreign id":   both(registrar, id, "NotFoundException", "Key 'arn:aws:kms:us-west-2:444455556666:key/"+id+"' does not exist"),
		"not an ARN":   both(admin, "arn:aws:s3:::bucket", "InvalidArnException", "Invalid arn arn:aws:s3:::bucket"),
		"neither":      both(admin, "arn:aws:kms:us-west-2:111122223333:store/x", "InvalidArnException", "Invalid arn arn:aws:kms:us-west-2:111122223333:store/x"),
		"foreign alias name": {registrar, "alias/papers",
			refusal{"NotFoundException", "Alias arn:aws:kms:us-west-2:444455556666:alias/papers is not found."},
			refusal{"NotFoundException", "Invalid keyId 'alias/papers'"}},
		"foreign alias ARN": {registrar, aliasARN, refusal{}, refusal{"NotFoundException", "Invalid keyId '" + aliasARN + "'"}},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := as(h, tc.caller).DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: &tc.id})
			wantRefusal(t, err, tc.describe.code, tc.describe.message)
			if err == nil && *out.KeyMetadata.Arn != arn {
				t.Errorf("described %s, want %s", *out.KeyMetadata.Arn, arn)
			}
			_, err = as(h, tc.caller).ListGrants(t.Context(), &kms.ListGrantsInput{KeyId: &tc.id})
			wantRefusal(t, err, tc.two.code, tc.two.message)
		})
	}
}

// both is a case that every operation refuses alike.
func both(caller, id, code, message string) struct {
	caller, id    string
	describe, two refusal
} {
	r := refusal{code, message}
	return struct {
		caller, id    string
		describe, two refusal
	}{caller, id, r, r}
}

// Key states: AWS KMS Developer Guide, "Key states of AWS KMS keys", row Disabled.
func TestDisabledKey(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	key, other := newKey(t, h, ""), newKey(t, h, "")
	c, ctx := as(h, admin), t.Context()
	blob := must[*kms.EncryptOutput](t)(c.Encrypt(ctx, &kms.EncryptInput{KeyId: &key, Plaintext: []byte("x")})).CiphertextBlob
	foreign := must[*kms.EncryptOutput](t)(c.Encrypt(ctx, &kms.EncryptInput{KeyId: &other, Plaintext: []byte("x")})).CiphertextBlob
	g := must[*kms.CreateGrantOutput](t)(c.CreateGrant(ctx, decryptGrant(key, worker)))
	must[*kms.DisableKeyOutput](t)(c.DisableKey(ctx, &kms.DisableKeyInput{KeyId: &key}))
	must[*kms.DisableKeyOutput](t)(c.DisableKey(ctx, &kms.DisableKeyInput{KeyId: &key}))

	refused := map[string]func() error{
		"Encrypt": func() error {
			_, err := c.Encrypt(ctx, &kms.EncryptInput{KeyId: &key, Plaintext: []byte("x")})
			return err
		},
		"Decrypt": func() error {
			_, err := c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob})
			return err
		},
		"GenerateDataKey": func() error {
			_, err := c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: &key, KeySpec: types.DataKeySpecAes256})
			return err
		},
		"GenerateDataKeyWithoutPlaintext": func() error {
			_, err := c.GenerateDataKeyWithoutPlaintext(ctx, &kms.GenerateDataKeyWithoutPlaintextInput{KeyId: &key, NumberOfBytes: aws.Int32(1)})
			return err
		},
		"ReEncrypt from": func() error {
			_, err := c.ReEncrypt(ctx, &kms.ReEncryptInput{CiphertextBlob: blob, DestinationKeyId: &other})
			return err
		},
		"ReEncrypt to": func() error {
			_, err := c.ReEncrypt(ctx, &kms.ReEncryptInput{CiphertextBlob: foreign, DestinationKeyId: &key})
			return err
		},
		"CreateGrant": func() error {
			_, err := c.CreateGrant(ctx, decryptGrant(key, worker))
			return err
		},
		"DryRun": func() error {
			_, err := c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob, DryRun: aws.Bool(true)})
			return err
		},
	}
	for name, call := range refused {
		t.Run(name, func(t *testing.T) { wantRefusal(t, call(), "DisabledException", key+" is disabled.") })
	}

	meta := must[*kms.DescribeKeyOutput](t)(c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &key})).KeyMetadata
	if meta.Enabled || meta.KeyState != types.KeyStateDisabled || meta.CurrentKeyMaterialId == nil {
		t.Errorf("a disabled key is described as Enabled=%v KeyState=%s", meta.Enabled, meta.KeyState)
	}
	must[*kms.ListGrantsOutput](t)(c.ListGrants(ctx, &kms.ListGrantsInput{KeyId: &key}))
	must[*kms.RetireGrantOutput](t)(as(h, customerRoot).RetireGrant(ctx, &kms.RetireGrantInput{GrantToken: g.GrantToken}))
	must[*kms.PutKeyPolicyOutput](t)(c.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: &key, Policy: aws.String(brokerPolicy)}))
	must[*kms.CreateAliasOutput](t)(c.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: aws.String("alias/off"), TargetKeyId: &key}))
	must[*kms.EnableKeyOutput](t)(c.EnableKey(ctx, &kms.EnableKeyInput{KeyId: &key}))
	must[*kms.DecryptOutput](t)(c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob}))
}

// AWS KMS API Reference: these operations do not work across accounts.
func TestOwnerOperations(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	key := newKey(t, h, `{"Statement":{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*"}}`)
	c, ctx := as(h, stranger), t.Context()
	for operation, call := range map[string]func() error{
		"EnableKey":    func() error { _, err := c.EnableKey(ctx, &kms.EnableKeyInput{KeyId: &key}); return err },
		"DisableKey":   func() error { _, err := c.DisableKey(ctx, &kms.DisableKeyInput{KeyId: &key}); return err },
		"GetKeyPolicy": func() error { _, err := c.GetKeyPolicy(ctx, &kms.GetKeyPolicyInput{KeyId: &key}); return err },
		"PutKeyPolicy": func() error {
			_, err := c.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: &key, Policy: aws.String(brokerPolicy)})
			return err
		},
		"CreateAlias": func() error {
			_, err := c.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: aws.String("alias/mine"), TargetKeyId: &key})
			return err
		},
		"ScheduleKeyDeletion": func() error {
			_, err := c.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: &key})
			return err
		},
		"RotateKeyOnDemand": func() error {
			_, err := c.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: &key})
			return err
		},
		"ListKeyRotations": func() error {
			_, err := c.ListKeyRotations(ctx, &kms.ListKeyRotationsInput{KeyId: &key})
			return err
		},
		"UpdateKeyDescription": func() error {
			_, err := c.UpdateKeyDescription(ctx, &kms.UpdateKeyDescriptionInput{KeyId: &key, Description: aws.String("mine")})
			return err
		},
		"ListKeyPolicies": func() error {
			_, err := c.ListKeyPolicies(ctx, &kms.ListKeyPoliciesInput{KeyId: &key})
			return err
		},
		"UntagResource": func() error {
			_, err := c.UntagResource(ctx, &kms.UntagResourceInput{KeyId: &key, TagKeys: []string{"a"}})
			return err
		},
		"TagResource": func() error {
			_, err := c.TagResource(ctx, &kms.TagResourceInput{KeyId: &key, Tags: tagsOf("a", "1")})
			return err
		},
		"ListResourceTags": func() error {
			_, err := c.ListResourceTags(ctx, &kms.ListResourceTagsInput{KeyId: &key})
			return err
		},
		"GetKeyLastUsage": func() error {
			_, err := c.GetKeyLastUsage(ctx, &kms.GetKeyLastUsageInput{KeyId: &key})
			return err
		},
		"EnableKeyRotation": func() error {
			_, err := c.EnableKeyRotation(ctx, &kms.EnableKeyRotationInput{KeyId: &key})
			return err
		},
		"DisableKeyRotation": func() error {
			_, err := c.DisableKeyRotation(ctx, &kms.DisableKeyRotationInput{KeyId: &key})
			return err
		},
		"CancelKeyDeletion": func() error {
			_, err := c.CancelKeyDeletion(ctx, &kms.CancelKeyDeletionInput{KeyId: &key})
			return err
		},
	} {
		t.Run(operation, func(t *testing.T) {
			wantRefusal(t, call(), "AccessDeniedException", "User: "+stranger+" is not authorized to perform: kms:"+operation+
				" on resource: "+key+" because no resource-based policy allows the kms:"+operation+" action")
		})
	}
}

// AWS KMS API Reference, CreateAlias and ListAliases.
func TestAliases(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	key, other := newKey(t, h, ""), newKey(t, h, "")
	c, ctx := as(h, admin), t.Context()
	for name, target := range pairs("alias/a", key, "alias/b", other, "alias/c", key) {
		must[*kms.CreateAliasOutput](t)(c.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: &name, TargetKeyId: &target}))
	}
	for name, want := range map[string]refusal{
		"alias/a":       {"AlreadyExistsException", "An alias with the name arn:aws:kms:us-west-2:111122223333:alias/a already exists"},
		"a":             {"ValidationException", `Alias must start with the prefix "alias/". Please see https://docs.aws.amazon.com/kms/latest/developerguide/kms-alias.html`},
		"alias/x!":      {"ValidationException", `1 validation error detected: Value 'alias/x!' at 'aliasName' failed to satisfy constraint: Member must satisfy regular expression pattern: ^[a-zA-Z0-9:/_-]+$`},
		"alias/aws/ebs": {"NotAuthorizedException", ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: &name, TargetKeyId: &key})
			wantRefusal(t, err, want.code, want.message)
		})
	}
	names := func(in *kms.ListAliasesInput) (all []string) {
		for pages := kms.NewListAliasesPaginator(c, in); pages.HasMorePages(); {
			for _, a := range must[*kms.ListAliasesOutput](t)(pages.NextPage(ctx)).Aliases {
				all = append(all, *a.AliasName)
			}
		}
		return all
	}
	if diff := cmp.Diff([]string{"alias/a", "alias/b", "alias/c"}, names(&kms.ListAliasesInput{Limit: aws.Int32(1)})); diff != "" {
		t.Errorf("all aliases (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"alias/a", "alias/c"}, names(&kms.ListAliasesInput{KeyId: &key})); diff != "" {
		t.Errorf("aliases of one key (-want +got):\n%s", diff)
	}
	_, err := c.ListAliases(ctx, &kms.ListAliasesInput{Marker: aws.String("nonsense")})
	wantCode(t, err, "InvalidMarkerException")
	if other := must[*kms.ListAliasesOutput](t)(as(h, stranger).ListAliases(ctx, &kms.ListAliasesInput{})); len(other.Aliases) != 0 {
		t.Errorf("another account sees %d aliases", len(other.Aliases))
	}
}

// AWS KMS API Reference, ListKeys: those of the caller's account and region.
func TestKeysAreListed(t *testing.T) {
	clock := newClock()
	h := newKMS(t, localkms.Config{Now: clock.Now})
	c, ctx := as(h, admin), t.Context()
	var want []string
	for range 7 {
		want = append(want, newKey(t, h, ""))
	}
	gone := newKey(t, h, "")
	schedule(t, c, gone, 7)
	must[*kms.CreateKeyOutput](t)(as(h, stranger).CreateKey(ctx, &kms.CreateKeyInput{}))
	must[*kms.CreateKeyOutput](t)(in(h, admin, "eu-west-1").CreateKey(ctx, &kms.CreateKeyInput{}))
	list := func(limit int32) (all []string) {
		for pages := kms.NewListKeysPaginator(c, &kms.ListKeysInput{Limit: &limit}); pages.HasMorePages(); {
			page := must[*kms.ListKeysOutput](t)(pages.NextPage(ctx)).Keys
			if len(page) > int(limit) {
				t.Errorf("%d keys on a page of %d", len(page), limit)
			}
			for _, key := range page {
				if !strings.HasSuffix(*key.KeyArn, "/"+*key.KeyId) {
					t.Errorf("%s is not %s", *key.KeyArn, *key.KeyId)
				}
				all = append(all, *key.KeyArn)
			}
		}
		return all
	}
	slices.Sort(want)
	for _, limit := range []int32{1, 3, 8, 1000} {
		if diff := cmp.Diff(append([]string{gone}, want...), list(limit), cmpopts.SortSlices(strings.Compare)); diff != "" {
			t.Errorf("keys by %d (-want +got):\n%s", limit, diff)
		}
	}
	clock.advance(7 * 24 * time.Hour)
	if diff := cmp.Diff(want, list(2), cmpopts.SortSlices(strings.Compare)); diff != "" {
		t.Errorf("keys after a deletion (-want +got):\n%s", diff)
	}
	_, err := c.ListKeys(ctx, &kms.ListKeysInput{Marker: aws.String("x")})
	wantCode(t, err, "InvalidMarkerException")
	_, err = c.ListKeys(ctx, &kms.ListKeysInput{Limit: aws.Int32(1001)})
	wantRefusal(t, err, "ValidationException", "1 validation error detected: Value '1001' at 'limit' failed to satisfy constraint: Member must have value less than or equal to 1000")
}

// AWS KMS API Reference, UpdateKeyDescription and ListKeyPolicies.
func TestDescriptionAndPolicyNames(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	c, ctx := as(h, admin), t.Context()
	key := newKey(t, h, "")
	for _, text := range []string{"papers", ""} {
		must[*kms.UpdateKeyDescriptionOutput](t)(c.UpdateKeyDescription(ctx, &kms.UpdateKeyDescriptionInput{KeyId: &key, Description: &text}))
		if got := *must[*kms.DescribeKeyOutput](t)(c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &key})).KeyMetadata.Description; got != text {
			t.Errorf("described as %q, want %q", got, text)
		}
	}
	names := must[*kms.ListKeyPoliciesOutput](t)(c.ListKeyPolicies(ctx, &kms.ListKeyPoliciesInput{KeyId: &key}))
	if diff := cmp.Diff([]string{"default"}, names.PolicyNames); diff != "" || names.Truncated {
		t.Errorf("policies (-want +got):\n%s", diff)
	}
}
