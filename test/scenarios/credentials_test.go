package scenarios_test

import (
	"context"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/smithy-go"

	"github.com/keybroker/keybroker/internal/awskms"
	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/brokertest"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/test/harness"
)

// ailingSTS gives the credentials of the broker's roles, or the refusal of STS that
// is set, in the form in which the SDK hands one on.
type ailingSTS struct{ refusal atomic.Pointer[string] }

func (s *ailingSTS) refuse(code string) {
	if code == "" {
		s.refusal.Store(nil)
		return
	}
	s.refusal.Store(&code)
}

func (s *ailingSTS) give(http.RoundTripper) awskms.Roles {
	roles := harness.StaticRoles()
	return awskms.Roles{Registrar: s.wrap(roles.Registrar), Worker: s.wrap(roles.Worker)}
}

func (s *ailingSTS) wrap(from aws.CredentialsProvider) aws.CredentialsProvider {
	return aws.CredentialsProviderFunc(func(ctx context.Context) (aws.Credentials, error) {
		if code := s.refusal.Load(); code != nil {
			return aws.Credentials{}, &smithy.OperationError{ServiceID: "STS", OperationName: "AssumeRole",
				Err: &smithy.GenericAPIError{Code: *code, Message: "no"}}
		}
		return from.Retrieve(ctx)
	})
}

// What STS refuses is no fault of a customer's key or row: a first ChangeKey
// waits, domains stay as they are, no row is recorded, and everything goes on
// once STS answers again.
func TestBrokerWithoutCredentials(t *testing.T) {
	for _, code := range []string{"AccessDenied", "Throttling", "InvalidIdentityToken", "InvalidCiphertextException", "SomethingNew"} {
		t.Run(code, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			var roles ailingSTS
			b := newBench(t, harness.Config{Roles: roles.give, BatchTime: 20 * time.Millisecond})
			if _, _, err := b.Onboard(ctx, "acme"); err != nil {
				t.Fatal(err)
			}
			createKeys(t, b, "acme", 40)
			must[broker.Domain](t)(b.NewDomain(ctx, "new"))
			firstKey := must[broker.KeyARN](t)(b.NewKey(ctx, "new"))
			change := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))))
			moving := workUntil(t, b, change, func(v rotation.JobView) bool { return v.Phase == rotation.Reencrypting && v.Progress.Done > 0 })
			if moving.Progress.Done == 40 {
				t.Fatal("the job was over before STS refused")
			}

			roles.refuse(code)
			first := must[rotation.JobView](t)(b.ChangeKey(ctx, "new", firstKey))
			for range 6 {
				must[bool](t)(b.Step(ctx))
				b.Clock.Advance(20 * time.Second)
			}
			for _, job := range []rotation.JobView{first, change} {
				if v := must[rotation.JobView](t)(b.Engine.GetJob(ctx, harness.Caller, job.DomainID, job.ID)); v.State != rotation.Running || v.Progress.Failed != 0 {
					t.Errorf("%s: %s (block %+v, failure %s %s), %d rows recorded", v.DomainID, v.State, v.Block, v.FailReason, v.FailMessage, v.Progress.Failed)
				}
			}
			_, err := b.Broker.CreateDataKey(ctx, harness.Caller, broker.NewDataKey{Domain: "acme", ID: "late"})
			if broker.ReasonOf(err) != broker.ReasonKMSUnavailable {
				t.Errorf("CreateDataKey: %v, want %s", err, broker.ReasonKMSUnavailable)
			}
			if d, _, err := b.Broker.GetDomain(ctx, harness.Caller, "acme"); err != nil || d.State != broker.DomainActive {
				t.Errorf("the domain is %s, %v", d.State, err)
			}

			roles.refuse("")
			for _, job := range []rotation.JobView{first, change} {
				if v := must[rotation.JobView](t)(b.Finish(ctx, job.DomainID, job.ID)); v.State != rotation.Succeeded || v.Progress.Failed != 0 {
					t.Errorf("%s: %s %s, %d rows recorded", v.DomainID, v.State, v.FailMessage, v.Progress.Failed)
				}
			}
		})
	}
}

// A code that nobody knows says nothing about a row, nor about a key: the row is
// asked for again, whatever the job is at.
func TestUnknownCodes(t *testing.T) {
	for _, code := range []string{"SomethingNew", "InvalidIdentityToken"} {
		t.Run(code, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			var faults *brokertest.Faults
			b := newBench(t, harness.Config{BatchTime: 20 * time.Millisecond, Transport: func(road http.RoundTripper) http.RoundTripper {
				if faults != nil { // the second replica has nothing to do
					return road
				}
				faults = brokertest.NewFaults(road)
				return faults
			}})
			if _, _, err := b.Onboard(ctx, "acme"); err != nil {
				t.Fatal(err)
			}
			createKeys(t, b, "acme", 30)
			job := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))))
			workUntil(t, b, job, func(v rotation.JobView) bool { return v.Phase == rotation.Reencrypting && v.Progress.Done > 0 })
			faults.Plan("ReEncrypt", slices.Repeat([]brokertest.Fault{{Code: code, Message: "no"}}, 100)...)
			workUntil(t, b, job, func(v rotation.JobView) bool { return v.Phase == rotation.Verifying })
			faults.Plan("ReEncrypt", brokertest.Fault{Code: code, Message: "no"})
			if _, err := b.Step(ctx); err != nil && broker.ClassOf(err) == "" {
				t.Fatal(err)
			}
			v := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID))
			if v.State != rotation.Succeeded || v.Progress.Failed != 0 {
				t.Errorf("%s %s, %d rows recorded", v.State, v.FailMessage, v.Progress.Failed)
			}
			if failures := must[[]rotation.Failure](t)(b.Engine.ListFailures(ctx, harness.Caller, "acme", job.ID, "", 100)); len(failures) > 0 {
				t.Errorf("recorded: %+v", failures)
			}
		})
	}
}

// A refusal that says nothing of the row holds a job in VERIFYING up, and does not
// fail it.
func TestRefusalWhileVerifying(t *testing.T) {
	ctx := t.Context()
	var faults *brokertest.Faults
	b := newBench(t, harness.Config{Transport: func(road http.RoundTripper) http.RoundTripper {
		if faults != nil {
			return road
		}
		faults = brokertest.NewFaults(road)
		return faults
	}})
	if _, _, err := b.Onboard(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	createKeys(t, b, "acme", 8)
	job := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))))
	workUntil(t, b, job, func(v rotation.JobView) bool { return v.Phase == rotation.Verifying })
	faults.Plan("ReEncrypt", brokertest.Fault{Code: "ValidationException", Message: "no"})
	if v := workUntil(t, b, job, func(v rotation.JobView) bool { return v.State != rotation.Running }); v.State != rotation.Blocked || v.Block.Reason != broker.ReasonKMSRefused {
		t.Errorf("%s, %+v, %s: want BLOCKED by %s", v.State, v.Block, v.FailMessage, broker.ReasonKMSRefused)
	}
	if v := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID)); v.State != rotation.Succeeded {
		t.Errorf("%s %s", v.State, v.FailMessage)
	}
}
