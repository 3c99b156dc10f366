package aws_test

import (
	"bytes"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/keybroker/keybroker/internal/brokertest"
	"github.com/keybroker/keybroker/internal/localkms"
	"github.com/keybroker/keybroker/test/chaos/devserver"
)

// The account of docs/aws.md.
const (
	account = "111122223333"
	region  = "eu-central-1"
	arnBase = "arn:aws:iam::" + account + ":role/keybroker-"
)

// TestTargetOnLocalKMS runs what `make test-aws` runs, with its variables, as a
// process of its own, against a KMS with the accounts and policies of docs/aws.md.
// What is counted, and forbidden, is counted there.
func TestTargetOnLocalKMS(t *testing.T) {
	if os.Getenv(variable) != "" {
		t.Skipf("%s is set: this is the test of the test", variable)
	}
	bin, err := devserver.Build(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	server := startKMS(t)
	oldKey, newKey := server.createKey(t), server.createKey(t)
	server.reset()

	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	target := exec.CommandContext(t.Context(), self, "-test.run=^TestAWS$", "-test.timeout=5m")
	target.Env = append(server.environ("AKIATESTER", "tester"),
		variable+"=1", oldKeyVariable+"="+oldKey, newKeyVariable+"="+newKey,
		registrarVariable+"="+arnBase+"registrar", workerVariable+"="+arnBase+"worker", serviceVariable+"="+arnBase+"service",
		visibilityVariable+"=1s", binaryVariable+"="+bin)
	out, err := target.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	calls := server.count()
	all := 0
	for operation, n := range calls {
		all += n
		switch operation {
		case "DescribeKey", "CreateGrant", "ListGrants", "ListRetirableGrants", "RetireGrant", "ListKeyPolicies",
			"GenerateDataKeyWithoutPlaintext", "ReEncrypt", "Encrypt", "Decrypt":
		default:
			t.Errorf("%s was called %d times", operation, n)
		}
	}
	t.Logf("%d KMS calls: %s", all, counts(calls))
	if all >= callsInAll || calls["CreateGrant"] == 0 || calls["ReEncrypt"] < demoKeys {
		t.Errorf("%d KMS calls, want fewer than %d, of suite and demo", all, callsInAll)
	}
	// The demo's broker may make some more until it is stopped.
	m := regexp.MustCompile(`\n(\d+) KMS calls in all\.\n`).FindSubmatch(out)
	if m == nil {
		t.Fatalf("no count in\n%s", out)
	}
	if told, err := strconv.Atoi(string(m[1])); err != nil || told > all || told < all-50 {
		t.Errorf("the target counted %d calls, KMS %d", told, all)
	}
	for _, key := range []string{oldKey, newKey} {
		listed, err := server.root.ListGrants(t.Context(), &kms.ListGrantsInput{KeyId: &key})
		if err != nil || len(listed.Grants) != 0 {
			t.Errorf("%d grants are left on %s, %v", len(listed.Grants), key, err)
		}
	}
	wantTable(t, string(out))
}

// wantTable holds the table against the lists that it is made of.
func wantTable(t *testing.T, out string) {
	t.Helper()
	for _, c := range claims() {
		want := "as claimed"
		if slices.Contains(c.topics, "Disabled") {
			want = "not run"
		}
		if row := "| " + c.text + " | " + want + " |\n"; !strings.Contains(out, row) {
			t.Errorf("the table lacks %q", row)
		}
	}
	for _, topic := range brokertest.KMSTopics() {
		want := "as claimed"
		if reason := cannot()[topic.Needs]; reason != "" {
			want = "not run on AWS: " + reason
		}
		if row := "| " + topic.Name + " | " + want + " |\n"; !strings.Contains(out, row) {
			t.Errorf("the table lacks %q", row)
		}
	}
	if !strings.Contains(out, "WHICH IS NOT AWS") {
		t.Error("a run on localkms does not say that it confirms nothing")
	}
	if t.Failed() {
		t.Log(out)
	}
}

// TestClaimsAreInTheDocs: what is confirmed is looked for there by its words.
func TestClaimsAreInTheDocs(t *testing.T) {
	text := readDoc(t, "localkms.md")
	for _, c := range claims() {
		if !strings.Contains(text, "\n| "+c.text+" | ") {
			t.Errorf("docs/localkms.md has no row %q", c.text)
		}
		for _, topic := range c.topics {
			if !slices.ContainsFunc(brokertest.KMSTopics(), func(k brokertest.KMSTopic) bool { return k.Name == topic }) {
				t.Errorf("%q: the suite has no topic %s", c.text, topic)
			}
		}
		if len(c.topics) == 0 && c.probe == nil {
			t.Errorf("%q is shown by nothing", c.text)
		}
	}
}

// TestTargetSaysWhatIsMissing: the variables, by name, and where they are explained.
func TestTargetSaysWhatIsMissing(t *testing.T) {
	if os.Getenv(variable) != "" {
		t.Skipf("%s is set: this is the test of the test", variable)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	key := "arn:aws:kms:" + region + ":" + account + ":key/00000000-0000-4000-8000-00000000000"
	roles := []string{registrarVariable + "=" + arnBase + "registrar", workerVariable + "=" + arnBase + "worker", serviceVariable + "=" + arnBase + "service"}
	for name, test := range map[string]struct {
		env  []string
		want []string
	}{
		"nothing":        {nil, []string{oldKeyVariable, newKeyVariable, registrarVariable, workerVariable, serviceVariable, "docs/aws.md"}},
		"no worker":      {append([]string{oldKeyVariable + "=" + key + "1", newKeyVariable + "=" + key + "2"}, roles[0], roles[2]), []string{workerVariable}},
		"one key":        {append([]string{oldKeyVariable + "=" + key + "1", newKeyVariable + "=" + key + "1"}, roles...), []string{oldKeyVariable, newKeyVariable, "two"}},
		"no credentials": {append([]string{oldKeyVariable + "=" + key + "1", newKeyVariable + "=" + key + "2"}, roles...), []string{"no AWS credentials"}},
	} {
		target := exec.CommandContext(t.Context(), self, "-test.run=^TestAWS$")
		target.Env = append(append(plainEnviron(), variable+"=1"), test.env...)
		out, err := target.CombinedOutput()
		if err == nil {
			t.Errorf("%s: it passed\n%s", name, out)
		}
		for _, want := range test.want {
			if !bytes.Contains(out, []byte(want)) {
				t.Errorf("%s: want %q in\n%s", name, want, out)
			}
		}
	}
}

// server is localkms with a counter in front.
type server struct {
	url  string
	root *kms.Client
	keys string // the key policy of docs/aws.md

	mu    sync.Mutex
	calls map[string]int
}

func startKMS(t *testing.T) *server {
	t.Helper()
	doc := readDoc(t, "aws.md")
	s := &server{calls: map[string]int{}, keys: block(t, doc, "key")}
	policy := func(name string) map[string]localkms.PolicyDocument {
		return map[string]localkms.PolicyDocument{"docs": localkms.PolicyDocument(block(t, doc, name))}
	}
	role := func(name string, policies map[string]localkms.PolicyDocument) localkms.Role {
		return localkms.Role{Name: "keybroker-" + name, TrustPolicy: localkms.PolicyDocument(block(t, doc, "trust")), Policies: policies}
	}
	l, err := localkms.New(localkms.Config{
		Now: time.Now, GrantDelay: 100 * time.Millisecond,
		Accounts: []localkms.Account{{
			ID:             account,
			RootAccessKeys: []localkms.AccessKey{{ID: "AKIAROOT", Secret: "root"}},
			Users:          []localkms.User{{Name: "tester", AccessKeys: []localkms.AccessKey{{ID: "AKIATESTER", Secret: "tester"}}, Policies: policy("caller")}},
			Roles:          []localkms.Role{role("registrar", policy("registrar")), role("worker", nil), role("service", nil)},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	listener := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, operation, isKMS := strings.Cut(r.Header.Get("X-Amz-Target"), "."); isKMS {
			s.mu.Lock()
			s.calls[operation]++
			s.mu.Unlock()
		}
		l.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		listener.Close()
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	s.url = listener.URL
	s.root = kms.New(kms.Options{Region: region, BaseEndpoint: &s.url, Credentials: credentials.NewStaticCredentialsProvider("AKIAROOT", "root", "")})
	return s
}

func (s *server) createKey(t *testing.T) string {
	t.Helper()
	out, err := s.root.CreateKey(t.Context(), &kms.CreateKeyInput{Policy: aws.String(s.keys)})
	if err != nil {
		t.Fatal(err)
	}
	return *out.KeyMetadata.Arn
}

func (s *server) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.calls)
}

func (s *server) count() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.calls)
}

// environ is somebody's at this KMS, and nobody else's.
func (s *server) environ(accessKey, secret string) []string {
	return append(plainEnviron(), "AWS_ENDPOINT_URL="+s.url, "AWS_ACCESS_KEY_ID="+accessKey, "AWS_SECRET_ACCESS_KEY="+secret)
}

// plainEnviron is this process's environment without anything of AWS's.
func plainEnviron() []string {
	env := slices.DeleteFunc(os.Environ(), func(entry string) bool { return strings.HasPrefix(entry, "AWS_") })
	return append(env, "AWS_EC2_METADATA_DISABLED=true", "AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null")
}

func readDoc(t *testing.T, name string) string {
	t.Helper()
	root, err := devserver.Root()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, "docs", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// block gives a policy of docs/aws.md.
func block(t *testing.T, text, name string) string {
	t.Helper()
	m := regexp.MustCompile("(?s)<!-- test: " + name + " -->\n```json\n(.*?)```").FindStringSubmatch(text)
	if m == nil || !json.Valid([]byte(m[1])) {
		t.Fatalf("docs/aws.md has no policy marked %s", name)
	}
	return m[1]
}
