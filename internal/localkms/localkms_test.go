package localkms_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/smithy-go"

	"github.com/keybroker/keybroker/internal/localkms"
)

// The cast. The customer owns the keys; the registrar and the worker belong to
// another account, as a broker's do.
const (
	region          = "us-west-2"
	customerAccount = "111122223333"
	brokerAccount   = "444455556666"

	customerRoot = "arn:aws:iam::111122223333:root"
	admin        = "arn:aws:iam::111122223333:user/Admin"
	colleague    = "arn:aws:iam::111122223333:role/Colleague"
	brokerRoot   = "arn:aws:iam::444455556666:root"
	registrar    = "arn:aws:iam::444455556666:role/Registrar"
	worker       = "arn:aws:iam::444455556666:role/Worker"
	stranger     = "arn:aws:iam::777788889999:role/Stranger"
)

func cast() []localkms.Principal {
	var all []localkms.Principal
	for _, arn := range []string{customerRoot, admin, colleague, brokerRoot, registrar, worker, stranger} {
		all = append(all, localkms.Principal{ARN: arn, AccessKeyID: accessKeyOf(arn), SecretAccessKey: secretOf(arn)})
	}
	return all
}

func accessKeyOf(arn string) string {
	return "AKIA" + strings.NewReplacer(":", "", "/", "").Replace(arn)
}

func secretOf(arn string) string { return "secret of " + arn }

// clock is a clock that moves only when told.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2026, 3, 4, 5, 6, 7, 890e6, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func newKMS(t testing.TB, cfg localkms.Config) *localkms.KMS {
	t.Helper()
	if cfg.Principals == nil {
		cfg.Principals = cast()
	}
	if cfg.Now == nil {
		cfg.Now = newClock().Now
	}
	if cfg.ClockSkew == 0 {
		cfg.ClockSkew = -1 // the SDK signs by the clock of the machine
	}
	k, err := localkms.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	return k
}

// as returns the real AWS client of a principal.
func as(h http.Handler, arn string, options ...func(*kms.Options)) *kms.Client {
	return in(h, arn, region, options...)
}

func in(h http.Handler, arn, region string, options ...func(*kms.Options)) *kms.Client {
	return kms.New(kms.Options{
		Region:           region,
		HTTPClient:       &http.Client{Transport: judged(h)},
		RetryMaxAttempts: 1,
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: accessKeyOf(arn), SecretAccessKey: secretOf(arn)}, nil
		}),
	}, options...)
}

// newKey makes a key in the customer's account and returns its ARN.
func newKey(t testing.TB, h http.Handler, policy string) string {
	t.Helper()
	req := &kms.CreateKeyInput{BypassPolicyLockoutSafetyCheck: true}
	if policy != "" {
		req.Policy = aws.String(policy)
	}
	out, err := as(h, admin).CreateKey(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return *out.KeyMetadata.Arn
}

// refusal is an AWS error as a test expects it.
type refusal struct{ code, message string }

func refusalOf(err error) refusal {
	var api smithy.APIError
	switch {
	case err == nil:
		return refusal{}
	case errors.As(err, &api) && api.ErrorMessage() == "UnknownError":
		return refusal{api.ErrorCode(), ""} // what the SDK makes of an empty message
	case errors.As(err, &api):
		return refusal{api.ErrorCode(), api.ErrorMessage()}
	}
	return refusal{"not an AWS error", err.Error()}
}

func wantRefusal(t *testing.T, err error, code, message string) {
	t.Helper()
	if got, want := refusalOf(err), (refusal{code, message}); got != want {
		t.Errorf("got  %s %q\nwant %s %q", got.code, got.message, want.code, want.message)
	}
}

func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	if got := refusalOf(err); got.code != code {
		t.Errorf("got %q %q, want %q", got.code, got.message, code)
	}
}

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// brokerPolicy lets the registrar make grants and look, as a customer's key
// policy for another account does, and leaves the rest to the customer.
const brokerPolicy = `{
  "Version": "2012-10-17",
  "Statement": [
    {"Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::111122223333:root"}, "Action": "kms:*", "Resource": "*"},
    {"Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::444455556666:role/Registrar"},
     "Action": ["kms:CreateGrant", "kms:ListGrants", "kms:DescribeKey"], "Resource": "*"}
  ]
}`

func pairs(kv ...string) map[string]string {
	m := map[string]string{}
	for i := 0; i < len(kv); i += 2 {
		m[kv[i]] = kv[i+1]
	}
	return m
}

func tagsOf(kv ...string) []types.Tag {
	var tags []types.Tag
	for i := 0; i < len(kv); i += 2 {
		tags = append(tags, types.Tag{TagKey: &kv[i], TagValue: &kv[i+1]})
	}
	return tags
}
