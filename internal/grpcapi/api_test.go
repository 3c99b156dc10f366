package grpcapi_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

const (
	grantJSON = `{"name":"domains/acme/grants/orders","uid":"guid1","granteePrincipal":"` + roleARN + `","operations":["Decrypt"],
		"constraints":{"encryptionContextSubset":{"invoice":"1"}},"inventory":"INVENTORY_SELF","expireTime":"2026-05-04T12:09:00Z",
		"state":"STATE_ACTIVE","grantTokens":["token-1"],"kmsKeys":["` + string(keyOld) + `","` + string(keyNew) + `"],"etag":"3",
		"createTime":"2026-05-04T12:01:00Z","updateTime":"2026-05-04T12:02:00Z"}`
	domainHead = `{"name":"domains/acme","uid":"uid1","displayName":"Acme Corp","region":"us-east-1","keySource":"KEY_SOURCE_CUSTOMER",
		"kmsKey":"` + string(keyNew) + `","kmsKeyGiven":"arn:aws:kms:us-east-1:111122223333:alias/new","state":"STATE_ACTIVE",
		"keyInaccessibleTime":"2026-05-04T12:03:00Z","encryptionContext":{"keybroker:domain":"uid1"},
		"keyAccounts":["111122223333"],"importSourceKeys":["` + string(keyOld) + `"],"labels":{"tier":"gold"},"etag":"7",
		"createTime":"2026-05-04T12:01:00Z","updateTime":"2026-05-04T12:02:00Z"`
	domainJSON = domainHead + `,"previousKeys":[{"kmsKey":"` + string(keyOld) + `","activateTime":"2026-05-04T12:01:00Z",
		"replaceTime":"2026-05-04T12:02:00Z","retireTime":"2026-05-04T12:03:00Z"}]}`
	dataKeyHead = `{"name":"domains/acme/dataKeys/Invoice-1","uid":"kuid1","kmsKey":"` + string(keyNew) + `","keyMaterialId":"material",
		"keySpec":"AES_256","context":{"invoice":"1"},"encryptionContext":{"invoice":"1","keybroker:domain":"uid1"},"etag":"5",
		"createTime":"2026-05-04T12:01:00Z","updateTime":"2026-05-04T12:02:00Z"`
	dataKeyJSON = dataKeyHead + `,"ciphertextBlob":"YmxvYg=="}`
	jobTail     = `"kind":"KIND_KEY_CHANGE","phase":"PHASE_REENCRYPTING","state":"STATE_RUNNING",
		"sourceKmsKeys":["` + string(keyOld) + `","` + string(keyNew) + `"],"targetKmsKey":"` + string(keyNew) + `","reason":"yearly change",
		"progress":{"totalRows":"10","totalRowsEstimated":true,"doneRows":"5","failedRows":"2","relabelledRows":"1","rowsPerSecond":2.5,
			"estimatedFinishTime":"2026-05-04T12:06:00Z"},
		"waiting":{"message":"for grants","until":"2026-05-04T12:04:00Z"},"createTime":"2026-05-04T12:01:00Z","switchTime":"2026-05-04T12:02:00Z",
		"endTime":"2026-05-04T12:05:00Z","updateTime":"2026-05-04T12:03:00Z","etag":"9",
		"priority":"PRIORITY_HIGH","pace":{"callsPerSecond":4,"throttledShare":0.25,"budgetCallsPerSecond":1800}}`
	jobJSON     = `{"name":"domains/acme/reencryptionJobs/job1",` + jobTail
	failureName = "domains/acme/reencryptionJobs/job1/failures/a0000"
	failureJSON = `{"name":"` + failureName + `","dataKey":"domains/acme/dataKeys/a0000","class":"CLASS_INCORRECT_KEY",
		"message":"KMS ReEncrypt: IncorrectKeyException","failTime":"2026-05-04T12:04:00Z","acknowledged":true}`
	settledJSON = `{"grant":"domains/acme/grants/orders","granteePrincipal":"` + roleARN + `","state":"STATE_ATTESTED","kmsKey":"` + string(keyNew) + `",
		"caller":"tester","settleTime":"2026-05-04T12:04:00Z","items":"5","givenUpItems":"1","reason":"gone"}`
	actJSON = `{"name":"domains/acme/reencryptionJobs/job1","etag":"9","reason":"audit day","request_id":"r1"}`
)

// An rpc is one call as a newcomer types it for grpcurl, what the use case must
// be asked then, and what must come back.
type rpc struct {
	method, request string
	asked           []any // less the caller and a request's hash
	answer          string
}

var rpcs = []rpc{{
	method:  "DomainService/CreateDomain",
	request: `{"domain_id":"acme","domain":{"display_name":"Acme Corp","region":"us-east-1","key_accounts":["111122223333"],"labels":{"tier":"gold"}},"request_id":"r1"}`,
	asked: []any{broker.NewDomain{Request: requestOf("DomainService/CreateDomain"), ID: "acme", DisplayName: "Acme Corp", Region: "us-east-1",
		KeyAccounts: []string{"111122223333"}, Labels: map[string]string{"tier": "gold"}}},
	answer: domainJSON, // a repeat, when the domain has changed its key
}, {
	method: "DomainService/GetDomain", request: `{"name":"domains/acme"}`,
	asked: []any{broker.DomainID("acme")}, answer: domainJSON,
}, {
	method: "DomainService/ListDomains", request: `{"page_size":1}`,
	asked: []any{broker.DomainID(""), 2}, answer: `{"domains":[` + strings.Replace(domainJSON, "domains/acme", "domains/a0000", 1) + `]}`,
}, {
	method: "DomainService/UpdateDomain",
	request: `{"domain":{"name":"domains/acme","display_name":"Acme","labels":{"tier":"gold"},"key_accounts":["111122223333"],"import_source_keys":["` + string(keyOld) + `"]},
		"update_mask":"displayName,labels,keyAccounts,importSourceKeys","etag":"7","request_id":"r1"}`,
	asked: []any{broker.DomainUpdate{Request: requestOf("DomainService/UpdateDomain"), ID: "acme",
		Mask: []string{"display_name", "labels", "key_accounts", "import_source_keys"}, DisplayName: "Acme", Labels: map[string]string{"tier": "gold"},
		KeyAccounts: []string{"111122223333"}, ImportSources: []string{string(keyOld)}, Etag: "7"}},
	answer: domainJSON,
}, {
	method: "DomainService/DeleteDomain", request: `{"name":"domains/acme","etag":"7","reason":"left us","crypto_shred":true,"request_id":"r1"}`,
	asked:  []any{rotation.DeleteDomain{Request: requestOf("DomainService/DeleteDomain"), Domain: "acme", Etag: "7", Reason: "left us", CryptoShred: true}},
	answer: `{}`,
}, {
	method: "DomainService/PlanKeyChange", request: `{"name":"domains/acme","kms_key":"` + string(keyNew) + `"}`,
	asked: []any{broker.DomainID("acme"), string(keyNew)},
	answer: `{"targetKmsKey":"` + string(keyNew) + `","sources":[{"kmsKey":"` + string(keyOld) + `","rows":"5"}],"grants":"3","selfInventoryGrants":"1",
		"forecast":{"rows":"5","callsPerSecond":2.5,"reencryptionDuration":"2s","totalDuration":"600s"},
		"problems":[{"reason":"KEY_DISABLED","side":"SIDE_TO","message":"it is disabled"}]}`,
}, {
	method: "DomainService/GenerateKeyPolicy", request: `{"name":"domains/acme","key_account":"111122223333"}`,
	asked:  []any{broker.KeyPolicyRequest{Domain: "acme", KeyAccount: "111122223333", Profile: broker.PolicyStandard}},
	answer: `{"policyDocument":"{}","statements":["{}"],"policyVersion":"1"}`,
}, {
	method: "DomainService/ChangeKey", request: `{"name":"domains/acme","kms_key":"` + string(keyNew) + `","etag":"7","reason":"yearly change","allow_inaccessible_source":true,"priority":"PRIORITY_HIGH","request_id":"r1"}`,
	asked: []any{rotation.ChangeKey{Request: requestOf("DomainService/ChangeKey"), Domain: "acme", KMSKey: string(keyNew), Etag: "7", Reason: "yearly change",
		AllowInaccessibleSource: true, Priority: rotation.High}},
	answer: jobJSON,
}, {
	method:  "GrantService/CreateGrant",
	request: `{"parent":"domains/acme","grant_id":"orders","grant":{"grantee_principal":"` + roleARN + `","operations":["Decrypt"],"ttl":"86400s","inventory":"INVENTORY_SELF","constraints":{"encryption_context_subset":{"invoice":"1"}}}}`,
	asked: []any{broker.NewGrant{Domain: "acme", ID: "orders", Grantee: roleARN, Operations: []string{"Decrypt"},
		Constraint: broker.Constraint{Subset: broker.Context{"invoice": "1"}}, Inventory: broker.InventorySelf, TTL: 24 * time.Hour}},
	answer: grantJSON,
}, {
	method: "GrantService/GetGrant", request: `{"name":"domains/acme/grants/orders"}`,
	asked: []any{broker.DomainID("acme"), broker.GrantID("orders")}, answer: grantJSON,
}, {
	method: "GrantService/ListGrants", request: `{"parent":"domains/-","page_size":1}`,
	asked:  []any{broker.DomainID("-"), broker.GrantCursor{}, 2},
	answer: `{"grants":[` + strings.Replace(grantJSON, "grants/orders", "grants/a0000", 1) + `]}`,
}, {
	method: "GrantService/RevokeGrant", request: `{"name":"domains/acme/grants/orders","etag":"3","reason":"left us","request_id":"r1"}`,
	asked:  []any{broker.RevokeGrant{Request: requestOf("GrantService/RevokeGrant"), Domain: "acme", ID: "orders", Etag: "3", Reason: "left us"}},
	answer: grantJSON,
}, {
	method: "GrantService/RenewGrant", request: `{"name":"domains/acme/grants/orders","ttl":"60s","etag":"3","reason":"again","request_id":"r1"}`,
	asked:  []any{broker.RenewGrant{Request: requestOf("GrantService/RenewGrant"), Domain: "acme", ID: "orders", TTL: time.Minute, Etag: "3", Reason: "again"}},
	answer: grantJSON,
}, {
	method: "DataKeyService/CreateDataKey", request: `{"parent":"domains/acme","data_key_id":"Invoice-1","data_key":{"context":{"invoice":"1"},"key_spec":"AES_256"}}`,
	asked:  []any{broker.NewDataKey{Domain: "acme", ID: "Invoice-1", Context: broker.Context{"invoice": "1"}, KeySpec: "AES_256"}},
	answer: dataKeyJSON,
}, {
	method: "DataKeyService/GetDataKey", request: `{"name":"domains/acme/dataKeys/Invoice-1"}`,
	asked: []any{broker.DomainID("acme"), broker.DataKeyID("Invoice-1")}, answer: dataKeyJSON,
}, {
	method: "DataKeyService/BatchGetDataKeys", request: `{"parent":"domains/acme","names":["domains/acme/dataKeys/Invoice-1","domains/acme/dataKeys/k2"]}`,
	asked:  []any{broker.DomainID("acme"), []broker.DataKeyID{"Invoice-1", "k2"}},
	answer: `{"dataKeys":[` + dataKeyJSON + `,` + strings.Replace(dataKeyJSON, "Invoice-1", "k2", 1) + `]}`,
}, {
	method: "DataKeyService/ListDataKeys", request: `{"parent":"domains/-","page_size":1}`,
	asked:  []any{broker.DomainID("-"), broker.DataKeyCursor{}, 2},
	answer: `{"dataKeys":[` + strings.Replace(dataKeyJSON, "Invoice-1", "a0000", 1) + `]}`,
}, {
	method: "DataKeyService/DeleteDataKey", request: `{"name":"domains/acme/dataKeys/Invoice-1","etag":"5","request_id":"r1"}`,
	asked:  []any{requestOf("DataKeyService/DeleteDataKey"), broker.DomainID("acme"), broker.DataKeyID("Invoice-1"), "5"},
	answer: `{}`,
}, {
	method: "DataKeyService/ImportDataKeys",
	request: `{"parent":"domains/acme","items":[{"data_key_id":"k1","ciphertext_blob":"YmxvYg==","source_kms_key":"` + string(keyOld) + `","source_encryption_context":{"a":"b"}},
		{"data_key_id":"k2","ciphertext_blob":"YmxvYg==","source_kms_key":"` + string(keyOld) + `","key_spec":"AES_128","etag":"5"}]}`,
	asked: []any{broker.ImportDataKeys{Domain: "acme", Items: []broker.ImportItem{
		{ID: "k1", Ciphertext: broker.Secret("blob"), SourceKey: keyOld, SourceContext: broker.Context{"a": "b"}},
		{ID: "k2", Etag: "5", Ciphertext: broker.Secret("blob"), SourceKey: keyOld, KeySpec: "AES_128"}}}},
	answer: `{"results":[{"dataKey":` + dataKeyHead + `}},
		{"error":{"code":3,"message":"KMS cannot read the blob (domains/acme/dataKeys/k2)","reason":"CIPHERTEXT_INVALID"}}]}`,
}, {
	method: "ReencryptionService/CreateReencryptionJob", request: `{"parent":"domains/acme","reencryption_job":{"kind":"KIND_VERIFY","reason":"audit day"},"request_id":"r1"}`,
	asked:  []any{rotation.NewJob{Request: requestOf("ReencryptionService/CreateReencryptionJob"), Domain: "acme", Kind: rotation.KindVerify, Reason: "audit day"}},
	answer: jobJSON,
}, {
	method: "ReencryptionService/PauseReencryptionJob", request: actJSON, asked: []any{"pause", jobActOf("Pause")}, answer: jobJSON,
}, {
	method: "ReencryptionService/ResumeReencryptionJob", request: actJSON, asked: []any{"resume", jobActOf("Resume")}, answer: jobJSON,
}, {
	method: "ReencryptionService/CancelReencryptionJob", request: actJSON, asked: []any{"cancel", jobActOf("Cancel")}, answer: jobJSON,
}, {
	method: "ReencryptionService/ListReencryptionFailures", request: `{"parent":"domains/acme/reencryptionJobs/job1","filter":"acknowledged = true"}`,
	asked:  []any{broker.DomainID("acme"), broker.JobID("job1"), broker.DataKeyID(""), 250},
	answer: `{"reencryptionFailures":[` + failureJSON + `]}`,
}, {
	method:  "ReencryptionService/AcknowledgeReencryptionFailures",
	request: `{"parent":"domains/acme/reencryptionJobs/job1","names":["` + failureName + `"],"reason":"lost long ago","request_id":"r1"}`,
	asked: []any{rotation.Acknowledge{Request: requestOf("ReencryptionService/AcknowledgeReencryptionFailures"), Domain: "acme", Job: "job1",
		DataKeys: []broker.DataKeyID{"a0000"}, Reason: "lost long ago"}},
	answer: `{"acknowledgedCount":"2"}`,
}, {
	method: "ReencryptionService/GetReencryptionJob", request: `{"name":"domains/acme/reencryptionJobs/job1"}`,
	asked: []any{broker.DomainID("acme"), broker.JobID("job1")}, answer: jobJSON,
}, {
	method: "ReencryptionService/ListReencryptionJobs", request: `{"parent":"domains/acme"}`,
	asked:  []any{broker.DomainID("acme"), rotation.JobCursor{}, 51},
	answer: `{"reencryptionJobs":[` + strings.Replace(jobJSON, "job1", "a0000", 1) + `]}`,
}, {
	method: "ReencryptionService/WatchReencryptionJob", request: `{"name":"domains/acme/reencryptionJobs/job1"}`,
	asked: []any{broker.DomainID("acme"), broker.JobID("job1")}, answer: `{"job":` + jobJSON + `}`,
}, {
	method: "ReencryptionService/GetRetirementReport", request: `{"name":"domains/acme/reencryptionJobs/job1/retirementReport"}`,
	asked: []any{broker.DomainID("acme"), broker.JobID("job1")},
	answer: `{"name":"domains/acme/reencryptionJobs/job1/retirementReport","evaluateTime":"2026-05-04T12:08:00Z","reportSha256":"ab","canonicalJson":"{}",
		"entries":[{"kmsKey":"` + string(keyOld) + `","safeAfter":"2026-05-04T12:07:00Z","grantsRetired":"2","listedTime":"2026-05-04T12:05:00Z",
			"lastRowMovedTime":"2026-05-04T12:04:00Z","confirm":["look"],
			"blockers":[{"kind":"KIND_ROWS","resource":"domains/acme","count":"3","message":"rows","until":"2026-05-04T12:09:00Z"}],
			"rowsMoved":[{"sourceKeyMaterialId":"m1","destinationKeyMaterialId":"m2","rows":"5"}],"selfInventories":[` + settledJSON + `]}]}`,
}, {
	method: "ReencryptionService/OverrideSelfInventory", request: `{"name":"domains/acme/grants/orders","reason":"gone","request_id":"r1"}`,
	asked:  []any{rotation.OverrideInventory{Request: requestOf("ReencryptionService/OverrideSelfInventory"), Domain: "acme", Grant: "orders", Reason: "gone"}},
	answer: settledJSON,
}, {
	method: "DataKeyService/ReencryptStream", request: `{"header":{"parent":"domains/acme","grant":"domains/acme/grants/orders"}}`,
	asked:  []any{rotation.OpenPass{Domain: "acme", Owner: rotation.PassOwner{Grant: "orders"}}},
	answer: `{"opened":{"kmsKey":"` + string(keyNew) + `","olderKmsKeys":["` + string(keyOld) + `"],"attestAfter":"2026-05-04T12:03:00Z"}}`,
}}

// requestOf is the idempotency token of request_id r1, less the hash.
func requestOf(method string) broker.Request {
	return broker.Request{Method: "/keybroker.v1." + method, ID: "r1"}
}

func jobActOf(verb string) rotation.JobAct {
	return rotation.JobAct{Request: requestOf("ReencryptionService/" + verb + "ReencryptionJob"), Domain: "acme", Job: "job1", Etag: "9", Reason: "audit day"}
}

// descriptorOf finds a method of the API by the last parts of its name.
func descriptorOf(t testing.TB, method string) protoreflect.MethodDescriptor {
	t.Helper()
	name := protoreflect.FullName("keybroker.v1." + strings.ReplaceAll(method, "/", "."))
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return d.(protoreflect.MethodDescriptor)
}

func messageOf(t testing.TB, d protoreflect.MessageDescriptor, text string) proto.Message {
	t.Helper()
	mt, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		t.Fatal(err)
	}
	m := mt.New().Interface()
	if err := protojson.Unmarshal([]byte(text), m); err != nil {
		t.Fatalf("%s: %v", d.FullName(), err)
	}
	return m
}

// call makes one call; of a stream it gives the first message, and the stream's
// end if that is an error.
func (d *door) call(ctx context.Context, t testing.TB, method, request string) (proto.Message, error) {
	t.Helper()
	descriptor := descriptorOf(t, method)
	in := messageOf(t, descriptor.Input(), request)
	out := messageOf(t, descriptor.Output(), `{}`)
	full := "/keybroker.v1." + method
	if !descriptor.IsStreamingServer() {
		return out, d.conn.Invoke(ctx, full, in, out)
	}
	stream, err := d.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, full)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(stream.SendMsg(in), stream.CloseSend(), stream.RecvMsg(out)); err != nil {
		return nil, err
	}
	if err := stream.RecvMsg(messageOf(t, descriptor.Output(), `{}`)); !errors.Is(err, io.EOF) {
		return nil, err
	}
	return out, nil
}

func TestEveryRPC(t *testing.T) {
	untried := map[string]bool{}
	protoregistry.GlobalFiles.RangeFilesByPackage("keybroker.v1", func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			s := file.Services().Get(i)
			for j := range s.Methods().Len() {
				untried[string(s.Name())+"/"+string(s.Methods().Get(j).Name())] = true
			}
		}
		return true
	})
	for _, r := range rpcs {
		delete(untried, r.method)
		t.Run(r.method, func(t *testing.T) {
			f := newFake()
			f.rows = 1
			d := serve(t, f, nil)
			got, err := d.call(t.Context(), t, r.method, r.request)
			if err != nil {
				t.Fatal(err)
			}
			want := messageOf(t, descriptorOf(t, r.method).Output(), r.answer)
			sealed := protocmp.IgnoreFields(&keybrokerv1.ReencryptStreamResponse_Opened{}, "resume_token")
			if diff := cmp.Diff(want, got, protocmp.Transform(), sealed); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
			noHash := cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".Hash" }, cmp.Ignore())
			asked := append([]any{broker.Caller{Subject: "tester"}}, r.asked...)
			if diff := cmp.Diff(asked, f.last(), noHash); diff != "" {
				t.Errorf("the use case was asked (-want +got):\n%s", diff)
			}
			namesParseBack(t, got)
		})
	}
	for method := range untried {
		t.Errorf("%s is not in the table", method)
	}
}

// namesParseBack requires each field called name to be a name that the
// product's own parser takes.
func namesParseBack(t *testing.T, m proto.Message) {
	t.Helper()
	parsers := map[protoreflect.Name]func(string) error{
		"Domain":          func(n string) error { _, err := broker.ParseDomainName("name", n); return err },
		"Grant":           func(n string) error { _, _, err := broker.ParseGrantName("name", n); return err },
		"DataKey":         func(n string) error { _, _, err := broker.ParseDataKeyName("name", n); return err },
		"ReencryptionJob": func(n string) error { _, _, err := broker.ParseJobName("name", n); return err },
		"ReencryptionFailure": func(n string) error {
			_, _, _, err := broker.ParseFailureName("name", n)
			return err
		},
		"RetirementReport": func(n string) error { _, _, err := broker.ParseReportName("name", n); return err },
	}
	var walk func(m protoreflect.Message)
	walk = func(m protoreflect.Message) {
		if parse, ok := parsers[m.Descriptor().Name()]; ok {
			name := m.Get(m.Descriptor().Fields().ByName("name")).String()
			if err := parse(name); err != nil {
				t.Errorf("%q does not parse: %v", name, err)
			}
		}
		m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
			switch {
			case f.Message() == nil || f.IsMap():
			case f.IsList():
				for i := range v.List().Len() {
					walk(v.List().Get(i).Message())
				}
			default:
				walk(v.Message())
			}
			return true
		})
	}
	walk(m.ProtoReflect())
}

func TestDomainNamesItsOpenJob(t *testing.T) {
	const job = "domains/acme/reencryptionJobs/job1"
	for name, test := range map[string]struct {
		edit func(f *fakeUseCases)
		want string
	}{
		"preparing":               {func(f *fakeUseCases) { f.domain.KeyChange.Job = "job1" }, job},
		"moving rows":             {func(f *fakeUseCases) { f.keys[0].State, f.openJob = broker.KeySuperseded, "job1" }, job},
		"retiring":                {func(f *fakeUseCases) { f.keys[0].State, f.openJob = broker.KeyClosed, "job1" }, job},
		"failed after the switch": {func(f *fakeUseCases) { f.keys[0].State = broker.KeySuperseded }, ""},
		"older keys are retired":  {func(f *fakeUseCases) { f.openJob = "job1" }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake()
			test.edit(f)
			got, err := serve(t, f, nil).call(t.Context(), t, "DomainService/GetDomain", `{"name":"domains/acme"}`)
			if err != nil {
				t.Fatal(err)
			}
			if name := got.(interface{ GetKeyChange() string }).GetKeyChange(); name != test.want {
				t.Errorf("key_change = %q, want %q", name, test.want)
			}
		})
	}
}
