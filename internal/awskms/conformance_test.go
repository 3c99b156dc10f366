package awskms_test

import (
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/brokertest"
	"github.com/keybroker/keybroker/internal/localkms"
	"github.com/keybroker/keybroker/internal/pacer"
)

func TestForegroundOnLocalKMS(t *testing.T) { runOnLocalKMS(t, pacer.Foreground, 3) }

func TestBackgroundOnLocalKMS(t *testing.T) { runOnLocalKMS(t, pacer.Background, 1) }

func runOnLocalKMS(t *testing.T, class pacer.Class, attempts int) {
	brokertest.RunKMS(t, nil, func(t *testing.T) brokertest.KMSBench {
		clock := &clock{now: time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)}
		const delay = 5 * time.Minute
		wire := localkms.RoundTripper(newLocal(t, delay, clock.Now))
		faults := brokertest.NewFaults(wire)
		adapter := open(t, config(t, faults), class)
		return brokertest.KMSBench{
			Registrar: adapter, Worker: adapter,
			RegistrarRole: registrarRole, WorkerRole: workerRole, ReservedKey: reservedKey,
			Customer:     customer{sdk(wire, "AKIACUSTOMER")},
			Faults:       faults,
			Attempts:     attempts,
			ShowGrants:   func(*testing.T) { clock.advance(delay) },
			HidesGrants:  true,
			GrantsPerKey: grantsPerKey,
		}
	})
}

// clock moves when told.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

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

// customer is a key owner with an AWS client of its own.
type customer struct{ client *kms.Client }

func (c customer) Account() string { return "111122223333" }

func (c customer) NewKey(t *testing.T, policy string) broker.KeyARN {
	t.Helper()
	out := must[*kms.CreateKeyOutput](t)(c.client.CreateKey(t.Context(), &kms.CreateKeyInput{Policy: &policy}))
	return broker.KeyARN(*out.KeyMetadata.Arn)
}

func (c customer) SetEnabled(t *testing.T, key broker.KeyARN, enabled bool) {
	t.Helper()
	if enabled {
		must[*kms.EnableKeyOutput](t)(c.client.EnableKey(t.Context(), &kms.EnableKeyInput{KeyId: aws.String(string(key))}))
		return
	}
	must[*kms.DisableKeyOutput](t)(c.client.DisableKey(t.Context(), &kms.DisableKeyInput{KeyId: aws.String(string(key))}))
}

func (c customer) Encrypt(t *testing.T, key broker.KeyARN, plaintext []byte, pairs broker.Context) broker.Secret {
	t.Helper()
	out := must[*kms.EncryptOutput](t)(c.client.Encrypt(t.Context(), &kms.EncryptInput{
		KeyId: aws.String(string(key)), Plaintext: plaintext, EncryptionContext: pairs,
	}))
	return out.CiphertextBlob
}

func (c customer) Decrypt(t *testing.T, key broker.KeyARN, blob broker.Secret, pairs broker.Context) []byte {
	t.Helper()
	out := must[*kms.DecryptOutput](t)(c.client.Decrypt(t.Context(), &kms.DecryptInput{
		KeyId: aws.String(string(key)), CiphertextBlob: blob, EncryptionContext: pairs,
	}))
	return out.Plaintext
}
