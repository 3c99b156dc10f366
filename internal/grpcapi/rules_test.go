package grpcapi_test

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/keybroker/keybroker/internal/broker"
	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

func TestBrokenRules(t *testing.T) {
	const createKey, createGrant = "DataKeyService/CreateDataKey", "GrantService/CreateGrant"
	grant := func(fields string) string {
		return `{"parent":"domains/acme","grant":{"grantee_principal":"` + roleARN + `","operations":["Decrypt"],"ttl":"60s"` + fields + `}}`
	}
	context := func(key, value string) string {
		return fmt.Sprintf(`{"parent":"domains/acme","data_key":{"context":{%q:%q}}}`, key, value)
	}
	f := newFake()
	d := serve(t, f, nil)
	for _, test := range []struct {
		method, request string
		field, reason   string
	}{
		{"DomainService/GetDomain", `{"name":"domains/Acme"}`, "name", "NAME_INVALID"},
		{"DomainService/GetDomain", `{"name":"domains/a/../b"}`, "name", "NAME_INVALID"},
		{"DomainService/GetDomain", `{}`, "name", "NAME_INVALID"},
		{createKey, `{"parent":"domains/-"}`, "parent", "NAME_INVALID"},
		{"DomainService/CreateDomain", `{"domain_id":"acme"}`, "domain", "FIELD_INVALID"},
		{"DomainService/CreateDomain", `{"domain_id":"Acme","domain":{"region":"us-east-1"}}`, "domain_id", "FIELD_INVALID"},
		{"DomainService/CreateDomain", `{"domain_id":"acme","domain":{"region":"us-east-1","labels":{"Tier":"x"}}}`, `domain.labels["Tier"]`, "FIELD_INVALID"},
		{"DomainService/ChangeKey", `{"name":"domains/acme","kms_key":"a key"}`, "kms_key", "KEY_ARN_INVALID"},
		{"DomainService/ChangeKey", `{"name":"domains/acme","kms_key":"alias/new"}`, "kms_key", "KEY_ARN_INVALID"},
		{"DomainService/ChangeKey", `{"name":"domains/acme","kms_key":"1234abcd-12ab-34cd-56ef-1234567890ab"}`, "kms_key", "KEY_ARN_INVALID"},
		{"DomainService/ListDomains", `{"page_token":"` + strings.Repeat("A", 1025) + `"}`, "page_token", "PAGE_TOKEN_INVALID"},
		{"DomainService/ListDomains", `{"filter":"` + strings.Repeat("A", 1025) + `"}`, "filter", "FILTER_INVALID"},
		{"DomainService/GenerateKeyPolicy", `{"name":"domains/acme"}`, "base", "FIELD_INVALID"},
		{"DomainService/GenerateKeyPolicy", `{"name":"domains/acme","existing_policy_document":"` + strings.Repeat("x", 32769) + `"}`, "existing_policy_document", "POLICY_DOCUMENT_INVALID"},
		{createGrant, strings.Replace(grant(""), roleARN, "orders", 1), "grant.grantee_principal", "GRANTEE_NOT_ALLOWED"},
		{createGrant, strings.Replace(grant(""), "Decrypt", "RetireGrant", 1), "grant.operations[0]", "OPERATION_NOT_ALLOWED"},
		{createGrant, grant(`,"constraints":{"encryption_context_subset":{"a":"b"},"encryption_context_equals":{"a":"b"}}`), "grant.constraints", "CONSTRAINT_INVALID"},
		{createGrant, grant(`,"constraints":{"encryption_context_subset":{"a b":"c"}}`), `grant.constraints.encryption_context_subset["a b"]`, "CONTEXT_KEY_INVALID"},
		{createKey, context("a b", "c"), `data_key.context["a b"]`, "CONTEXT_KEY_INVALID"},
		{createKey, context(`a"]x`, "c"), `data_key.context["a\"]x"]`, "CONTEXT_KEY_INVALID"},
		{createKey, context("a", "漢"), `data_key.context["a"]`, "CONTEXT_VALUE_INVALID"},
		{createKey, context("a", strings.Repeat("x", 385)), `data_key.context["a"]`, "CONTEXT_TOO_LARGE"},
		{createKey, `{"parent":"domains/acme","data_key":{"context":{"1":"","2":"","3":"","4":"","5":"","6":"","7":"","8":""}}}`, "data_key.context", "CONTEXT_TOO_LARGE"},
		{createKey, `{"parent":"domains/acme","request_id":"two words"}`, "request_id", "FIELD_INVALID"},
		{createKey, `{"parent":"nothing","request_id":"two words"}`, "parent", "FIELD_INVALID"},
		{"DataKeyService/ImportDataKeys", `{"parent":"domains/acme","items":[{"data_key_id":"k","ciphertext_blob":"AQ==","source_kms_key":"alias/x"}]}`, "items[0].source_kms_key", "KEY_ARN_INVALID"},
		{"DomainService/UpdateDomain", `{"domain":{"name":"acme"},"update_mask":"labels"}`, "domain.name", "NAME_INVALID"},
		{"DomainService/PlanKeyChange", `{"name":"domains/acme","kms_key":"alias/new"}`, "kms_key", "KEY_ARN_INVALID"},
		{"DataKeyService/BatchGetDataKeys", `{"parent":"domains/acme"}`, "names", "FIELD_INVALID"},
		{"DataKeyService/BatchGetDataKeys", `{"parent":"domains/acme","names":["domains/acme/dataKeys/k","domains/beta/dataKeys/k"]}`, "names[1]", "NAME_INVALID"},
		{"DataKeyService/BatchGetDataKeys", `{"parent":"domains/acme","names":["k"]}`, "names[0]", "NAME_INVALID"},
		{"ReencryptionService/CreateReencryptionJob", `{"parent":"domains/acme"}`, "reencryption_job", "FIELD_INVALID"},
		{"ReencryptionService/AcknowledgeReencryptionFailures", `{"parent":"domains/acme/reencryptionJobs/j","all":true}`, "reason", "FIELD_INVALID"},
		{"ReencryptionService/AcknowledgeReencryptionFailures", `{"parent":"domains/acme/reencryptionJobs/j","reason":"x","names":["domains/acme/reencryptionJobs/i/failures/k"]}`, "names[0]", "NAME_INVALID"},
		{"ReencryptionService/WatchReencryptionJob", `{"name":"domains/acme"}`, "name", "NAME_INVALID"},
	} {
		f.got = nil
		_, err := d.call(t.Context(), t, test.method, test.request)
		s := status.Convert(err)
		var fields []string
		for _, detail := range s.Details() {
			if bad, ok := detail.(*errdetails.BadRequest); ok {
				for _, v := range bad.GetFieldViolations() {
					fields = append(fields, v.GetField())
					if v.GetDescription() == "" {
						t.Errorf("%s: no description", v.GetField())
					}
				}
			}
		}
		if s.Code() != codes.InvalidArgument || reasonOf(err) != test.reason || len(fields) == 0 || fields[0] != test.field {
			t.Errorf("%s %.90s: %s %s %q, want %s %q", test.method, test.request, s.Code(), reasonOf(err), fields, test.reason, test.field)
		}
		if f.last() != nil {
			t.Errorf("%s %.90s reached the use case", test.method, test.request)
		}
	}
}

func TestRequestSizes(t *testing.T) {
	f := newFake()
	d := serve(t, f, nil)
	// An unknown field is size like any other, and breaks no rule.
	padded := func(m proto.Message, size int) proto.Message {
		m.ProtoReflect().SetUnknown(protowire.AppendBytes(protowire.AppendTag(nil, 1000, protowire.BytesType), make([]byte, size)))
		return m
	}
	item := &keybrokerv1.ImportDataKeysRequest{Parent: "domains/acme", Items: []*keybrokerv1.ImportDataKeysRequest_Item{
		{DataKeyId: "k", CiphertextBlob: []byte("b"), SourceKmsKey: string(keyOld)}}}
	for _, test := range []struct {
		method string
		in     proto.Message
		want   codes.Code
	}{
		{"DomainService/GetDomain", padded(&keybrokerv1.GetDomainRequest{Name: "domains/acme"}, 255<<10), codes.OK},
		{"DomainService/GetDomain", padded(&keybrokerv1.GetDomainRequest{Name: "domains/acme"}, 257<<10), codes.InvalidArgument},
		{"DataKeyService/ImportDataKeys", padded(proto.Clone(item), 4000<<10), codes.OK},
		{"DataKeyService/ImportDataKeys", padded(proto.Clone(item), 4100<<10), codes.ResourceExhausted}, // gRPC's own limit
	} {
		out := messageOf(t, descriptorOf(t, test.method).Output(), `{}`)
		if got := status.Code(d.conn.Invoke(t.Context(), "/keybroker.v1."+test.method, test.in, out)); got != test.want {
			t.Errorf("%s of %d bytes: %s, want %s", test.method, proto.Size(test.in), got, test.want)
		}
	}
}

func TestRequestHash(t *testing.T) {
	f := newFake()
	d := serve(t, f, nil)
	request := func(text string) broker.Request {
		t.Helper()
		if _, err := d.call(t.Context(), t, "DataKeyService/CreateDataKey", text); err != nil {
			t.Fatal(err)
		}
		return f.last()[1].(broker.NewDataKey).Request
	}
	first := request(`{"parent":"domains/acme","data_key":{"context":{"a":"1","b":"2","c":"3"}},"request_id":"r1"}`)
	if first.ID != "r1" || first.Method != "/keybroker.v1.DataKeyService/CreateDataKey" || first.Hash == (broker.Request{}).Hash {
		t.Fatalf("got %+v", first)
	}
	for range 20 { // maps are marshalled in random order unless told otherwise
		same := request(`{"request_id":"r1","data_key":{"context":{"c":"3","b":"2","a":"1"}},"parent":"domains/acme"}`)
		if same != first {
			t.Fatalf("the order of fields changes the hash")
		}
	}
	if second := request(`{"parent":"domains/acme","data_key":{"context":{"a":"1","b":"2","c":"3"}},"request_id":"r2"}`); second.Hash != first.Hash || second.ID != "r2" {
		t.Errorf("the request id changes the hash")
	}
	for _, other := range []string{
		`{"parent":"domains/beta","data_key":{"context":{"a":"1","b":"2","c":"3"}},"request_id":"r1"}`,
		`{"parent":"domains/acme","data_key":{"context":{"a":"1","b":"2","c":"4"}},"request_id":"r1"}`,
		`{"parent":"domains/acme","data_key":{"context":{"a":"1","b":"2","c":"3"},"key_spec":"AES_256"},"request_id":"r1"}`,
		`{"parent":"domains/acme","data_key_id":"k","data_key":{"context":{"a":"1","b":"2","c":"3"}},"request_id":"r1"}`,
		`{"parent":"domains/acme","request_id":"r1"}`,
	} {
		if request(other).Hash == first.Hash {
			t.Errorf("%s has the same hash", other)
		}
	}
	if none := request(`{"parent":"domains/acme"}`); none != (broker.Request{}) {
		t.Errorf("without a request_id: %+v", none)
	}
}
