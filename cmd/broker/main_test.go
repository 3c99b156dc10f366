package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// environment gives getenv for the pairs.
func environment(pairs ...string) func(string) string {
	return func(name string) string {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1]
			}
		}
		return ""
	}
}

// call runs the program without a process.
func call(ctx context.Context, getenv func(string) string, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(ctx, args, getenv, strings.NewReader(""), &out, &errs)
	return code, out.String(), errs.String()
}

func TestBadCallsSayWhyInOneLine(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	config := func(text string) string {
		path := filepath.Join(t.TempDir(), "config.json")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	foreign := t.TempDir()
	if err := os.WriteFile(filepath.Join(foreign, "thesis.txt"), []byte("years of work"), 0o600); err != nil {
		t.Fatal(err)
	}
	none := environment()
	for _, test := range []struct {
		name   string
		getenv func(string) string
		args   []string
		code   int
		want   []string // in the line
	}{
		{"no such command", none, []string{"rotate"}, 2, []string{"rotate", "broker help"}},
		{"serve alone", none, []string{"serve"}, 2, []string{"--config", "--dev"}},
		{"both modes", none, []string{"serve", "--dev", "--config", "x"}, 2, []string{"--dev", "--config"}},
		{"unknown flag", none, []string{"serve", "--dve"}, 2, []string{"-dve", "broker serve -h"}},
		{"an argument", none, []string{"serve", "--dev", "now"}, 2, []string{"now", "broker serve -h"}},
		{"beyond loopback", none, []string{"serve", "--dev", "--listen", "0.0.0.0:8443"}, 2, []string{"--listen", "127.0.0.1"}},
		{"every address", none, []string{"serve", "--dev", "--listen", ":8443"}, 2, []string{"--listen", "127.0.0.1"}},
		{"a host name", none, []string{"serve", "--dev", "--listen", "example.com:1"}, 2, []string{"--listen", "127.0.0.1"}},
		{"health of nobody", none, []string{"health", "--admin", "127.0.0.1:1"}, 1, []string{"refused"}},
		{"health elsewhere", none, []string{"health", "--admin", "10.1.2.3:1"}, 2, []string{"--admin", "127.0.0.1"}},
		{"health of two", none, []string{"health", "--admin", "127.0.0.1:1", "--config", "x"}, 2, []string{"--admin", "--config"}},
		{"KMS beyond loopback", none, []string{"serve", "--dev", "--kms-listen", "10.1.2.3:1"}, 2, []string{"--kms-listen", "127.0.0.1"}},
		{"admin beyond loopback", none, []string{"serve", "--dev", "--admin", "[::]:1"}, 2, []string{"--admin", "127.0.0.1"}},
		{"no port", none, []string{"serve", "--dev", "--listen", "127.0.0.1"}, 2, []string{"--listen", "127.0.0.1:8443"}},
		{"no data", none, []string{"serve", "--dev", "--data", ""}, 2, []string{"--data"}},
		{"a slow KMS", none, []string{"serve", "--dev", "--grant-delay", "2s"}, 2, []string{"--grant-delay", "grant_visibility"}},
		{"no such role", none, []string{"serve", "--dev", "--data", data, "--roles", "api,foreman"}, 2, []string{"--roles", "foreman", "worker"}},
		{"one role on SQLite", none, []string{"serve", "--dev", "--data", data, "--roles", "api"}, 2, []string{"--roles", "SQLite"}},
		{"a silent worker", none, []string{"serve", "--dev", "--data", data, "--roles", "worker", "--admin", "off", "--database-url-file", "x"}, 2, []string{"--admin", "off"}},
		{"a URL on the command line", none, []string{"serve", "--dev", "--data", data, "--database-url-file", "postgres://a@b/c"}, 2, []string{"--database-url-file", "password"}},
		{"no file of a URL", none, []string{"serve", "--dev", "--data", data, "--kms-listen", "127.0.0.1:0", "--database-url-file", filepath.Join(data, "absent")}, 1, []string{"absent"}},
		{"another's KMS alone", none, []string{"serve", "--dev", "--data", data, "--kms-endpoint", "http://127.0.0.1:1"}, 2, []string{"--kms-endpoint", "--database-url-file"}},
		{"another's KMS and faults", none, []string{"serve", "--dev", "--data", data, "--kms-endpoint", "http://127.0.0.1:1", "--database-url-file", "x", "--faults", "{}"}, 2, []string{"--faults", "--kms-endpoint"}},
		{"KMS of the world", none, []string{"serve", "--dev", "--data", data, "--kms-endpoint", "https://kms.us-east-1.amazonaws.com", "--database-url-file", "x"}, 2, []string{"--kms-endpoint", "127.0.0.1"}},
		{"nothing to migrate", none, []string{"migrate"}, 2, []string{"--database-url-file", "--config"}},
		{"two to migrate", none, []string{"migrate", "--config", "x", "--database-url-file", "x"}, 2, []string{"--database-url-file", "--config"}},
		{"SQLite to migrate", none, []string{"migrate", "--config", config(goodConfig)}, 1, []string{"SQLite", "by itself"}},
		{"two databases", none, []string{"check-config", "--config", config(`{"database":"a","database_url_file":"b"}`)}, 1, []string{"database", "database_url_file"}},
		{"a URL in the configuration", none, []string{"check-config", "--config", config(`{"database":"postgres://a@b/c"}`)}, 1, []string{"database", "database_url_file"}},
		{"a role that is none", none, []string{"check-config", "--config", config(`{"roles":["foreman"]}`)}, 1, []string{"roles", "foreman"}},
		{"in a cluster", environment("KUBERNETES_SERVICE_HOST", "10.0.0.1"), []string{"serve", "--dev"}, 2, []string{"--dev", "KUBERNETES_SERVICE_HOST", "--config"}},
		{"access key", environment("AWS_ACCESS_KEY_ID", "AKIA"), []string{"serve", "--dev"}, 2, []string{"--dev", "AWS_ACCESS_KEY_ID", "unset"}},
		{"secret", environment("AWS_SECRET_ACCESS_KEY", "x"), []string{"serve", "--dev"}, 2, []string{"--dev", "AWS_SECRET_ACCESS_KEY", "unset"}},
		{"session", environment("AWS_SESSION_TOKEN", "x"), []string{"serve", "--dev"}, 2, []string{"--dev", "AWS_SESSION_TOKEN", "unset"}},
		{"web identity", environment("AWS_WEB_IDENTITY_TOKEN_FILE", "x"), []string{"serve", "--dev"}, 2, []string{"--dev", "AWS_WEB_IDENTITY_TOKEN_FILE", "unset"}},
		{"role", environment("AWS_ROLE_ARN", "x"), []string{"serve", "--dev"}, 2, []string{"--dev", "AWS_ROLE_ARN", "unset"}},
		{"container", environment("AWS_CONTAINER_CREDENTIALS_FULL_URI", "x"), []string{"serve", "--dev"}, 2, []string{"--dev", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "unset"}},
		{"profile", environment("AWS_PROFILE", "prod"), []string{"serve", "--dev"}, 2, []string{"--dev", "AWS_PROFILE", "unset"}},
		{"a failpoint that is none", environment("KEYBROKER_FAILPOINT", "batch.committed"), []string{"serve", "--dev"}, 2, []string{"KEYBROKER_FAILPOINT", "batch.committed:3"}},
		{"a failpoint for real", environment("KEYBROKER_FAILPOINT", "batch.committed:1"), []string{"serve", "--config", config(goodConfig)}, 2, []string{"KEYBROKER_FAILPOINT", "unset", "--dev"}},
		{"flag of the other mode", none, []string{"serve", "--config", "x", "--listen", "127.0.0.1:1"}, 2, []string{"--listen", "--dev", "configuration file"}},
		{"no such file", none, []string{"serve", "--config", filepath.Join(data, "absent")}, 1, []string{"--config", "absent"}},
		{"unknown field", none, []string{"serve", "--config", config(`{"lsiten":"x"}`)}, 1, []string{"--config", "lsiten"}},
		{"unknown field, checked", none, []string{"check-config", "--config", config(`{"lsiten":"x"}`)}, 1, []string{"--config", "lsiten"}},
		{"unknown window", none, []string{"check-config", "--config", config(`{"windows":{"max_reed_delay":"1m"}}`)}, 1, []string{"--config", "max_reed_delay"}},
		{"a number for a text", none, []string{"check-config", "--config", config(`{"deployment":1}`)}, 1, []string{"--config", "deployment"}},
		{"no JSON", none, []string{"check-config", "--config", config(`deployment: prod`)}, 1, []string{"--config", "config.json"}},
		{"two values", none, []string{"serve", "--config", config(`{} {}`)}, 1, []string{"--config", "follows"}},
		{"empty config", none, []string{"check-config", "--config", config(`{}`)}, 1, []string{"database", "deployment", "registrar_role", "worker_role", "aws_region"}},
		{"exposed server", none, []string{"check-config", "--config", config(`{"listen":"0.0.0.0:8443"}`)}, 1, []string{"listen", "127.0.0.1"}},
		{"bad duration", none, []string{"check-config", "--config", config(`{"windows":{"max_read_delay":"15"}}`)}, 1, []string{"15", "1h30m"}},
		{"too much of KMS", none, []string{"check-config", "--config", config(`{"kms_budget":{"share":1.5}}`)}, 1, []string{"kms_budget.share", "at most 1"}},
		{"too many workers", none, []string{"check-config", "--config", config(`{"reencryption":{"workers":65,"calls_per_worker":257,"shards":0}}`)}, 1,
			[]string{"reencryption.workers", "1 to 64", "reencryption.calls_per_worker", "1 to 256", "at most 4096", "reencryption.shards", "1 to 1024"}},
		{"a quota of nowhere", none, []string{"check-config", "--config", config(`{"kms_budget":{"floor":-1,"requests_per_second":{"mars":5,"us-east-1":0}}}`)}, 1, []string{"kms_budget.floor", "mars", "us-east-1 must be at least 1"}},
		{"plain KMS", none, []string{"check-config", "--config", config(`{"kms_endpoint":"http://kms.example.com"}`)}, 1, []string{"kms_endpoint", "https"}},
		{"nothing to check", none, []string{"check-config"}, 2, []string{"--config"}},
		{"hijacked endpoint", environment("AWS_ENDPOINT_URL", "http://trap"), []string{"serve", "--config", config(goodConfig)}, 1, []string{"AWS_ENDPOINT_URL", "unset"}},
		{"demo without a directory", none, []string{"demo", "--data", data, "--dir", filepath.Join(data, "absent")}, 1, []string{"absent"}},
		{"demo in a foreign directory", none, []string{"demo", "--data", foreign}, 1, []string{"thesis.txt"}},
		{"demo with too many keys", none, []string{"demo", "--keys", "-1"}, 2, []string{"--keys"}},
		{"faults that are no JSON", none, []string{"localkms", "--listen", "127.0.0.1:0", "--faults", "{"}, 2, []string{"--faults", "requests_per_second"}},
		{"faults that nobody knows", none, []string{"localkms", "--listen", "127.0.0.1:0", "--faults", `{"chaos":1}`}, 2, []string{"--faults"}},
		{"faults in no file", none, []string{"localkms", "--listen", "127.0.0.1:0", "--faults", "@nowhere"}, 2, []string{"--faults", "nowhere"}},
		{"KMS for everybody", none, []string{"localkms", "--listen", "0.0.0.0:8444"}, 2, []string{"--listen", "127.0.0.1"}},
		{"no accounts", none, []string{"localkms", "--listen", "127.0.0.1:0", "--accounts", config(`[]`)}, 1, []string{"--accounts"}},
		{"a misspelt member", none, []string{"localkms", "--listen", "127.0.0.1:0", "--accounts", config(`{"accounts":[{"id":"111122223333","users":[{"name":"a","polices":{}}]}]}`)}, 1,
			[]string{"--accounts", "accounts[0].users[0].polices", "policies"}},
		{"a policy that is none", none, []string{"localkms", "--listen", "127.0.0.1:0", "--accounts", config(`{"accounts":[{"id":"111122223333","users":[{"name":"a","policies":{"p":{"Statement":[]}}}]}]}`)}, 1,
			[]string{"account 111122223333", "user a", "policy p"}},
		{"two quotas", none, []string{"localkms", "--listen", "127.0.0.1:0", "--quota", "5", "--faults", `{"requests_per_second":5}`}, 2, []string{"--quota"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			args := test.args
			if args[0] == "serve" && len(args) > 1 && args[1] == "--dev" {
				args = append([]string{"serve", "--data", data}, args[1:]...) // should it start after all
			}
			code, stdout, stderr := call(t.Context(), test.getenv, args...)
			if code != test.code {
				t.Errorf("exit %d, want %d", code, test.code)
			}
			if strings.Count(stderr, "\n") != 1 || stdout != "" {
				t.Errorf("want one line on stderr alone, got %q and on stdout %q", stderr, stdout)
			}
			for _, want := range test.want {
				if !strings.Contains(stderr, want) {
					t.Errorf("%q does not name %q", stderr, want)
				}
			}
		})
	}
	if _, err := os.Stat(data); !os.IsNotExist(err) {
		t.Errorf("a refused call left its data directory behind: %v", err)
	}
	if _, err := os.Stat(filepath.Join(foreign, "thesis.txt")); err != nil {
		t.Error(err)
	}
}

const goodConfig = `{
  "database": "/var/lib/keybroker/keybroker.db",
  "deployment": "prod",
  "registrar_role": "arn:aws:iam::999999999999:role/keybroker-registrar",
  "worker_role": "arn:aws:iam::999999999999:role/keybroker-worker",
  "aws_region": "eu-central-1",
  "grantee_accounts": ["222233334444"],
  "windows": {"max_read_delay": "10m"}
}`

func TestCheckConfigPrintsWhatIsInForce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(path, []byte(goodConfig), 0o600); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr := call(t.Context(), environment(), "check-config", "--config", path)
	if code != 0 || stderr != "" {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	for _, want := range []string{`"listen": "127.0.0.1:8443"`, `"max_read_delay": "10m0s"`, `"grant_visibility": "5m0s"`, `"reserved_key": "keybroker:domain"`} {
		if !strings.Contains(stdout, want) {
			t.Errorf("want %s in\n%s", want, stdout)
		}
	}
}

func TestHelpAndVersion(t *testing.T) {
	for _, args := range [][]string{nil, {"help"}, {"--help"}, {"version"}, {"serve", "-h"}, {"demo", "-h"}, {"localkms", "-h"}} {
		code, stdout, stderr := call(t.Context(), environment(), args...)
		if code != 0 || stdout == "" || stderr != "" {
			t.Errorf("%q: exit %d, stdout %q, stderr %q", args, code, stdout, stderr)
		}
	}
}
