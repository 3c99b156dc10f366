package grpcapi_test

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

// An enum is one that our rooms spell as a string type: how to have the API
// answer with a value of it, and the proto values that no room gives yet.
type enum struct {
	dir, goType string
	proto       protoreflect.EnumDescriptor
	prefix      string
	method      string
	request     string
	set         func(f *fakeUseCases, value string)
	field       string // path in the answer
	notYet      []string
	never       string // a room's value that the API never answers
}

func TestEveryEnumValue(t *testing.T) {
	const job = `{"name":"domains/acme/reencryptionJobs/job1"}`
	for _, e := range []enum{
		{"../broker", "DomainState", keybrokerv1.Domain_State(0).Descriptor(), "STATE_", "DomainService/GetDomain", `{"name":"domains/acme"}`,
			func(f *fakeUseCases, v string) { f.domain.State = broker.DomainState(v) }, "state", nil, "DELETED"},
		{"../broker", "GrantState", keybrokerv1.Grant_State(0).Descriptor(), "STATE_", "GrantService/GetGrant", `{"name":"domains/acme/grants/orders"}`,
			func(f *fakeUseCases, v string) { f.grant.State = broker.GrantState(v) }, "state", nil, ""},
		{"../rotation", "Kind", keybrokerv1.ReencryptionJob_Kind(0).Descriptor(), "KIND_", "ReencryptionService/GetReencryptionJob", job,
			func(f *fakeUseCases, v string) { f.job.Kind = rotation.Kind(v) }, "kind", nil, ""},
		{"../rotation", "Priority", keybrokerv1.ReencryptionJob_Priority(0).Descriptor(), "PRIORITY_", "ReencryptionService/GetReencryptionJob", job,
			func(f *fakeUseCases, v string) { f.job.Priority = rotation.Priority(v) }, "priority", nil, ""},
		{"../rotation", "Phase", keybrokerv1.ReencryptionJob_Phase(0).Descriptor(), "PHASE_", "ReencryptionService/GetReencryptionJob", job,
			func(f *fakeUseCases, v string) { f.job.Phase = rotation.Phase(v) }, "phase", nil, ""},
		{"../rotation", "State", keybrokerv1.ReencryptionJob_State(0).Descriptor(), "STATE_", "ReencryptionService/GetReencryptionJob", job,
			func(f *fakeUseCases, v string) { f.job.State = rotation.State(v) }, "state", nil, ""},
		{"../rotation", "Side", keybrokerv1.ReencryptionJob_Block_Side(0).Descriptor(), "SIDE_", "ReencryptionService/GetReencryptionJob", job,
			func(f *fakeUseCases, v string) {
				f.job.State, f.job.Block = rotation.Blocked, rotation.Block{Side: rotation.Side(v)}
			}, "block.side", nil, ""},
		{"../rotation", "BlockerKind", keybrokerv1.KeyRetirement_Blocker_Kind(0).Descriptor(), "KIND_", "ReencryptionService/GetRetirementReport",
			`{"name":"domains/acme/reencryptionJobs/job1/retirementReport"}`,
			func(f *fakeUseCases, v string) { f.report.Keys[0].Blockers[0].Kind = rotation.BlockerKind(v) }, "entries.blockers.kind",
			[]string{"READ_DELAY", "GRANTS_UNLISTED"}, ""},
		{"../broker", "Inventory", keybrokerv1.Grant_Inventory(0).Descriptor(), "INVENTORY_", "GrantService/GetGrant", `{"name":"domains/acme/grants/orders"}`,
			func(f *fakeUseCases, v string) { f.grant.Inventory = broker.Inventory(v) }, "inventory", nil, ""},
		{"../rotation", "SettlementKind", keybrokerv1.SelfInventory_State(0).Descriptor(), "STATE_", "ReencryptionService/OverrideSelfInventory",
			`{"name":"domains/acme/grants/orders","reason":"gone"}`,
			func(f *fakeUseCases, v string) { f.settled[0].Settled.Kind = rotation.SettlementKind(v) }, "state", []string{"PENDING"}, ""},
	} {
		t.Run(e.goType, func(t *testing.T) {
			values := constantsOf(t, e.dir, e.goType)
			f := newFake()
			d := serve(t, f, nil)
			for _, v := range values {
				if v == e.never {
					continue
				}
				e.set(f, v)
				answer, err := d.call(t.Context(), t, e.method, e.request)
				if err != nil {
					t.Fatal(err)
				}
				if got := enumAt(answer, e.proto, e.field); got != e.prefix+v {
					t.Errorf("%s is answered as %s", v, got)
				}
			}
			for i := range e.proto.Values().Len() {
				v := strings.TrimPrefix(string(e.proto.Values().Get(i).Name()), e.prefix)
				if known, later := slices.Contains(values, v), slices.Contains(e.notYet, v); v != "UNSPECIFIED" && known == later {
					t.Errorf("%s: given by a room: %t, listed as not yet given: %t", v, known, later)
				}
			}
		})
	}
}

// enumAt names the enum value at a path; of a list it takes the first element.
func enumAt(m proto.Message, enum protoreflect.EnumDescriptor, path string) string {
	at := m.ProtoReflect()
	parts := strings.Split(path, ".")
	for _, name := range parts[:len(parts)-1] {
		field := at.Descriptor().Fields().ByName(protoreflect.Name(name))
		if field.IsList() {
			at = at.Get(field).List().Get(0).Message()
		} else {
			at = at.Get(field).Message()
		}
	}
	n := at.Get(at.Descriptor().Fields().ByName(protoreflect.Name(parts[len(parts)-1]))).Enum()
	return string(enum.Values().ByNumber(n).Name())
}

func TestPolicyProfiles(t *testing.T) {
	f := newFake()
	d := serve(t, f, nil)
	for profile, want := range map[string]broker.PolicyProfile{
		`"PROFILE_UNSPECIFIED"`: broker.PolicyStandard, `"PROFILE_STANDARD"`: broker.PolicyStandard,
		`"PROFILE_IMPORT_SOURCE","import_source_context":{"a":"b"}`: broker.PolicyImportSource,
	} {
		if _, err := d.call(t.Context(), t, "DomainService/GenerateKeyPolicy", `{"name":"domains/acme","key_account":"111122223333","profile":`+profile+`}`); err != nil {
			t.Fatal(err)
		}
		if got := f.last()[1].(broker.KeyPolicyRequest).Profile; got != want {
			t.Errorf("%s is asked for as %q, want %q", profile, got, want)
		}
	}
	if n := len(keybrokerv1.GenerateKeyPolicyRequest_Profile_name); n != 3 {
		t.Errorf("the API has %d profiles, and this test knows 3", n)
	}
}
