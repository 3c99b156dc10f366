package localkms_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"maps"
	"slices"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/google/go-cmp/cmp"

	"github.com/keybroker/keybroker/internal/localkms"
)

// Every operation that has DryRun, by the SDK's own record of its requests, answers
// that it would have succeeded, and does nothing (AWS KMS Developer Guide, "Testing
// your permissions"); for somebody who may not, it answers that.
func TestDryRunOfEveryOperation(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	c, ctx, key := as(h, customerRoot), t.Context(), newKey(t, h, "")
	mac := *newKeyOf(t, c, "HMAC_256", "GENERATE_VERIFY_MAC").Arn
	blob := must[*kms.EncryptOutput](t)(c.Encrypt(ctx, &kms.EncryptInput{KeyId: &key, Plaintext: []byte("x")})).CiphertextBlob
	tag := must[*kms.GenerateMacOutput](t)(c.GenerateMac(ctx, &kms.GenerateMacInput{KeyId: &mac, MacAlgorithm: "HMAC_SHA_256", Message: []byte("x")})).Mac
	grant := must[*kms.CreateGrantOutput](t)(c.CreateGrant(ctx, decryptGrant(key, worker)))
	text := base64.StdEncoding.EncodeToString
	bodies := map[string]map[string]any{
		"CreateGrant":                         {"KeyId": key, "GranteePrincipal": stranger, "Operations": []string{"Decrypt"}},
		"RetireGrant":                         {"KeyId": key, "GrantId": grant.GrantId},
		"RevokeGrant":                         {"KeyId": key, "GrantId": grant.GrantId},
		"Encrypt":                             {"KeyId": key, "Plaintext": "eA=="},
		"Decrypt":                             {"CiphertextBlob": text(blob)},
		"ReEncrypt":                           {"CiphertextBlob": text(blob), "DestinationKeyId": key},
		"GenerateDataKey":                     {"KeyId": key, "KeySpec": "AES_256"},
		"GenerateDataKeyWithoutPlaintext":     {"KeyId": key, "KeySpec": "AES_256"},
		"GenerateDataKeyPair":                 {"KeyId": key, "KeyPairSpec": "RSA_2048"},
		"GenerateDataKeyPairWithoutPlaintext": {"KeyId": key, "KeyPairSpec": "RSA_2048"},
		"GenerateMac":                         {"KeyId": mac, "Message": "eA==", "MacAlgorithm": "HMAC_SHA_256"},
		"VerifyMac":                           {"KeyId": mac, "Message": "eA==", "MacAlgorithm": "HMAC_SHA_256", "Mac": text(tag)},
	}
	var have []string
	for operation, request := range snapshots(t, "request_snapshot", ".request.snap") {
		if bytes.Contains(request, []byte(`"DryRun"`)) && slices.Contains(served, operation) {
			have = append(have, operation)
		}
	}
	slices.Sort(have)
	if diff := cmp.Diff(have, slices.Sorted(maps.Keys(bodies))); diff != "" {
		t.Fatalf("operations with DryRun (-SDK +test):\n%s", diff)
	}
	for operation, body := range bodies {
		t.Run(operation, func(t *testing.T) {
			body["DryRun"] = true
			request, err := json.Marshal(body)
			if err != nil {
				t.Fatal(err)
			}
			a := post(t, h, "TrentService."+operation, customerRoot, string(request))
			if a.code() != "DryRunOperationException" || a.message() != "The request would have succeeded, but the DryRun option is set." {
				t.Errorf("answered %s", a.body)
			}
			if a := post(t, h, "TrentService."+operation, stranger, string(request)); a.code() != "AccessDeniedException" {
				t.Errorf("a stranger is answered %s", a.body)
			}
		})
	}
	if grants := grantsOf(t, h, customerRoot, key); len(grants) != 1 || *grants[0].GrantId != *grant.GrantId {
		t.Errorf("%d grants, want the one of before", len(grants))
	}
}
