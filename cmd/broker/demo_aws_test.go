package main

import (
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/keybroker/keybroker/internal/localkms"
)

const (
	awsTestKeys = "arn:aws:kms:eu-central-1:111122223333:key/"
	awsTestRole = "arn:aws:iam::111122223333:role/"
)

// awsDemoArgs is a good call with other values for some flags; "" leaves one out.
func awsDemoArgs(pairs ...string) []string {
	flags := []string{
		"--old", awsTestKeys + "0a", "--new", awsTestKeys + "0b",
		"--registrar-role", awsTestRole + "registrar", "--worker-role", awsTestRole + "worker", "--service-role", awsTestRole + "service",
	}
	args := []string{"demo", "--kms", "aws"}
	for i := 0; i < len(flags); i += 2 {
		for j := 0; j < len(pairs); j += 2 {
			if pairs[j] == flags[i] {
				flags[i+1] = pairs[j+1]
			}
		}
		if flags[i+1] != "" {
			args = append(args, flags[i], flags[i+1])
		}
	}
	for j := 0; j < len(pairs); j += 2 {
		if !strings.Contains(strings.Join(flags, " "), pairs[j]+" ") {
			args = append(args, pairs[j], pairs[j+1])
		}
	}
	return args
}

func TestDemoOnAWSRefusesBadFlags(t *testing.T) {
	wantRefusals(t, []refusal{
		{"no such KMS", []string{"demo", "--kms", "gcp"}, 2, []string{"--kms", "local", "aws"}},
		{"a key of the customer's and the embedded KMS", []string{"demo", "--old", "x"}, 2, []string{"--old", "--kms aws"}},
		{"nothing", []string{"demo", "--kms", "aws"}, 2, []string{"--old", "--new", "--registrar-role", "--worker-role", "--service-role", "docs/aws.md"}},
		{"no new key", awsDemoArgs("--new", ""), 2, []string{"--new", "arn:aws:kms:REGION:ACCOUNT:key/ID"}},
		{"an alias", awsDemoArgs("--old", "arn:aws:kms:eu-central-1:111122223333:alias/old"), 2, []string{"--old", "alias/old", "key/ID"}},
		{"an id", awsDemoArgs("--old", "1234abcd-12ab-34cd-56ef-1234567890ab"), 2, []string{"--old"}},
		{"one key twice", awsDemoArgs("--new", awsTestKeys+"0a"), 2, []string{"--new", "another key than --old"}},
		{"two Regions", awsDemoArgs("--new", "arn:aws:kms:us-east-1:111122223333:key/0b"), 2, []string{"--new", "us-east-1", "eu-central-1"}},
		{"two partitions", awsDemoArgs("--new", "arn:aws-cn:kms:cn-north-1:111122223333:key/0b"), 2, []string{"--new", "aws-cn"}},
		{"two accounts", awsDemoArgs("--new", "arn:aws:kms:eu-central-1:444455556666:key/0b"), 2, []string{"--new", "444455556666", "111122223333"}},
		{"no worker", awsDemoArgs("--worker-role", ""), 2, []string{"--worker-role: missing", "docs/aws.md"}},
		{"no role at all", awsDemoArgs("--registrar-role", "", "--worker-role", "", "--service-role", ""), 2, []string{"--registrar-role, --worker-role, --service-role"}},
		{"a user", awsDemoArgs("--service-role", "arn:aws:iam::111122223333:user/me"), 2, []string{"--service-role", "ARN of an IAM role", "user/me"}},
		{"one role twice", awsDemoArgs("--service-role", awsTestRole+"worker"), 2, []string{"--service-role", "--worker-role"}},
		{"a role of another account", awsDemoArgs("--worker-role", "arn:aws:iam::444455556666:role/worker"), 2, []string{"--worker-role", "444455556666"}},
		{"a role of another partition", awsDemoArgs("--service-role", "arn:aws-cn:iam::111122223333:role/service"), 2, []string{"--service-role", "aws-cn"}},
		{"more keys than calls", awsDemoArgs("--keys", "400"), 2, []string{"--keys", "391", "2000"}},
		{"fewer keys than none", awsDemoArgs("--keys", "-1"), 2, []string{"--keys"}},
	})
}

// A refusal is a call that ends with one line.
type refusal struct {
	name string
	args []string
	code int
	want []string // in the line
}

func wantRefusals(t *testing.T, all []refusal) {
	t.Helper()
	for _, test := range all {
		t.Run(test.name, func(t *testing.T) {
			data := filepath.Join(t.TempDir(), "data")
			code, stdout, stderr := call(t.Context(), environment(), append(test.args, "--data", data)...)
			if code != test.code || strings.Count(stderr, "\n") != 1 || stdout != "" {
				t.Errorf("exit %d, want %d and one line on stderr alone, got %q and on stdout %q", code, test.code, stderr, stdout)
			}
			for _, want := range test.want {
				if !strings.Contains(stderr, want) {
					t.Errorf("%q does not name %q", stderr, want)
				}
			}
			if _, err := os.Stat(data); !os.IsNotExist(err) {
				t.Errorf("a refused call left its data directory behind: %v", err)
			}
		})
	}
}

// TestDemoOnAWSLooksBeforeItBegins: credentials, roles and keys that do not fit
// are found before there is a grant. The SDK reads the environment of the process.
func TestDemoOnAWSLooksBeforeItBegins(t *testing.T) {
	endpoint, root := startAWS(t)
	for name, value := range map[string]string{
		"AWS_ENDPOINT_URL_KMS": endpoint, "AWS_ENDPOINT_URL_STS": endpoint, "AWS_EC2_METADATA_DISABLED": "true",
		"AWS_CONFIG_FILE": os.DevNull, "AWS_SHARED_CREDENTIALS_FILE": os.DevNull, "AWS_PROFILE": "",
		"AWS_ACCESS_KEY_ID": "AKIATESTER", "AWS_SECRET_ACCESS_KEY": "tester", "AWS_SESSION_TOKEN": "",
	} {
		t.Setenv(name, value)
	}
	open := `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Principal":{"AWS":["arn:aws:iam::111122223333:root","` + awsTestRole + `registrar"]},"Action":"kms:*","Resource":"*"}}`
	create := func(in kms.CreateKeyInput) string {
		out, err := root.CreateKey(t.Context(), &in)
		if err != nil {
			t.Fatal(err)
		}
		return *out.KeyMetadata.Arn
	}
	good, closed := create(kms.CreateKeyInput{Policy: &open}), create(kms.CreateKeyInput{})
	disabled := create(kms.CreateKeyInput{Policy: &open})
	if _, err := root.DisableKey(t.Context(), &kms.DisableKeyInput{KeyId: &disabled}); err != nil {
		t.Fatal(err)
	}
	rsa := create(kms.CreateKeyInput{Policy: &open, KeySpec: types.KeySpecRsa2048, KeyUsage: types.KeyUsageTypeEncryptDecrypt})
	onKeys := func(old, to string, more ...string) []string {
		return awsDemoArgs(append([]string{"--old", old, "--new", to, "--grant-visibility", "1s"}, more...)...)
	}
	unknown := awsTestKeys + "00000000-0000-4000-8000-000000000000"
	wantRefusals(t, []refusal{
		{"an unknown key", onKeys(good, unknown), 1, []string{"--new", "does not know", unknown}},
		{"a key that is not given", onKeys(closed, good), 1, []string{"--old", "registrar", "docs/aws.md"}},
		{"a disabled key", onKeys(disabled, good), 1, []string{"--old", "Disabled"}},
		{"an asymmetric key", onKeys(good, rsa), 1, []string{"--new", "RSA_2048", "symmetric"}},
		{"a role that trusts somebody else", onKeys(good, closed, "--worker-role", awsTestRole+"stranger"), 1, []string{"--worker-role", "cannot assume", "user/tester"}},
		{"a wait that is none", onKeys(good, closed, "--grant-visibility", "1ms"), 2, []string{"--grant-visibility"}},
	})
	t.Setenv("AWS_ENDPOINT_URL_KMS", "http://kms.example.com")
	wantRefusals(t, []refusal{{"KMS in the clear", onKeys(good, closed), 1, []string{"https", "kms.example.com"}}})
	t.Setenv("AWS_ENDPOINT_URL_KMS", "https://kms.example.com")
	wantRefusals(t, []refusal{{"a short wait beyond loopback", onKeys(good, closed), 2, []string{"--grant-visibility", "5m"}}})
	t.Setenv("AWS_SECRET_ACCESS_KEY", "wrong")
	wantRefusals(t, []refusal{{"wrong credentials", onKeys(good, closed), 1, []string{"STS", "SignatureDoesNotMatch"}}})
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	wantRefusals(t, []refusal{{"no credentials", onKeys(good, closed), 2, []string{"no AWS credentials", "AWS_PROFILE"}}})
	for _, key := range []string{good, closed, disabled, rsa} {
		listed, err := root.ListGrants(t.Context(), &kms.ListGrantsInput{KeyId: aws.String(key)})
		if err != nil || len(listed.Grants) != 0 {
			t.Errorf("%d grants on %s, %v", len(listed.Grants), key, err)
		}
	}
}

// startAWS is KMS and STS of an account with the roles of a demo.
func startAWS(t *testing.T) (endpoint string, root *kms.Client) {
	t.Helper()
	trust := func(whom string) localkms.PolicyDocument {
		return localkms.PolicyDocument(`{"Version":"2012-10-17","Statement":{"Effect":"Allow","Principal":{"AWS":"` + whom + `"},"Action":"sts:AssumeRole"}}`)
	}
	var roles []localkms.Role
	for _, name := range []string{"registrar", "worker", "service"} {
		roles = append(roles, localkms.Role{Name: name, TrustPolicy: trust("arn:aws:iam::111122223333:user/tester")})
	}
	roles = append(roles, localkms.Role{Name: "stranger", TrustPolicy: trust("444455556666")})
	l, err := localkms.New(localkms.Config{Now: time.Now, Accounts: []localkms.Account{{
		ID:             "111122223333",
		RootAccessKeys: []localkms.AccessKey{{ID: "AKIAROOT", Secret: "root"}},
		Users:          []localkms.User{{Name: "tester", AccessKeys: []localkms.AccessKey{{ID: "AKIATESTER", Secret: "tester"}}}},
		Roles:          roles,
	}}})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(l)
	t.Cleanup(func() {
		server.Close()
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return server.URL, kms.New(kms.Options{
		Region: "eu-central-1", BaseEndpoint: &server.URL, Credentials: credentials.NewStaticCredentialsProvider("AKIAROOT", "root", ""),
	})
}
