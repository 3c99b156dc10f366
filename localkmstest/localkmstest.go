// Package localkmstest runs an AWS KMS for the tests of programs that use one. It
// enforces what AWS does: key policies and identity policies, grants with their
// constraints, key states, encryption contexts and DryRun; and it can be told to
// throttle, to fail and to lose answers. In a test:
//
//	server := localkmstest.Start(t, localkmstest.Options{})
//	client := server.Client("")
//	key, err := client.CreateKey(ctx, &kms.CreateKeyInput{})
//
// It listens on a port of the loopback interface and ends with the test. A program
// in another process finds it by [Server.Env]. It is for tests: key material is not
// protected, and nothing of AWS is contacted. What it serves, and where what it
// does is known from, is in docs/localkms.md of this module.
package localkmstest

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/keybroker/keybroker/internal/localkms"
)

const (
	// DefaultRegion is the region of clients where Options names none.
	DefaultRegion = "us-east-1"

	// DefaultRoot may call where Options names nobody: the root of an account. Its
	// access key is "test", with the secret "test".
	DefaultRoot = "arn:aws:iam::000000000000:root"
)

// What Options and Server are made of, under the names of this package. Each has its
// fields documented where it is defined.
type (
	// Account is an AWS account: ID, RootAccessKeys, Users and Roles.
	Account = localkms.Account
	// AccessKey is a permanent access key: ID and Secret.
	AccessKey = localkms.AccessKey
	// User is an IAM user: Name, Path, AccessKeys, and Policies by name.
	User = localkms.User
	// Role is an IAM role, which STS on the same endpoint gives sessions of: Name,
	// Path, TrustPolicy, Policies by name, and MaxSessionSeconds.
	Role = localkms.Role
	// PolicyDocument is the JSON text of a policy.
	PolicyDocument = localkms.PolicyDocument

	// Faults is a plan of what goes wrong: RequestsPerSecond, Latency, Errors,
	// LostAnswers, DisableKeys, GrantDelay, RetireDelay, and the Seed of its dice.
	Faults = localkms.Faults
	// ErrorFault answers some calls of an Operation with an error Code, at a Rate.
	ErrorFault = localkms.ErrorFault
	// DisableFault disables a Key just before the n-th Call of an Operation.
	DisableFault = localkms.DisableFault

	// Call is a request that was served: Operation, Principal, KeyARN,
	// EncryptionContext, ErrorCode and more. It has no plaintext.
	Call = localkms.Call
	// Decision is why a request was allowed or refused. Its String is for people.
	Decision = localkms.Decision
)

// AnyOperation stands in Faults for every operation that they do not name otherwise.
const AnyOperation = localkms.AnyOperation

// Options says what a KMS is like. The zero value is one account without faults,
// whose root may call, with its keys in memory.
type Options struct {
	// Principals are ARNs of users, roles and account roots that may call, each with
	// an identity policy that allows everything. Their access keys are made up.
	Principals []string

	// Accounts are AWS accounts with users, roles and policies, for tests of who may
	// do what.
	Accounts []Account

	// Region is that of the clients; empty is DefaultRegion. The KMS has every
	// region, each with keys of its own.
	Region string

	// Dir keeps the keys, so that a later KMS can have them; empty keeps them in
	// memory.
	Dir string

	// GrantDelay is how long a new grant is seen only by who has its token. At AWS
	// that is usually less than five minutes.
	GrantDelay time.Duration

	// Faults are in force from the start; Server.SetFaults changes them.
	Faults Faults

	// Now is the clock of the KMS; nil is the machine's. With a clock of the test's
	// own the time of a signature is not checked, since clients sign by theirs.
	Now func() time.Time

	// OnCall is told of each request, before it is answered, by several goroutines
	// at once. May be nil.
	OnCall func(Call)

	// OnDecision is told of each permission and why it was given or refused, by
	// several goroutines at once. Nil lets Start log the refusals with the test.
	OnDecision func(Decision)

	// InProcess serves without a socket: clients call the KMS in their own
	// goroutine, as testing/synctest asks for. There is no URL then.
	InProcess bool
}

// Server is a KMS that runs. All methods may be called concurrently.
type Server struct {
	// URL is the endpoint, such as http://127.0.0.1:41234.
	URL string

	region      string
	kms         *localkms.KMS
	http        *http.Server // nil in process
	credentials map[string]aws.Credentials
	first       string // the principal that "" means
}

// Start starts a KMS that ends with the test. It fails the test when it cannot.
func Start(t testing.TB, o Options) *Server {
	t.Helper()
	log := &testLog{t: t}
	if o.OnDecision == nil {
		o.OnDecision = log.refusal
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		log.end()
	})
	return s
}

// testLog logs refusals while the test runs: no later, which testing forbids.
type testLog struct {
	mu sync.Mutex
	t  testing.TB // nil once the test is over
}

func (l *testLog) refusal(d Decision) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.t != nil && !d.Allowed {
		l.t.Log(d)
	}
}

func (l *testLog) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.t = nil
}

// New is Start without a test, for TestMain and other programs. The caller closes the
// server.
func New(o Options) (*Server, error) {
	config := localkms.Config{
		Dir: o.Dir, Accounts: o.Accounts, GrantDelay: o.GrantDelay, Faults: o.Faults,
		Now: o.Now, Observe: o.OnCall, Explain: o.OnDecision,
	}
	if o.Now == nil {
		config.Now = time.Now
	} else {
		config.ClockSkew = -1
	}
	s := &Server{region: o.Region, credentials: map[string]aws.Credentials{}}
	if s.region == "" {
		s.region = DefaultRegion
	}
	s.enter(&config, o.Principals)
	var err error
	if s.kms, err = localkms.New(config); err != nil {
		return nil, err
	}
	if o.InProcess {
		return s, nil
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, errors.Join(err, s.kms.Close())
	}
	s.URL = "http://" + l.Addr().String()
	s.http = &http.Server{Handler: s.kms, ReadHeaderTimeout: 10 * time.Second}
	go s.http.Serve(l) //nolint:errcheck // it ends with Close, and says so
	return s, nil
}

// enter gives principals their access keys, and notes those of accounts.
func (s *Server) enter(config *localkms.Config, principals []string) {
	if len(principals) == 0 && len(config.Accounts) == 0 {
		config.Principals = []localkms.Principal{{ARN: DefaultRoot, AccessKeyID: "test", SecretAccessKey: "test"}}
	}
	for i, arn := range principals {
		config.Principals = append(config.Principals, localkms.Principal{
			ARN: arn, AccessKeyID: fmt.Sprintf("AKIATEST%08d", i), SecretAccessKey: "secret of " + arn,
		})
	}
	for _, p := range config.Principals {
		s.note(p.ARN, AccessKey{ID: p.AccessKeyID, Secret: p.SecretAccessKey})
	}
	for _, a := range config.Accounts {
		s.note("arn:aws:iam::"+a.ID+":root", a.RootAccessKeys...)
		for _, u := range a.Users {
			s.note("arn:aws:iam::"+a.ID+":user"+pathOf(u)+u.Name, u.AccessKeys...)
		}
	}
}

func pathOf(u User) string {
	if u.Path == "" {
		return "/"
	}
	return u.Path
}

// note remembers the first key of a principal.
func (s *Server) note(arn string, keys ...AccessKey) {
	if _, known := s.credentials[arn]; known || len(keys) == 0 {
		return
	}
	s.credentials[arn] = aws.Credentials{AccessKeyID: keys[0].ID, SecretAccessKey: keys[0].Secret, Source: "localkmstest"}
	if s.first == "" {
		s.first = arn
	}
}

// Close ends the KMS: requests under way are cut off. It may be called twice.
func (s *Server) Close() error {
	var err error
	if s.http != nil {
		err = s.http.Close()
	}
	return errors.Join(err, s.kms.Close())
}

// Client returns a KMS client of a principal, given by its ARN: one of
// Options.Principals, or a user or root of Options.Accounts with an access key. ""
// is the first of those. It panics for anybody else. The options come last, so
// they can change anything.
func (s *Server) Client(principal string, options ...func(*kms.Options)) *kms.Client {
	return kms.NewFromConfig(s.Config(principal), options...)
}

// Config returns what any AWS client of a principal is made with, an STS client for
// instance, which gets sessions of roles. See Client for who that can be.
func (s *Server) Config(principal string) aws.Config {
	c := s.Credentials(principal)
	config := aws.Config{Region: s.region, Credentials: credentials.StaticCredentialsProvider{Value: c}}
	if s.http == nil {
		config.BaseEndpoint = aws.String("http://localkmstest.invalid")
		config.HTTPClient = &http.Client{Transport: localkms.RoundTripper(s.kms)}
	} else {
		config.BaseEndpoint = aws.String(s.URL)
	}
	return config
}

// Credentials returns the access key of a principal. See Client for who that can be.
func (s *Server) Credentials(principal string) aws.Credentials {
	if principal == "" {
		principal = s.first
	}
	c, known := s.credentials[principal]
	if !known {
		panic(fmt.Sprintf("localkmstest: %q has no access key: name it in Options.Principals, or give a user or root of Options.Accounts one", principal))
	}
	return c
}

// Env returns the environment in which the aws CLI, and a program that uses an AWS
// SDK, call this KMS as a principal. See Client for who that can be.
func (s *Server) Env(principal string) []string {
	c := s.Credentials(principal)
	return []string{
		"AWS_ENDPOINT_URL=" + s.URL, "AWS_REGION=" + s.region, "AWS_DEFAULT_REGION=" + s.region,
		"AWS_ACCESS_KEY_ID=" + c.AccessKeyID, "AWS_SECRET_ACCESS_KEY=" + c.SecretAccessKey, "AWS_EC2_METADATA_DISABLED=true",
	}
}

// SetFaults puts other faults in force; the zero value ends them. It errs on
// operations and error codes that it does not know.
func (s *Server) SetFaults(f Faults) error { return s.kms.SetFaults(f) }

// Denials returns the newest decisions that refused something, oldest first, 128 at
// most.
func (s *Server) Denials() []Decision { return s.kms.Denials() }
