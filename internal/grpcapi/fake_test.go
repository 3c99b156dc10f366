package grpcapi_test

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/grpcapi"
	"github.com/keybroker/keybroker/internal/rotation"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	keyOld  = broker.KeyARN("arn:aws:kms:us-east-1:111122223333:key/old")
	keyNew  = broker.KeyARN("arn:aws:kms:us-east-1:111122223333:key/new")
	roleARN = "arn:aws:iam::222233334444:role/orders"
)

// at gives times that differ, in order.
func at(minute int) time.Time { return time.Date(2026, 5, 4, 12, minute, 0, 0, time.UTC) }

// A fakeUseCases answers every use case with what it holds, and remembers what
// it was asked.
type fakeUseCases struct {
	domain   broker.Domain
	keys     []broker.DomainKey
	grant    broker.GrantView
	dataKey  broker.DataKeyView
	imported []broker.ImportResult
	policy   broker.KeyPolicy
	job      rotation.JobView
	openJob  broker.JobID
	report   rotation.Report
	plan     rotation.KeyChangePlan
	failure  rotation.Failure
	pass     rotation.PassView
	receipts []rotation.Receipt
	settled  []rotation.SelfInventory
	// work, if set, answers ReencryptItems in place of receipts.
	work func(ctx context.Context, items []rotation.PassItem) ([]rotation.Receipt, error)
	// watch is what WatchJob does after it has sent job once.
	watch func(ctx context.Context, send func(rotation.JobView, bool) error) error

	// rows are how many resources each list has.
	rows int
	// err is what every call answers; panicWith, if set, what it panics with.
	err       error
	panicWith any
	// during, if set, is called while a call is at work.
	during func(ctx context.Context)

	mu  sync.Mutex
	got []any // the arguments of the last call, less ctx
}

func (f *fakeUseCases) called(ctx context.Context, args ...any) error {
	f.mu.Lock()
	f.got = args
	f.mu.Unlock()
	if f.during != nil {
		f.during(ctx)
	}
	if f.panicWith != nil {
		panic(f.panicWith)
	}
	return f.err
}

func (f *fakeUseCases) last() []any {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.got
}

func (f *fakeUseCases) CreateDomain(ctx context.Context, c broker.Caller, in broker.NewDomain) (broker.Domain, []broker.DomainKey, error) {
	return f.domain, f.keys, f.called(ctx, c, in)
}

func (f *fakeUseCases) GetDomain(ctx context.Context, c broker.Caller, id broker.DomainID) (broker.Domain, []broker.DomainKey, error) {
	return f.domain, f.keys, f.called(ctx, c, id)
}

// ids gives up to limit of the fake's rows after a place: a00000, a00001 …
func (f *fakeUseCases) ids(after string, limit int) []string {
	var ids []string
	for i := range f.rows {
		if id := "a" + string([]byte{byte('0' + i/1000), byte('0' + i/100%10), byte('0' + i/10%10), byte('0' + i%10)}); id > after && len(ids) < limit {
			ids = append(ids, id)
		}
	}
	return ids
}

func (f *fakeUseCases) ListDomains(ctx context.Context, c broker.Caller, after broker.DomainID, limit int) (domains []broker.Domain, keys [][]broker.DomainKey, err error) {
	err = f.called(ctx, c, after, limit)
	for _, id := range f.ids(string(after), limit) {
		d := f.domain
		d.ID = broker.DomainID(id)
		domains, keys = append(domains, d), append(keys, f.keys)
	}
	return domains, keys, err
}

func (f *fakeUseCases) GenerateKeyPolicy(ctx context.Context, c broker.Caller, in broker.KeyPolicyRequest) (broker.KeyPolicy, error) {
	return f.policy, f.called(ctx, c, in)
}

func (f *fakeUseCases) CreateGrant(ctx context.Context, c broker.Caller, in broker.NewGrant) (broker.GrantView, error) {
	return f.grant, f.called(ctx, c, in)
}

func (f *fakeUseCases) GetGrant(ctx context.Context, c broker.Caller, d broker.DomainID, g broker.GrantID) (broker.GrantView, error) {
	return f.grant, f.called(ctx, c, d, g)
}

func (f *fakeUseCases) RenewGrant(ctx context.Context, c broker.Caller, in broker.RenewGrant) (broker.GrantView, error) {
	return f.grant, f.called(ctx, c, in)
}

func (f *fakeUseCases) CreateDataKey(ctx context.Context, c broker.Caller, in broker.NewDataKey) (broker.DataKeyView, error) {
	return f.dataKey, f.called(ctx, c, in)
}

func (f *fakeUseCases) GetDataKey(ctx context.Context, c broker.Caller, d broker.DomainID, k broker.DataKeyID) (broker.DataKeyView, error) {
	return f.dataKey, f.called(ctx, c, d, k)
}

func (f *fakeUseCases) ListDataKeys(ctx context.Context, c broker.Caller, d broker.DomainID, after broker.DataKeyCursor, limit int) (views []broker.DataKeyView, err error) {
	err = f.called(ctx, c, d, after, limit)
	for i, id := range f.ids(string(after.DataKey), limit) {
		k := f.dataKey
		k.ID = broker.DataKeyID(id)
		if i%2 == 1 {
			k.KeySpec = "AES_128"
		}
		views = append(views, k)
	}
	return views, err
}

func (f *fakeUseCases) DeleteDataKey(ctx context.Context, c broker.Caller, r broker.Request, d broker.DomainID, k broker.DataKeyID, etag string) error {
	return f.called(ctx, c, r, d, k, etag)
}

func (f *fakeUseCases) ImportDataKeys(ctx context.Context, c broker.Caller, in broker.ImportDataKeys) ([]broker.ImportResult, error) {
	return f.imported, f.called(ctx, c, in)
}

func (f *fakeUseCases) UpdateDomain(ctx context.Context, c broker.Caller, in broker.DomainUpdate) (broker.Domain, []broker.DomainKey, error) {
	return f.domain, f.keys, f.called(ctx, c, in)
}

func (f *fakeUseCases) ListGrants(ctx context.Context, c broker.Caller, d broker.DomainID, after broker.GrantCursor, limit int) (views []broker.GrantView, err error) {
	err = f.called(ctx, c, d, after, limit)
	for _, id := range f.ids(string(after.Grant), limit) {
		g := f.grant
		g.ID = broker.GrantID(id)
		views = append(views, g)
	}
	return views, err
}

func (f *fakeUseCases) RevokeGrant(ctx context.Context, c broker.Caller, in broker.RevokeGrant) (broker.GrantView, error) {
	return f.grant, f.called(ctx, c, in)
}

func (f *fakeUseCases) BatchGetDataKeys(ctx context.Context, c broker.Caller, d broker.DomainID, ids []broker.DataKeyID) (views []broker.DataKeyView, err error) {
	for _, id := range ids {
		k := f.dataKey
		k.ID = id
		views = append(views, k)
	}
	return views, f.called(ctx, c, d, ids)
}

func (f *fakeUseCases) DeleteDomain(ctx context.Context, c broker.Caller, in rotation.DeleteDomain) error {
	return f.called(ctx, c, in)
}

func (f *fakeUseCases) PlanKeyChange(ctx context.Context, c broker.Caller, d broker.DomainID, key string) (rotation.KeyChangePlan, error) {
	return f.plan, f.called(ctx, c, d, key)
}

func (f *fakeUseCases) CreateJob(ctx context.Context, c broker.Caller, in rotation.NewJob) (rotation.JobView, error) {
	return f.job, f.called(ctx, c, in)
}

func (f *fakeUseCases) OverrideSelfInventory(ctx context.Context, c broker.Caller, in rotation.OverrideInventory) (rotation.SelfInventory, error) {
	return f.settled[0], f.called(ctx, c, in)
}

func (f *fakeUseCases) OpenPass(ctx context.Context, c broker.Caller, in rotation.OpenPass) (rotation.PassView, error) {
	if in.Resume != nil {
		f.pass.Pass = *in.Resume
	}
	return f.pass, f.called(ctx, c, in)
}

func (f *fakeUseCases) ReencryptItems(ctx context.Context, c broker.Caller, p rotation.Pass, items []rotation.PassItem) ([]rotation.Receipt, error) {
	if err := f.called(ctx, c, p, items); err != nil || f.work == nil {
		return f.receipts, err
	}
	return f.work(ctx, items)
}

func (f *fakeUseCases) Attest(ctx context.Context, c broker.Caller, p rotation.Pass, givenUp int64) ([]rotation.SelfInventory, error) {
	return f.settled, f.called(ctx, c, p, givenUp)
}

func (f *fakeUseCases) PauseJob(ctx context.Context, c broker.Caller, in rotation.JobAct) (rotation.JobView, error) {
	return f.job, f.called(ctx, c, "pause", in)
}

func (f *fakeUseCases) ResumeJob(ctx context.Context, c broker.Caller, in rotation.JobAct) (rotation.JobView, error) {
	return f.job, f.called(ctx, c, "resume", in)
}

func (f *fakeUseCases) CancelJob(ctx context.Context, c broker.Caller, in rotation.JobAct) (rotation.JobView, error) {
	return f.job, f.called(ctx, c, "cancel", in)
}

func (f *fakeUseCases) ListFailures(ctx context.Context, c broker.Caller, d broker.DomainID, j broker.JobID, after broker.DataKeyID, limit int) (failures []rotation.Failure, err error) {
	err = f.called(ctx, c, d, j, after, limit)
	for _, id := range f.ids(string(after), limit) {
		failure := f.failure
		failure.DataKey = broker.DataKeyID(id)
		failures = append(failures, failure)
	}
	return failures, err
}

func (f *fakeUseCases) AcknowledgeFailures(ctx context.Context, c broker.Caller, in rotation.Acknowledge) (int, error) {
	return 2, f.called(ctx, c, in)
}

func (f *fakeUseCases) ChangeKey(ctx context.Context, c broker.Caller, in rotation.ChangeKey) (rotation.JobView, error) {
	return f.job, f.called(ctx, c, in)
}

func (f *fakeUseCases) GetJob(ctx context.Context, c broker.Caller, d broker.DomainID, j broker.JobID) (rotation.JobView, error) {
	return f.job, f.called(ctx, c, d, j)
}

func (f *fakeUseCases) ListJobs(ctx context.Context, c broker.Caller, d broker.DomainID, after rotation.JobCursor, limit int) (views []rotation.JobView, err error) {
	err = f.called(ctx, c, d, after, limit)
	for _, id := range f.ids(string(after.Job), limit) {
		j := f.job
		j.ID = broker.JobID(id)
		views = append(views, j)
	}
	return views, err
}

func (f *fakeUseCases) WatchJob(ctx context.Context, c broker.Caller, d broker.DomainID, j broker.JobID, send func(rotation.JobView, bool) error) error {
	if err := f.called(ctx, c, d, j); err != nil {
		return err
	}
	if err := send(f.job, false); err != nil || f.watch == nil {
		return err
	}
	return f.watch(ctx, send)
}

func (f *fakeUseCases) OpenJob(context.Context, broker.DomainUID) (broker.JobID, error) {
	return f.openJob, nil
}

func (f *fakeUseCases) RetirementReport(ctx context.Context, c broker.Caller, d broker.DomainID, j broker.JobID) (rotation.Report, error) {
	return f.report, f.called(ctx, c, d, j)
}

// newFake is a fake whose answers have every field set.
func newFake() *fakeUseCases {
	reserved := broker.Pair{Key: "keybroker:domain", Value: "uid1"}
	f := &fakeUseCases{
		domain: broker.Domain{ID: "acme", UID: "uid1", DisplayName: "Acme Corp", Region: "us-east-1", State: broker.DomainActive,
			InaccessibleSince: at(3), Reserved: reserved, KMSKey: keyNew, KMSKeyGiven: "arn:aws:kms:us-east-1:111122223333:alias/new",
			Epoch: 2, LastEpoch: 2, KeyAccounts: []string{"111122223333"}, ImportSources: []string{string(keyOld)},
			Labels: map[string]string{"tier": "gold"}, Version: 7, CreateTime: at(1), UpdateTime: at(2)},
		keys: []broker.DomainKey{
			{Domain: "uid1", Epoch: 1, KMSKey: keyOld, State: broker.KeyRetired, ActivateTime: at(1), ReplaceTime: at(2), RetireTime: at(3)},
			{Domain: "uid1", Epoch: 2, KMSKey: keyNew, State: broker.KeyCurrent, ActivateTime: at(2)}},
		grant: broker.GrantView{Grant: broker.Grant{Domain: "uid1", ID: "orders", UID: "guid1", Grantee: roleARN,
			Operations: []string{"Decrypt"}, Constraint: broker.Constraint{Subset: broker.Context{"invoice": "1"}},
			Inventory: broker.InventorySelf, State: broker.GrantActive, ExpireTime: at(9), Version: 3, CreateTime: at(1), UpdateTime: at(2)},
			DomainID: "acme", KMSKeys: []broker.KeyARN{keyOld, keyNew}, Tokens: []broker.Secret{broker.Secret("token-1")}},
		dataKey: broker.DataKeyView{DataKey: broker.DataKey{Domain: "uid1", ID: "Invoice-1", UID: "kuid1", Ciphertext: broker.Secret("blob"),
			Context: broker.Context{"invoice": "1"}, KeySpec: "AES_256", Epoch: 2, KeyMaterialID: "material", Version: 5, CreateTime: at(1), UpdateTime: at(2)},
			DomainID: "acme", KMSKey: keyNew, EncryptionContext: broker.Context{"invoice": "1"}.With(reserved)},
		policy: broker.KeyPolicy{Document: "{}", Statements: []string{"{}"}, Version: "1"},
		job: rotation.JobView{Job: rotation.Job{Domain: "uid1", ID: "job1", Kind: rotation.KindKeyChange, Phase: rotation.Reencrypting,
			State: rotation.Running, SourceKey: keyOld, TargetKey: keyNew, TargetGiven: "alias", Reason: "yearly change", Priority: rotation.High,
			WaitMessage: "for grants", WaitUntil: at(4), SwitchTime: at(2), Version: 9, CreateTime: at(1), UpdateTime: at(3), EndTime: at(5)},
			DomainID: "acme", Sources: []broker.KeyARN{keyOld, keyNew, keyOld}, Progress: rotation.Progress{Done: 5, Relabelled: 1, Failed: 2},
			TotalRows: 10, Estimated: true, Pace: rotation.Pace{Rows: 2.5, Calls: 4, Throttled: 1, Time: at(3)}, Budget: 1800, FinishTime: at(6)},
		report: rotation.Report{Domain: "acme", Job: "job1", EvaluateTime: at(8), Canonical: "{}", SHA256: "ab",
			Keys: []rotation.KeyRetirement{{Key: keyOld, SafeAfter: at(7), GrantsRetired: 2, ListTime: at(5), LastMoveTime: at(4), Confirm: []string{"look"},
				Blockers: []rotation.Blocker{{Kind: rotation.BlockRows, Resource: "domains/acme", Count: 3, Message: "rows", Until: at(9)}},
				Moved:    []rotation.MaterialCount{{SourceKey: keyOld, SourceMaterial: "m1", NewMaterial: "m2", Rows: 5}}}}},
	}
	f.failure = rotation.Failure{Domain: "uid1", Job: "job1", Class: broker.KMSIncorrectKey, Message: "KMS ReEncrypt: IncorrectKeyException", Time: at(4), Acknowledged: true}
	f.settled = []rotation.SelfInventory{{Domain: "acme", Grant: f.grant.Grant, KMSKey: keyNew, Settled: &rotation.Settlement{Domain: "uid1", Grant: "guid1",
		Epoch: 2, Kind: rotation.Attested, Caller: "tester", Pass: "pass1", BeginTime: at(2), Items: 5, GivenUp: 1, Reason: "gone", Time: at(4)}}}
	f.report.Keys[0].Inventories = f.settled
	f.pass = rotation.PassView{Pass: rotation.Pass{ID: "pass1", Domain: "uid1", Owner: rotation.PassOwner{Grant: "orders"}, Epoch: 2, BeginTime: at(2)},
		KMSKey: keyNew, Older: []broker.KeyARN{keyOld}, AttestAfter: at(3)}
	f.plan = rotation.KeyChangePlan{TargetKey: keyNew, Sources: []rotation.PlanSource{{Key: keyOld, Rows: 5}}, Grants: 3, SelfGrants: 1,
		Forecast: &rotation.Forecast{Rows: 5, CallsPerSecond: 2.5, Moving: 2 * time.Second, Total: 10 * time.Minute},
		Problems: []rotation.Problem{{Reason: broker.ReasonKeyDisabled, Side: rotation.To, Message: "it is disabled"}}}
	f.imported = []broker.ImportResult{{Key: f.dataKey}, {Err: &broker.Error{Kind: broker.ErrInvalid,
		Reason: broker.ReasonCiphertextInvalid, Resource: "domains/acme/dataKeys/k2", Detail: "KMS cannot read the blob"}}}
	return f
}

// A syncBuffer is a log that server and test use at the same time.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// A door is a served API and a connection to it.
type door struct {
	*grpcapi.Server
	conn *grpc.ClientConn
	log  *syncBuffer
}

var pageKey = bytes.Repeat([]byte{7}, 32)

// serve starts the API over f; change, if not nil, edits its configuration.
func serve(t testing.TB, f *fakeUseCases, change func(*grpcapi.Config)) *door {
	t.Helper()
	return serveReal(t, f, f, change)
}

// serveReal starts the API over any use cases.
func serveReal(t testing.TB, b grpcapi.Broker, jobs grpcapi.Jobs, change func(*grpcapi.Config)) *door {
	t.Helper()
	log := &syncBuffer{}
	cfg := grpcapi.Config{
		Logger:       slog.New(slog.NewJSONHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Now:          time.Now,
		NewID:        func() string { return "call1" },
		PageTokenKey: slices.Clone(pageKey),
		CallerFunc:   func(context.Context) broker.Caller { return broker.Caller{Subject: "tester"} },
	}
	if change != nil {
		change(&cfg)
	}
	s, err := grpcapi.New(cfg, b, jobs)
	if err != nil {
		t.Fatal(err)
	}
	lis := bufconn.Listen(1 << 20)
	served := make(chan error, 1)
	go func() { served <- s.Serve(lis) }()
	conn, err := grpc.NewClient("passthrough:///bufnet", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return &door{Server: s, conn: conn, log: log}
}
