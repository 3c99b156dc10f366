package awskms_test

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"go.uber.org/goleak"

	"github.com/keybroker/keybroker/internal/awskms"
	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/localkms"
	"github.com/keybroker/keybroker/internal/pacer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The cast: a customer who owns keys, and the broker in another account.
const (
	homeRegion    = "eu-central-1"
	customerRole  = "arn:aws:iam::111122223333:role/KeyAdmin"
	registrarRole = "arn:aws:iam::444455556666:role/registrar"
	workerRole    = "arn:aws:iam::444455556666:role/worker"
	reservedKey   = "keybroker:domain"

	grantsPerKey = 130 // little enough for a test to reach
)

func principals() []localkms.Principal {
	return []localkms.Principal{
		{ARN: customerRole, AccessKeyID: "AKIACUSTOMER", SecretAccessKey: secretOf("AKIACUSTOMER")},
		{ARN: registrarRole, AccessKeyID: "AKIAREGISTRAR", SecretAccessKey: secretOf("AKIAREGISTRAR")},
		{ARN: workerRole, AccessKeyID: "AKIAWORKER", SecretAccessKey: secretOf("AKIAWORKER")},
	}
}

func secretOf(id string) string { return "secret of " + id }

func credentials(id string) aws.CredentialsProvider {
	return aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
		return aws.Credentials{AccessKeyID: id, SecretAccessKey: secretOf(id)}, nil
	})
}

// config is a configuration that is complete, with rt for the wire.
func config(t testing.TB, rt http.RoundTripper) awskms.Config {
	t.Helper()
	p, err := pacer.New(pacer.Config{Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	return awskms.Config{
		Registrar:   credentials("AKIAREGISTRAR"),
		Worker:      credentials("AKIAWORKER"),
		ReservedKey: reservedKey, ReservedValue: broker.DefaultReservedValue,
		Region:    homeRegion,
		Transport: rt,
		Jitter:    func() float64 { return 0 },
		Pacer:     p,
	}
}

func open(t testing.TB, cfg awskms.Config, class pacer.Class) *awskms.KMS {
	t.Helper()
	k, err := awskms.New(cfg, class)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return k
}

// newLocal makes an embedded KMS in memory. A nil clock is the real one.
func newLocal(t testing.TB, delay time.Duration, now func() time.Time) *localkms.KMS {
	t.Helper()
	skew := time.Duration(-1) // the SDK signs by the clock of the machine
	if now == nil {
		now, skew = time.Now, 0
	}
	l, err := localkms.New(localkms.Config{
		Principals: principals(), GrantDelay: delay, Now: now, ClockSkew: skew, GrantsPerKey: grantsPerKey,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// sdk is the bare client of a role.
func sdk(rt http.RoundTripper, id string) *kms.Client {
	return kms.New(kms.Options{
		Region:           homeRegion,
		Credentials:      credentials(id),
		HTTPClient:       &http.Client{Transport: rt},
		RetryMaxAttempts: 1,
	})
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

// anyUID is a domain's uid.
const anyUID = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

func domainContext(uid string) broker.Context { return broker.Context{reservedKey: uid} }
