package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/keybroker/keybroker/internal/brokertest"
	"github.com/keybroker/keybroker/internal/demo"
	"github.com/keybroker/keybroker/internal/sqlstore"
	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

// postgres is the server of this package's tests.
var postgres brokertest.Postgres

func TestMain(m *testing.M) {
	code := m.Run()
	if err := postgres.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, "stop PostgreSQL:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// urlFile writes a file that holds a URL.
func urlFile(t *testing.T, at string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "database-url")
	if err := os.WriteFile(path, []byte(at+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestMigrate(t *testing.T) {
	file := urlFile(t, postgres.Database(t))
	config := filepath.Join(t.TempDir(), "config.json")
	text := strings.Replace(goodConfig, `"database": "/var/lib/keybroker/keybroker.db"`, fmt.Sprintf(`"database_url_file": %q`, file), 1)
	if text == goodConfig {
		t.Fatal("the good configuration names its database otherwise")
	}
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"serve", "--config", config},
		{"serve", "--config", config, "--roles", "worker"},
	} {
		if code, stdout, stderr := call(t.Context(), environment(), args...); code != exitFailed || !strings.Contains(stderr, "run broker migrate") {
			t.Errorf("%v on an empty database: exit %d, %q, %s", args, code, stdout, stderr)
		}
	}
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"migrate", "--database-url-file", file}, "and was at 0"},
		{[]string{"migrate", "--database-url-file", file}, "nothing to do"},
		{[]string{"migrate", "--config", config}, "nothing to do"},
	} {
		code, stdout, stderr := call(t.Context(), environment(), c.args...)
		if code != exitOK || !strings.Contains(stdout, c.says) || stderr != "" {
			t.Errorf("%v: exit %d, %q, %s; want %q", c.args, code, stdout, stderr, c.says)
		}
	}
}

// TestPasswordIsNotShown: what the file holds is shown by no command.
func TestPasswordIsNotShown(t *testing.T) {
	const password = "s3cret-of-the-vault"
	for what, content := range map[string]string{
		"nobody listens": "postgres://keybroker:" + password + "@127.0.0.1:1/keybroker?sslmode=disable",
		"no URL":         "keybroker:" + password,
		"broken":         "postgres://keybroker:" + password + "%zz@127.0.0.1/keybroker",
		"two lines":      "postgres://keybroker@127.0.0.1:1/keybroker\n" + password,
		"far away":       "postgres://keybroker:" + password + "@192.0.2.1/keybroker",
	} {
		file := urlFile(t, content)
		for _, args := range [][]string{
			{"migrate", "--database-url-file", file},
			{"serve", "--dev", "--data", t.TempDir(), "--database-url-file", file, "--listen", "127.0.0.1:0", "--kms-listen", "127.0.0.1:0", "--admin", adminOff},
		} {
			if what == "far away" && args[0] == "migrate" {
				continue // which would wait for an answer
			}
			code, stdout, stderr := call(t.Context(), environment(), args...)
			if code == exitOK {
				t.Errorf("%s: %v succeeded", what, args[:1])
			}
			if strings.Contains(stdout+stderr, password) {
				t.Errorf("%s: %v shows the password: %s", what, args[:1], strings.ReplaceAll(stderr, password, "[password]"))
			}
		}
	}
}

// TestRotatedPassword: a password that is changed, at the server and in the file,
// needs no restart: the next connection has it, also while the file is broken.
func TestRotatedPassword(t *testing.T) {
	at := postgres.Database(t)
	if _, _, err := sqlstore.MigratePostgres(t.Context(), at); err != nil {
		t.Fatal(err)
	}
	role := postgres.PasswordRole(t, "before")
	as := func(password string) string {
		u, err := url.Parse(at)
		if err != nil {
			t.Fatal(err)
		}
		u.User = url.UserPassword(role, password)
		return u.String()
	}
	file := urlFile(t, as("before"))
	store, err := database{urlFile: file}.open(t.Context(), sqlstore.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	if err := store.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	operator, err := pgx.Connect(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	defer operator.Close(t.Context())
	reconnect := func(what, content string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := operator.Exec(t.Context(), `select pg_terminate_backend(pid) from pg_stat_activity where usename = $1`, role); err != nil {
			t.Fatal(err)
		}
		if err := store.Ping(t.Context()); err != nil {
			t.Errorf("with %s: %v", what, err)
		}
	}
	if _, err := operator.Exec(t.Context(), `alter role `+role+` password 'after: 1/2'`); err != nil {
		t.Fatal(err)
	}
	reconnect("the new password", as("after: 1/2"))
	reconnect("a file that is being written", "postgres")
}

var servingLine = regexp.MustCompile(`^serving on (\S+)$`)

// TestRolesOnPostgres: a process without the worker's role answers calls and moves
// no job; a worker moves them, and answers for its health and for nothing else.
func TestRolesOnPostgres(t *testing.T) {
	file := urlFile(t, postgres.Database(t))
	api := startDev(t, filepath.Join(t.TempDir(), "api"), os.Getenv, "--database-url-file", file, "--roles", "api")
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	conn := api.dial(t)
	job, err := keybrokerv1.NewDomainServiceClient(conn).ChangeKey(ctx, &keybrokerv1.ChangeKeyRequest{Name: demo.TourDomain,
		KmsKey: "arn:aws:kms:us-east-1:111122223333:" + demo.TourOldKey, Reason: "a change that only a worker makes"})
	if err != nil {
		t.Fatal(err)
	}
	watch, err := keybrokerv1.NewReencryptionServiceClient(conn).WatchReencryptionJob(ctx,
		&keybrokerv1.WatchReencryptionJobRequest{Name: job.GetName()})
	if err != nil {
		t.Fatal(err)
	}
	shared := []string{"serve", "--dev", "--data", filepath.Join(t.TempDir(), "other"), "--database-url-file", file, "--kms-endpoint", api.kms, "--listen", "127.0.0.1:0"}
	other := startProcess(t, append(shared, "--roles", "api", "--admin", adminOff))
	line := <-other.lines
	address := servingLine.FindStringSubmatch(line)
	if address == nil {
		t.Fatalf("the other API's process says %q", line)
	}
	health, err := healthpb.NewHealthClient(devServer{api: address[1]}.dial(t)).Check(ctx, &healthpb.HealthCheckRequest{})
	if err != nil || health.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("the other API's process: %v, %v", health, err)
	}
	worker := startProcess(t, append(shared, "--roles", "worker", "--admin", "127.0.0.1:0"))
	if line := <-worker.lines; line != "working" {
		t.Errorf("the worker says %q", line)
	}
	admin := <-worker.admin
	if answer := readAdmin(t, admin, readyPath); !strings.Contains(answer, "ok") {
		t.Errorf("the worker's health: %s", answer)
	}
	if job = lastOf(t, watch); job.GetState() != keybrokerv1.ReencryptionJob_STATE_SUCCEEDED {
		t.Errorf("the job: %v", job)
	}
	const step = "keybroker_job_transitions_total{"
	if text := readAdmin(t, admin, "/metrics"); !strings.Contains(text, step) {
		t.Error("the worker moved no job")
	}
	if text := readAdmin(t, api.admin, "/metrics"); strings.Contains(text, step) {
		t.Error("a process without the worker's role moved a job")
	}
	for what, stop := range map[string]func() int{"the worker": worker.stop, "the other API's process": other.stop} {
		if code := stop(); code != exitOK {
			t.Errorf("%s: exit %d", what, code)
		}
	}
	if code := api.stop(); code != exitOK { // last: it has the KMS
		t.Errorf("the API's process: exit %d", code)
	}
}

// readAdmin gives what an admin listener answers.
func readAdmin(t *testing.T, address, path string) string {
	t.Helper()
	answer, err := http.Get("http://" + address + path)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(answer.Body)
	if err := errors.Join(err, answer.Body.Close()); err != nil || answer.StatusCode != http.StatusOK {
		t.Errorf("%s: %s, %v", path, answer.Status, err)
	}
	return string(body)
}
