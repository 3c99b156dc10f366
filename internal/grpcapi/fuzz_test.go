package grpcapi_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
	"github.com/keybroker/keybroker/test/harness"
)

// fuzzedMethods gives every method of the API but those that only tell: a watch
// lasts as long as its job.
func fuzzedMethods() []protoreflect.MethodDescriptor {
	var methods []protoreflect.MethodDescriptor
	protoregistry.GlobalFiles.RangeFilesByPackage("keybroker.v1", func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			s := file.Services().Get(i)
			for j := range s.Methods().Len() {
				if m := s.Methods().Get(j); !m.IsStreamingServer() || m.IsStreamingClient() {
					methods = append(methods, m)
				}
			}
		}
		return true
	})
	slices.SortFunc(methods, func(a, b protoreflect.MethodDescriptor) int {
		return strings.Compare(string(a.FullName()), string(b.FullName()))
	})
	return methods
}

// A life is a test's life that outlasts the test: a fuzz target keeps its world
// from one input to the next.
type life struct {
	testing.TB // the present test
	ends       []func()
}

// Cleanup implements testing.TB.
func (l *life) Cleanup(end func()) { l.ends = append(l.ends, end) }

// TempDir implements testing.TB.
func (l *life) TempDir() string {
	dir, err := os.MkdirTemp("", "fuzz-rpc-")
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			l.Error(err)
		}
	})
	return dir
}

// end ends the life; t is told what goes wrong.
func (l *life) end(t testing.TB) {
	l.TB = t
	for _, end := range slices.Backward(l.ends) {
		end()
	}
}

// A world is a real broker behind the door, with something of everything in it.
type world struct {
	life  *life
	bench *harness.Bench
	door  *door
	calls int
	// words has, by the name of a field, values that fit it; blobs are wrapped keys.
	words map[string][]string
	blobs [][]byte
}

func newWorld(tb testing.TB) *world {
	tb.Helper()
	t := &life{TB: tb}
	ctx := context.Background()
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	b, err := harness.New(ctx, harness.Config{Dir: t.TempDir(), Windows: broker.Windows{GrantVisibility: time.Minute}})
	must(err)
	t.Cleanup(func() { must(b.Close()) })
	w := &world{life: t, bench: b, door: serveReal(t, b.Broker, b.Engine, nil)}

	_, key, err := b.Onboard(ctx, "acme")
	must(err)
	jobs, err := b.Engine.ListJobs(ctx, harness.Caller, "acme", rotation.JobCursor{}, 1)
	must(err)
	_, err = b.Broker.CreateGrant(ctx, harness.Caller, broker.NewGrant{Domain: "acme", ID: "orders", Grantee: harness.ServiceRole, Operations: []string{"Decrypt"}, TTL: time.Hour})
	must(err)
	made, err := b.Broker.CreateDataKey(ctx, harness.Caller, broker.NewDataKey{Domain: "acme", ID: "k1"})
	must(err)
	w.blobs = [][]byte{made.Ciphertext, w.keep(t, "kept")}
	_, err = b.NewDomain(ctx, "pending")
	must(err)
	_, _, err = b.Onboard(ctx, "changing")
	must(err)
	next, err := b.NewKey(ctx, "acme", "pending", "changing")
	must(err)
	change, err := b.ChangeKey(ctx, "changing", next)
	must(err)

	job, changing := broker.JobName("acme", jobs[0].ID), broker.JobName("changing", change.ID)
	kept, keptKeys, err := b.Broker.GetDomain(ctx, harness.Caller, "kept")
	must(err)
	keys := []string{string(key), string(next), string(kept.KMSKey), string(keptKeys[0].KMSKey), "arn:aws:kms:us-east-1:111122223333:alias/none", "alias/none"}
	names := []string{"domains/acme", "domains/acme", "domains/pending", "domains/changing", "domains/none", "domains/-", "domains/acme/grants/orders", "domains/acme/grants/none",
		"domains/kept", "domains/kept/grants/self", "domains/acme/dataKeys/k1", "domains/acme/dataKeys/none", job, changing, job + "/retirementReport", changing + "/retirementReport", job + "/failures/k1"}
	w.words = map[string][]string{
		"name": names, "parent": names, "names": names, "kms_key": keys, "source_kms_key": keys, "import_source_keys": keys,
		"grant": {"domains/kept/grants/self", "domains/kept/grants/self", "domains/acme/grants/orders", "domains/kept/grants/none"}, "item_id": {"i1", "i2"}, "resume_token": {""},
		"domain_id": {"fresh", "acme"}, "grant_id": {"fresh", "orders"}, "data_key_id": {"Fresh", "k1", "k2"}, "region": {"us-east-1"},
		"grantee_principal": {harness.ServiceRole, harness.WorkerRole}, "operations": {"Decrypt", "Encrypt", "DescribeKey", "CreateGrant"},
		"etag": {"", "", "1", "2", "3", "4"}, "request_id": {"", "", "r1", "r2", "r3"}, "reason": {"why"}, "key_account": {harness.CustomerAccount}, "key_accounts": {harness.CustomerAccount},
		"existing_policy_document": {`{"Version":"2012-10-17","Statement":[]}`, `{}`, `[`}, "key_spec": {"AES_256", "AES_128"},
		"paths": {"display_name", "labels", "display_name", "labels", "key_accounts", "labels", "key_accounts", "import_source_keys", "kms_key", "name", "*", "labels.a"},
		"key":   {"tenant", "tier", "tenant", "keybroker:domain"}, "value": {"a", "b", "é"},
		"filter": {"", "", `state = STATE_ACTIVE`, `labels.a = "b"`, `kms_key = ""`, `acknowledged = false`, `state =`}, "page_token": {"", "", "", "AAAA"},
	}
	return w
}

// keep makes a domain whose service keeps its own wrapped keys, and is asked about
// its older key; it gives one of them.
func (w *world) keep(t testing.TB, id broker.DomainID) []byte {
	ctx := context.Background()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	d, key, err := w.bench.Onboard(ctx, id)
	must(err)
	grant, err := w.bench.Broker.CreateGrant(ctx, harness.Caller, broker.NewGrant{Domain: id, ID: "self", Grantee: harness.ServiceRole,
		Operations: []string{"GenerateDataKey"}, Inventory: broker.InventorySelf, TTL: time.Hour})
	must(err)
	made, err := w.bench.Service.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: aws.String(string(key)), KeySpec: types.DataKeySpecAes256,
		EncryptionContext: map[string]string{d.Reserved.Key: d.Reserved.Value}, GrantTokens: []string{string(grant.Tokens[0])}})
	must(err)
	next, err := w.bench.NewKey(ctx, id)
	must(err)
	job, err := w.bench.ChangeKey(ctx, id, next)
	must(err)
	for range 200 {
		moved, err := w.bench.Step(ctx)
		must(err)
		view, err := w.bench.Engine.GetJob(ctx, harness.Caller, id, job.ID)
		must(err)
		if view.State == rotation.Blocked {
			return made.CiphertextBlob
		}
		if !moved {
			w.bench.Clock.Advance(time.Minute)
		}
	}
	t.Fatal("the key change never waited for the service")
	return nil
}

// invoke makes a call; of a stream it takes every answer, and gives its end.
func (w *world) invoke(t testing.TB, m protoreflect.MethodDescriptor, in []proto.Message) error {
	t.Helper()
	out := messageOf(t, m.Output(), `{}`)
	full := fmt.Sprintf("/%s/%s", m.Parent().FullName(), m.Name())
	if !m.IsStreamingClient() {
		return w.door.conn.Invoke(t.Context(), full, in[0], out)
	}
	s, err := w.door.conn.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, full)
	if err != nil {
		return err
	}
	for _, one := range in {
		if err := s.SendMsg(one); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
	}
	if err := s.CloseSend(); err != nil {
		return err
	}
	for {
		answer := &keybrokerv1.ReencryptStreamResponse{}
		if err := s.RecvMsg(answer); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		w.remember(t, answer)
	}
}

// remember keeps resume tokens for later calls, and holds the errors of items
// against what the API documents.
func (w *world) remember(t testing.TB, answer *keybrokerv1.ReencryptStreamResponse) {
	t.Helper()
	token := cmp.Or(answer.GetOpened().GetResumeToken(), answer.GetReceipts().GetResumeToken())
	if token != "" {
		w.words["resume_token"] = []string{"", token}
	}
	for _, r := range answer.GetReceipts().GetReceipts() {
		if e := r.GetError(); e != nil {
			if _, known := keybrokerv1.Reason_value["REASON_"+e.GetReason()]; !known || !slices.Contains(mayBeAnswered, codes.Code(e.GetCode())) {
				t.Errorf("an item is answered %v", e)
			}
		}
	}
}

// counts are the rows of the tables that a refused call must leave alone.
func (w *world) counts(t testing.TB) (n [3]int) {
	t.Helper()
	for i, table := range []string{"domain", "domain_grant", "data_key"} {
		var err error
		if n[i], err = w.bench.Count(context.Background(), table); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// A generator makes messages of bytes: the same bytes, the same message.
type generator struct {
	data  []byte
	words map[string][]string
	blobs [][]byte
}

// pick gives a number below n; 0 once the bytes are used up.
func (g *generator) pick(n int) int {
	if len(g.data) == 0 {
		return 0
	}
	b := g.data[0]
	g.data = g.data[1:]
	return int(b) % n
}

func (g *generator) bytes(most int) []byte {
	n := min(g.pick(most+1), len(g.data))
	b := g.data[:n]
	g.data = g.data[n:]
	return b
}

// requests makes the messages of one call: of a stream some, the first most often
// a header that opens it.
func (g *generator) requests(t testing.TB, m protoreflect.MethodDescriptor) []proto.Message {
	in := []proto.Message{messageOf(t, m.Input(), `{}`)}
	if !m.IsStreamingClient() {
		g.fill(in[0].ProtoReflect())
		return in
	}
	first := in[0].ProtoReflect()
	header := first.Descriptor().Fields().ByName("header")
	switch g.pick(8) {
	case 0:
		g.fill(first)
	case 1:
		g.fill(first.Mutable(header).Message())
	default:
		tokens := g.words["resume_token"]
		proto.Merge(first.Mutable(header).Message().Interface(), &keybrokerv1.ReencryptStreamRequest_Header{Parent: "domains/kept",
			Owner: &keybrokerv1.ReencryptStreamRequest_Header_Grant{Grant: "domains/kept/grants/self"}, ResumeToken: tokens[g.pick(len(tokens))]})
	}
	for range g.pick(4) {
		next := messageOf(t, m.Input(), `{}`)
		if body := next.ProtoReflect(); g.pick(3) > 0 {
			g.fill(body.Mutable(body.Descriptor().Fields().ByName("items")).Message())
		} else {
			g.fill(body)
		}
		in = append(in, next)
	}
	return in
}

func (g *generator) fill(m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	chosen := map[protoreflect.Name]int{} // which of a oneof's fields is set
	for i := range fields.Len() {
		f := fields.Get(i)
		if o := f.ContainingOneof(); o != nil {
			if _, ok := chosen[o.Name()]; !ok {
				chosen[o.Name()] = g.pick(o.Fields().Len())
			}
			if o.Fields().Get(chosen[o.Name()]) != f {
				continue
			}
		}
		if g.pick(16) == 0 {
			continue
		}
		switch {
		case f.IsMap():
			pairs := m.Mutable(f).Map()
			for range g.pick(3) {
				pairs.Set(g.scalar(f.MapKey()).MapKey(), g.scalar(f.MapValue()))
			}
		case f.IsList():
			list := m.Mutable(f).List()
			for range 1 + g.pick(2) {
				if f.Message() != nil {
					g.fill(list.AppendMutable().Message())
				} else {
					list.Append(g.scalar(f))
				}
			}
		case f.Message() != nil:
			g.fill(m.Mutable(f).Message())
		default:
			m.Set(f, g.scalar(f))
		}
	}
}

func (g *generator) scalar(f protoreflect.FieldDescriptor) protoreflect.Value {
	switch f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(g.pick(2) == 1)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(g.pick(f.Enum().Values().Len() + g.pick(2))))
	case protoreflect.Int32Kind:
		if f.Name() == "nanos" && g.pick(8) > 0 {
			return protoreflect.ValueOfInt32(0)
		}
		return protoreflect.ValueOfInt32([]int32{1, 0, 2, 250, -1, 1 << 30}[g.pick(6)])
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64([]int64{3600, 60, 0, 59, -1, 31536000, 31536001, 1 << 62}[g.pick(8)])
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(float64(g.pick(256)))
	case protoreflect.BytesKind:
		if f.Name() != "proof" && g.pick(3) > 0 {
			return protoreflect.ValueOfBytes(slices.Clone(g.blobs[g.pick(len(g.blobs))]))
		}
		return protoreflect.ValueOfBytes(slices.Clone(g.bytes(40)))
	}
	if g.pick(16) > 0 {
		fitting := g.fitting(f)
		return protoreflect.ValueOfString(fitting[g.pick(len(fitting))])
	}
	switch g.pick(2) {
	case 0:
		return protoreflect.ValueOfString(strings.Repeat("é", 1<<g.pick(12)))
	}
	return protoreflect.ValueOfString(strings.ToValidUTF8(string(g.bytes(40)), "\uFFFD"))
}

// fitting gives words for a field: of those for its name, the ones that keep to
// the API's pattern for it.
func (g *generator) fitting(f protoreflect.FieldDescriptor) []string {
	rules, _ := proto.GetExtension(f.Options(), validate.E_Field).(*validate.FieldRules)
	if f.IsList() {
		rules = rules.GetRepeated().GetItems()
	}
	words := slices.Clone(g.words[string(f.Name())])
	if pattern := rules.GetString().GetPattern(); pattern != "" {
		legal := regexp.MustCompile(pattern)
		words = slices.DeleteFunc(words, func(w string) bool { return !legal.MatchString(w) })
	}
	if len(words) == 0 {
		return []string{"", "a", "b"}
	}
	return words
}

// mayBeAnswered are the codes that the API documents, and those of a deadline.
var mayBeAnswered = []codes.Code{codes.InvalidArgument, codes.NotFound, codes.AlreadyExists, codes.FailedPrecondition, codes.Aborted,
	codes.ResourceExhausted, codes.Unavailable, codes.DeadlineExceeded}

// FuzzRPC sends whatever a client might to a real broker: no call panics or is
// INTERNAL, each refusal has a code and a reason that the API documents, and one
// that says INVALID_ARGUMENT has left everything as it was.
func FuzzRPC(f *testing.F) {
	methods := fuzzedMethods()
	random := rand.New(rand.NewPCG(1, 2)) // seeds: always the same
	for i := range methods {
		for range 24 {
			data := make([]byte, 200)
			for j := range data {
				data[j] = byte(random.Uint32())
			}
			f.Add(uint8(i), data)
		}
	}
	const callsPerWorld = 400 // then everything is full of what came before
	var w *world
	f.Cleanup(func() {
		if w != nil {
			w.life.end(f)
		}
	})
	f.Fuzz(func(t *testing.T, method uint8, data []byte) {
		if w != nil && w.calls > callsPerWorld {
			w.life.end(t)
			w = nil
		}
		if w == nil {
			w = newWorld(t)
		}
		w.calls++
		m := methods[int(method)%len(methods)]
		g := &generator{data: data, words: w.words, blobs: w.blobs}
		in := g.requests(t, m)
		before := w.counts(t)
		err := w.invoke(t, m, in)
		if err == nil {
			if m.Name() == "DeleteDomain" {
				w.calls = callsPerWorld + 1
			}
			return
		}
		told := func(what string) {
			t.Helper()
			text := ""
			for _, one := range in {
				text += protojson.Format(one)
			}
			t.Errorf("%s %s: %s: %v\n%s", m.Name(), text, what, err, lastLines(w.door.log.String(), 3))
		}
		s := status.Convert(err)
		if !slices.Contains(mayBeAnswered, s.Code()) {
			told("code")
		}
		if s.Code() != codes.DeadlineExceeded && !knownReason(s) {
			told("reason")
		}
		if after := w.counts(t); s.Code() == codes.InvalidArgument && after != before {
			told(fmt.Sprintf("domains, grants and data keys went from %v to %v", before, after))
		}
		if proto.Size(s.Proto()) > 6<<10 {
			told("size of the status")
		}
	})
}

func knownReason(s *status.Status) bool {
	for _, d := range s.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			_, known := keybrokerv1.Reason_value["REASON_"+info.GetReason()]
			return known && info.GetDomain() == "keybroker"
		}
	}
	return false
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
