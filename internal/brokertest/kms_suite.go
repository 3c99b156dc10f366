// Package brokertest is the test bench of the ports: suites that every engine and
// every KMS adapter must pass, and fakes with faults. Tests call it; it is never
// in the binary, and it knows no engine and no SDK.
package brokertest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/keybroker/keybroker/internal/broker"
)

// KMSBench is one KMS with an adapter in front of it and a customer behind it.
type KMSBench struct {
	Registrar broker.Registrar
	Worker    broker.Worker
	// RegistrarRole and WorkerRole are the roles of the two, as ARNs.
	RegistrarRole, WorkerRole string
	// ReservedKey is the deployment's reserved context key; its value is the uid of a
	// domain.
	ReservedKey string

	Customer KMSCustomer
	// Faults is the wire below both ports.
	Faults *Faults
	// Attempts is how often the adapter tries a call that KMS throttled or did not
	// answer.
	Attempts int

	// ShowGrants returns when all grants made and retired so far are in effect
	// everywhere.
	ShowGrants func(t *testing.T)
	// HidesGrants says that a new grant is surely not in effect without its token
	// until ShowGrants returns.
	HidesGrants bool
	// GrantsPerKey is the quota of grants on a key, at least 110, where it is
	// small enough to be reached.
	GrantsPerKey int

	// Run tells this run's domains and grants, up to six digits, from those of
	// earlier runs on the same keys.
	Run int
}

// A KMSNeed is what a topic needs beside two keys under the policy of KMSPolicy.
type KMSNeed string

// The needs.
const (
	// NeedPolicies is keys under other policies, of which there may be three.
	NeedPolicies KMSNeed = "policies"
	// NeedDisable is a key that may be disabled.
	NeedDisable KMSNeed = "disable"
	// NeedQuota is a quota of grants within reach: GrantsPerKey.
	NeedQuota KMSNeed = "quota"
)

// KMSCustomer owns keys. Its methods end the test where they fail.
type KMSCustomer interface {
	// Account is its AWS account, 12 digits.
	Account() string
	// NewKey makes a symmetric key under a policy; it need not be a key that
	// nobody used before. Where policies cannot be chosen, calls in one topic give
	// two keys in turn.
	NewKey(t *testing.T, policy string) broker.KeyARN
	SetEnabled(t *testing.T, key broker.KeyARN, enabled bool)
	Encrypt(t *testing.T, key broker.KeyARN, plaintext []byte, pairs broker.Context) broker.Secret
	Decrypt(t *testing.T, key broker.KeyARN, blob broker.Secret, pairs broker.Context) []byte
}

// A KMSTopic is a part of the suite, which runs as a subtest.
type KMSTopic struct {
	Name  string
	Needs KMSNeed // "" for none
	run   func(*kmsTest)
}

// KMSTopics gives the topics of RunKMS, in its order.
func KMSTopics() []KMSTopic {
	return []KMSTopic{
		{"DescribeKey", "", describesKeys},
		{"DescribeKeyDisabled", NeedDisable, describesDisabledKeys},
		{"CreateGrant", "", createsGrants},
		{"CreateGrantDryRun", "", triesGrants},
		{"GrantNames", "", repeatsGrants},
		{"GrantTokens", "", usesTokensBeforeGrantsShow},
		{"ListGrants", "", listsGrants},
		{"ListRetirableGrants", "", listsRetirableGrants},
		{"ListGrantsDenied", NeedPolicies, listsWhereListingIsDenied},
		{"GrantLimit", NeedQuota, reachesGrantLimit},
		{"RetireGrant", "", retiresGrants},
		{"GenerateDataKey", "", generatesDataKeys},
		{"ReEncrypt", "", reEncrypts},
		{"ReEncryptImport", NeedPolicies, imports},
		{"ReEncryptDryRun", "", triesReEncrypt},
		{"ReEncryptDryRunDisabled", NeedDisable, triesReEncryptOnDisabledKeys},
		{"WrongSource", "", refusesWrongSources},
		{"Disabled", NeedDisable, namesDisabledKeys},
		{"Denied", "", namesDeniedKeys},
		{"DeniedByPolicy", NeedPolicies, namesKeysOfClosedPolicies},
		{"ReservedPair", "", refusesUnreserved},
		{"ErrorCodes", "", classifiesErrorCodes},
		{"Transient", "", repeatsTransientFailures},
		{"LostAnswers", "", survivesLostAnswers},
		{"OtherKeyAnswers", "", comparesKeys},
		{"UnreadableAnswers", "", refusesUnreadableAnswers},
		{"Cancelled", "", endsWithItsContext},
		{"Secrets", "", keepsSecrets},
	}
}

// RunKMS checks that a KMS keeps the contract of broker.Registrar and
// broker.Worker. cannot names what cannot be done here, with the reason: topics
// that need it are skipped. open is called once for each of the others.
func RunKMS(t *testing.T, cannot map[KMSNeed]string, open func(t *testing.T) KMSBench) {
	for _, topic := range KMSTopics() {
		t.Run(topic.Name, func(t *testing.T) {
			if reason := cannot[topic.Needs]; reason != "" {
				t.Skip(reason)
			}
			bench := open(t)
			topic.run(&kmsTest{T: t, KMSBench: bench, topic: topic.Name, reserved: broker.Pair{Key: bench.ReservedKey, Value: uid(topic.Name, bench.Run)}})
		})
	}
}

// kmsTest is one topic with the domain that it plays in.
type kmsTest struct {
	*testing.T
	KMSBench

	topic    string
	reserved broker.Pair
}

// newKey makes a customer's key that the broker may make the domain's grants on.
func (t *kmsTest) newKey() broker.KeyARN { t.Helper(); return t.newImportKey(nil) }

func (t *kmsTest) newImportKey(legacy broker.Context) broker.KeyARN {
	t.Helper()
	return t.Customer.NewKey(t.T, KMSPolicy{
		Owner: t.Customer.Account(), Registrar: t.RegistrarRole, Worker: t.WorkerRole, Pinned: t.reserved, Import: legacy,
	}.Document())
}

// readyKey makes a key that the worker can already use.
func (t *kmsTest) readyKey() broker.KeyARN {
	t.Helper()
	key := t.newKey()
	t.grant(key)
	t.ShowGrants(t.T)
	return key
}

// pairs is a context of the domain: the reserved pair, and what tells one object
// from another.
func (t *kmsTest) pairs(object string) broker.Context {
	return broker.Context{"object": object}.With(t.reserved)
}

// stranger is a context of another domain.
func (t *kmsTest) stranger() broker.Context {
	return broker.Context{t.ReservedKey: uid(KMSStranger, 0)}
}

// KMSStranger begins the uid of a domain that no key policy may let the broker
// make grants for.
const KMSStranger = "somebodyelse"

// uid gives a domain's uid of 26 characters.
func uid(name string, run int) string {
	return fmt.Sprintf("%.20s%0*d", name, 26-min(len(name), 20), run)
}

// KMSGrantNames begins the Name of every grant that the suite makes.
const KMSGrantNames = "kb/suite/"

// names begins the Names of this topic's grants.
func (t *kmsTest) names() string {
	return fmt.Sprintf("%s%d/%s/", KMSGrantNames, t.KMSBench.Run, t.topic)
}

// newGrant is what the broker asks for its own worker.
func (t *kmsTest) newGrant(key broker.KeyARN, name string) broker.NewKMSGrant {
	return broker.NewKMSGrant{
		Key: key, Name: t.names() + name, Grantee: t.WorkerRole, Retiring: t.RegistrarRole,
		Operations: []string{"GenerateDataKeyWithoutPlaintext", "ReEncryptFrom", "ReEncryptTo"},
		Constraint: broker.Constraint{Subset: broker.Context{}.With(t.reserved)},
	}
}

func (t *kmsTest) create(g broker.NewKMSGrant) broker.CreatedKMSGrant {
	t.Helper()
	created, err := t.Registrar.CreateGrant(t.Context(), g)
	t.must(err)
	return created
}

func (t *kmsTest) grant(key broker.KeyARN) broker.CreatedKMSGrant {
	t.Helper()
	return t.create(t.newGrant(key, "worker/1"))
}

// own chooses the grants of this topic from a listing: there may be others on a
// key.
func (t *kmsTest) own(grants []broker.ListedGrant, err error) []broker.ListedGrant {
	t.Helper()
	t.must(err)
	return slices.DeleteFunc(grants, func(g broker.ListedGrant) bool { return !strings.HasPrefix(g.Name, t.names()) })
}

func (t *kmsTest) generate(key broker.KeyARN, pairs broker.Context) broker.Secret {
	t.Helper()
	wrapped, err := t.Worker.GenerateDataKeyWithoutPlaintext(t.Context(), broker.GenerateDataKey{
		Key: key, KeySpec: broker.DefaultKeySpec, Context: pairs,
	})
	t.must(err)
	return wrapped.Ciphertext
}

func (t *kmsTest) reEncrypt(r broker.ReEncrypt) error {
	_, err := t.Worker.ReEncrypt(t.Context(), r)
	return err
}

func (t *kmsTest) must(err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%v: %v", err, errors.Unwrap(err))
	}
}

// want checks the failure of a call: its class, and that it is a KMSError of
// that operation.
func (t *kmsTest) want(err error, operation string, class broker.KMSClass) {
	t.Helper()
	_ = t.failure(err, operation, class)
}

// failure checks as want does, and gives the failure, or an empty one.
func (t *kmsTest) failure(err error, operation string, class broker.KMSClass) *broker.KMSError {
	t.Helper()
	var failure *broker.KMSError
	if !errors.As(err, &failure) {
		t.Errorf("%s: got %v, want a KMSError of class %s", operation, err, class)
		return &broker.KMSError{}
	}
	if failure.Class != class || failure.Operation != operation {
		t.Errorf("got class %s of %s (%v), want %s of %s", failure.Class, failure.Operation, failure.Err, class, operation)
	}
	if failure.Err == nil {
		t.Errorf("%s: the failure has no cause for the logs", operation)
	}
	return failure
}

// eachCall runs every method of both ports once, under a key that it names.
func (t *kmsTest) eachCall(key broker.KeyARN) map[string]func(context.Context) error {
	pairs := t.pairs("each")
	return map[string]func(context.Context) error{
		"DescribeKey": func(ctx context.Context) error {
			_, err := t.Registrar.DescribeKey(ctx, string(key))
			return err
		},
		"CreateGrant": func(ctx context.Context) error {
			_, err := t.Registrar.CreateGrant(ctx, t.newGrant(key, "each/1"))
			return err
		},
		"ListGrants": func(ctx context.Context) error {
			_, err := t.Registrar.ListGrants(ctx, key, "")
			return err
		},
		"ListRetirableGrants": func(ctx context.Context) error {
			_, err := t.Registrar.ListRetirableGrants(ctx, key, t.RegistrarRole)
			return err
		},
		"RetireGrant": func(ctx context.Context) error {
			_, err := t.Registrar.RetireGrant(ctx, key, strings.Repeat("0", 64))
			return err
		},
		"GenerateDataKeyWithoutPlaintext": func(ctx context.Context) error {
			_, err := t.Worker.GenerateDataKeyWithoutPlaintext(ctx, broker.GenerateDataKey{
				Key: key, KeySpec: broker.DefaultKeySpec, Context: pairs,
			})
			return err
		},
		"ReEncrypt": func(ctx context.Context) error {
			return t.reEncryptDry(ctx, key, key, pairs)
		},
	}
}

func (t *kmsTest) reEncryptDry(ctx context.Context, from, to broker.KeyARN, pairs broker.Context) error {
	_, err := t.Worker.ReEncrypt(ctx, broker.ReEncrypt{
		SourceKey: from, SourceContext: pairs, DestinationKey: to, DestinationContext: pairs, DryRun: true,
	})
	return err
}
