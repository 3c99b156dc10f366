package localkmstest_test

import (
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/keybroker/keybroker/localkmstest"
)

// fakeTest is a test that can be ended by hand.
type fakeTest struct {
	testing.TB
	mu       sync.Mutex
	logged   []string
	cleanups []func()
}

func (f *fakeTest) Helper() {}

func (f *fakeTest) Log(args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.logged = append(f.logged, fmt.Sprint(args...))
}

func (f *fakeTest) Cleanup(fn func()) { f.cleanups = append(f.cleanups, fn) }

func (f *fakeTest) end() {
	for _, fn := range f.cleanups {
		fn()
	}
}

// The server ends with its test, and what it refuses stands in the test's log.
func TestStart(t *testing.T) {
	const owner, stranger = "arn:aws:iam::111122223333:root", "arn:aws:iam::444455556666:role/Stranger"
	test := &fakeTest{TB: t}
	server := localkmstest.Start(test, localkmstest.Options{Principals: []string{owner, stranger}})
	key := must(server.Client(owner).CreateKey(t.Context(), &kms.CreateKeyInput{})).KeyMetadata.Arn
	if _, err := server.Client(stranger).DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: key}); code(err) != "AccessDeniedException" {
		t.Errorf("a stranger: %v", err)
	}
	if len(test.logged) != 1 || !strings.Contains(test.logged[0], "DENIED "+stranger+" kms:DescribeKey") {
		t.Errorf("logged %q", test.logged)
	}
	test.end()
	address := strings.TrimPrefix(server.URL, "http://")
	if !strings.HasPrefix(address, "127.0.0.1:") {
		t.Errorf("listens on %s", address)
	}
	if conn, err := net.Dial("tcp", address); err == nil {
		conn.Close()
		t.Error("still listens after the end of the test")
	}
	if err := server.Close(); err != nil {
		t.Errorf("a second close: %v", err)
	}
}

// Without a socket the KMS is in the bubble of a test, on its clock.
func TestInProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const owner, worker = "arn:aws:iam::111122223333:root", "arn:aws:iam::444455556666:role/Worker"
		server := localkmstest.Start(t, localkmstest.Options{InProcess: true, Now: time.Now, GrantDelay: time.Minute, Principals: []string{owner, worker}})
		if server.URL != "" {
			t.Errorf("listens at %s", server.URL)
		}
		ctx, key := t.Context(), must(server.Client(owner).CreateKey(t.Context(), &kms.CreateKeyInput{})).KeyMetadata.Arn
		must(server.Client(owner).CreateGrant(ctx, &kms.CreateGrantInput{
			KeyId: key, GranteePrincipal: aws.String(worker), Operations: []types.GrantOperation{types.GrantOperationDescribeKey},
		}))
		describe := func() string {
			_, err := server.Client(worker).DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: key})
			return code(err)
		}
		if got := describe(); got != "AccessDeniedException" {
			t.Errorf("before the grant is seen: %s", got)
		}
		time.Sleep(time.Minute)
		if got := describe(); got != "<nil>" {
			t.Errorf("after: %s", got)
		}
	})
}

// A program that takes its configuration from the environment finds the KMS.
func TestEnv(t *testing.T) {
	server := localkmstest.Start(t, localkmstest.Options{Region: "eu-central-1"})
	for _, name := range []string{"AWS_PROFILE", "AWS_SESSION_TOKEN"} {
		t.Setenv(name, "") // restored at the end
		os.Unsetenv(name)
	}
	t.Setenv("AWS_CONFIG_FILE", t.TempDir()+"/none")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", t.TempDir()+"/none")
	for _, pair := range server.Env(localkmstest.DefaultRoot) {
		name, value, _ := strings.Cut(pair, "=")
		t.Setenv(name, value)
	}
	client := kms.NewFromConfig(must(config.LoadDefaultConfig(t.Context())))
	arn := *must(client.CreateKey(t.Context(), &kms.CreateKeyInput{})).KeyMetadata.Arn
	if !strings.HasPrefix(arn, "arn:aws:kms:eu-central-1:000000000000:key/") {
		t.Errorf("made %s", arn)
	}
}

func TestKeysOutliveTheServer(t *testing.T) {
	dir := t.TempDir()
	var key *string
	for range 2 {
		server := must(localkmstest.New(localkmstest.Options{Dir: dir}))
		if key == nil {
			key = must(server.Client("").CreateKey(t.Context(), &kms.CreateKeyInput{})).KeyMetadata.Arn
		}
		must(server.Client("").DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: key}))
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestWhoMayCall(t *testing.T) {
	for name, o := range map[string]localkmstest.Options{
		"no ARN":    {Principals: []string{"Worker"}},
		"twice":     {Accounts: []localkmstest.Account{{ID: "111122223333"}, {ID: "111122223333"}}},
		"bad fault": {Faults: localkmstest.Faults{LostAnswers: map[string]float64{"Fly": 1}}},
	} {
		if server, err := localkmstest.New(o); err == nil {
			server.Close()
			t.Errorf("%s: no error", name)
		}
	}
	server := localkmstest.Start(t, localkmstest.Options{Accounts: []localkmstest.Account{{
		ID: "111122223333",
		Users: []localkmstest.User{
			{Name: "keyless"},
			{Name: "alice", Path: "/team/", AccessKeys: []localkmstest.AccessKey{{ID: "AKIAALICE", Secret: "s"}}},
		},
	}}})
	for _, principal := range []string{"", "arn:aws:iam::111122223333:user/team/alice"} {
		if got := server.Credentials(principal).AccessKeyID; got != "AKIAALICE" {
			t.Errorf("%q calls with %s", principal, got)
		}
	}
	defer func() {
		if v := recover(); v == nil || !strings.Contains(fmt.Sprint(v), "user/keyless\" has no access key: name it in Options.Principals") {
			t.Errorf("recovered %v", v)
		}
	}()
	server.Client("arn:aws:iam::111122223333:user/keyless")
}
