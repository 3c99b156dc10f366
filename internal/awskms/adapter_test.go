package awskms_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/keybroker/keybroker/internal/awskms"
	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/brokertest"
	"github.com/keybroker/keybroker/internal/localkms"
	"github.com/keybroker/keybroker/internal/pacer"
)

// trap is a transport that notes where requests go, and answers none.
type trap struct {
	mu    sync.Mutex
	hosts []string
}

var errTrap = errors.New("trapped")

func (t *trap) RoundTrip(r *http.Request) (*http.Response, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.hosts = append(t.hosts, r.URL.Scheme+"://"+r.URL.Host)
	return nil, errTrap
}

func keyIn(region string) broker.KeyARN {
	return broker.KeyARN("arn:aws:kms:" + region + ":111122223333:key/11111111-2222-4333-8444-555555555555")
}

func reEncrypt(ctx context.Context, k *awskms.KMS, key broker.KeyARN) error {
	_, err := k.ReEncrypt(ctx, broker.ReEncrypt{
		Ciphertext: broker.Secret("blob"), SourceKey: key, SourceContext: domainContext(anyUID),
		DestinationKey: key, DestinationContext: domainContext(anyUID),
	})
	return err
}

func TestConfigFaultsAreAllReported(t *testing.T) {
	_, err := awskms.New(awskms.Config{
		BaseEndpoint: "localhost:1", Region: "Nowhere", Regions: []string{"a/b"}, MaxAttempts: 2,
		Observe: func(string, broker.KMSClass, time.Duration) {},
	}, pacer.Background)
	if err == nil {
		t.Fatal("accepted")
	}
	for _, field := range []string{"Registrar", "ReservedKey", "ReservedValue", "Pacer", "Jitter", "Now", "BaseEndpoint", "Region:", "Regions:"} {
		if !strings.Contains(err.Error(), field) {
			t.Errorf("%s is not named in: %v", field, err)
		}
	}
}

// TestEndpoints: only the configuration and the key's Region decide where a
// request goes (T19).
func TestEndpoints(t *testing.T) {
	const hijacker = "http://hijacker.example"
	for _, name := range []string{"AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_KMS", "HTTPS_PROXY", "HTTP_PROXY"} {
		t.Setenv(name, hijacker)
	}
	t.Setenv("AWS_REGION", "us-east-2")
	for _, c := range []struct {
		name, base string
		fips       bool
		key        broker.KeyARN
		want       string
	}{
		{"the key's Region", "", false, keyIn("ap-southeast-2"), "https://kms.ap-southeast-2.amazonaws.com"},
		{"another partition", "", false, keyIn("cn-north-1"), "https://kms.cn-north-1.amazonaws.com.cn"},
		{"FIPS", "", true, keyIn("us-west-2"), "https://kms-fips.us-west-2.amazonaws.com"},
		{"configured", "http://127.0.0.1:4599", false, keyIn("us-west-2"), "http://127.0.0.1:4599"},
	} {
		wire := &trap{}
		cfg := config(t, wire)
		cfg.BaseEndpoint, cfg.FIPS = c.base, c.fips
		err := reEncrypt(t.Context(), open(t, cfg, pacer.Background), c.key)
		if broker.ClassOf(err) != broker.KMSUnavailable || !errors.Is(err, errTrap) {
			t.Errorf("%s: got %v, want the transport's error", c.name, err)
		}
		if diff := cmp.Diff([]string{c.want}, wire.hosts); diff != "" {
			t.Errorf("%s (-want +got)\n%s", c.name, diff)
		}
	}
}

func TestRegionsThatMayNotBeCalled(t *testing.T) {
	wire := &trap{}
	cfg := config(t, wire)
	cfg.Regions = []string{homeRegion}
	k := open(t, cfg, pacer.Background)
	for _, key := range []string{
		string(keyIn("us-west-2")), "arn:aws:kms:evil.example/:111122223333:key/1", "arn:aws:kms::111122223333:key/1", "arn:", "arn:aws:kms:-a-:1:key/1",
	} {
		if err := reEncrypt(t.Context(), k, broker.KeyARN(key)); broker.ClassOf(err) != broker.KMSInvalidRequest {
			t.Errorf("%s: got %v, want INVALID_REQUEST", key, err)
		}
	}
	cfg.Regions, cfg.Region = nil, ""
	if _, err := open(t, cfg, pacer.Background).DescribeKey(t.Context(), "alias/mine"); broker.ClassOf(err) != broker.KMSInvalidRequest {
		t.Errorf("an alias without a Region: got %v, want INVALID_REQUEST", err)
	}
	if len(wire.hosts) != 0 {
		t.Errorf("requests were sent to %v", wire.hosts)
	}
	if _, err := k.DescribeKey(t.Context(), "alias/mine"); !errors.Is(err, errTrap) {
		t.Errorf("an alias with Config.Region: got %v", err)
	}
	anywhere := open(t, cfg, pacer.Background)
	for i := range 200 { // more Regions than are kept
		region := "eu-x-" + strings.Repeat("a", 1+i/26) + string(rune('a'+i%26))
		if err := reEncrypt(t.Context(), anywhere, keyIn(region)); !errors.Is(err, errTrap) {
			t.Fatalf("%s: %v", region, err)
		}
	}
}

func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		faults := brokertest.NewFaults(&trap{})
		cfg := config(t, faults)
		cfg.MaxAttempts, cfg.CallTimeout, cfg.Jitter = 9, time.Minute, func() float64 { return 0.5 }
		var waits []time.Duration
		cfg.Sleep = func(_ context.Context, d time.Duration) error { waits = append(waits, d); return nil }
		faults.Plan("ReEncrypt", slices.Repeat([]brokertest.Fault{{Code: "ThrottlingException"}}, 9)...)
		if err := reEncrypt(t.Context(), open(t, cfg, pacer.Foreground), keyIn(homeRegion)); broker.ClassOf(err) != broker.KMSThrottled {
			t.Errorf("got %v", err)
		}
		const ms = time.Millisecond
		want := []time.Duration{25 * ms, 50 * ms, 100 * ms, 200 * ms, 400 * ms, 1000 * ms, 1000 * ms, 1000 * ms}
		if diff := cmp.Diff(want, waits); diff != "" {
			t.Errorf("waits (-want +got)\n%s", diff)
		}
		if s := cfg.Pacer.States(); len(s) != 1 || s[0].Throttled != 9 || s[0].Foreground != 0 {
			t.Errorf("the pacer saw %+v", s)
		}
	})
}

// TestTimeLimits uses the real timers, in fake time.
func TestTimeLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config(t, hang{})
		cfg.CallTimeout, cfg.Jitter = 4*time.Second, func() float64 { return 0.999 }
		k := open(t, cfg, pacer.Foreground)
		start := time.Now()
		err := reEncrypt(t.Context(), k, keyIn(homeRegion))
		if took := time.Since(start); took != cfg.CallTimeout || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a hanging KMS: %v after %v", err, took)
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		start = time.Now()
		err = reEncrypt(ctx, k, keyIn(homeRegion))
		if took := time.Since(start); took != time.Second || !errors.Is(err, context.Canceled) || broker.ClassOf(err) != broker.KMSUnavailable {
			t.Errorf("a caller who left: %v after %v", err, took)
		}
		// A caller who leaves during the wait between attempts, too.
		faults := brokertest.NewFaults(hang{})
		faults.Plan("ReEncrypt", brokertest.Fault{Code: "ThrottlingException"})
		cfg.Transport = faults
		ctx, cancel = context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		err = reEncrypt(ctx, open(t, cfg, pacer.Foreground), keyIn(homeRegion))
		if !errors.Is(err, context.DeadlineExceeded) || broker.ClassOf(err) != broker.KMSUnavailable || faults.Attempts("ReEncrypt") != 1 {
			t.Errorf("a caller who left between attempts: %v", err)
		}
		// Background calls that wait for the pacer leave with their context.
		p, err := pacer.New(pacer.Config{Now: time.Now, InFlight: 1})
		if err != nil {
			t.Fatal(err)
		}
		held, err := p.Acquire(t.Context(), pacer.Budget{Region: homeRegion, Quota: "cryptographic"}, pacer.Background)
		if err != nil {
			t.Fatal(err)
		}
		cfg.Pacer = p
		ctx, cancel = context.WithTimeout(t.Context(), 2*cfg.CallTimeout)
		defer cancel()
		start = time.Now()
		err = reEncrypt(ctx, open(t, cfg, pacer.Background), keyIn(homeRegion))
		if took := time.Since(start); took != 2*cfg.CallTimeout || !errors.Is(err, context.DeadlineExceeded) || broker.ClassOf(err) != broker.KMSUnavailable {
			t.Errorf("a full pacer: %v", err)
		}
		held.Release(pacer.Done)
		if s := p.States(); len(s) != 1 || s[0].Background != 0 || s[0].Waiting != 0 {
			t.Errorf("left behind: %+v", s)
		}
	})
}

// hang answers nobody.
type hang struct{}

func (hang) RoundTrip(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

func TestGuardPanicsWhereTold(t *testing.T) {
	cfg := config(t, &trap{})
	cfg.PanicOnGuard = true
	k := open(t, cfg, pacer.Foreground)
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	_, _ = k.CreateGrant(t.Context(), broker.NewKMSGrant{Key: keyIn(homeRegion), Name: "n"})
}

// I4 at the last door: the key is the deployment's, and the value one that a domain
// of the key's Region might have.
func TestReservedPairs(t *testing.T) {
	const uid, voice = "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "arn:aws:voiceid:{region}:111122223333:domain/{uid}"
	for _, c := range []struct {
		template, key, value string
		want                 bool
	}{
		{"{uid}", reservedKey, uid, true},
		{"{uid}", reservedKey, "", false},
		{"{uid}", reservedKey, "one", false},
		{"{uid}", reservedKey, uid + "A", false},
		{"{uid}", reservedKey, uid[1:], false},
		{"{uid}", reservedKey, "*" + uid[1:], false},
		{"{uid}", "Keybroker:Domain", uid, false},
		{"kb-{uid}", reservedKey, "kb-" + uid, true},
		{"kb-{uid}", reservedKey, uid, false},
		{"{uid}.{uid}", reservedKey, uid + "." + uid, true},
		{voice, reservedKey, "arn:aws:voiceid:" + homeRegion + ":111122223333:domain/" + uid, true},
		{voice, reservedKey, "arn:aws:voiceid:eu-south-9:111122223333:domain/" + uid, false},
		{voice, reservedKey, "arn:aws:voiceid:" + homeRegion + ":111122223333:domain/*", false},
		{voice, reservedKey, uid, false},
	} {
		cfg := config(t, &trap{})
		cfg.ReservedValue = c.template
		_, err := open(t, cfg, pacer.Background).GenerateDataKeyWithoutPlaintext(t.Context(), broker.GenerateDataKey{
			Key: keyIn(homeRegion), KeySpec: "AES_256", Context: broker.Context{c.key: c.value, "object": "2"},
		})
		if got := errors.Is(err, errTrap); got != c.want {
			t.Errorf("template %s, %s=%s: sent %t, want %t", c.template, c.key, c.value, got, c.want)
		}
	}
}

func TestObserveCountsEachAttempt(t *testing.T) {
	type seen struct {
		Operation string
		Class     broker.KMSClass
		D         time.Duration
	}
	faults := brokertest.NewFaults(localkms.RoundTripper(newLocal(t, 0, nil)))
	cfg := config(t, faults)
	clock := &clock{}
	var got []seen
	cfg.Now = func() time.Time { clock.advance(time.Millisecond); return clock.Now() }
	cfg.Observe = func(operation string, class broker.KMSClass, d time.Duration) {
		got = append(got, seen{operation, class, d})
	}
	k := open(t, cfg, pacer.Foreground)
	faults.Plan("ListGrants", brokertest.Fault{Code: "ThrottlingException"}, brokertest.Fault{Status: 502}, brokertest.Fault{Body: `{"Grants":[]}`})
	if _, err := k.ListGrants(t.Context(), keyIn(homeRegion), ""); err != nil {
		t.Fatal(err)
	}
	_, _ = k.CreateGrant(t.Context(), broker.NewKMSGrant{Key: keyIn(homeRegion), Name: "n"})
	want := []seen{
		{"ListGrants", broker.KMSThrottled, time.Millisecond},
		{"ListGrants", broker.KMSUnavailable, time.Millisecond},
		{"ListGrants", "", time.Millisecond},
		{"CreateGrant", broker.KMSInvalidRequest, 0}, // by the guard
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// TestSpans: one span a call, with Region and account, and nothing of what the
// request holds.
func TestSpans(t *testing.T) {
	recorder := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))
	faults := brokertest.NewFaults(&trap{})
	cfg := config(t, faults)
	cfg.Tracer = provider.Tracer("test")
	k := open(t, cfg, pacer.Foreground)
	key := keyIn("eu-west-1")
	faults.Plan("ReEncrypt", brokertest.Fault{Code: "ThrottlingException"}, brokertest.Fault{Code: "ValidationException", Message: "Value 'canary' at 'x'"})
	_, err := k.ReEncrypt(t.Context(), broker.ReEncrypt{
		Ciphertext: broker.Secret("canary"), SourceKey: key, SourceContext: broker.Context{"tenant": "canary"}.With(broker.Pair{Key: reservedKey, Value: anyUID}),
		DestinationKey: key, DestinationContext: broker.Context{"tenant": "canary"}.With(broker.Pair{Key: reservedKey, Value: anyUID}), Tokens: []broker.Secret{broker.Secret("canary")},
	})
	if broker.ClassOf(err) != broker.KMSInvalidRequest {
		t.Fatal(err)
	}
	ended := recorder.Ended()
	if len(ended) != 1 || ended[0].Name() != "kms.ReEncrypt" || ended[0].Status().Code != codes.Error {
		t.Fatalf("got %d spans: %v", len(ended), ended)
	}
	got := map[string]string{}
	for _, a := range ended[0].Attributes() {
		got[string(a.Key)] = a.Value.String()
	}
	want := map[string]string{
		"cloud.region": "eu-west-1", "kms.key.account": "111122223333", "kms.source_key.account": "111122223333",
		"kms.class": "foreground", "kms.dry_run": "false", "error.type": "INVALID_REQUEST",
		"kms.code": "ValidationException", "aws.request_id": brokertest.FaultRequestID,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("attributes (-want +got)\n%s", diff)
	}
	if len(ended[0].Events()) != 0 || strings.Contains(ended[0].Status().Description, "canary") {
		t.Errorf("the span says too much: %v %v", ended[0].Events(), ended[0].Status())
	}
}

// TestOwnTransport goes over a socket, with many calls at once, and again over
// the same connections.
func TestOwnTransport(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	var mu sync.Mutex
	connections := map[string]bool{}
	local := newLocal(t, 0, nil)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		connections[r.RemoteAddr] = true
		mu.Unlock()
		if strings.HasSuffix(r.URL.Path, "/elsewhere") {
			t.Error("a redirect was followed")
		}
		local.ServeHTTP(w, r)
	}))
	defer server.Close()
	key := must[*kms.CreateKeyOutput](t)(sdk(localkms.RoundTripper(local), "AKIACUSTOMER").CreateKey(t.Context(), &kms.CreateKeyInput{
		Policy: aws.String(brokertest.KMSPolicy{
			Owner: "111122223333", Registrar: registrarRole, Worker: workerRole, Pinned: broker.Pair{Key: reservedKey, Value: anyUID},
		}.Document()),
	}))
	cfg := config(t, nil)
	cfg.BaseEndpoint, cfg.MaxConnections = server.URL, 8
	k := open(t, cfg, pacer.Background)
	defer k.Close() // before the server
	for range 5 {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if _, err := k.DescribeKey(t.Context(), *key.KeyMetadata.Arn); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	if len(connections) > 16 { // net/http may dial while another call ends
		t.Errorf("%d connections for 40 calls, 8 at once", len(connections))
	}
	moved := httptest.NewServer(http.RedirectHandler(server.URL+"/elsewhere", http.StatusTemporaryRedirect))
	defer moved.Close()
	cfg.BaseEndpoint = moved.URL
	redirected := open(t, cfg, pacer.Background)
	defer redirected.Close()
	if _, err := redirected.DescribeKey(t.Context(), *key.KeyMetadata.Arn); broker.ClassOf(err) != broker.KMSUnavailable {
		t.Errorf("a redirect: got %v, want UNAVAILABLE", err)
	}
}

// TestBodiesEndQuietly: the transport may look for the end of a body that the SDK
// has closed, once the answer is there. An error then costs the connection, and
// now and then the answer.
func TestBodiesEndQuietly(t *testing.T) {
	bodies := make(chan io.ReadCloser, 1)
	wire := localkms.RoundTripper(newLocal(t, 0, nil))
	k := open(t, config(t, roundTripper(func(r *http.Request) (*http.Response, error) {
		bodies <- r.Body
		return wire.RoundTrip(r)
	})), pacer.Background)
	_, err := k.DescribeKey(t.Context(), "arn:aws:kms:"+homeRegion+":111122223333:key/00000000-0000-4000-8000-000000000000")
	if broker.ClassOf(err) != broker.KMSNotFound {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, <-bodies); n != 0 || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
