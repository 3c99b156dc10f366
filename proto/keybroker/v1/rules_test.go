package keybrokerv1_test

import (
	"errors"
	"strings"
	"testing"

	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

// A rule that does not compile only shows when its message is validated, so
// every message of the API is validated once here.
func TestEveryRuleCompiles(t *testing.T) {
	messages := 0
	var visit func(protoreflect.MessageDescriptors)
	visit = func(descriptors protoreflect.MessageDescriptors) {
		for i := range descriptors.Len() {
			d := descriptors.Get(i)
			if d.IsMapEntry() {
				continue
			}
			messages++
			if _, err := protovalidate.New(protovalidate.WithMessageDescriptors(d), protovalidate.WithDisableLazy()); err != nil {
				t.Errorf("%s: %v", d.FullName(), err)
			}
			visit(d.Messages())
		}
	}
	protoregistry.GlobalFiles.RangeFilesByPackage("keybroker.v1", func(file protoreflect.FileDescriptor) bool {
		visit(file.Messages())
		return true
	})
	if messages < 30 {
		t.Errorf("saw %d messages, want at least 30: is the package registered?", messages)
	}
}

// What a newcomer types by grpcurl, and what the rules must turn away.
func TestRequests(t *testing.T) {
	const (
		keyARN  = "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
		roleARN = "arn:aws:iam::222233334444:role/orders"
		grant   = `"grant":{"grantee_principal":"` + roleARN + `","operations":["Decrypt"],"ttl":"86400s"`
		item    = `"ciphertext_blob":"AQ==","source_kms_key":"` + keyARN + `"`
	)
	longValue := strings.Repeat("x", 385)

	for _, test := range []struct {
		name    string
		method  protoreflect.FullName
		request string
		// The field, or the rule, that is at fault; empty if the request is good.
		wantFault string
	}{
		{"newcomer's domain", "DomainService.CreateDomain", `{"domain_id":"acme","domain":{"display_name":"Acme Corp","region":"us-east-1"}}`, ""},
		{"domain of a partition", "DomainService.CreateDomain", `{"domain_id":"a","domain":{"region":"us-isob-east-1"}}`, ""},
		{"domain of no region", "DomainService.CreateDomain", `{"domain_id":"acme","domain":{"region":"nowhere"}}`, "domain.region"},
		{"update without a region", "DomainService.UpdateDomain", `{"domain":{"name":"domains/acme","display_name":"Acme"}}`, ""},
		{"domain id in upper case", "DomainService.CreateDomain", `{"domain_id":"Acme","domain":{"region":"us-east-1"}}`, "domain_id"},
		{"domain id with a hyphen at its end", "DomainService.CreateDomain", `{"domain_id":"acme-","domain":{"region":"us-east-1"}}`, "domain_id"},
		{"no domain", "DomainService.CreateDomain", `{"domain_id":"acme"}`, "domain"},
		{"request id with a space", "DomainService.CreateDomain", `{"domain_id":"acme","domain":{"region":"us-east-1"},"request_id":"a b"}`, "request_id"},
		{"domain name with a newline", "DomainService.GetDomain", `{"name":"domains/acme\n"}`, "name"},
		{"all domains", "DomainService.ListDomains", `{}`, ""},
		{"negative page", "DomainService.ListDomains", `{"page_size":-1}`, "page_size"},
		{"newcomer's policy", "DomainService.GenerateKeyPolicy", `{"name":"domains/acme","key_account":"111122223333"}`, ""},
		{"policy on nothing", "DomainService.GenerateKeyPolicy", `{"name":"domains/acme"}`, "base"},
		{"import policy", "DomainService.GenerateKeyPolicy", `{"name":"domains/acme","key_account":"111122223333","profile":"PROFILE_IMPORT_SOURCE","import_source_context":{"app":"old"}}`, ""},
		{"newcomer's key", "DomainService.ChangeKey", `{"name":"domains/acme","kms_key":"` + keyARN + `","reason":"onboarding"}`, ""},
		{"key by alias", "DomainService.ChangeKey", `{"name":"domains/acme","kms_key":"arn:aws:kms:us-east-1:111122223333:alias/new","etag":"3"}`, ""},
		{"alias of nobody's", "DomainService.ChangeKey", `{"name":"domains/acme","kms_key":"alias/new","etag":"3"}`, "kms_key"},
		{"no key", "DomainService.ChangeKey", `{"name":"domains/acme"}`, "kms_key"},
		{"newcomer's grant", "GrantService.CreateGrant", `{"parent":"domains/acme",` + grant + `}}`, ""},
		{"grant on every domain", "GrantService.CreateGrant", `{"parent":"domains/-",` + grant + `}}`, "parent"},
		{"grant without a life", "GrantService.CreateGrant", `{"parent":"domains/acme","grant":{"grantee_principal":"` + roleARN + `","operations":["Decrypt"]}}`, "grant.ttl"},
		{"operation that no service gets", "GrantService.CreateGrant", `{"parent":"domains/acme","grant":{"grantee_principal":"` + roleARN + `","operations":["CreateGrant"],"ttl":"60s"}}`, "grant.operations[0]"},
		{"grant for a part", "GrantService.CreateGrant", `{"parent":"domains/acme",` + grant + `,"constraints":{"encryption_context_equals":{"invoice":"1"}}}}`, ""},
		{"newcomer's data key", "DataKeyService.CreateDataKey", `{"parent":"domains/acme","data_key_id":"invoice-1","data_key":{"context":{"invoice":"1"}}}`, ""},
		{"data key of all defaults", "DataKeyService.CreateDataKey", `{"parent":"domains/acme"}`, ""},
		{"context in Latin-1", "DataKeyService.CreateDataKey", `{"parent":"domains/acme","data_key":{"context":{"city":"Zürich"}}}`, ""},
		{"context beyond Latin-1", "DataKeyService.CreateDataKey", `{"parent":"domains/acme","data_key":{"context":{"city":"Łódź"}}}`, `data_key.context["city"]`},
		{"context key with a space", "DataKeyService.CreateDataKey", `{"parent":"domains/acme","data_key":{"context":{"a b":""}}}`, `data_key.context["a b"]`},
		{"context value too long", "DataKeyService.CreateDataKey", `{"parent":"domains/acme","data_key":{"context":{"a":"` + longValue + `"}}}`, `data_key.context["a"]`},
		{"context of eight", "DataKeyService.CreateDataKey", `{"parent":"domains/acme","data_key":{"context":{"1":"","2":"","3":"","4":"","5":"","6":"","7":"","8":""}}}`, "data_key.context"},
		{"key spec of KMS keys", "DataKeyService.CreateDataKey", `{"parent":"domains/acme","data_key":{"key_spec":"SYMMETRIC_DEFAULT"}}`, "data_key.key_spec"},
		{"data keys of every domain", "DataKeyService.ListDataKeys", `{"parent":"domains/-"}`, ""},
		{"import", "DataKeyService.ImportDataKeys", `{"parent":"domains/acme","items":[{"data_key_id":"a",` + item + `}]}`, ""},
		{"import of nothing", "DataKeyService.ImportDataKeys", `{"parent":"domains/acme"}`, "items"},
		{"import without an id", "DataKeyService.ImportDataKeys", `{"parent":"domains/acme","items":[{` + item + `}]}`, "items[0].data_key_id"},
		{"report", "ReencryptionService.GetRetirementReport", `{"name":"domains/acme/reencryptionJobs/01k9x/retirementReport"}`, ""},
		{"report by the job's name", "ReencryptionService.GetRetirementReport", `{"name":"domains/acme/reencryptionJobs/01k9x"}`, "name"},
	} {
		t.Run(test.name, func(t *testing.T) {
			request := newRequest(t, test.method)
			if err := protojson.Unmarshal([]byte(test.request), request); err != nil {
				t.Fatalf("parse the request: %v", err)
			}
			err := protovalidate.Validate(request)
			if got := faultyField(t, err); got != test.wantFault {
				t.Errorf("fault in %q (%v), want in %q", got, err, test.wantFault)
			}
		})
	}
}

// newRequest makes an empty request of a method, such as
// "DomainService.GetDomain".
func newRequest(t *testing.T, method protoreflect.FullName) proto.Message {
	t.Helper()
	d, err := protoregistry.GlobalFiles.FindDescriptorByName("keybroker.v1." + method)
	if err != nil {
		t.Fatalf("find %s: %v", method, err)
	}
	input := d.(protoreflect.MethodDescriptor).Input()
	if known, err := protoregistry.GlobalTypes.FindMessageByName(input.FullName()); err == nil {
		return known.New().Interface()
	}
	return dynamicpb.NewMessage(input)
}

// faultyField is the path of the first violation, or the id of the rule where
// that spans several fields; empty for a good request.
func faultyField(t *testing.T, err error) string {
	t.Helper()
	if err == nil {
		return ""
	}
	var invalid *protovalidate.ValidationError
	if !errors.As(err, &invalid) {
		t.Fatalf("validate: %v", err)
	}
	first := invalid.Violations[0].Proto
	if path := protovalidate.FieldPathString(first.GetField()); path != "" {
		return path
	}
	return first.GetRuleId()
}

// AIP-193 bounds a reason to 63 characters of UPPER_SNAKE_CASE.
func TestReasonsAreValid(t *testing.T) {
	for _, name := range keybrokerv1.Reason_name {
		reason, ok := strings.CutPrefix(name, "REASON_")
		if !ok || len(reason) > 63 || strings.Trim(reason, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_") != "" {
			t.Errorf("%s: not a legal ErrorInfo reason", name)
		}
	}
}
