// Package clients lets clients that are not ours, the aws CLI and boto3, call every
// operation of localkms.
package clients

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/localkms"
	"github.com/keybroker/keybroker/test/kmsmodel"
)

const (
	owner   = "arn:aws:iam::111122223333:root"
	grantee = "arn:aws:iam::444455556666:role/Worker"
	role    = "arn:aws:iam::111122223333:role/app"
)

// accounts is a user who may act in a role, as one who knows the ExternalId.
func accounts() []localkms.Account {
	return []localkms.Account{{
		ID:    "111122223333",
		Users: []localkms.User{{Name: "ann", AccessKeys: []localkms.AccessKey{{ID: "AKIAANN", Secret: "ann"}}}},
		Roles: []localkms.Role{{Name: "app", TrustPolicy: `{"Version":"2012-10-17","Statement":{"Effect":"Allow",
			"Principal":{"AWS":"arn:aws:iam::111122223333:user/ann"},"Action":"sts:AssumeRole",
			"Condition":{"StringEquals":{"sts:ExternalId":"tenant-4711"}}}}`, Policies: map[string]localkms.PolicyDocument{
			"list": `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"kms:ListKeys","Resource":"*"}}`,
		}}},
	}}
}

// calls are the operations that succeeded.
type calls struct {
	mu   sync.Mutex
	made map[string]bool
}

func (c *calls) observe(call localkms.Call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if call.ErrorCode == "" {
		c.made[call.Operation] = true
	}
}

// serve starts a KMS on loopback, each exchange with which is judged by the model.
func serve(t *testing.T) (url string, made *calls) {
	t.Helper()
	made = &calls{made: map[string]bool{}}
	k, err := localkms.New(localkms.Config{
		Principals: []localkms.Principal{{ARN: owner, AccessKeyID: "AKIATEST", SecretAccessKey: "secret"}},
		Accounts:   accounts(),
		Now:        time.Now, Observe: made.observe,
	})
	if err != nil {
		t.Fatal(err)
	}
	var judge *kmsmodel.Recorder
	switch model, err := kmsmodel.Load(); {
	case err == nil:
		judge = kmsmodel.NewRecorder(model)
	case !errors.Is(err, kmsmodel.ErrNotInstalled) || os.Getenv("CI") == "true":
		t.Fatal(err)
	default:
		fmt.Println("!!! NOTHING WAS CHECKED AGAINST BOTOCORE'S MODEL:", err)
	}
	transport := judge.Transport(localkms.RoundTripper(k), nil)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		resp, err := transport.RoundTrip(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		for name, values := range resp.Header {
			w.Header()[name] = values
		}
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, resp.Body)
	}))
	t.Cleanup(func() {
		server.Close()
		if err := k.Close(); err != nil {
			t.Error(err)
		}
		for _, fault := range judge.Faults() {
			t.Errorf("against botocore's model: %s", fault)
		}
	})
	return server.URL, made
}

// run runs a script of calls and returns what its client lacks, as it says.
func run(t *testing.T, url string, command ...string) (lacks []string) {
	t.Helper()
	home := t.TempDir()
	c := exec.CommandContext(t.Context(), command[0], command[1:]...)
	c.Env = slices.DeleteFunc(os.Environ(), func(pair string) bool { return strings.HasPrefix(pair, "AWS_") })
	c.Env = append(c.Env, "URL="+url, "GRANTEE="+grantee, "RETIRER="+owner, "ROLE="+role, "HOME="+home, "AWS_CONFIG_FILE="+home+"/config",
		"AWS_SHARED_CREDENTIALS_FILE="+home+"/credentials", "AWS_ACCESS_KEY_ID=AKIATEST", "AWS_SECRET_ACCESS_KEY=secret",
		"AWS_DEFAULT_REGION=us-west-2", "AWS_PAGER=", "AWS_EC2_METADATA_DISABLED=true", "AWS_MAX_ATTEMPTS=1")
	var out, errs strings.Builder
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Run(); err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(command, " "), err, &out, &errs)
	}
	for line := range strings.Lines(out.String()) {
		if what, ok := strings.CutPrefix(line, "LACKS "); ok {
			lacks = append(lacks, strings.TrimSpace(what))
		}
	}
	return lacks
}

// covers checks that every operation was called with success, but for those that
// the client lacks, and says which those are.
func (c *calls) covers(t *testing.T, client string, lacks []string) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, operation := range append(localkms.Operations(), "AssumeRole", "GetCallerIdentity") {
		if !c.made[operation] && !slices.Contains(lacks, operation) && !slices.Contains(lacks, kebab(operation)) {
			t.Errorf("%s did not call %s with success", client, operation)
		}
	}
	if len(lacks) > 0 {
		fmt.Printf("!!! NOT TRIED, since %s lacks it: %s\n", client, strings.Join(lacks, ", "))
	}
}

// kebab is an operation as the CLI's commands are written.
func kebab(operation string) string {
	var b strings.Builder
	for i, r := range operation {
		if 'A' <= r && r <= 'Z' {
			if i > 0 {
				b.WriteByte('-')
			}
			r += 'a' - 'A'
		}
		b.WriteRune(r)
	}
	return b.String()
}

// missing ends a test whose client is not installed: in CI as a failure.
func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is not installed", what)
	}
	t.Skipf("%s is not installed", what)
}

func TestAWSCLI(t *testing.T) {
	t.Parallel()
	version, err := exec.Command("aws", "--version").CombinedOutput()
	if err != nil {
		missing(t, "the aws CLI")
	}
	url, made := serve(t)
	lacks := run(t, url, "bash", "testdata/every_operation.sh")
	made.covers(t, strings.Fields(string(version))[0], lacks)
}

func TestBoto3(t *testing.T) {
	t.Parallel()
	for _, python := range []string{"python3", "/usr/bin/python3"} {
		version, err := exec.Command(python, "-c", "import boto3; print(boto3.__version__)").Output()
		if err != nil {
			continue
		}
		url, made := serve(t)
		lacks := run(t, url, python, "testdata/every_operation.py")
		made.covers(t, "boto3 "+strings.TrimSpace(string(version)), lacks)
		return
	}
	missing(t, "boto3 (Debian: python3-boto3)")
}
