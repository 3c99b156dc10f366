//go:build unix

// Package rolling_test restarts replicas of the broker one after the other, as an
// orchestrator does, under load, while a key changes: a client that knows all of
// them and retries UNAVAILABLE sees no failed call.
package rolling_test

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	"github.com/keybroker/keybroker/internal/brokertest"
	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
	"github.com/keybroker/keybroker/test/chaos/devserver"
)

// What the tour of serve --dev makes: a domain, and two keys for it.
const (
	domain = "domains/tour"
	oldKey = "arn:aws:kms:us-east-1:111122223333:alias/old"
	newKey = "arn:aws:kms:us-east-1:111122223333:alias/new"
)

// serviceConfig is what docs/integrate.md tells users to have: calls go to every
// replica, and are sent again when one is UNAVAILABLE.
const serviceConfig = `{
	"loadBalancingConfig": [{"round_robin": {}}],
	"methodConfig": [{
		"name": [{}],
		"retryPolicy": {
			"maxAttempts": 5, "initialBackoff": "0.1s", "maxBackoff": "2s", "backoffMultiplier": 2,
			"retryableStatusCodes": ["UNAVAILABLE"]
		}
	}]
}`

var (
	serving  = regexp.MustCompile(`^serving on (\S+)$`)
	exported = regexp.MustCompile(`^export A=(\S+) AWS_CONFIG_FILE=(\S+)$`)
	endpoint = regexp.MustCompile(`endpoint_url = (\S+)`)
)

// rounds is how often every replica is restarted.
const rounds = 3

func TestRollingRestart(t *testing.T) {
	var server brokertest.Postgres
	server.Need(t)
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	dir := t.TempDir()
	bin, err := devserver.Build(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	urlFile := filepath.Join(dir, "url")
	at, drop, err := server.Create(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = drop() }) // the server goes, too
	if err := os.WriteFile(urlFile, []byte(at), 0o600); err != nil {
		t.Fatal(err)
	}
	f := &fleet{t: t, bin: bin, dir: dir, urlFile: urlFile}
	first := f.start(ctx, "kms", exported, "--listen", "127.0.0.1:0", "--kms-listen", "127.0.0.1:0", "--roles", "api")
	text, err := os.ReadFile(first.AWSConfig)
	if err != nil {
		t.Fatal(err)
	}
	f.kms = endpoint.FindStringSubmatch(string(text))[1]
	replicas := []*devserver.Server{f.replica(ctx, "a", apart(2)), f.replica(ctx, "b", apart(3))}

	l := newLoad(t, replicas[0].API, replicas[1].API)
	job := l.change(ctx, oldKey)
	l.finish(ctx, job)
	l.start(ctx)
	l.until(ctx, func() bool { return l.stored.Load() >= 200 })
	job = l.change(ctx, newKey)
	for range rounds {
		for i, old := range replicas {
			if err := old.Stop(ctx); err != nil {
				t.Fatalf("replica %d did not end well: %v", i, err)
			}
			replicas[i] = f.replica(ctx, string(rune('a'+i)), old.API)
			before := l.answersOf(old.API)
			l.until(ctx, func() bool { return l.answersOf(old.API) >= before+20 }) // the client has it back
		}
	}
	l.finish(ctx, job)
	l.stop()
	l.check(ctx)
	for _, r := range append(replicas, first) {
		if err := r.Stop(ctx); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d restarts, %d data keys stored, %d calls, none failed", rounds*len(replicas), l.stored.Load(), l.calls.Load())
}

// apart gives an address of one replica alone: between its end and its next start
// nobody else may get its port. Only Linux has the whole of 127.0.0.0/8.
func apart(n int) string {
	if runtime.GOOS != "linux" {
		n = 1
	}
	return fmt.Sprintf("127.0.0.%d:0", n)
}

// A fleet is the processes on one database and one KMS.
type fleet struct {
	t                      *testing.T
	bin, dir, urlFile, kms string
}

func (f *fleet) start(ctx context.Context, name string, ready *regexp.Regexp, args ...string) *devserver.Server {
	f.t.Helper()
	args = append([]string{"serve", "--dev", "--data", filepath.Join(f.dir, name), "--database-url-file", f.urlFile, "--admin", "off"}, args...)
	log := filepath.Join(f.dir, name+".log")
	s, err := devserver.Run(exec.Command(f.bin, args...), log, ready)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = s.Kill() })
	if err := s.Ready(ctx); err != nil {
		said, _ := os.ReadFile(log)
		f.t.Fatalf("%s: %v\n%s", name, err, said)
	}
	return s
}

// replica starts one that answers calls and works on jobs.
func (f *fleet) replica(ctx context.Context, name, listen string) *devserver.Server {
	return f.start(ctx, name, serving, "--listen", listen, "--kms-endpoint", f.kms)
}

// A load is a client that stores and reads data keys all the time.
type load struct {
	t       *testing.T
	domains keybrokerv1.DomainServiceClient
	keys    keybrokerv1.DataKeyServiceClient
	jobs    keybrokerv1.ReencryptionServiceClient

	stored, calls atomic.Int64
	ended         chan struct{}
	work          sync.WaitGroup

	mu      sync.Mutex
	answers map[string]int64 // by replica
	rows    map[string]bool  // names that were acknowledged
	changed chan struct{}    // closed and made anew at each answer
}

func newLoad(t *testing.T, addresses ...string) *load {
	t.Helper()
	r := manual.NewBuilderWithScheme("fleet")
	var state resolver.State
	for _, a := range addresses {
		state.Endpoints = append(state.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: a}}})
	}
	r.InitialState(state)
	eager := grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, MaxDelay: time.Second}, MinConnectTimeout: 5 * time.Second}
	l := &load{t: t, ended: make(chan struct{}), answers: map[string]int64{}, rows: map[string]bool{}, changed: make(chan struct{})}
	conn, err := grpc.NewClient("fleet:///", grpc.WithResolvers(r), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(serviceConfig), grpc.WithConnectParams(eager), grpc.WithUnaryInterceptor(l.count))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	l.domains, l.keys, l.jobs = keybrokerv1.NewDomainServiceClient(conn), keybrokerv1.NewDataKeyServiceClient(conn), keybrokerv1.NewReencryptionServiceClient(conn)
	return l
}

// count sees every call of the client, after its retries.
func (l *load) count(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	var from peer.Peer
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	err := invoke(ctx, method, req, reply, conn, append(opts, grpc.Peer(&from))...)
	l.calls.Add(1)
	if err != nil {
		l.t.Errorf("%s failed: %v", method, err)
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.answers[from.Addr.String()]++
	close(l.changed)
	l.changed = make(chan struct{})
	return nil
}

func (l *load) answersOf(address string) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.answers[address]
}

// until waits for something that answers bring about.
func (l *load) until(ctx context.Context, reached func() bool) {
	l.t.Helper()
	for {
		l.mu.Lock()
		changed := l.changed
		l.mu.Unlock()
		if l.t.Failed() { // a worker whose call fails ends
			l.t.FailNow()
		}
		if reached() {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			l.t.Fatal(ctx.Err())
		}
	}
}

// start stores and reads until stop.
func (l *load) start(ctx context.Context) {
	for worker := range 4 {
		l.work.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-l.ended:
					return
				default:
				}
				id := fmt.Sprintf("k%d-%05d", worker, n)
				made, err := l.keys.CreateDataKey(ctx, &keybrokerv1.CreateDataKeyRequest{Parent: domain, DataKeyId: id, RequestId: id})
				if err != nil {
					return
				}
				l.mu.Lock()
				l.rows[made.GetName()] = true
				l.mu.Unlock()
				l.stored.Add(1)
				if _, err := l.keys.GetDataKey(ctx, &keybrokerv1.GetDataKeyRequest{Name: made.GetName()}); err != nil {
					return
				}
			}
		})
	}
}

func (l *load) stop() {
	close(l.ended)
	l.work.Wait()
}

func (l *load) change(ctx context.Context, key string) *keybrokerv1.ReencryptionJob {
	l.t.Helper()
	d, err := l.domains.GetDomain(ctx, &keybrokerv1.GetDomainRequest{Name: domain})
	if err != nil {
		l.t.FailNow()
	}
	job, err := l.domains.ChangeKey(ctx, &keybrokerv1.ChangeKeyRequest{Name: domain, KmsKey: key, Etag: d.GetEtag(), RequestId: key[len(key)-9:]})
	if err != nil {
		l.t.FailNow()
	}
	return job
}

// finish waits until a job has ended well.
func (l *load) finish(ctx context.Context, job *keybrokerv1.ReencryptionJob) {
	l.t.Helper()
	for {
		j, err := l.jobs.GetReencryptionJob(ctx, &keybrokerv1.GetReencryptionJobRequest{Name: job.GetName()})
		if err != nil {
			l.t.FailNow()
		}
		switch j.GetState() {
		case keybrokerv1.ReencryptionJob_STATE_SUCCEEDED:
			return
		case keybrokerv1.ReencryptionJob_STATE_RUNNING:
		default:
			l.t.Fatalf("the job is %v: %v %v", j.GetState(), j.GetError(), j.GetBlock())
		}
		select {
		case <-time.After(100 * time.Millisecond): // a poll
		case <-ctx.Done():
			l.t.Fatalf("the job is still in %v", j.GetPhase())
		}
	}
}

// check compares what was acknowledged with what is there: the same rows, all
// under the domain's key.
func (l *load) check(ctx context.Context) {
	l.t.Helper()
	d, err := l.domains.GetDomain(ctx, &keybrokerv1.GetDomainRequest{Name: domain})
	if err != nil {
		l.t.FailNow()
	}
	there := map[string]bool{}
	for token := ""; ; {
		page, err := l.keys.ListDataKeys(ctx, &keybrokerv1.ListDataKeysRequest{Parent: domain, PageSize: 500, PageToken: token})
		if err != nil {
			l.t.FailNow()
		}
		for _, k := range page.GetDataKeys() {
			there[k.GetName()] = true
			if k.GetKmsKey() != d.GetKmsKey() {
				l.t.Errorf("%s is under %s, the domain under %s", k.GetName(), k.GetKmsKey(), d.GetKmsKey())
			}
		}
		if token = page.GetNextPageToken(); token == "" {
			break
		}
	}
	if !maps.Equal(there, l.rows) {
		l.t.Errorf("%d rows are there, %d were acknowledged", len(there), len(l.rows))
	}
}
