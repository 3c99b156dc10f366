package localkms_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/google/go-cmp/cmp"

	"github.com/keybroker/keybroker/internal/localkms"
	"github.com/keybroker/keybroker/test/kmsmodel"
)

// served are the operations that the package serves.
var served = []string{
	"CreateKey", "DescribeKey", "EnableKey", "DisableKey", "GetKeyPolicy", "PutKeyPolicy", "CreateAlias", "ListAliases",
	"Encrypt", "Decrypt", "GenerateDataKey", "GenerateDataKeyWithoutPlaintext", "ReEncrypt", "CreateGrant", "ListGrants", "RetireGrant",
	"RevokeGrant", "ListRetirableGrants", "ScheduleKeyDeletion", "CancelKeyDeletion",
	"RotateKeyOnDemand", "GetKeyRotationStatus", "ListKeyRotations",
	"ListKeys", "UpdateKeyDescription", "ListKeyPolicies", "UpdateAlias", "DeleteAlias", "TagResource", "UntagResource", "ListResourceTags",
	"GenerateRandom", "EnableKeyRotation", "DisableKeyRotation", "GenerateDataKeyPair", "GenerateDataKeyPairWithoutPlaintext",
	"GenerateMac", "VerifyMac", "GetKeyLastUsage",
}

func TestOperations(t *testing.T) {
	if diff := cmp.Diff(slices.Sorted(slices.Values(served)), localkms.Operations()); diff != "" {
		t.Errorf("operations (-want +got):\n%s", diff)
	}
}

type answer struct {
	status int
	header http.Header
	body   []byte
	fields map[string]any
}

func (a answer) code() string {
	code, _ := a.fields["__type"].(string)
	return code
}

func (a answer) message() string {
	message, _ := a.fields["message"].(string)
	return message
}

// post sends a request that no client would write, signed by a principal.
func post(t testing.TB, h http.Handler, operation, principal, body string) answer {
	t.Helper()
	return send(t, h, signed(t, operation, principal, []byte(body), time.Now()))
}

func send(t testing.TB, h http.Handler, req *http.Request) answer {
	t.Helper()
	resp, err := judged(h).RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	a := answer{status: resp.StatusCode, header: resp.Header, body: body}
	if err := json.Unmarshal(a.body, &a.fields); err != nil {
		t.Fatalf("%s answered %q: %v", req.Header.Get("X-Amz-Target"), a.body, err)
	}
	return a
}

// AWS KMS API Reference, Common Errors.
func TestCallerAndTarget(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	for name, tc := range map[string]struct {
		target, principal, body string
		want                    refusal
	}{
		"no authorization":      {"TrentService.ListAliases", "", "{}", refusal{"MissingAuthenticationTokenException", "Missing Authentication Token"}},
		"unknown access key":    {"TrentService.ListAliases", "arn:aws:iam::000000000000:root", "{}", refusal{"UnrecognizedClientException", "The security token included in the request is invalid."}},
		"unknown operation":     {"TrentService.Fly", admin, "{}", refusal{"UnknownOperationException", ""}},
		"another service":       {"DynamoDB_20120810.ListTables", admin, "{}", refusal{"UnknownOperationException", ""}},
		"unsupported operation": {"TrentService.Sign", admin, "{}", refusal{"UnsupportedOperationException", "localkms does not support the operation Sign."}},
		"no JSON":               {"TrentService.ListAliases", admin, "{", refusal{"SerializationException", "The request body is not valid JSON."}},
		"no object":             {"TrentService.ListAliases", admin, "[]", refusal{"SerializationException", "The request body is not a JSON object in UTF-8."}},
		"no UTF-8":              {"TrentService.ListAliases", admin, "{\"KeyId\":\"\xff\"}", refusal{"SerializationException", "The request body is not a JSON object in UTF-8."}},
		"wrong type":            {"TrentService.ListAliases", admin, `{"Limit":"one"}`, refusal{"SerializationException", "STRING_VALUE can not be converted to the type of Limit."}},
		"too large":             {"TrentService.ListAliases", admin, `{"x":"` + strings.Repeat("x", 1<<20) + `"}`, refusal{"SerializationException", "The request body is larger than 1048576 bytes."}},
		"missing member":        {"TrentService.DescribeKey", admin, `{}`, refusal{"ValidationException", "1 validation error detected: Value null at 'keyId' failed to satisfy constraint: Member must not be null"}},
	} {
		t.Run(name, func(t *testing.T) {
			a := post(t, h, tc.target, tc.principal, tc.body)
			wantAnswer(t, a, tc.want)
		})
	}
}

func wantAnswer(t *testing.T, a answer, want refusal) {
	t.Helper()
	if got := (refusal{a.code(), a.message()}); got != want || a.status != http.StatusBadRequest {
		t.Errorf("got  %d %q %q\nwant 400 %q %q", a.status, got.code, got.message, want.code, want.message)
	}
	if a.header.Get("Content-Type") != "application/x-amz-json-1.1" || len(a.header.Get("x-amzn-RequestId")) != 36 {
		t.Errorf("header %v", a.header)
	}
}

// snapshots returns the SDK's own record of the wire.
func snapshots(t *testing.T, folder, suffix string) map[string][]byte {
	t.Helper()
	return must[map[string][]byte](t)(kmsmodel.Snapshots(folder, suffix))
}

// Every request that the SDK can write reaches its operation and is answered as a
// request, good or bad, never with a server error.
func TestSnapshotRequests(t *testing.T) {
	var seen localkms.Call
	h := newKMS(t, localkms.Config{Observe: func(c localkms.Call) { seen = c }})
	requests := snapshots(t, "request_snapshot", ".request.snap")
	for operation, body := range requests {
		t.Run(operation, func(t *testing.T) {
			a := post(t, h, "TrentService."+operation, admin, string(body))
			if a.status >= 500 || a.code() == "UnknownOperationException" || a.code() == "SerializationException" {
				t.Errorf("answered %d %s", a.status, a.body)
			}
			if seen.Operation != operation || seen.ErrorCode != a.code() {
				t.Errorf("observed as %s %s", seen.Operation, seen.ErrorCode)
			}
			supported := a.code() != "UnsupportedOperationException" || !strings.Contains(fmt.Sprint(a.fields["message"]), "the operation")
			if want := slices.Contains(served, operation); supported != want {
				t.Errorf("served: %v, want %v", supported, want)
			}
		})
	}
	for _, operation := range served {
		if requests[operation] == nil {
			t.Errorf("the SDK has no snapshot of %s", operation)
		}
	}
}

// required are the members that AWS always answers with (AWS KMS API Reference,
// Response Syntax, and recorded answers), by dotted path.
var required = map[string][]string{
	"CreateKey":                       {"KeyMetadata.Arn", "KeyMetadata.KeyId", "KeyMetadata.AWSAccountId", "KeyMetadata.CreationDate", "KeyMetadata.CurrentKeyMaterialId", "KeyMetadata.CustomerMasterKeySpec", "KeyMetadata.Description", "KeyMetadata.Enabled", "KeyMetadata.EncryptionAlgorithms", "KeyMetadata.KeyManager", "KeyMetadata.KeySpec", "KeyMetadata.KeyState", "KeyMetadata.KeyUsage", "KeyMetadata.MultiRegion", "KeyMetadata.Origin"},
	"DescribeKey":                     {"KeyMetadata.Arn", "KeyMetadata.Enabled", "KeyMetadata.MultiRegion"},
	"GetKeyPolicy":                    {"Policy", "PolicyName"},
	"ListAliases":                     {"Aliases.AliasArn", "Aliases.AliasName", "Aliases.CreationDate", "Aliases.LastUpdatedDate", "Aliases.TargetKeyId", "Truncated", "NextMarker"},
	"Encrypt":                         {"CiphertextBlob", "EncryptionAlgorithm", "KeyId"},
	"Decrypt":                         {"EncryptionAlgorithm", "KeyId", "KeyMaterialId", "Plaintext"},
	"GenerateDataKey":                 {"CiphertextBlob", "KeyId", "KeyMaterialId", "Plaintext"},
	"GenerateDataKeyWithoutPlaintext": {"CiphertextBlob", "KeyId", "KeyMaterialId"},
	"ReEncrypt":                       {"CiphertextBlob", "DestinationEncryptionAlgorithm", "DestinationKeyMaterialId", "KeyId", "SourceEncryptionAlgorithm", "SourceKeyId", "SourceKeyMaterialId"},
	"CreateGrant":                     {"GrantId", "GrantToken"},
	"ScheduleKeyDeletion":             {"DeletionDate", "KeyId", "KeyState", "PendingWindowInDays"},
	"CancelKeyDeletion":               {"KeyId"},
	"RotateKeyOnDemand":               {"KeyId"},
	"GetKeyRotationStatus":            {"KeyId", "KeyRotationEnabled", "NextRotationDate", "RotationPeriodInDays"},
	"GetKeyLastUsage":                 {"KeyCreationDate", "KeyId", "KeyLastUsage.CloudTrailEventId", "KeyLastUsage.KmsRequestId", "KeyLastUsage.Operation", "KeyLastUsage.Timestamp", "TrackingStartDate"},
	"GenerateMac":                     {"KeyId", "Mac", "MacAlgorithm"},
	"VerifyMac":                       {"KeyId", "MacAlgorithm", "MacValid"},
	"GenerateDataKeyPair":             {"KeyId", "KeyMaterialId", "KeyPairSpec", "PrivateKeyCiphertextBlob", "PrivateKeyPlaintext", "PublicKey"},

	"GenerateDataKeyPairWithoutPlaintext": {"KeyId", "KeyMaterialId", "KeyPairSpec", "PrivateKeyCiphertextBlob", "PublicKey"},

	"ListKeyRotations":    {"Rotations.KeyId", "Rotations.KeyMaterialId", "Rotations.KeyMaterialState", "Rotations.RotationDate", "Rotations.RotationType", "Truncated", "NextMarker"},
	"ListRetirableGrants": {"Grants.Constraints.EncryptionContextSubset", "Grants.CreationDate", "Grants.GrantId", "Grants.GranteePrincipal", "Grants.IssuingAccount", "Grants.KeyId", "Grants.Name", "Grants.Operations", "Grants.RetiringPrincipal", "Truncated", "NextMarker"},
	"ListKeys":            {"Keys.KeyArn", "Keys.KeyId", "Truncated", "NextMarker"},
	"ListKeyPolicies":     {"PolicyNames", "Truncated"},
	"ListResourceTags":    {"Tags.TagKey", "Tags.TagValue", "Truncated", "NextMarker"},
	"GenerateRandom":      {"Plaintext"},
	"ListGrants":          {"Grants.Constraints.EncryptionContextSubset", "Grants.CreationDate", "Grants.GrantId", "Grants.GranteePrincipal", "Grants.IssuingAccount", "Grants.KeyId", "Grants.Name", "Grants.Operations", "Grants.RetiringPrincipal", "Truncated", "NextMarker"},
}

// Our answers have the members of AWS, no other, and of the same JSON type.
func TestSnapshotResponses(t *testing.T) {
	theirs := snapshots(t, "response_snapshot", ".response.snap")
	for operation, body := range answers(t) {
		t.Run(operation, func(t *testing.T) {
			if theirs[operation] == nil {
				t.Fatal("the SDK has no snapshot")
			}
			want, got := members(t, theirs[operation]), members(t, body)
			for path, kind := range got {
				if want[path] != kind {
					t.Errorf("we answer %s as %s, AWS as %q", path, kind, want[path])
				}
			}
			for _, path := range required[operation] {
				if got[path] == "" {
					t.Errorf("%s is missing in %s", path, body)
				}
			}
		})
	}
}

// members returns the JSON type behind each dotted path of a document. Lists are
// passed through; the pairs of a map count as one.
func members(t *testing.T, body []byte) map[string]string {
	t.Helper()
	var doc any
	if err := json.Unmarshal(body, &doc); err != nil {
		t.Fatalf("%q: %v", body, err)
	}
	found := map[string]string{}
	var walk func(path string, v any)
	walk = func(path string, v any) {
		found[path] = strings.TrimLeft(fmt.Sprintf("%T", v), "*")
		switch v := v.(type) {
		case map[string]any:
			for name, member := range v {
				if strings.Contains(path, "EncryptionContext") {
					name = "*"
				}
				walk(strings.TrimPrefix(path+"."+name, "."), member)
			}
		case []any:
			for _, item := range v {
				if nested, ok := item.(map[string]any); ok {
					for name, member := range nested {
						walk(path+"."+name, member)
					}
				}
			}
		}
	}
	walk("", doc)
	return found
}

// answers runs every operation once and returns the bodies that came back.
func answers(t *testing.T) map[string][]byte {
	t.Helper()
	h := newKMS(t, localkms.Config{})
	bodies := map[string][]byte{}
	c := as(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		_, name, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
		bodies[name] = bytes.Clone(rec.Body.Bytes())
		for key, values := range rec.Header() {
			w.Header()[key] = values
		}
		w.WriteHeader(rec.Code)
		_, _ = io.Copy(w, rec.Body)
	}), admin)
	ctx := t.Context()
	key := must[*kms.CreateKeyOutput](t)(c.CreateKey(ctx, &kms.CreateKeyInput{})).KeyMetadata.Arn
	must[*kms.DescribeKeyOutput](t)(c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: key}))
	must[*kms.DisableKeyOutput](t)(c.DisableKey(ctx, &kms.DisableKeyInput{KeyId: key}))
	must[*kms.EnableKeyOutput](t)(c.EnableKey(ctx, &kms.EnableKeyInput{KeyId: key}))
	must[*kms.PutKeyPolicyOutput](t)(c.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: key, Policy: aws.String(brokerPolicy)}))
	must[*kms.GetKeyPolicyOutput](t)(c.GetKeyPolicy(ctx, &kms.GetKeyPolicyInput{KeyId: key}))
	must[*kms.CreateAliasOutput](t)(c.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: aws.String("alias/a"), TargetKeyId: key}))
	must[*kms.CreateAliasOutput](t)(c.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: aws.String("alias/b"), TargetKeyId: key}))
	must[*kms.ListAliasesOutput](t)(c.ListAliases(ctx, &kms.ListAliasesInput{Limit: aws.Int32(1)}))
	blob := must[*kms.EncryptOutput](t)(c.Encrypt(ctx, &kms.EncryptInput{KeyId: key, Plaintext: []byte("x")})).CiphertextBlob
	must[*kms.DecryptOutput](t)(c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob}))
	must[*kms.ReEncryptOutput](t)(c.ReEncrypt(ctx, &kms.ReEncryptInput{CiphertextBlob: blob, DestinationKeyId: key}))
	must[*kms.GenerateDataKeyOutput](t)(c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: key, KeySpec: types.DataKeySpecAes256}))
	must[*kms.GenerateDataKeyWithoutPlaintextOutput](t)(c.GenerateDataKeyWithoutPlaintext(ctx,
		&kms.GenerateDataKeyWithoutPlaintextInput{KeyId: key, KeySpec: types.DataKeySpecAes256}))
	in := decryptGrant(*key, worker)
	in.Name, in.RetiringPrincipal = aws.String("n"), aws.String(admin)
	in.Constraints = &types.GrantConstraints{EncryptionContextSubset: pairs("a", "1")}
	must[*kms.CreateGrantOutput](t)(c.CreateGrant(ctx, in))
	in.Name = aws.String("m")
	g := must[*kms.CreateGrantOutput](t)(c.CreateGrant(ctx, in))
	must[*kms.ListGrantsOutput](t)(c.ListGrants(ctx, &kms.ListGrantsInput{KeyId: key, Limit: aws.Int32(1)}))
	must[*kms.ListRetirableGrantsOutput](t)(c.ListRetirableGrants(ctx, &kms.ListRetirableGrantsInput{RetiringPrincipal: aws.String(admin), Limit: aws.Int32(1)}))
	must[*kms.RevokeGrantOutput](t)(c.RevokeGrant(ctx, &kms.RevokeGrantInput{KeyId: key, GrantId: g.GrantId}))
	in.Name = aws.String("o")
	g = must[*kms.CreateGrantOutput](t)(c.CreateGrant(ctx, in))
	must[*kms.RetireGrantOutput](t)(c.RetireGrant(ctx, &kms.RetireGrantInput{GrantToken: g.GrantToken}))
	must[*kms.RotateKeyOnDemandOutput](t)(c.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: key}))
	must[*kms.RotateKeyOnDemandOutput](t)(c.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: key}))
	must[*kms.GetKeyRotationStatusOutput](t)(c.GetKeyRotationStatus(ctx, &kms.GetKeyRotationStatusInput{KeyId: key}))
	must[*kms.ListKeyRotationsOutput](t)(c.ListKeyRotations(ctx, &kms.ListKeyRotationsInput{KeyId: key, Limit: aws.Int32(1)}))
	must[*kms.DisableKeyRotationOutput](t)(c.DisableKeyRotation(ctx, &kms.DisableKeyRotationInput{KeyId: key}))
	must[*kms.EnableKeyRotationOutput](t)(c.EnableKeyRotation(ctx, &kms.EnableKeyRotationInput{KeyId: key}))
	must[*kms.GetKeyRotationStatusOutput](t)(c.GetKeyRotationStatus(ctx, &kms.GetKeyRotationStatusInput{KeyId: key}))
	must[*kms.GenerateDataKeyPairOutput](t)(c.GenerateDataKeyPair(ctx, &kms.GenerateDataKeyPairInput{KeyId: key, KeyPairSpec: "ECC_NIST_P256"}))
	must[*kms.GenerateDataKeyPairWithoutPlaintextOutput](t)(c.GenerateDataKeyPairWithoutPlaintext(ctx,
		&kms.GenerateDataKeyPairWithoutPlaintextInput{KeyId: key, KeyPairSpec: "ECC_NIST_P256"}))
	must[*kms.GetKeyLastUsageOutput](t)(c.GetKeyLastUsage(ctx, &kms.GetKeyLastUsageInput{KeyId: key}))
	mac := newKeyOf(t, c, "HMAC_256", "GENERATE_VERIFY_MAC").Arn
	tag := must[*kms.GenerateMacOutput](t)(c.GenerateMac(ctx, &kms.GenerateMacInput{KeyId: mac, MacAlgorithm: "HMAC_SHA_256", Message: []byte("x")})).Mac
	must[*kms.VerifyMacOutput](t)(c.VerifyMac(ctx, &kms.VerifyMacInput{KeyId: mac, MacAlgorithm: "HMAC_SHA_256", Message: []byte("x"), Mac: tag}))
	must[*kms.CreateKeyOutput](t)(c.CreateKey(ctx, &kms.CreateKeyInput{}))
	must[*kms.ListKeysOutput](t)(c.ListKeys(ctx, &kms.ListKeysInput{Limit: aws.Int32(1)}))
	must[*kms.UpdateKeyDescriptionOutput](t)(c.UpdateKeyDescription(ctx, &kms.UpdateKeyDescriptionInput{KeyId: key, Description: aws.String("d")}))
	must[*kms.ListKeyPoliciesOutput](t)(c.ListKeyPolicies(ctx, &kms.ListKeyPoliciesInput{KeyId: key}))
	must[*kms.UpdateAliasOutput](t)(c.UpdateAlias(ctx, &kms.UpdateAliasInput{AliasName: aws.String("alias/b"), TargetKeyId: key}))
	must[*kms.DeleteAliasOutput](t)(c.DeleteAlias(ctx, &kms.DeleteAliasInput{AliasName: aws.String("alias/b")}))
	must[*kms.TagResourceOutput](t)(c.TagResource(ctx, &kms.TagResourceInput{KeyId: key, Tags: tagsOf("a", "1", "b", "2", "c", "3")}))
	must[*kms.UntagResourceOutput](t)(c.UntagResource(ctx, &kms.UntagResourceInput{KeyId: key, TagKeys: []string{"a"}}))
	must[*kms.ListResourceTagsOutput](t)(c.ListResourceTags(ctx, &kms.ListResourceTagsInput{KeyId: key, Limit: aws.Int32(1)}))
	must[*kms.GenerateRandomOutput](t)(c.GenerateRandom(ctx, &kms.GenerateRandomInput{NumberOfBytes: aws.Int32(1)}))
	must[*kms.ScheduleKeyDeletionOutput](t)(c.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: key}))
	must[*kms.DescribeKeyOutput](t)(c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: key}))
	must[*kms.CancelKeyDeletionOutput](t)(c.CancelKeyDeletion(ctx, &kms.CancelKeyDeletionInput{KeyId: key}))
	for _, operation := range served {
		if bodies[operation] == nil {
			t.Errorf("%s was not called", operation)
		}
	}
	return bodies
}

func TestObserve(t *testing.T) {
	var calls []localkms.Call
	h := newKMS(t, localkms.Config{Observe: func(c localkms.Call) { calls = append(calls, c) }})
	key, other := newKey(t, h, ""), newKey(t, h, "")
	c, ctx := as(h, admin), t.Context()
	in := decryptGrant(key, worker)
	in.Name, in.Constraints = aws.String("n"), &types.GrantConstraints{EncryptionContextSubset: pairs("a", "1")}
	grant := must[*kms.CreateGrantOutput](t)(c.CreateGrant(ctx, in))
	blob := must[*kms.EncryptOutput](t)(c.Encrypt(ctx, &kms.EncryptInput{KeyId: &key, Plaintext: []byte("x"), EncryptionContext: pairs("a", "1")})).CiphertextBlob
	must[*kms.ReEncryptOutput](t)(c.ReEncrypt(ctx, &kms.ReEncryptInput{
		CiphertextBlob: blob, DestinationKeyId: &other, SourceEncryptionContext: pairs("a", "1"), DestinationEncryptionContext: pairs("b", "2"),
	}))
	_, _ = c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob, DryRun: aws.Bool(true)})
	_, _ = as(h, stranger).DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &key})

	want := []localkms.Call{
		{Operation: "CreateKey", Principal: admin, KeyARN: key},
		{Operation: "CreateKey", Principal: admin, KeyARN: other},
		{
			Operation: "CreateGrant", Principal: admin, KeyARN: key, GrantID: *grant.GrantId, GrantName: "n",
			GrantOperations: []string{"Decrypt"}, Constraint: localkms.Constraint{Subset: pairs("a", "1")},
		},
		{Operation: "Encrypt", Principal: admin, KeyARN: key, EncryptionContext: pairs("a", "1")},
		{
			Operation: "ReEncrypt", Principal: admin, SourceKeyARN: key, KeyARN: other,
			SourceEncryptionContext: pairs("a", "1"), EncryptionContext: pairs("b", "2"),
		},
		{Operation: "Decrypt", Principal: admin, KeyARN: key, DryRun: true, ErrorCode: "DryRunOperationException"},
		{Operation: "DescribeKey", Principal: stranger, KeyARN: key, ErrorCode: "AccessDeniedException"},
	}
	for i := range calls {
		if calls[i].RequestID == "" {
			t.Errorf("call %d has no request id", i)
		}
		calls[i].RequestID = ""
	}
	if diff := cmp.Diff(want, calls); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
}

func TestNewRefusesPrincipals(t *testing.T) {
	for name, principals := range map[string][]localkms.Principal{
		"no ARN":          {{ARN: "Admin", AccessKeyID: "A", SecretAccessKey: "s"}},
		"assumed role":    {{ARN: "arn:aws:sts::111122223333:assumed-role/R/S", AccessKeyID: "A", SecretAccessKey: "s"}},
		"no access key":   {{ARN: admin, SecretAccessKey: "s"}},
		"shared":          {{ARN: admin, AccessKeyID: "A", SecretAccessKey: "s"}, {ARN: worker, AccessKeyID: "A", SecretAccessKey: "s"}},
		"bad access key":  {{ARN: admin, AccessKeyID: "A/B", SecretAccessKey: "s"}},
		"no secret":       {{ARN: admin, AccessKeyID: "A"}},
		"another service": {{ARN: "arn:aws:s3:::bucket", AccessKeyID: "A", SecretAccessKey: "s"}},
	} {
		if _, err := localkms.New(localkms.Config{Principals: principals, Now: newClock().Now}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// Whatever the body, the answer is a success or an error of the caller, in JSON.
func FuzzRequest(f *testing.F) {
	for _, operation := range served {
		f.Add(operation, `{}`)
	}
	f.Add("Encrypt", `{"KeyId":"alias/k","Plaintext":"eA==","EncryptionContext":{"a":"1"}}`)
	f.Add("Decrypt", `{"CiphertextBlob":"AQIDBA==","GrantTokens":["x"],"DryRun":true,"DryRunModifiers":["IGNORE_CIPHERTEXT"],"KeyId":"alias/k"}`)
	f.Add("CreateGrant", `{"KeyId":"alias/k","GranteePrincipal":"arn:aws:iam::111122223333:role/x","Operations":["Decrypt"],"Constraints":{"EncryptionContextSubset":{"a":"1"}}}`)
	f.Add("PutKeyPolicy", `{"KeyId":"x","Policy":"{\"Statement\":{\"Effect\":\"Allow\",\"Principal\":\"*\",\"Action\":\"kms:*\",\"Resource\":\"*\",\"Condition\":{\"Null\":{\"a\":true}}}}"}`)
	f.Add("CreateKey", `{"Policy":"{\"Statement\":[{\"Effect\":\"Deny\",\"Principal\":{\"AWS\":[\"*\"]},\"NotAction\":\"kms:*\",\"Resource\":\"*\"}]}"}`)
	f.Add("ListGrants", `{"KeyId":"arn:aws:kms:us-west-2:111122223333:key/x","Limit":1e400,"Marker":"bTE6TGlzdEdyYW50czox"}`)
	f.Add("ListRetirableGrants", `{"RetiringPrincipal":"arn:aws:iam::111122223333:user/Admin","Marker":"bTE6TGlzdFJldGlyYWJsZUdyYW50czphIzE=","Limit":1}`)
	f.Add("ListKeyRotations", `{"KeyId":"alias/k","Marker":"bTE6TGlzdEtleVJvdGF0aW9uczo5OTk=","IncludeKeyMaterial":"ALL_KEY_MATERIAL"}`)
	f.Add("CreateKey", `{"KeySpec":"HMAC_256","KeyUsage":"GENERATE_VERIFY_MAC"}`)
	f.Add("ListKeys", `{"Limit":1,"Marker":"bTE6TGlzdEtleXM6YQ=="}`)
	f.Add("TagResource", `{"KeyId":"alias/k","Tags":[{"TagKey":"a","TagValue":null},{"TagKey":"b"},{}]}`)
	f.Add("UntagResource", `{"KeyId":"x","TagKeys":["a",""]}`)
	f.Add("UpdateAlias", `{"AliasName":"alias/k","TargetKeyId":"alias/k"}`)
	f.Add("EnableKeyRotation", `{"KeyId":"x","RotationPeriodInDays":90}`)
	f.Add("GenerateMac", `{"KeyId":"alias/k","Message":"eA==","MacAlgorithm":"HMAC_SHA_256"}`)
	f.Add("VerifyMac", `{"KeyId":"alias/k","Message":"eA==","MacAlgorithm":"HMAC_SHA_256","Mac":""}`)
	f.Add("GenerateDataKeyPair", `{"KeyId":"alias/k","KeyPairSpec":"SM2","DryRun":true}`)
	f.Add("GenerateRandom", `{"NumberOfBytes":1,"Recipient":{}}`)
	f.Add("RetireGrant", `{"GrantToken":"AAAA"}`)
	f.Add("ReEncrypt", `{"CiphertextBlob":"`+strings.Repeat("A", 400)+`","DestinationKeyId":"alias/k"}`)
	h, err := localkms.New(localkms.Config{Principals: cast(), Now: newClock().Now, ClockSkew: -1})
	if err != nil {
		f.Fatal(err)
	}
	key := newKey(f, h, "")
	if _, err := as(h, admin).CreateAlias(f.Context(), &kms.CreateAliasInput{AliasName: aws.String("alias/k"), TargetKeyId: &key}); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, operation, body string) {
		if a := post(t, h, "TrentService."+operation, admin, body); a.status != http.StatusOK && a.status != http.StatusBadRequest {
			t.Errorf("answered %d %s", a.status, a.body)
		}
	})
}
