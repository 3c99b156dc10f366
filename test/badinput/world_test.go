// Package badinput_test holds the tables of bad input: whatever a client may send
// that it should not have sent, with the one answer that it gets. The calls go
// through the real service: door, use cases, SQLite, and localkms. Each refusal
// has a gRPC code and a reason that are the API's promise, names the field where
// there is one, and leaves every row of the database and every grant at KMS as it
// was.
package badinput_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	pb "github.com/keybroker/keybroker/proto/keybroker/v1"
	"github.com/keybroker/keybroker/test/harness"
)

// A world is a broker behind its door, with something of everything in it:
//
//   - domains/acme is ACTIVE, with the grants orders and spare, the data keys k1 and k2, and
//     a first job that has succeeded; it may import from the key legacy;
//   - domains/pending waits for its first key;
//   - domains/empty is ACTIVE and has nothing;
//   - domains/changing has a change of its key in PREPARING;
//   - domains/broken has a change that FAILED on the data keys bad and worse, and
//     the grant own of a service that keeps its own wrapped keys.
type world struct {
	*harness.Bench
	t    *testing.T
	conn *grpc.ClientConn
	// keys are all keys of the customer; key is acme's, next one that it might
	// move to, legacy its import source.
	keys              []broker.KeyARN
	key, next, legacy broker.KeyARN
	blob              []byte // made under legacy with the context tenant=acme
	acmeJob           string // names
	changingJob       string
	brokenJob         string
}

func newWorld(t *testing.T, cfg harness.Config) *world {
	t.Helper()
	ctx := t.Context()
	cfg.Dir, cfg.Windows = t.TempDir(), broker.Windows{GrantVisibility: time.Minute}
	w := &world{t: t}
	var err error
	w.Bench, err = harness.New(ctx, cfg)
	w.must(err)
	t.Cleanup(func() { w.must(w.Close()) })
	w.conn, err = w.Door()
	w.must(err)

	made, err := w.Customer.CreateKey(ctx, &kms.CreateKeyInput{})
	w.must(err)
	w.legacy = broker.KeyARN(aws.ToString(made.KeyMetadata.Arn))
	_, err = w.NewDomain(ctx, "acme", string(w.legacy))
	w.must(err)
	policy, err := w.Broker.GenerateKeyPolicy(ctx, harness.Caller, broker.KeyPolicyRequest{Domain: "acme", KeyAccount: harness.CustomerAccount,
		Profile: broker.PolicyImportSource, ImportContext: broker.Context{"tenant": "acme"}})
	w.must(err)
	_, err = w.Customer.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: aws.String(string(w.legacy)), Policy: &policy.Document})
	w.must(err)
	blob, err := w.Customer.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: aws.String(string(w.legacy)), KeySpec: "AES_256",
		EncryptionContext: map[string]string{"tenant": "acme"}})
	w.must(err)
	w.blob = blob.CiphertextBlob

	w.key = w.newKey("acme")
	job := w.change("acme", w.key)
	w.finish("acme", job, rotation.Succeeded)
	w.acmeJob = broker.JobName("acme", job)
	for _, id := range []broker.GrantID{"orders", "spare"} {
		_, err = w.Broker.CreateGrant(ctx, harness.Caller, broker.NewGrant{Domain: "acme", ID: id, Grantee: harness.ServiceRole, Operations: []string{"Decrypt"}, TTL: time.Hour})
		w.must(err)
	}
	w.createDataKeys("acme", "k1", "k2")

	_, err = w.NewDomain(ctx, "pending")
	w.must(err)
	for _, d := range []broker.DomainID{"empty", "changing", "broken"} {
		_, key, err := w.Onboard(ctx, d)
		w.must(err)
		w.keys = append(w.keys, key)
	}
	w.next = w.newKey("acme", "changing", "broken")
	_, err = w.Broker.CreateGrant(ctx, harness.Caller, broker.NewGrant{Domain: "broken", ID: "own", Grantee: harness.ServiceRole, Operations: []string{"Decrypt"},
		Inventory: broker.InventorySelf, TTL: time.Hour})
	w.must(err)
	w.createDataKeys("broken", "bad", "good", "worse")
	w.spoil("broken", "bad")
	w.spoil("broken", "worse")
	job = w.change("broken", w.next)
	w.finish("broken", job, rotation.Failed)
	w.brokenJob = broker.JobName("broken", job)
	w.changingJob = broker.JobName("changing", w.change("changing", w.next))
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) newKey(domains ...broker.DomainID) broker.KeyARN {
	w.t.Helper()
	key, err := w.NewKey(w.t.Context(), domains...)
	w.must(err)
	w.keys = append(w.keys, key)
	return key
}

func (w *world) change(d broker.DomainID, key broker.KeyARN) broker.JobID {
	w.t.Helper()
	job, err := w.ChangeKey(w.t.Context(), d, key)
	w.must(err)
	return job.ID
}

func (w *world) finish(d broker.DomainID, job broker.JobID, want rotation.State) {
	w.t.Helper()
	v, err := w.Finish(w.t.Context(), d, job)
	w.must(err)
	if v.State != want {
		w.t.Fatalf("the job of %s ended %s, want %s: %s", d, v.State, want, v.FailMessage)
	}
}

func (w *world) createDataKeys(d broker.DomainID, ids ...broker.DataKeyID) {
	w.t.Helper()
	for _, id := range ids {
		_, err := w.Broker.CreateDataKey(w.t.Context(), harness.Caller, broker.NewDataKey{Domain: d, ID: id})
		w.must(err)
	}
}

// spoil makes a row one that KMS cannot read.
func (w *world) spoil(d broker.DomainID, id broker.DataKeyID) {
	w.t.Helper()
	ctx := w.t.Context()
	w.must(w.Store.Rotation().Update(ctx, func(tx rotation.Tx) error {
		domain, err := tx.Domain(ctx, d)
		if err != nil {
			return err
		}
		row, err := tx.DataKey(ctx, domain.UID, id)
		if err != nil {
			return err
		}
		row.Ciphertext[len(row.Ciphertext)-1]++
		return tx.ReplaceDataKey(ctx, row, row.Epoch)
	}))
}

// etag gives the present etag of domains/acme.
func (w *world) etag() string {
	w.t.Helper()
	d, _, err := w.Broker.GetDomain(w.t.Context(), harness.Caller, "acme")
	w.must(err)
	return d.Etag()
}

// good gives a request of a method that the world would grant.
func (w *world) good(method protoreflect.Name) proto.Message {
	w.t.Helper()
	grant := &pb.Grant{GranteePrincipal: harness.ServiceRole, Operations: []string{"Decrypt"}, Ttl: durationpb.New(time.Hour)}
	switch method {
	case "CreateDomain":
		return &pb.CreateDomainRequest{DomainId: "fresh", Domain: &pb.Domain{Region: harness.Region}}
	case "GetDomain":
		return &pb.GetDomainRequest{Name: "domains/acme"}
	case "ListDomains":
		return &pb.ListDomainsRequest{}
	case "UpdateDomain":
		return &pb.UpdateDomainRequest{Domain: &pb.Domain{Name: "domains/acme", DisplayName: "Acme"}}
	case "DeleteDomain":
		return &pb.DeleteDomainRequest{Name: "domains/empty"}
	case "GenerateKeyPolicy":
		return &pb.GenerateKeyPolicyRequest{Name: "domains/acme", Base: &pb.GenerateKeyPolicyRequest_KeyAccount{KeyAccount: harness.CustomerAccount}}
	case "PlanKeyChange":
		return &pb.PlanKeyChangeRequest{Name: "domains/acme", KmsKey: string(w.next)}
	case "ChangeKey":
		return &pb.ChangeKeyRequest{Name: "domains/acme", KmsKey: string(w.next), Etag: w.etag()}
	case "CreateGrant":
		return &pb.CreateGrantRequest{Parent: "domains/acme", GrantId: "fresh", Grant: grant}
	case "GetGrant":
		return &pb.GetGrantRequest{Name: "domains/acme/grants/orders"}
	case "ListGrants":
		return &pb.ListGrantsRequest{Parent: "domains/acme"}
	case "RenewGrant":
		return &pb.RenewGrantRequest{Name: "domains/acme/grants/orders", Ttl: durationpb.New(time.Hour)}
	case "RevokeGrant":
		return &pb.RevokeGrantRequest{Name: "domains/acme/grants/spare"}
	case "CreateDataKey":
		return &pb.CreateDataKeyRequest{Parent: "domains/acme", DataKeyId: "fresh", DataKey: &pb.DataKey{}}
	case "GetDataKey":
		return &pb.GetDataKeyRequest{Name: "domains/acme/dataKeys/k1"}
	case "BatchGetDataKeys":
		return &pb.BatchGetDataKeysRequest{Parent: "domains/acme", Names: []string{"domains/acme/dataKeys/k1"}}
	case "ListDataKeys":
		return &pb.ListDataKeysRequest{Parent: "domains/acme"}
	case "ReencryptStream":
		return &pb.ReencryptStreamRequest{Message: &pb.ReencryptStreamRequest_Header_{Header: &pb.ReencryptStreamRequest_Header{
			Parent: "domains/broken", Owner: &pb.ReencryptStreamRequest_Header_Grant{Grant: "domains/broken/grants/own"}}}}
	case "DeleteDataKey":
		return &pb.DeleteDataKeyRequest{Name: "domains/acme/dataKeys/k2"}
	case "ImportDataKeys":
		return &pb.ImportDataKeysRequest{Parent: "domains/acme", Items: []*pb.ImportDataKeysRequest_Item{w.item("imported")}}
	case "CreateReencryptionJob":
		return &pb.CreateReencryptionJobRequest{Parent: "domains/acme", ReencryptionJob: &pb.ReencryptionJob{Kind: pb.ReencryptionJob_KIND_VERIFY}}
	case "GetReencryptionJob":
		return &pb.GetReencryptionJobRequest{Name: w.acmeJob}
	case "ListReencryptionJobs":
		return &pb.ListReencryptionJobsRequest{Parent: "domains/acme"}
	case "WatchReencryptionJob":
		return &pb.WatchReencryptionJobRequest{Name: w.acmeJob}
	case "PauseReencryptionJob":
		return &pb.PauseReencryptionJobRequest{Name: w.changingJob}
	case "ResumeReencryptionJob":
		return &pb.ResumeReencryptionJobRequest{Name: w.changingJob}
	case "CancelReencryptionJob":
		return &pb.CancelReencryptionJobRequest{Name: w.changingJob}
	case "ListReencryptionFailures":
		return &pb.ListReencryptionFailuresRequest{Parent: w.brokenJob}
	case "AcknowledgeReencryptionFailures":
		return &pb.AcknowledgeReencryptionFailuresRequest{Parent: w.brokenJob, All: true, Reason: "lost"}
	case "OverrideSelfInventory":
		return &pb.OverrideSelfInventoryRequest{Name: "domains/broken/grants/own", Reason: "the service is gone"}
	case "GetRetirementReport":
		return &pb.GetRetirementReportRequest{Name: w.brokenJob + "/retirementReport"}
	}
	w.t.Fatalf("no good request is known for %s: enter one", method)
	return nil
}

// item gives an item of an import that the world would take.
func (w *world) item(id string) *pb.ImportDataKeysRequest_Item {
	return &pb.ImportDataKeysRequest_Item{DataKeyId: id, CiphertextBlob: w.blob, SourceKmsKey: string(w.legacy),
		SourceEncryptionContext: map[string]string{"tenant": "acme"}}
}

// methods gives every method of the API.
func methods() (all []protoreflect.MethodDescriptor) {
	protoregistry.GlobalFiles.RangeFilesByPackage("keybroker.v1", func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			s := file.Services().Get(i)
			for j := range s.Methods().Len() {
				all = append(all, s.Methods().Get(j))
			}
		}
		return true
	})
	slices.SortFunc(all, func(a, b protoreflect.MethodDescriptor) int {
		return strings.Compare(string(a.FullName()), string(b.FullName()))
	})
	return all
}

func method(name protoreflect.Name) protoreflect.MethodDescriptor {
	all := methods()
	return all[slices.IndexFunc(all, func(m protoreflect.MethodDescriptor) bool { return m.Name() == name })]
}

// has reports whether a method's request has a field of its own of this name.
func has(m protoreflect.MethodDescriptor, field protoreflect.Name) bool {
	return m.Input().Fields().ByName(field) != nil
}

// A refusal is what a client is told, of a call or of an item of an import.
type refusal struct {
	Code   codes.Code
	Reason string
	Field  string // the first one named
}

// send makes a call, and gives its answer or how it was refused. The refusal of
// the only item of an import counts as the call's.
func (w *world) send(ctx context.Context, name protoreflect.Name, in proto.Message) (proto.Message, refusal) {
	w.t.Helper()
	m := method(name)
	path := fmt.Sprintf("/%s/%s", m.Parent().FullName(), m.Name())
	out := dynamicpb.NewMessage(m.Output())
	if err := w.exchange(ctx, m, path, in, out); err != nil {
		return nil, refusalOf(w.t, err)
	}
	if name == "ImportDataKeys" {
		return out, itemRefusal(as(w.t, out, &pb.ImportDataKeysResponse{}))
	}
	return out, refusal{}
}

// itemRefusal gives how the only item of an import was refused, if it was. Its
// message is that of a call's error: a sentence, and then each field at fault.
func itemRefusal(in *pb.ImportDataKeysResponse) refusal {
	if len(in.GetResults()) != 1 || in.GetResults()[0].GetError() == nil {
		return refusal{}
	}
	e := in.GetResults()[0].GetError()
	r := refusal{Code: codes.Code(e.GetCode()), Reason: e.GetReason()}
	if _, fields, ok := strings.Cut(e.GetMessage(), "; "); ok {
		r.Field, _, _ = strings.Cut(fields, ": ")
	}
	return r
}

// as reads a message whose type was found by its name as one of the generated
// type.
func as[M proto.Message](t *testing.T, from proto.Message, to M) M {
	t.Helper()
	raw, err := proto.Marshal(from)
	if err == nil {
		err = proto.Unmarshal(raw, to)
	}
	if err != nil {
		t.Error(err)
	}
	return to
}

func (w *world) exchange(ctx context.Context, m protoreflect.MethodDescriptor, path string, in, out any, opts ...grpc.CallOption) error {
	if !m.IsStreamingServer() {
		return w.conn.Invoke(ctx, path, in, out, opts...)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := w.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, path, opts...)
	if err != nil {
		return err
	}
	if err := stream.SendMsg(in); err != nil {
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	return stream.RecvMsg(out)
}

func refusalOf(t *testing.T, err error) refusal {
	t.Helper()
	s := status.Convert(err)
	r := refusal{Code: s.Code()}
	for _, d := range s.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			r.Reason = d.GetReason()
			if _, known := pb.Reason_value["REASON_"+r.Reason]; !known || d.GetDomain() != "keybroker" {
				t.Errorf("the reason %s of %s is not the API's", r.Reason, d.GetDomain())
			}
		case *errdetails.BadRequest:
			r.Field = d.GetFieldViolations()[0].GetField()
			if d.GetFieldViolations()[0].GetDescription() == "" {
				t.Errorf("%s: no word on what is wrong", r.Field)
			}
		}
	}
	if s.Message() == "" {
		t.Error("a refusal without words")
	}
	return r
}

// state is all that a call may change: the rows, and the grants that the keys'
// owner sees at KMS.
func (w *world) state(leaveOut ...string) (all []string) {
	w.t.Helper()
	all, err := w.Rows(w.t.Context(), leaveOut...)
	w.must(err)
	for _, key := range w.keys {
		grants, err := w.Customer.ListGrants(w.t.Context(), &kms.ListGrantsInput{KeyId: aws.String(string(key))})
		w.must(err)
		for _, g := range grants.Grants {
			all = append(all, fmt.Sprintf("KMS: %s %s on %s", aws.ToString(g.Name), aws.ToString(g.GrantId), key))
		}
	}
	return all
}

// A badCall is one that must be refused.
type badCall struct {
	name   string
	method protoreflect.Name
	// change spoils a good request of the method. Its type is the method's.
	change func(m proto.Message)
	want   refusal
}

// spoiling makes a badCall's change of one that knows its message.
func spoiling[M proto.Message](change func(m M)) func(proto.Message) {
	return func(m proto.Message) { change(m.(M)) }
}

// run makes every call of a table, and holds the state before each against the
// one after.
func (w *world) run(calls []badCall) {
	w.t.Helper()
	for _, c := range calls {
		in := w.good(c.method)
		c.change(in)
		w.refused(fmt.Sprintf("%s, %s", c.method, c.name), c.method, in, c.want)
	}
}

// refused makes a call that must be refused so, and must change nothing. What an
// import does with an item is audited, a refusal too.
func (w *world) refused(what string, name protoreflect.Name, in proto.Message, want refusal) {
	w.t.Helper()
	w.refusedTo(w.t.Context(), what, name, in, want)
}

// refusedTo is refused for a caller whom ctx names.
func (w *world) refusedTo(ctx context.Context, what string, name protoreflect.Name, in proto.Message, want refusal) {
	w.t.Helper()
	var leaveOut []string
	if name == "ImportDataKeys" {
		leaveOut = []string{"audit_event", "sqlite_sequence"}
	}
	before := w.state(leaveOut...)
	answer, got := w.send(ctx, name, in)
	if diff := cmp.Diff(want, got); diff != "" {
		w.t.Errorf("%s (-want +got):\n%s%v", what, diff, answer)
	}
	if diff := cmp.Diff(before, w.state(leaveOut...)); diff != "" {
		w.t.Errorf("%s changed something (-before +after):\n%s", what, diff)
	}
}

// invalid is the refusal of a field.
func invalid(reason, field string) refusal {
	return refusal{Code: codes.InvalidArgument, Reason: reason, Field: field}
}

// TestGoodRequests: the tables spoil requests that are good; else they would
// show nothing. Backwards, none stands in another's way.
func TestGoodRequests(t *testing.T) {
	w := newWorld(t, harness.Config{})
	for _, m := range slices.Backward(methods()) {
		if _, r := w.send(t.Context(), m.Name(), w.good(m.Name())); r != (refusal{}) {
			t.Errorf("%s: %+v", m.Name(), r)
		}
	}
}

func textValue(s string) protoreflect.Value { return protoreflect.ValueOfString(s) }
