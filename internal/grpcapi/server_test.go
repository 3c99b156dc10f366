package grpcapi_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/grpcapi"
	"github.com/keybroker/keybroker/internal/rotation"
	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

func TestConfig(t *testing.T) {
	for name, edit := range map[string]func(*grpcapi.Config){
		"no logger": func(c *grpcapi.Config) { c.Logger = nil },
		"no clock":  func(c *grpcapi.Config) { c.Now = nil },
		"no ids":    func(c *grpcapi.Config) { c.NewID = nil },
		"short key": func(c *grpcapi.Config) { c.PageTokenKey = make([]byte, 16) },
	} {
		cfg := grpcapi.Config{Logger: slog.New(slog.DiscardHandler), Now: time.Now, NewID: func() string { return "" }, PageTokenKey: make([]byte, 32)}
		edit(&cfg)
		if _, err := grpcapi.New(cfg, newFake(), newFake()); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestDeadlines(t *testing.T) {
	f := newFake()
	var left time.Duration
	f.during = func(ctx context.Context) {
		deadline, _ := ctx.Deadline()
		left = time.Until(deadline)
	}
	d := serve(t, f, nil)
	for _, test := range []struct {
		given, most time.Duration // 0: none given
	}{
		{0, 10*time.Second - 20*time.Millisecond},
		{time.Hour, 30*time.Second - 20*time.Millisecond},
		{5 * time.Second, 5*time.Second - 20*time.Millisecond},
	} {
		ctx, cancel := t.Context(), context.CancelFunc(func() {})
		if test.given > 0 {
			ctx, cancel = context.WithTimeout(ctx, test.given)
		}
		if _, err := d.call(ctx, t, "DomainService/GetDomain", `{"name":"domains/acme"}`); err != nil {
			t.Fatal(err)
		}
		cancel()
		if left > test.most || left < test.most*3/5 {
			t.Errorf("given %s: %s are left, want at most %s", test.given, left, test.most)
		}
	}
}

func TestTooLittleTime(t *testing.T) {
	f := newFake()
	// A clock that is ahead leaves the call 50 ms of its hour.
	d := serve(t, f, func(c *grpcapi.Config) {
		c.Now = func() time.Time { return time.Now().Add(time.Hour - 50*time.Millisecond) }
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	_, err := d.call(ctx, t, "DomainService/GetDomain", `{"name":"domains/acme"}`)
	if status.Code(err) != codes.DeadlineExceeded || f.last() != nil {
		t.Errorf("got %v, and the use case was asked %v", err, f.last())
	}
}

func TestInterruptedQueryIsADeadline(t *testing.T) {
	f := newFake()
	f.during = func(ctx context.Context) { <-ctx.Done() }
	f.err = errors.New("interrupted (9)") // a database's own words
	d := serve(t, f, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := d.call(ctx, t, "DomainService/GetDomain", `{"name":"domains/acme"}`); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("got %v", err)
	}
}

// Every call with canaries in all that is secret or not ours to log.
func TestLogTellsNoSecrets(t *testing.T) {
	f := newFake()
	f.rows = 1
	f.grant.Tokens = []broker.Secret{broker.Secret(canary)}
	f.dataKey.Ciphertext = broker.Secret(canary)
	f.dataKey.Context = broker.Context{"invoice": canary}
	f.dataKey.EncryptionContext = f.dataKey.Context
	f.imported[0].Key = f.dataKey
	d := serve(t, f, nil)
	for _, r := range rpcs {
		request := strings.NewReplacer(`"invoice":"1"`, `"invoice":"`+canary+`"`, `"a":"b"`, `"a":"`+canary+`"`, `"YmxvYg=="`, `"YzRuNHJ5"`).Replace(r.request)
		if _, err := d.call(t.Context(), t, r.method, request); err != nil {
			t.Fatalf("%s: %v", r.method, err)
		}
	}
	// A value that breaks a rule is not quoted either.
	_, err := d.call(t.Context(), t, "DataKeyService/CreateDataKey", `{"parent":"domains/acme","data_key":{"context":{"a":"`+canary+`漢"}}}`)
	if err == nil || strings.Contains(status.Convert(err).Proto().String(), canary) {
		t.Errorf("got %v", err)
	}
	if log := d.log.String(); strings.Contains(log, canary) || strings.Contains(log, "YzRuNHJ5") {
		t.Errorf("the log holds a secret: %s", log)
	}
	if lines := strings.Count(d.log.String(), "\n"); lines != len(rpcs)+1 {
		t.Errorf("%d lines for %d calls", lines, len(rpcs)+1)
	}
}

func TestLogLine(t *testing.T) {
	f := newFake()
	f.err = &broker.Error{Kind: broker.ErrNotFound, Reason: broker.ReasonDomainNotFound, Resource: "domains/acme", Detail: "there is no such resource"}
	d := serve(t, f, nil)
	d.getDomain(t)
	for _, want := range []string{`"msg":"rpc"`, `"method":"/keybroker.v1.DomainService/GetDomain"`, `"code":"NotFound"`, `"reason":"DOMAIN_NOT_FOUND"`,
		`"duration":`, `"caller":"tester"`, `"resource":"domains/acme"`, `"call_id":"call1"`, `"level":"INFO"`} {
		if !strings.Contains(d.log.String(), want) {
			t.Errorf("the log lacks %s: %s", want, d.log)
		}
	}
	if strings.Contains(d.log.String(), `"error":`) {
		t.Errorf("a refusal that the caller was told in full needs no cause: %s", d.log)
	}
}

func TestPeerCaller(t *testing.T) {
	for want, addr := range map[string]net.Addr{
		"dev:unix": &net.UnixAddr{Name: "/run/keybroker.sock", Net: "unix"}, "dev:loopback": &net.TCPAddr{IP: net.IPv6loopback, Port: 4711},
		"peer:192.0.2.7": &net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 4711}, "peer:unknown": nil,
	} {
		if got := grpcapi.PeerCaller(peer.NewContext(t.Context(), &peer.Peer{Addr: addr})).Subject; got != want {
			t.Errorf("%v is called %s, want %s", addr, got, want)
		}
	}
}

func TestHealthAndReflection(t *testing.T) {
	d := serve(t, newFake(), nil)
	client := healthpb.NewHealthClient(d.conn)
	check := func(service string) string {
		answer, err := client.Check(t.Context(), &healthpb.HealthCheckRequest{Service: service})
		if err != nil {
			return status.Code(err).String()
		}
		return answer.GetStatus().String()
	}
	services := []string{"", "keybroker.v1.DomainService", "keybroker.v1.GrantService", "keybroker.v1.DataKeyService", "keybroker.v1.ReencryptionService"}
	for _, name := range services {
		if got := check(name); got != "SERVING" {
			t.Errorf("%q is %s", name, got)
		}
	}
	if got := check("no.such.Service"); got != "NotFound" {
		t.Errorf("an unknown service is %s", got)
	}
	d.SetServing(false)
	if got := check(""); got != "NOT_SERVING" {
		t.Errorf("after SetServing(false): %s", got)
	}
	stream, err := reflectionpb.NewServerReflectionClient(d.conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(stream.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}), stream.CloseSend())
	answer, recvErr := stream.Recv()
	if err != nil || recvErr != nil {
		t.Fatal(err, recvErr)
	}
	listed := fmt.Sprint(answer.GetListServicesResponse())
	for _, name := range services[1:] {
		if !strings.Contains(listed, name) {
			t.Errorf("reflection lacks %s", name)
		}
	}
}

func TestWatch(t *testing.T) {
	f := newFake()
	f.watch = func(_ context.Context, send func(rotation.JobView, bool) error) error {
		final := f.job
		final.State, final.FailReason, final.FailMessage = rotation.Failed, broker.ReasonRowsFailed, "2 rows are left"
		return errors.Join(send(f.job, true), send(final, false))
	}
	stream, err := keybrokerv1.NewReencryptionServiceClient(serve(t, f, nil).conn).
		WatchReencryptionJob(t.Context(), &keybrokerv1.WatchReencryptionJobRequest{Name: "domains/acme/reencryptionJobs/job1"})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for {
		m, err := stream.Recv()
		if err != nil {
			got = append(got, err.Error())
			break
		}
		got = append(got, fmt.Sprintf("%t %s %d %s", m.GetHeartbeat(), m.GetJob().GetState(), m.GetJob().GetError().GetCode(), m.GetJob().GetError().GetReason()))
	}
	want := "false STATE_RUNNING 0 |true STATE_UNSPECIFIED 0 |false STATE_FAILED 9 ROWS_FAILED|EOF"
	if strings.Join(got, "|") != want {
		t.Errorf("got  %s\nwant %s", strings.Join(got, "|"), want)
	}
}

func TestShutdownEndsWatches(t *testing.T) {
	f := newFake()
	f.watch = func(ctx context.Context, _ func(rotation.JobView, bool) error) error {
		<-ctx.Done()
		return ctx.Err()
	}
	d := serve(t, f, nil)
	watch, err := keybrokerv1.NewReencryptionServiceClient(d.conn).
		WatchReencryptionJob(t.Context(), &keybrokerv1.WatchReencryptionJobRequest{Name: "domains/acme/reencryptionJobs/job1"})
	if err != nil {
		t.Fatal(err)
	}
	probe, err := healthpb.NewHealthClient(d.conn).Watch(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(errorOf(watch.Recv()), errorOf(probe.Recv())); err != nil {
		t.Fatal(err)
	}
	if err := d.Shutdown(t.Context()); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if _, err := watch.Recv(); status.Code(err) != codes.Unavailable || reasonOf(err) != "SHUTTING_DOWN" {
		t.Errorf("the watch ended with %v", err)
	}
	for {
		answer, err := probe.Recv()
		if err != nil {
			break
		}
		if answer.GetStatus() == healthpb.HealthCheckResponse_SERVING {
			t.Errorf("still SERVING after Shutdown began")
		}
	}
}

// A watch may begin at any time of its connection's life. None is cut off with
// the connection: each is told to call again.
func TestLongWatchesAreToldToCallAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.watch = func(ctx context.Context, _ func(rotation.JobView, bool) error) error {
			<-ctx.Done()
			return ctx.Err()
		}
		d := serve(t, f, nil)
		const watches = 40
		ended := make(chan error, watches)
		for range watches {
			go func() {
				watch, err := keybrokerv1.NewReencryptionServiceClient(d.conn).
					WatchReencryptionJob(t.Context(), &keybrokerv1.WatchReencryptionJobRequest{Name: "domains/acme/reencryptionJobs/job1"})
				if err == nil {
					err = errors.Join(errorOf(watch.Recv()), errorOf(watch.Recv()))
				}
				ended <- err
			}()
			time.Sleep(time.Minute)
		}
		for range watches {
			if err := <-ended; status.Code(err) != codes.Unavailable || reasonOf(err) != "SHUTTING_DOWN" {
				t.Errorf("a watch ended with %v", err)
			}
		}
	})
}

func errorOf[T any](_ T, err error) error { return err }

func TestShutdownCutsOffWhatHangs(t *testing.T) {
	f := newFake()
	at := make(chan struct{})
	f.during = func(ctx context.Context) {
		close(at)
		<-ctx.Done()
	}
	f.err = context.Canceled
	d := serve(t, f, nil)
	answered := make(chan error, 1)
	go func() {
		_, err := keybrokerv1.NewDomainServiceClient(d.conn).GetDomain(context.Background(), &keybrokerv1.GetDomainRequest{Name: "domains/acme"}, grpc.WaitForReady(true))
		answered <- err
	}()
	<-at
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Shutdown: %v", err)
	}
	if err := <-answered; status.Code(err) != codes.Unavailable {
		t.Errorf("the call that was cut off got %v", err)
	}
}
