package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/keybroker/keybroker/internal/demo"
	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

// A devServer is serve --dev in this process.
type devServer struct {
	api, kms, admin string // addresses as printed and logged
	awsConfig       string
	stop            func() int // asks it to end, and gives the exit code
}

var (
	exportLine = regexp.MustCompile(`^export A=(\S+) AWS_CONFIG_FILE=(\S+)$`)
	kmsLine    = regexp.MustCompile(`KMS +(http://\S+)`)
	adminLine  = regexp.MustCompile(`admin listener.*address=(\S+)`)
)

func startDev(t *testing.T, data string, getenv func(string) string, more ...string) devServer {
	t.Helper()
	p := startProcess(t, append([]string{"serve", "--dev", "--data", data, "--listen", "127.0.0.1:0", "--kms-listen", "127.0.0.1:0",
		"--admin", "127.0.0.1:0"}, more...), getenv)
	var s devServer
	for line := range p.lines {
		if m := kmsLine.FindStringSubmatch(line); m != nil {
			s.kms = m[1]
		}
		if m := exportLine.FindStringSubmatch(line); m != nil {
			s.api, s.awsConfig = m[1], m[2]
			break
		}
	}
	if s.api == "" {
		t.Fatalf("the server ended with %d before it was ready", p.stop())
	}
	s.admin, s.stop = <-p.admin, p.stop
	return s
}

// A process is the program at work in this one.
type process struct {
	lines <-chan string // of its standard output; all of them must be read, or none after the first few
	admin <-chan string // the admin listener's address, once it is logged
	stop  func() int    // asks it to end, and gives the exit code
}

func startProcess(t *testing.T, args []string, getenv ...func(string) string) process {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	stdoutR, stdoutW := io.Pipe()
	stderrR, stderrW := io.Pipe()
	code := make(chan int, 1)
	go func() {
		code <- run(ctx, args, append(getenv, environment())[0], strings.NewReader(""), stdoutW, stderrW)
		_ = stdoutW.Close()
		_ = stderrW.Close()
	}()
	admin := make(chan string, 1)
	go func() {
		for lines := bufio.NewScanner(stderrR); lines.Scan(); {
			if m := adminLine.FindStringSubmatch(lines.Text()); m != nil {
				admin <- m[1]
			}
		}
		close(admin)
	}()
	lines := make(chan string, 100) // more than it ever says
	go func() {
		for scanner := bufio.NewScanner(stdoutR); scanner.Scan(); {
			lines <- scanner.Text()
		}
		close(lines)
	}()
	stop := sync.OnceValue(func() int {
		cancel()
		return <-code
	})
	t.Cleanup(func() { stop() })
	return process{lines: lines, admin: admin, stop: stop}
}

func (s devServer) dial(t *testing.T) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(s.api, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// lastOf watches a job until it has ended, and gives it as it is then.
func lastOf(t *testing.T, watch grpc.ServerStreamingClient[keybrokerv1.WatchReencryptionJobResponse]) (job *keybrokerv1.ReencryptionJob) {
	t.Helper()
	for {
		answer, err := watch.Recv()
		if errors.Is(err, io.EOF) {
			return job
		}
		if err != nil {
			t.Fatal(err)
		}
		job = answer.GetJob()
	}
}

func TestServeDevIsReadyForTheTourAndRestarts(t *testing.T) {
	// What leads the AWS SDK elsewhere must not matter: the endpoint is a trap.
	t.Setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
	data := filepath.Join(t.TempDir(), "dev")
	first := startDev(t, data, os.Getenv)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	conn := first.dial(t)
	health, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
	if err != nil || health.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Fatalf("health: %v, %v", health, err)
	}
	// The tour's first key needs gRPC alone.
	domains := keybrokerv1.NewDomainServiceClient(conn)
	job, err := domains.ChangeKey(ctx, &keybrokerv1.ChangeKeyRequest{Name: demo.TourDomain,
		KmsKey: "arn:aws:kms:us-east-1:111122223333:" + demo.TourOldKey, Reason: "the tour"})
	if err != nil {
		t.Fatal(err)
	}
	watch, err := keybrokerv1.NewReencryptionServiceClient(conn).WatchReencryptionJob(ctx,
		&keybrokerv1.WatchReencryptionJobRequest{Name: job.GetName()})
	if err != nil {
		t.Fatal(err)
	}
	if job = lastOf(t, watch); job.GetState() != keybrokerv1.ReencryptionJob_STATE_SUCCEEDED {
		t.Fatalf("the first key: %v", job)
	}
	before, err := domains.GetDomain(ctx, &keybrokerv1.GetDomainRequest{Name: demo.TourDomain})
	if err != nil {
		t.Fatal(err)
	}
	checkAdmin(t, first.admin)
	checkHealth(t, first)
	checkAWSConfig(t, first)
	if code := first.stop(); code != 0 {
		t.Fatalf("exit %d", code)
	}

	second := startDev(t, data, environment("AWS_PROFILE", "customer", "AWS_CONFIG_FILE", first.awsConfig))
	after, err := keybrokerv1.NewDomainServiceClient(second.dial(t)).GetDomain(ctx, &keybrokerv1.GetDomainRequest{Name: demo.TourDomain})
	if err != nil {
		t.Fatal(err)
	}
	if after.GetUid() != before.GetUid() || after.GetKmsKey() != before.GetKmsKey() || after.GetState() != keybrokerv1.Domain_STATE_ACTIVE {
		t.Errorf("after the restart: %v\nbefore: %v", after, before)
	}
	third := []string{"serve", "--dev", "--data", data, "--listen", "127.0.0.1:0", "--kms-listen", "127.0.0.1:0", "--admin", adminOff}
	if code, _, stderr := call(ctx, environment(), third...); code != 1 || !strings.Contains(stderr, "--data") {
		t.Errorf("a second server on the same directory: exit %d, %s", code, stderr)
	}
	if code := second.stop(); code != 0 {
		t.Errorf("exit %d", code)
	}
}

// TestServerLogsJSON: every line of a server is one that a collector of logs can
// read, from the first to the last.
func TestServerLogsJSON(t *testing.T) {
	t.Setenv("AWS_CONFIG_FILE", filepath.Join(t.TempDir(), "none"))
	config := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(config, []byte(`{"deployment": "test", "database": `+strconv.Quote(filepath.Join(t.TempDir(), "db"))+`,
		"registrar_role": "arn:aws:iam::111122223333:role/registrar", "worker_role": "arn:aws:iam::111122223333:role/worker",
		"aws_region": "eu-central-1", "listen": "127.0.0.1:0", "admin": "127.0.0.1:0"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	said, w := io.Pipe()
	code := make(chan int, 1)
	go func() {
		code <- run(ctx, []string{"serve", "--config", config}, environment(), strings.NewReader(""), w, w)
		_ = w.Close()
	}()
	var messages []string
	for lines := bufio.NewScanner(said); lines.Scan(); {
		var line struct{ Msg, Address string }
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			t.Errorf("%q: %v", lines.Text(), err)
		}
		messages = append(messages, line.Msg)
		if line.Msg == "serving" {
			answer, err := healthpb.NewHealthClient(devServer{api: line.Address}.dial(t)).Check(ctx, &healthpb.HealthCheckRequest{})
			if err != nil || answer.GetStatus() != healthpb.HealthCheckResponse_SERVING {
				t.Errorf("health at %q: %v, %v", line.Address, answer, err)
			}
			cancel() // as SIGTERM does
		}
	}
	if c := <-code; c != exitOK || !slices.Contains(messages, "serving") || !slices.Contains(messages, "stopping") {
		t.Errorf("exit %d, said %q", c, messages)
	}
}

func checkAdmin(t *testing.T, address string) {
	t.Helper()
	for path, wants := range map[string][]string{
		livePath: {"ok"}, readyPath: {"ok"},
		"/metrics": {"keybroker_dev_mode 1", "keybroker_build_info{", `keybroker_kms_calls_total{class="OK",operation="DescribeKey"}`,
			"keybroker_pacer_rate", "keybroker_job_transitions_total{", "rpc_server_"},
		"/debug/pprof/": {"heap"},
	} {
		answer, err := http.Get("http://" + address + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(answer.Body)
		if err := answer.Body.Close(); err != nil {
			t.Error(err)
		}
		if err != nil || answer.StatusCode != http.StatusOK {
			t.Errorf("%s: %s, %v", path, answer.Status, err)
		}
		for _, want := range wants {
			if !strings.Contains(string(body), want) {
				t.Errorf("%s lacks %s", path, want)
			}
		}
	}
}

// checkHealth asks as a probe in a container does, before and after the end.
func checkHealth(t *testing.T, s devServer) {
	t.Helper()
	for _, args := range [][]string{
		{"health", "--admin", s.admin},
		{"health", "--admin", s.admin, "--live"},
	} {
		if code, stdout, stderr := call(t.Context(), environment(), args...); code != exitOK || stdout != "ok\n" {
			t.Errorf("%v: exit %d, %q, %s", args, code, stdout, stderr)
		}
	}
}

func checkAWSConfig(t *testing.T, s devServer) {
	t.Helper()
	text, err := os.ReadFile(s.awsConfig)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"[profile customer]", "[profile service]", "endpoint_url = " + s.kms} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%s lacks %q", s.awsConfig, want)
		}
	}
	if strings.Contains(string(text), "broker]") {
		t.Error("the broker has a profile")
	}
	info, err := os.Stat(s.awsConfig)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}
