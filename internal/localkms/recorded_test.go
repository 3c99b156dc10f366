package localkms_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/google/go-cmp/cmp"

	"github.com/keybroker/keybroker/internal/localkms"
)

// What follows was recorded from real AWS by others, and published: the snapshots
// of LocalStack's tests (seen 2026-03), with the month of the recording; public
// issues where they are named. Only the parts that differ from account to account
// are ours.

// recordedWorld is what the recordings were made with.
type recordedWorld struct {
	h                                  *localkms.KMS
	key, other, disabled, going        string
	signing, mac, rotated              string
	blob, inContext, truncated, longer string // base64
}

func newRecordedWorld(t *testing.T) *recordedWorld {
	h := newKMS(t, localkms.Config{})
	w := &recordedWorld{h: h, key: newKey(t, h, ""), other: newKey(t, h, ""), disabled: newKey(t, h, ""), going: newKey(t, h, ""), rotated: newKey(t, h, "")}
	c, ctx := as(h, admin), t.Context()
	w.signing = *newKeyOf(t, c, "RSA_2048", "SIGN_VERIFY").Arn
	w.mac = *newKeyOf(t, c, "HMAC_224", "GENERATE_VERIFY_MAC").Arn
	seal := func(context map[string]string) []byte {
		return must[*kms.EncryptOutput](t)(c.Encrypt(ctx, &kms.EncryptInput{KeyId: &w.key, Plaintext: []byte("x"), EncryptionContext: context})).CiphertextBlob
	}
	blob := seal(nil)
	text := base64.StdEncoding.EncodeToString
	w.blob, w.inContext, w.truncated, w.longer = text(blob), text(seal(pairs("a", "1"))), text(blob[:len(blob)-1]), text(append(slices.Clone(blob), 0))
	must[*kms.DisableKeyOutput](t)(c.DisableKey(ctx, &kms.DisableKeyInput{KeyId: &w.disabled}))
	schedule(t, c, w.going, 7)
	for range 25 {
		rotate(t, c, w.rotated)
	}
	return w
}

const unknownID = "134f2428-cec1-4b25-a1ae-9048164dba47"

var unknownARN = "arn:aws:kms:us-west-2:111122223333:key/" + unknownID

// recordedErrors are the recordings of errors: what was asked, and what came back.
var recordedErrors = []struct {
	situation string
	operation string
	body      func(w *recordedWorld) map[string]any
	code      string
	message   func(w *recordedWorld) string
}{
	{"Decrypt without context, 2025-09", "Decrypt", func(w *recordedWorld) map[string]any {
		return map[string]any{"CiphertextBlob": w.inContext}
	}, "InvalidCiphertextException", none},
	{"Decrypt with wrong context, 2025-09", "Decrypt", func(w *recordedWorld) map[string]any {
		return map[string]any{"CiphertextBlob": w.inContext, "EncryptionContext": pairs("a", "2")}
	}, "InvalidCiphertextException", none},
	{"Decrypt a truncated blob, 2026-02", "Decrypt", func(w *recordedWorld) map[string]any {
		return map[string]any{"CiphertextBlob": w.truncated}
	}, "InvalidCiphertextException", none},
	{"Decrypt an appended blob, 2026-02", "Decrypt", func(w *recordedWorld) map[string]any {
		return map[string]any{"CiphertextBlob": w.longer}
	}, "InvalidCiphertextException", none},
	{"Decrypt naming another key than the blob's, 2025-06", "Decrypt", func(w *recordedWorld) map[string]any {
		return map[string]any{"CiphertextBlob": w.blob, "KeyId": w.other}
	}, "IncorrectKeyException", fixed("The key ID in the request does not identify a CMK that can perform this operation.")},
	{"Decrypt naming an HMAC key, 2023-04", "Decrypt", func(w *recordedWorld) map[string]any {
		return map[string]any{"CiphertextBlob": w.blob, "KeyId": w.mac}
	}, "IncorrectKeyException", fixed("The key ID in the request does not identify a CMK that can perform this operation.")},
	{"ReEncrypt naming another key than the blob's, 2025-06", "ReEncrypt", func(w *recordedWorld) map[string]any {
		return map[string]any{"CiphertextBlob": w.blob, "SourceKeyId": w.other, "DestinationKeyId": w.other}
	}, "IncorrectKeyException", fixed("The key ID in the request does not identify a CMK that can perform this operation.")},

	{"unknown key, by UUID, 2025-09", "DescribeKey", keyID(unknownID), "NotFoundException", fixed("Key '" + unknownARN + "' does not exist")},
	{"unknown key, by ARN, 2025-09", "DescribeKey", keyID(unknownARN), "NotFoundException", fixed("Key '" + unknownARN + "' does not exist")},
	{"unknown key, by mrk- id, 2025-09", "DescribeKey", keyID("mrk-134f2428cec14b25a1ae9048164dba47"), "NotFoundException",
		fixed("Key 'arn:aws:kms:us-west-2:111122223333:key/mrk-134f2428cec14b25a1ae9048164dba47' does not exist")},
	{"rotating an unknown key, 2025-03", "RotateKeyOnDemand", keyID(unknownID), "NotFoundException", fixed("Key '" + unknownARN + "' does not exist")},
	{"not a UUID, 2023-11", "DescribeKey", keyID("fake-key-id"), "NotFoundException", fixed("Invalid keyId 'fake-key-id'")},
	{"a UUID without hyphens, 2023-11", "DescribeKey", keyID("134f2428cec14b25a1ae9048164dba47"), "NotFoundException", fixed("Invalid keyId '134f2428cec14b25a1ae9048164dba47'")},
	{"not a multi-Region id, 2023-11", "DescribeKey", keyID("mrk-fake-key-id"), "NotFoundException", fixed("Invalid keyId 'mrk-fake-key-id'")},
	{"key ARN of another Region, 2025-11", "DescribeKey", func(w *recordedWorld) map[string]any {
		return map[string]any{"KeyId": strings.Replace(w.key, "us-west-2", "eu-central-1", 1)}
	}, "NotFoundException", fixed("Invalid arn eu-central-1")},
	{"CreateGrant on an invalid key, validated", "CreateGrant", func(*recordedWorld) map[string]any {
		return map[string]any{"KeyId": "invalid", "GranteePrincipal": worker, "Operations": []string{"Decrypt", "Encrypt"}}
	}, "NotFoundException", fixed("Invalid keyId 'invalid'")},
	{"ListGrants on an invalid key, validated", "ListGrants", keyID("invalid"), "NotFoundException", fixed("Invalid keyId 'invalid'")},
	{"alias without prefix, 2023-04", "CreateAlias", func(w *recordedWorld) map[string]any {
		return map[string]any{"AliasName": "a1b2", "TargetKeyId": w.key}
	}, "ValidationException", fixed(`Alias must start with the prefix "alias/". Please see https://docs.aws.amazon.com/kms/latest/developerguide/kms-alias.html`)},

	{"GenerateDataKey with a disabled key, 2025-03", "GenerateDataKey", func(w *recordedWorld) map[string]any {
		return map[string]any{"KeyId": w.disabled, "KeySpec": "AES_256"}
	}, "DisabledException", func(w *recordedWorld) string { return w.disabled + " is disabled." }},
	{"RotateKeyOnDemand of a disabled key, 2025-03", "RotateKeyOnDemand", func(w *recordedWorld) map[string]any {
		return map[string]any{"KeyId": w.disabled}
	}, "DisabledException", func(w *recordedWorld) string { return w.disabled + " is disabled." }},
	{"use of a key pending deletion, 2026-02", "Encrypt", func(w *recordedWorld) map[string]any {
		return map[string]any{"KeyId": w.going, "Plaintext": "eA=="}
	}, "KMSInvalidStateException", func(w *recordedWorld) string { return w.going + " is pending deletion." }},
	{"second ScheduleKeyDeletion, 2026-02", "ScheduleKeyDeletion", func(w *recordedWorld) map[string]any {
		return map[string]any{"KeyId": w.going, "PendingWindowInDays": 7}
	}, "KMSInvalidStateException", func(w *recordedWorld) string { return w.going + " is pending deletion." }},
	{"Encrypt with a SIGN_VERIFY key, 2023-04", "Encrypt", func(w *recordedWorld) map[string]any {
		return map[string]any{"KeyId": w.signing, "Plaintext": "eA=="}
	}, "InvalidKeyUsageException", func(w *recordedWorld) string {
		return w.signing + " key usage is SIGN_VERIFY which is not valid for Encrypt."
	}},
	{"GenerateMac with an ENCRYPT_DECRYPT key, 2023-04", "GenerateMac", func(w *recordedWorld) map[string]any {
		return map[string]any{"KeyId": w.key, "Message": "eA==", "MacAlgorithm": "HMAC_SHA_224"}
	}, "InvalidKeyUsageException", func(w *recordedWorld) string {
		return w.key + " key usage is ENCRYPT_DECRYPT which is not valid for GenerateMac."
	}},
	{"ReEncrypt to a signing key names ReEncryptTo, validated", "ReEncrypt", func(w *recordedWorld) map[string]any {
		return map[string]any{"CiphertextBlob": w.blob, "DestinationKeyId": w.signing}
	}, "InvalidKeyUsageException", func(w *recordedWorld) string {
		return w.signing + " key usage is SIGN_VERIFY which is not valid for ReEncryptTo."
	}},
	{"GenerateMac by another algorithm, 2023-04", "GenerateMac", func(w *recordedWorld) map[string]any {
		return map[string]any{"KeyId": w.mac, "Message": "eA==", "MacAlgorithm": "HMAC_SHA_256"}
	}, "InvalidKeyUsageException", fixed("Algorithm HMAC_SHA_256 is incompatible with key spec HMAC_224.")},
	{"VerifyMac of another message, 2023-04", "VerifyMac", func(w *recordedWorld) map[string]any {
		return map[string]any{"KeyId": w.mac, "Message": "eA==", "MacAlgorithm": "HMAC_SHA_224", "Mac": "eA=="}
	}, "KMSInvalidMacException", none},
	{"VerifyMac with an unknown key, 2023-11", "VerifyMac", func(*recordedWorld) map[string]any {
		return map[string]any{"KeyId": "key_id", "Message": "eA==", "MacAlgorithm": "HMAC_SHA_224", "Mac": "eA=="}
	}, "NotFoundException", fixed("Invalid keyId 'key_id'")},

	{"DryRun of GenerateDataKeyPair that would succeed, 2025-04", "GenerateDataKeyPair", func(w *recordedWorld) map[string]any {
		return map[string]any{"KeyId": w.key, "KeyPairSpec": "RSA_2048", "DryRun": true}
	}, "DryRunOperationException", fixed("The request would have succeeded, but the DryRun option is set.")},
	{"DryRun of GenerateDataKeyPairWithoutPlaintext that would succeed, 2025-04", "GenerateDataKeyPairWithoutPlaintext", func(w *recordedWorld) map[string]any {
		return map[string]any{"KeyId": w.key, "KeyPairSpec": "RSA_2048", "DryRun": true}
	}, "DryRunOperationException", fixed("The request would have succeeded, but the DryRun option is set.")},
	{"on-demand rotation limit, 2025-04", "RotateKeyOnDemand", func(w *recordedWorld) map[string]any {
		return map[string]any{"KeyId": w.rotated}
	}, "LimitExceededException", func(w *recordedWorld) string {
		return "The on-demand rotations limit has been reached for the given keyId. No more on-demand rotations can be performed for this key: " + w.rotated
	}},
	{"rotate a non-symmetric key, 2025-03", "RotateKeyOnDemand", func(w *recordedWorld) map[string]any {
		return map[string]any{"KeyId": w.signing}
	}, "UnsupportedOperationException", none},
	{"EnableKeyRotation of a SIGN_VERIFY key, terraform-aws-kms issue 20, 2023-08", "EnableKeyRotation", func(w *recordedWorld) map[string]any {
		return map[string]any{"KeyId": w.signing}
	}, "UnsupportedOperationException", none},

	{"plaintext above 4096 bytes, 2023-04", "Encrypt", func(w *recordedWorld) map[string]any {
		return map[string]any{"KeyId": w.key, "Plaintext": base64.StdEncoding.EncodeToString(make([]byte, 4097))}
	}, "ValidationException", fixed("1 validation error detected: Value at 'plaintext' failed to satisfy constraint: Member must have length less than or equal to 4096")},
	{"GenerateRandom of 0 bytes, 2023-04", "GenerateRandom", func(*recordedWorld) map[string]any { return map[string]any{"NumberOfBytes": 0} },
		"ValidationException", fixed("1 validation error detected: Value '0' at 'numberOfBytes' failed to satisfy constraint: Member must have value greater than or equal to 1")},
	{"GenerateRandom of 1025 bytes, 2023-04", "GenerateRandom", func(*recordedWorld) map[string]any { return map[string]any{"NumberOfBytes": 1025} },
		"ValidationException", fixed("1 validation error detected: Value '1025' at 'numberOfBytes' failed to satisfy constraint: Member must have value less than or equal to 1024")},
	{"GenerateRandom without a number, 2023-04", "GenerateRandom", func(*recordedWorld) map[string]any { return map[string]any{} },
		"ValidationException", fixed("NumberOfBytes is required.")},
	{"CreateKey of HMAC without usage, 2023-04", "CreateKey", func(*recordedWorld) map[string]any { return map[string]any{"KeySpec": "HMAC_256"} },
		"ValidationException", fixed("You must specify a KeyUsage value for all KMS keys except for symmetric encryption keys.")},
	{"CreateKey of a usage and spec that do not go together, 2024-12", "CreateKey", func(*recordedWorld) map[string]any {
		return map[string]any{"KeySpec": "RSA_2048", "KeyUsage": "KEY_AGREEMENT"}
	}, "ValidationException", fixed("KeyUsage KEY_AGREEMENT is not compatible with KeySpec RSA_2048")},

	{"duplicate tags, 2025-01", "TagResource", tagging("tag1", "value1", "tag1", "value2"), "TagException", fixed("Duplicate tag keys")},
	{"more than 50 tags, 2025-01", "CreateKey", func(*recordedWorld) map[string]any { return map[string]any{"Tags": manyTags(51)} }, "TagException", fixed("Too many tags")},
	{"tag with the prefix aws:, 2025-01", "TagResource", tagging("aws:key1", "value1"), "TagException", fixed("Tags beginning with aws: are reserved")},
	{"tag with the prefix AWS:, 2025-01", "CreateKey", func(*recordedWorld) map[string]any { return map[string]any{"Tags": tagsOf("AWS:key1", "value1")} },
		"TagException", fixed("Tags beginning with aws: are reserved")},
	{"tag key above 128 characters, 2025-01", "CreateKey", func(*recordedWorld) map[string]any {
		return map[string]any{"Tags": tagsOf(strings.Repeat("a", 129), "v")}
	}, "ValidationException", fixed("1 validation error detected: Value '" + strings.Repeat("a", 129) +
		"' at 'tags.1.member.tagKey' failed to satisfy constraint: Member must have length less than or equal to 128")},
	{"tag value above 256 characters, 2025-01", "TagResource", tagging("a", strings.Repeat("v", 257)), "ValidationException",
		fixed("1 validation error detected: Value '" + strings.Repeat("v", 257) +
			"' at 'tags.1.member.tagValue' failed to satisfy constraint: Member must have length less than or equal to 256")},
}

func none(*recordedWorld) string { return "" }

func fixed(text string) func(*recordedWorld) string {
	return func(*recordedWorld) string { return text }
}

func keyID(id string) func(*recordedWorld) map[string]any {
	return func(*recordedWorld) map[string]any { return map[string]any{"KeyId": id} }
}

func tagging(kv ...string) func(*recordedWorld) map[string]any {
	return func(w *recordedWorld) map[string]any { return map[string]any{"KeyId": w.key, "Tags": tagsOf(kv...)} }
}

// An error has HTTP status 400, the recorded code and text, and no message member
// where no text was recorded.
func TestRecordedErrors(t *testing.T) {
	w := newRecordedWorld(t)
	for _, tc := range recordedErrors {
		t.Run(tc.situation, func(t *testing.T) {
			body, err := json.Marshal(tc.body(w))
			if err != nil {
				t.Fatal(err)
			}
			a := post(t, w.h, "TrentService."+tc.operation, admin, string(body))
			message := tc.message(w)
			if a.status != http.StatusBadRequest || a.code() != tc.code || a.message() != message {
				t.Errorf("got  %d %s %q\nwant 400 %s %q", a.status, a.code(), a.message(), tc.code, message)
			}
			want := []string{"__type"}
			if message != "" {
				want = append(want, "message")
			}
			if diff := cmp.Diff(want, slices.Sorted(maps.Keys(a.fields))); diff != "" {
				t.Errorf("members (-want +got):\n%s", diff)
			}
		})
	}
}

// notOffered are the recordings of what this package does not offer, with the
// operation or setting that its answer has to name instead.
var notOffered = []struct {
	situation, operation string
	body                 func(w *recordedWorld) map[string]any
	named                string
}{
	{"use of a PendingImport key, 2025-11", "CreateKey", func(*recordedWorld) map[string]any { return map[string]any{"Origin": "EXTERNAL"} }, "Origin EXTERNAL"},
	{"rotate EXTERNAL origin, 2025-03 and 2025-11", "ImportKeyMaterial", func(w *recordedWorld) map[string]any { return map[string]any{"KeyId": w.key} }, "the operation ImportKeyMaterial"},
	{"GetParametersForImport on an AWS_KMS key, 2025-11", "GetParametersForImport", func(w *recordedWorld) map[string]any {
		return map[string]any{"KeyId": w.key, "WrappingAlgorithm": "RSAES_OAEP_SHA_256", "WrappingKeySpec": "RSA_2048"}
	}, "the operation GetParametersForImport"},
	{"create a multi-Region key, 2025-11", "CreateKey", func(*recordedWorld) map[string]any { return map[string]any{"MultiRegion": true} }, "MultiRegion keys"},
	{"Sign, 2023-04", "Sign", func(w *recordedWorld) map[string]any {
		return map[string]any{"KeyId": w.signing, "Message": "eA==", "SigningAlgorithm": "RSASSA_PSS_SHA_256"}
	}, "the operation Sign"},
}

func TestRecordedAndNotOffered(t *testing.T) {
	w := newRecordedWorld(t)
	for _, tc := range notOffered {
		t.Run(tc.situation, func(t *testing.T) {
			body, err := json.Marshal(tc.body(w))
			if err != nil {
				t.Fatal(err)
			}
			a := post(t, w.h, "TrentService."+tc.operation, admin, string(body))
			if want := "localkms does not support " + tc.named + "."; a.code() != "UnsupportedOperationException" || a.message() != want {
				t.Errorf("got  %s %q\nwant UnsupportedOperationException %q", a.code(), a.message(), want)
			}
		})
	}
}

// sops issue 1972, modernisation-platform issue 11726, ec2cryptomatic issue 26.
func TestRecordedDenials(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	key := newKey(t, h, `{"Statement":[
	  {"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:user/Admin"},"Action":"kms:*","Resource":"*"},
	  {"Effect":"Deny","Principal":{"AWS":"arn:aws:iam::111122223333:role/Colleague"},"Action":"kms:Decrypt","Resource":"*"}]}`)
	blob := must[*kms.EncryptOutput](t)(as(h, admin).Encrypt(t.Context(), &kms.EncryptInput{KeyId: &key, Plaintext: []byte("x")})).CiphertextBlob
	for caller, why := range map[string]string{
		colleague: "with an explicit deny in a resource-based policy",
		stranger:  "because no resource-based policy allows the kms:Decrypt action",
	} {
		_, err := as(h, caller).Decrypt(t.Context(), &kms.DecryptInput{CiphertextBlob: blob})
		wantRefusal(t, err, "AccessDeniedException", fmt.Sprintf("User: %s is not authorized to perform: kms:Decrypt on resource: %s %s", caller, key, why))
	}
}

// Which members an answer has, and no others; that the key is named by its ARN even
// if it was asked for by its id; the rest as the recordings say.
func TestRecordedShapes(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	c := as(h, admin)
	key, mac := newKey(t, h, ""), *newKeyOf(t, c, "HMAC_256", "GENERATE_VERIFY_MAC").Arn
	id, macID := key[len(key)-36:], mac[len(mac)-36:]
	ask := func(t *testing.T, operation string, body map[string]any) map[string]any {
		t.Helper()
		text, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		a := post(t, h, "TrentService."+operation, admin, string(text))
		if a.status != http.StatusOK {
			t.Fatalf("%s answered %s", operation, a.body)
		}
		return a.fields
	}
	blob := ask(t, "Encrypt", map[string]any{"KeyId": id, "Plaintext": "eA=="})["CiphertextBlob"]
	tag := ask(t, "GenerateMac", map[string]any{"KeyId": macID, "Message": "eA==", "MacAlgorithm": "HMAC_SHA_256"})["Mac"]
	for _, tc := range []struct {
		situation, operation string
		body                 map[string]any
		members              []string // of the answer, but for KeyId
		keyID                string   // as answered; "" where the answer has none
	}{
		{"Encrypt, 2025-09", "Encrypt", map[string]any{"KeyId": id, "Plaintext": "eA=="}, []string{"CiphertextBlob", "EncryptionAlgorithm"}, key},
		{"Decrypt, 2025-09", "Decrypt", map[string]any{"KeyId": id, "CiphertextBlob": blob}, []string{"EncryptionAlgorithm", "KeyMaterialId", "Plaintext"}, key},
		{"GenerateDataKey, 2023-05, and KeyMaterialId since 2025-06", "GenerateDataKey", map[string]any{"KeyId": id, "KeySpec": "AES_256"},
			[]string{"CiphertextBlob", "KeyMaterialId", "Plaintext"}, key},
		{"GenerateDataKeyWithoutPlaintext, 2023-05, and KeyMaterialId since 2025-06", "GenerateDataKeyWithoutPlaintext", map[string]any{"KeyId": id, "KeySpec": "AES_256"},
			[]string{"CiphertextBlob", "KeyMaterialId"}, key},
		{"GenerateDataKeyPair, 2023-05, and KeyMaterialId since 2025-06", "GenerateDataKeyPair", map[string]any{"KeyId": id, "KeyPairSpec": "RSA_2048"},
			[]string{"KeyMaterialId", "KeyPairSpec", "PrivateKeyCiphertextBlob", "PrivateKeyPlaintext", "PublicKey"}, key},
		{"GenerateDataKeyPairWithoutPlaintext, 2023-05, and KeyMaterialId since 2025-06", "GenerateDataKeyPairWithoutPlaintext", map[string]any{"KeyId": id, "KeyPairSpec": "RSA_2048"},
			[]string{"KeyMaterialId", "KeyPairSpec", "PrivateKeyCiphertextBlob", "PublicKey"}, key},
		{"ReEncrypt, 2025-06-09, and the KeyMaterialIds since", "ReEncrypt", map[string]any{"CiphertextBlob": blob, "DestinationKeyId": id},
			[]string{"CiphertextBlob", "DestinationEncryptionAlgorithm", "DestinationKeyMaterialId", "SourceEncryptionAlgorithm", "SourceKeyId", "SourceKeyMaterialId"}, key},
		{"GenerateMac, 2023-11", "GenerateMac", map[string]any{"KeyId": macID, "Message": "eA==", "MacAlgorithm": "HMAC_SHA_256"}, []string{"Mac", "MacAlgorithm"}, mac},
		{"VerifyMac, 2023-11", "VerifyMac", map[string]any{"KeyId": macID, "Message": "eA==", "MacAlgorithm": "HMAC_SHA_256", "Mac": tag}, []string{"MacAlgorithm", "MacValid"}, mac},
		{"rotation status without rotation, 2025-11", "GetKeyRotationStatus", map[string]any{"KeyId": id}, []string{"KeyRotationEnabled"}, key},
		{"EnableKeyRotation", "EnableKeyRotation", map[string]any{"KeyId": id, "RotationPeriodInDays": 90}, nil, ""},
		{"rotation status with rotation, 2025-03", "GetKeyRotationStatus", map[string]any{"KeyId": id}, []string{"KeyRotationEnabled", "NextRotationDate", "RotationPeriodInDays"}, key},
		{"RotateKeyOnDemand answers with the ARN even for a bare id, 2025-11", "RotateKeyOnDemand", map[string]any{"KeyId": id}, nil, key},
	} {
		t.Run(tc.situation, func(t *testing.T) {
			got := ask(t, tc.operation, tc.body)
			if answered, _ := got["KeyId"].(string); answered != tc.keyID {
				t.Errorf("KeyId %q, want %q", answered, tc.keyID)
			}
			delete(got, "KeyId")
			slices.Sort(tc.members)
			if diff := cmp.Diff(tc.members, slices.Sorted(maps.Keys(got))); diff != "" {
				t.Errorf("members (-want +got):\n%s", diff)
			}
		})
	}
	for spec, want := range map[string][]string{
		"SYMMETRIC_DEFAULT": {"AWSAccountId", "Arn", "CreationDate", "CurrentKeyMaterialId", "CustomerMasterKeySpec", "Description", "Enabled",
			"EncryptionAlgorithms", "KeyId", "KeyManager", "KeySpec", "KeyState", "KeyUsage", "MultiRegion", "Origin"}, // 2025-11
		"HMAC_256": {"AWSAccountId", "Arn", "CreationDate", "CustomerMasterKeySpec", "Description", "Enabled",
			"KeyId", "KeyManager", "KeySpec", "KeyState", "KeyUsage", "MacAlgorithms", "MultiRegion", "Origin"}, // 2025-11
	} {
		t.Run("KeyMetadata of "+spec+", 2025-11", func(t *testing.T) {
			id := map[string]string{"SYMMETRIC_DEFAULT": id, "HMAC_256": macID}[spec]
			meta := ask(t, "DescribeKey", map[string]any{"KeyId": id})["KeyMetadata"].(map[string]any)
			if diff := cmp.Diff(want, slices.Sorted(maps.Keys(meta))); diff != "" {
				t.Errorf("members (-want +got):\n%s", diff)
			}
		})
	}
	// After a rotation old blobs decrypt, and CurrentKeyMaterialId is another, 2025-11.
	before := currentMaterial(t, c, key)
	rotate(t, c, key)
	ask(t, "Decrypt", map[string]any{"CiphertextBlob": blob})
	if currentMaterial(t, c, key) == before {
		t.Error("the rotation left the key material as it was")
	}
}
