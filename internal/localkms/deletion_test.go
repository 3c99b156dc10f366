package localkms_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/keybroker/keybroker/internal/localkms"
)

const day = 24 * time.Hour

func schedule(t testing.TB, c *kms.Client, key string, days int32) *kms.ScheduleKeyDeletionOutput {
	t.Helper()
	return must[*kms.ScheduleKeyDeletionOutput](t)(c.ScheduleKeyDeletion(t.Context(),
		&kms.ScheduleKeyDeletionInput{KeyId: &key, PendingWindowInDays: &days}))
}

// AWS KMS API Reference, ScheduleKeyDeletion and CancelKeyDeletion.
func TestScheduleAndCancel(t *testing.T) {
	clock := newClock()
	h := newKMS(t, localkms.Config{Now: clock.Now})
	key, c, ctx := newKey(t, h, ""), as(h, admin), t.Context()
	id := key[strings.LastIndex(key, "/")+1:]
	cancel := func() error {
		_, err := c.CancelKeyDeletion(ctx, &kms.CancelKeyDeletionInput{KeyId: &id})
		return err
	}
	wantRefusal(t, cancel(), "KMSInvalidStateException", key+" is not pending deletion.")
	for days, model := range map[int32]string{
		0:   "1 validation error detected: Value '0' at 'pendingWindowInDays' failed to satisfy constraint: Member must have value greater than or equal to 1",
		6:   "PendingWindowInDays must be between 7 and 30.",
		31:  "PendingWindowInDays must be between 7 and 30.",
		366: "1 validation error detected: Value '366' at 'pendingWindowInDays' failed to satisfy constraint: Member must have value less than or equal to 365",
	} {
		_, err := c.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: &key, PendingWindowInDays: &days})
		wantRefusal(t, err, "ValidationException", model)
	}

	out := must[*kms.ScheduleKeyDeletionOutput](t)(c.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: &id}))
	date := clock.Now().Add(30 * day)
	if *out.KeyId != key || out.KeyState != types.KeyStatePendingDeletion || *out.PendingWindowInDays != 30 || !out.DeletionDate.Equal(date) {
		t.Errorf("answer %s %s %d %s", *out.KeyId, out.KeyState, *out.PendingWindowInDays, out.DeletionDate)
	}
	meta := must[*kms.DescribeKeyOutput](t)(c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &key})).KeyMetadata
	if meta.Enabled || meta.KeyState != types.KeyStatePendingDeletion || !meta.DeletionDate.Equal(date) {
		t.Errorf("described as Enabled=%v KeyState=%s DeletionDate=%s", meta.Enabled, meta.KeyState, meta.DeletionDate)
	}
	_, err := c.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: &key, PendingWindowInDays: aws.Int32(7)})
	wantRefusal(t, err, "KMSInvalidStateException", key+" is pending deletion.")

	wantCode(t, cancel(), "")
	meta = must[*kms.DescribeKeyOutput](t)(c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &key})).KeyMetadata
	if meta.KeyState != types.KeyStateDisabled || meta.DeletionDate != nil {
		t.Errorf("after the cancellation: %s %v", meta.KeyState, meta.DeletionDate)
	}
	clock.advance(40 * day)
	must[*kms.EnableKeyOutput](t)(c.EnableKey(ctx, &kms.EnableKeyInput{KeyId: &key}))
	wantCode(t, encryptWith(t, nil)(c, key), "")
}

// Key states: AWS KMS Developer Guide, "Key states of AWS KMS keys", column
// Pending deletion.
func TestPendingDeletion(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	key, other := newKey(t, h, ""), newKey(t, h, "")
	c, ctx := as(h, admin), t.Context()
	blob := must[*kms.EncryptOutput](t)(c.Encrypt(ctx, &kms.EncryptInput{KeyId: &key, Plaintext: []byte("x")})).CiphertextBlob
	foreign := must[*kms.EncryptOutput](t)(c.Encrypt(ctx, &kms.EncryptInput{KeyId: &other, Plaintext: []byte("x")})).CiphertextBlob
	grants := []*kms.CreateGrantOutput{
		must[*kms.CreateGrantOutput](t)(c.CreateGrant(ctx, decryptGrant(key, worker))),
		must[*kms.CreateGrantOutput](t)(c.CreateGrant(ctx, decryptGrant(key, stranger))),
	}
	schedule(t, c, key, 7)
	for name, call := range map[string]func() error{
		"Encrypt": func() error { return encryptWith(t, nil)(c, key) },
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
		"DryRun": func() error {
			_, err := c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob, DryRun: aws.Bool(true)})
			return err
		},
		"CreateGrant": func() error {
			_, err := c.CreateGrant(ctx, decryptGrant(key, worker))
			return err
		},
		"CreateAlias": func() error {
			_, err := c.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: aws.String("alias/late"), TargetKeyId: &key})
			return err
		},
		"EnableKey":  func() error { _, err := c.EnableKey(ctx, &kms.EnableKeyInput{KeyId: &key}); return err },
		"DisableKey": func() error { _, err := c.DisableKey(ctx, &kms.DisableKeyInput{KeyId: &key}); return err },
	} {
		t.Run(name, func(t *testing.T) {
			wantRefusal(t, call(), "KMSInvalidStateException", key+" is pending deletion.")
		})
	}
	must[*kms.PutKeyPolicyOutput](t)(c.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: &key, Policy: aws.String(brokerPolicy)}))
	must[*kms.GetKeyPolicyOutput](t)(c.GetKeyPolicy(ctx, &kms.GetKeyPolicyInput{KeyId: &key}))
	if n := len(grantsOf(t, h, registrar, key)); n != 2 {
		t.Errorf("%d grants are listed, want 2", n)
	}
	must[*kms.RetireGrantOutput](t)(as(h, customerRoot).RetireGrant(ctx, &kms.RetireGrantInput{GrantToken: grants[0].GrantToken}))
	must[*kms.RevokeGrantOutput](t)(c.RevokeGrant(ctx, &kms.RevokeGrantInput{KeyId: &key, GrantId: grants[1].GrantId}))
}

// After its date a key is gone, with its aliases and grants, and in the end its
// material leaves the disk.
func TestKeyIsGone(t *testing.T) {
	clock, dir := newClock(), t.TempDir()
	open := func() *localkms.KMS {
		h, err := localkms.New(localkms.Config{Dir: dir, Principals: cast(), Now: clock.Now, ClockSkew: -1})
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	h := open()
	c, ctx := as(h, admin), t.Context()
	key, kept := newKey(t, h, brokerPolicy), newKey(t, h, brokerPolicy)
	must[*kms.CreateAliasOutput](t)(c.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: aws.String("alias/a"), TargetKeyId: &key}))
	in := decryptGrant(key, worker)
	in.RetiringPrincipal = aws.String(registrar)
	grant := must[*kms.CreateGrantOutput](t)(c.CreateGrant(ctx, in))
	blob := must[*kms.EncryptOutput](t)(c.Encrypt(ctx, &kms.EncryptInput{KeyId: &key, Plaintext: []byte("x")})).CiphertextBlob
	schedule(t, c, key, 7)

	clock.advance(7*day - time.Millisecond)
	must[*kms.DescribeKeyOutput](t)(c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: aws.String("alias/a")}))
	clock.advance(time.Millisecond)
	check := func() {
		t.Helper()
		c := as(h, admin)
		_, err := c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &key})
		wantRefusal(t, err, "NotFoundException", "Key '"+key+"' does not exist")
		_, err = c.CancelKeyDeletion(ctx, &kms.CancelKeyDeletionInput{KeyId: &key})
		wantCode(t, err, "NotFoundException")
		_, err = c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: aws.String("alias/a")})
		wantRefusal(t, err, "NotFoundException", "Alias arn:aws:kms:us-west-2:111122223333:alias/a is not found.")
		_, err = c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob, KeyId: &key})
		wantCode(t, err, "NotFoundException")
		_, err = c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob})
		wantCode(t, err, "AccessDeniedException")
		_, err = as(h, registrar).RetireGrant(ctx, &kms.RetireGrantInput{GrantToken: grant.GrantToken})
		wantCode(t, err, "NotFoundException")
		if n := len(must[*kms.ListAliasesOutput](t)(c.ListAliases(ctx, &kms.ListAliasesInput{})).Aliases); n != 0 {
			t.Errorf("%d aliases are left", n)
		}
		if n := len(retirable(t, h, registrar, registrar)); n != 0 {
			t.Errorf("%d grants are left", n)
		}
	}
	check()
	must[*kms.CreateAliasOutput](t)(c.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: aws.String("alias/b"), TargetKeyId: &kept}))
	must[*kms.ListAliasesOutput](t)(c.ListAliases(ctx, &kms.ListAliasesInput{}))
	closeKMS(t, h)
	h = open()
	defer closeKMS(t, h)
	must[*kms.DescribeKeyOutput](t)(as(h, admin).DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: aws.String("alias/b")}))
	journal, err := os.ReadFile(filepath.Join(dir, "journal"))
	if err != nil || bytes.Contains(journal, []byte(key[strings.LastIndex(key, "/")+1:])) {
		t.Errorf("the deleted key is still in the journal: %v", err)
	}
}
