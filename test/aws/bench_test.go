package aws_test

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/keybroker/keybroker/internal/awskms"
	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/brokertest"
	"github.com/keybroker/keybroker/internal/pacer"
)

// suiteCalls is how often suite and claims may call KMS; with the demo's share
// it stays below the 2,000 of docs/aws.md.
const suiteCalls = 850

// world is the suite's view of the keys.
type world struct {
	settings
	caller *awskms.Caller
	roles  awskms.Roles
	fence  *awskms.Fence
	run    int // see brokertest.KMSBench
}

func newWorld(t *testing.T, s settings) *world {
	t.Helper()
	caller, err := awskms.FindCaller(t.Context(), s.region(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if least := broker.DefaultWindows().GrantVisibility; s.visibility < least && onAWS(caller.KMSEndpoint) {
		t.Fatalf("%s: must be at least %v on AWS", visibilityVariable, least)
	}
	w := &world{
		settings: s, caller: caller, run: int(time.Now().Unix() % 1_000_000),
		fence: awskms.NewFence(nil, suiteCalls,
			"DescribeKey", "CreateGrant", "ListGrants", "ListRetirableGrants", "RetireGrant", "ListKeyPolicies",
			"GenerateDataKeyWithoutPlaintext", "ReEncrypt", "Encrypt", "Decrypt"),
	}
	t.Cleanup(w.fence.CloseIdleConnections)
	const session = "keybroker-test"
	if w.roles.Registrar, err = caller.Role(t.Context(), s.registrar, session); err != nil {
		t.Fatalf("%s: %v", registrarVariable, err)
	}
	if w.roles.Worker, err = caller.Role(t.Context(), s.worker, session); err != nil {
		t.Fatalf("%s: %v", workerVariable, err)
	}
	return w
}

// adapter is the product's adapter, on a wire that may have faults.
func (w *world) adapter(t *testing.T, faults *brokertest.Faults) *awskms.KMS {
	t.Helper()
	p, err := pacer.New(pacer.Config{Now: time.Now, Quota: awskms.DefaultQuota, Ceiling: 0.9, Floor: 5})
	if err != nil {
		t.Fatal(err)
	}
	k, err := awskms.New(awskms.Config{
		Registrar: w.roles.Registrar, Worker: w.roles.Worker,
		ReservedKey: broker.DefaultReservedKey, ReservedValue: broker.DefaultReservedValue,
		BaseEndpoint: w.caller.KMSEndpoint, Transport: faults,
		Jitter: func() float64 { return 0.5 }, Pacer: p,
	}, pacer.Foreground)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// client is the bare SDK in somebody's name.
func (w *world) client(as aws.CredentialsProvider) *kms.Client {
	o := kms.Options{Region: w.region(), Credentials: as, HTTPClient: &http.Client{Transport: w.fence}, RetryMaxAttempts: 1}
	if w.caller.KMSEndpoint != "" {
		o.BaseEndpoint = &w.caller.KMSEndpoint
	}
	return kms.New(o)
}

// bench is for one topic: topics run beside each other, since each waits most of
// its time.
func (w *world) bench(t *testing.T) brokertest.KMSBench {
	t.Parallel()
	faults := brokertest.NewFaults(w.fence)
	adapter := w.adapter(t, faults)
	return brokertest.KMSBench{
		Registrar: adapter, Worker: adapter, RegistrarRole: w.registrar, WorkerRole: w.worker,
		ReservedKey: broker.DefaultReservedKey, Run: w.run,
		Customer:   &customer{keys: []string{w.oldKey, w.newKey}, account: w.caller.Account, kms: w.client(w.caller.Credentials())},
		Faults:     faults,
		Attempts:   3,
		ShowGrants: func(t *testing.T) { w.wait(t) },
	}
}

// wait is for KMS, which says of no grant that it is in effect everywhere.
func (w *world) wait(t *testing.T) {
	t.Helper()
	timer := time.NewTimer(w.visibility)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	}
}

// retireGrants retires all that the suite made, of this run and of others.
func (w *world) retireGrants(ctx context.Context, t *testing.T) int {
	t.Helper()
	adapter := w.adapter(t, brokertest.NewFaults(w.fence))
	retired := 0
	for _, key := range []broker.KeyARN{broker.KeyARN(w.oldKey), broker.KeyARN(w.newKey)} {
		grants, err := adapter.ListGrants(ctx, key, "")
		if err != nil {
			t.Errorf("the grants of the suite on %s: %v: %v", key, err, causeOf(err))
		}
		for _, g := range grants {
			if !strings.HasPrefix(g.Name, brokertest.KMSGrantNames) {
				continue
			}
			if _, err := adapter.RetireGrant(ctx, key, g.ID); err != nil {
				t.Errorf("grant %s of the suite is left on %s: %v: %v", g.ID, key, err, causeOf(err))
			}
			retired++
		}
	}
	return retired
}

// customer owns two keys that are used in turn, under a policy that stays.
type customer struct {
	keys    []string
	account string
	kms     *kms.Client
	given   atomic.Int64
}

func (c *customer) Account() string { return c.account }

func (c *customer) NewKey(*testing.T, string) broker.KeyARN {
	return broker.KeyARN(c.keys[int(c.given.Add(1)-1)%len(c.keys)])
}

func (c *customer) SetEnabled(t *testing.T, key broker.KeyARN, enabled bool) {
	t.Fatalf("no topic that is run here may enable or disable a key: %s, %v", key, enabled)
}

func (c *customer) Encrypt(t *testing.T, key broker.KeyARN, plaintext []byte, pairs broker.Context) broker.Secret {
	t.Helper()
	out, err := c.kms.Encrypt(t.Context(), &kms.EncryptInput{KeyId: aws.String(string(key)), Plaintext: plaintext, EncryptionContext: pairs})
	if err != nil {
		t.Fatal(err)
	}
	return out.CiphertextBlob
}

func (c *customer) Decrypt(t *testing.T, key broker.KeyARN, blob broker.Secret, pairs broker.Context) []byte {
	t.Helper()
	out, err := c.kms.Decrypt(t.Context(), &kms.DecryptInput{KeyId: aws.String(string(key)), CiphertextBlob: blob, EncryptionContext: pairs})
	if err != nil {
		t.Fatal(err)
	}
	return slices.Clone(out.Plaintext)
}
