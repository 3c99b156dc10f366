package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/keybroker/keybroker/internal/brokertest"
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
func urlFile(t *testing.T, url string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "database-url")
	if err := os.WriteFile(path, []byte(url+"\n"), 0o600); err != nil {
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

var servingLine = regexp.MustCompile(`^serving on (\S+)$`)

// TestRolesOnPostgres: a worker answers for its health and for nothing else; a
// process without the worker's role answers calls.
func TestRolesOnPostgres(t *testing.T) {
	file := urlFile(t, postgres.Database(t))
	data := filepath.Join(t.TempDir(), "first")
	first := startDev(t, data, os.Getenv, "--database-url-file", file)

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	shared := []string{"serve", "--dev", "--data", filepath.Join(t.TempDir(), "second"), "--database-url-file", file, "--kms-endpoint", first.kms, "--listen", "127.0.0.1:0"}
	api := startProcess(t, append(shared, "--roles", "api", "--admin", adminOff))
	line := <-api.lines
	address := servingLine.FindStringSubmatch(line)
	if address == nil {
		t.Fatalf("the API's process says %q", line)
	}
	health, err := healthpb.NewHealthClient(devServer{api: address[1]}.dial(t)).Check(ctx, &healthpb.HealthCheckRequest{})
	if err != nil || health.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("the API's process: %v, %v", health, err)
	}

	worker := startProcess(t, append(shared, "--roles", "worker", "--admin", "127.0.0.1:0"))
	if line := <-worker.lines; line != "working" {
		t.Errorf("the worker says %q", line)
	}
	answer, err := http.Get("http://" + <-worker.admin + readyPath)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(answer.Body)
	if err := answer.Body.Close(); err != nil || answer.StatusCode != http.StatusOK {
		t.Errorf("the worker's health: %s, %s, %v", answer.Status, body, err)
	}
	if err != nil {
		t.Error(err)
	}
	for what, p := range map[string]process{"the API's process": api, "the worker": worker} {
		if code := p.stop(); code != exitOK {
			t.Errorf("%s: exit %d", what, code)
		}
	}
}
