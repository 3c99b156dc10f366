package localkms_test

import (
	"context"
	"slices"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/keybroker/keybroker/internal/localkms"
)

// stateWorld is a key about to get into some state, and what was made with it
// while it was enabled.
type stateWorld struct {
	ctx              context.Context
	c                *kms.Client
	key, mac, other  *string // the key, an HMAC key in the same state, an enabled key
	blob, otherBlob  []byte
	tag              []byte
	grant            *kms.CreateGrantOutput
	alias, elsewhere *string // aliases of the key and of the other one
}

func newStateWorld(t *testing.T) *stateWorld {
	h := newKMS(t, localkms.Config{})
	w := &stateWorld{ctx: t.Context(), c: as(h, customerRoot), alias: aws.String("alias/a"), elsewhere: aws.String("alias/b")}
	w.key, w.other = aws.String(newKey(t, h, "")), aws.String(newKey(t, h, ""))
	w.mac = newKeyOf(t, w.c, "HMAC_256", "GENERATE_VERIFY_MAC").Arn
	w.blob = must[*kms.EncryptOutput](t)(w.c.Encrypt(w.ctx, &kms.EncryptInput{KeyId: w.key, Plaintext: []byte("x")})).CiphertextBlob
	w.otherBlob = must[*kms.EncryptOutput](t)(w.c.Encrypt(w.ctx, &kms.EncryptInput{KeyId: w.other, Plaintext: []byte("x")})).CiphertextBlob
	w.tag = must[*kms.GenerateMacOutput](t)(w.c.GenerateMac(w.ctx, &kms.GenerateMacInput{KeyId: w.mac, MacAlgorithm: "HMAC_SHA_256", Message: []byte("x")})).Mac
	w.grant = must[*kms.CreateGrantOutput](t)(w.c.CreateGrant(w.ctx, decryptGrant(*w.key, worker)))
	must[*kms.CreateAliasOutput](t)(w.c.CreateAlias(w.ctx, &kms.CreateAliasInput{AliasName: w.alias, TargetKeyId: w.key}))
	must[*kms.CreateAliasOutput](t)(w.c.CreateAlias(w.ctx, &kms.CreateAliasInput{AliasName: w.elsewhere, TargetKeyId: w.other}))
	return w
}

// states are how a key gets into each state that all keys can have.
var states = map[string]func(w *stateWorld, key *string) error{
	"Enabled": func(*stateWorld, *string) error { return nil },
	"Disabled": func(w *stateWorld, key *string) error {
		_, err := w.c.DisableKey(w.ctx, &kms.DisableKeyInput{KeyId: key})
		return err
	},
	"PendingDeletion": func(w *stateWorld, key *string) error {
		_, err := w.c.ScheduleKeyDeletion(w.ctx, &kms.ScheduleKeyDeletionInput{KeyId: key})
		return err
	},
}

// stateRows is the table of the AWS KMS Developer Guide, "Key states of AWS KMS
// keys", Key state table: of each operation that is served, what it answers in the
// states that all keys can have, by the table's footnotes. Where that leaves a
// choice between [2] and [3], it is [3], as recorded from AWS.
var stateRows = []struct {
	operation                string
	enabled, disabled, going string
	call                     func(w *stateWorld) error
}{
	{"CancelKeyDeletion", "[4]", "[4]", "ok", func(w *stateWorld) error {
		_, err := w.c.CancelKeyDeletion(w.ctx, &kms.CancelKeyDeletionInput{KeyId: w.key})
		return err
	}},
	{"CreateAlias", "ok", "ok", "[3]", func(w *stateWorld) error {
		_, err := w.c.CreateAlias(w.ctx, &kms.CreateAliasInput{AliasName: aws.String("alias/new"), TargetKeyId: w.key})
		return err
	}},
	{"CreateGrant", "ok", "[1]", "[3]", func(w *stateWorld) error {
		_, err := w.c.CreateGrant(w.ctx, decryptGrant(*w.key, stranger))
		return err
	}},
	{"Decrypt", "ok", "[1]", "[3]", func(w *stateWorld) error {
		_, err := w.c.Decrypt(w.ctx, &kms.DecryptInput{CiphertextBlob: w.blob})
		return err
	}},
	{"DeleteAlias", "ok", "ok", "ok", func(w *stateWorld) error {
		_, err := w.c.DeleteAlias(w.ctx, &kms.DeleteAliasInput{AliasName: w.alias})
		return err
	}},
	{"DescribeKey", "ok", "ok", "ok", func(w *stateWorld) error {
		_, err := w.c.DescribeKey(w.ctx, &kms.DescribeKeyInput{KeyId: w.key})
		return err
	}},
	{"DisableKey", "ok", "ok", "[3]", func(w *stateWorld) error {
		_, err := w.c.DisableKey(w.ctx, &kms.DisableKeyInput{KeyId: w.key})
		return err
	}},
	{"DisableKeyRotation", "ok", "[1]", "[3]", func(w *stateWorld) error {
		_, err := w.c.DisableKeyRotation(w.ctx, &kms.DisableKeyRotationInput{KeyId: w.key})
		return err
	}},
	{"EnableKey", "ok", "ok", "[3]", func(w *stateWorld) error {
		_, err := w.c.EnableKey(w.ctx, &kms.EnableKeyInput{KeyId: w.key})
		return err
	}},
	{"EnableKeyRotation", "ok", "[1]", "[3]", func(w *stateWorld) error {
		_, err := w.c.EnableKeyRotation(w.ctx, &kms.EnableKeyRotationInput{KeyId: w.key})
		return err
	}},
	{"Encrypt", "ok", "[1]", "[3]", func(w *stateWorld) error {
		_, err := w.c.Encrypt(w.ctx, &kms.EncryptInput{KeyId: w.key, Plaintext: []byte("x")})
		return err
	}},
	{"GenerateDataKey", "ok", "[1]", "[3]", func(w *stateWorld) error {
		_, err := w.c.GenerateDataKey(w.ctx, &kms.GenerateDataKeyInput{KeyId: w.key, KeySpec: "AES_256"})
		return err
	}},
	{"GenerateDataKeyPair", "ok", "[1]", "[3]", func(w *stateWorld) error {
		_, err := w.c.GenerateDataKeyPair(w.ctx, &kms.GenerateDataKeyPairInput{KeyId: w.key, KeyPairSpec: "ECC_NIST_P256"})
		return err
	}},
	{"GenerateDataKeyPairWithoutPlaintext", "ok", "[1]", "[3]", func(w *stateWorld) error {
		_, err := w.c.GenerateDataKeyPairWithoutPlaintext(w.ctx, &kms.GenerateDataKeyPairWithoutPlaintextInput{KeyId: w.key, KeyPairSpec: "ECC_NIST_P256"})
		return err
	}},
	{"GenerateDataKeyWithoutPlaintext", "ok", "[1]", "[3]", func(w *stateWorld) error {
		_, err := w.c.GenerateDataKeyWithoutPlaintext(w.ctx, &kms.GenerateDataKeyWithoutPlaintextInput{KeyId: w.key, KeySpec: "AES_256"})
		return err
	}},
	{"GenerateMac", "ok", "[1]", "[3]", func(w *stateWorld) error {
		_, err := w.c.GenerateMac(w.ctx, &kms.GenerateMacInput{KeyId: w.mac, MacAlgorithm: "HMAC_SHA_256", Message: []byte("x")})
		return err
	}},
	{"GetKeyPolicy", "ok", "ok", "ok", func(w *stateWorld) error {
		_, err := w.c.GetKeyPolicy(w.ctx, &kms.GetKeyPolicyInput{KeyId: w.key})
		return err
	}},
	{"GetKeyRotationStatus", "ok", "ok", "ok", func(w *stateWorld) error {
		_, err := w.c.GetKeyRotationStatus(w.ctx, &kms.GetKeyRotationStatusInput{KeyId: w.key})
		return err
	}},
	{"ListAliases", "ok", "ok", "ok", func(w *stateWorld) error {
		_, err := w.c.ListAliases(w.ctx, &kms.ListAliasesInput{KeyId: w.key})
		return err
	}},
	{"ListGrants", "ok", "ok", "ok", func(w *stateWorld) error {
		_, err := w.c.ListGrants(w.ctx, &kms.ListGrantsInput{KeyId: w.key})
		return err
	}},
	{"ListKeyPolicies", "ok", "ok", "ok", func(w *stateWorld) error {
		_, err := w.c.ListKeyPolicies(w.ctx, &kms.ListKeyPoliciesInput{KeyId: w.key})
		return err
	}},
	{"ListKeyRotations", "ok", "ok", "ok", func(w *stateWorld) error {
		_, err := w.c.ListKeyRotations(w.ctx, &kms.ListKeyRotationsInput{KeyId: w.key})
		return err
	}},
	{"ListResourceTags", "ok", "ok", "ok", func(w *stateWorld) error {
		_, err := w.c.ListResourceTags(w.ctx, &kms.ListResourceTagsInput{KeyId: w.key})
		return err
	}},
	{"PutKeyPolicy", "ok", "ok", "ok", func(w *stateWorld) error {
		_, err := w.c.PutKeyPolicy(w.ctx, &kms.PutKeyPolicyInput{KeyId: w.key, Policy: aws.String(brokerPolicy)})
		return err
	}},
	{"ReEncrypt", "ok", "[1]", "[3]", func(w *stateWorld) error {
		_, err := w.c.ReEncrypt(w.ctx, &kms.ReEncryptInput{CiphertextBlob: w.blob, DestinationKeyId: w.other})
		return err
	}},
	{"ReEncrypt", "ok", "[1]", "[3]", func(w *stateWorld) error {
		_, err := w.c.ReEncrypt(w.ctx, &kms.ReEncryptInput{CiphertextBlob: w.otherBlob, DestinationKeyId: w.key})
		return err
	}},
	{"RetireGrant", "ok", "ok", "ok", func(w *stateWorld) error {
		_, err := w.c.RetireGrant(w.ctx, &kms.RetireGrantInput{GrantToken: w.grant.GrantToken})
		return err
	}},
	{"RevokeGrant", "ok", "ok", "ok", func(w *stateWorld) error {
		_, err := w.c.RevokeGrant(w.ctx, &kms.RevokeGrantInput{KeyId: w.key, GrantId: w.grant.GrantId})
		return err
	}},
	{"RotateKeyOnDemand", "ok", "[1]", "[3]", func(w *stateWorld) error {
		_, err := w.c.RotateKeyOnDemand(w.ctx, &kms.RotateKeyOnDemandInput{KeyId: w.key})
		return err
	}},
	{"ScheduleKeyDeletion", "ok", "ok", "[3]", func(w *stateWorld) error {
		_, err := w.c.ScheduleKeyDeletion(w.ctx, &kms.ScheduleKeyDeletionInput{KeyId: w.key})
		return err
	}},
	{"TagResource", "ok", "ok", "[3]", func(w *stateWorld) error {
		_, err := w.c.TagResource(w.ctx, &kms.TagResourceInput{KeyId: w.key, Tags: tagsOf("a", "1")})
		return err
	}},
	{"UntagResource", "ok", "ok", "[3]", func(w *stateWorld) error {
		_, err := w.c.UntagResource(w.ctx, &kms.UntagResourceInput{KeyId: w.key, TagKeys: []string{"a"}})
		return err
	}},
	// [10]: what counts is the key that the alias moves to.
	{"UpdateAlias", "ok", "ok", "ok", func(w *stateWorld) error {
		_, err := w.c.UpdateAlias(w.ctx, &kms.UpdateAliasInput{AliasName: w.alias, TargetKeyId: w.other})
		return err
	}},
	{"UpdateAlias", "ok", "ok", "[3]", func(w *stateWorld) error {
		_, err := w.c.UpdateAlias(w.ctx, &kms.UpdateAliasInput{AliasName: w.elsewhere, TargetKeyId: w.key})
		return err
	}},
	{"UpdateKeyDescription", "ok", "ok", "[3]", func(w *stateWorld) error {
		_, err := w.c.UpdateKeyDescription(w.ctx, &kms.UpdateKeyDescriptionInput{KeyId: w.key, Description: aws.String("d")})
		return err
	}},
	{"VerifyMac", "ok", "[1]", "[3]", func(w *stateWorld) error {
		_, err := w.c.VerifyMac(w.ctx, &kms.VerifyMacInput{KeyId: w.mac, MacAlgorithm: "HMAC_SHA_256", Message: []byte("x"), Mac: w.tag})
		return err
	}},
	// Not of the table: an operation that is newer. Nothing is known of states.
	{"GetKeyLastUsage", "ok", "ok", "ok", func(w *stateWorld) error {
		_, err := w.c.GetKeyLastUsage(w.ctx, &kms.GetKeyLastUsageInput{KeyId: w.key})
		return err
	}},
}

// stateless are the operations that use no key that exists, which the table omits.
var stateless = []string{"CreateKey", "GenerateRandom", "ListKeys", "ListRetirableGrants"}

func TestKeyStateTable(t *testing.T) {
	covered := slices.Clone(stateless)
	for _, row := range stateRows {
		covered = append(covered, row.operation)
		for state, footnote := range map[string]string{"Enabled": row.enabled, "Disabled": row.disabled, "PendingDeletion": row.going} {
			t.Run(row.operation+"/"+state, func(t *testing.T) {
				w := newStateWorld(t)
				for _, key := range []*string{w.key, w.mac} {
					if err := states[state](w, key); err != nil {
						t.Fatal(err)
					}
				}
				err := row.call(w)
				key := *w.key
				if slices.Contains([]string{"GenerateMac", "VerifyMac"}, row.operation) {
					key = *w.mac
				}
				want := map[string]refusal{
					"ok":  {},
					"[1]": {"DisabledException", key + " is disabled."},
					"[3]": {"KMSInvalidStateException", key + " is pending deletion."},
					"[4]": {"KMSInvalidStateException", key + " is not pending deletion."},
				}[footnote]
				wantRefusal(t, err, want.code, want.message)
				if err != nil {
					stays(t, w, types.KeyState(state))
				}
			})
		}
	}
	slices.Sort(covered)
	if covered = slices.Compact(covered); !slices.Equal(covered, localkms.Operations()) {
		t.Errorf("the table has %v, served are %v", covered, localkms.Operations())
	}
}

// stays checks that a refusal left the key in its state.
func stays(t *testing.T, w *stateWorld, state types.KeyState) {
	t.Helper()
	meta := must[*kms.DescribeKeyOutput](t)(w.c.DescribeKey(w.ctx, &kms.DescribeKeyInput{KeyId: w.key})).KeyMetadata
	if meta.KeyState != state {
		t.Errorf("the key is %s, was %s", meta.KeyState, state)
	}
}
