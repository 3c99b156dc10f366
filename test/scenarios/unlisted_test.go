package scenarios_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/test/harness"
)

// The owner of the old key takes the broker's statements out of its policy before
// the change has ended: the broker may not list the key's grants any more. It
// still retires them, and proves it by those that it may retire, a leftover that
// nobody recorded among them.
func TestOldKeyIsNotListed(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	d, old, err := b.Onboard(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	createKeys(t, b, "acme", 6)
	next := must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))
	job := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", next))
	workUntil(t, b, job, func(v rotation.JobView) bool { return v.Phase == rotation.Retiring })
	leaveBehind(t, b, d, old)
	takeStatementsOut(t, b, old)

	v := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID))
	if v.State != rotation.Succeeded {
		t.Errorf("job ended %s in %s: %s", v.State, v.Phase, v.FailMessage)
	}
	if names := must[[]string](t)(b.GrantsAt(ctx, old, d)); len(names) != 0 {
		t.Errorf("I3: grants left on the old key: %v", names)
	}
}

// Where KMS tells the broker in neither way what is left on the old key, nothing
// is proved: the job blocks on it, and goes on when it is told again.
func TestOldKeyIsNotShownAtAll(t *testing.T) {
	ctx := t.Context()
	deny := &refusal{operation: "ListRetirableGrants", code: "AccessDeniedException"}
	b := newBench(t, harness.Config{Transport: deny.over})
	d, old, err := b.Onboard(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	createKeys(t, b, "acme", 6)
	next := must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))
	job := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", next))
	workUntil(t, b, job, func(v rotation.JobView) bool { return v.Phase == rotation.Retiring })
	leaveBehind(t, b, d, old)
	takeStatementsOut(t, b, old)

	v := workUntil(t, b, job, func(v rotation.JobView) bool { return v.State != rotation.Running })
	if v.State != rotation.Blocked || v.Block.Side != rotation.From || v.Block.Reason != broker.ReasonKeyAccessDenied {
		t.Fatalf("the job is %s, blocked by %+v, want on %s by %s", v.State, v.Block, rotation.From, broker.ReasonKeyAccessDenied)
	}
	deny.operation = ""
	if v := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID)); v.State != rotation.Succeeded {
		t.Errorf("job ended %s in %s: %s", v.State, v.Phase, v.FailMessage)
	}
	if names := must[[]string](t)(b.GrantsAt(ctx, old, d)); len(names) != 0 {
		t.Errorf("I3: grants left on the old key: %v", names)
	}
}

// leaveBehind puts a grant on a key that only its Name tells to be the broker's.
func leaveBehind(t *testing.T, b *harness.Bench, d broker.Domain, key broker.KeyARN) {
	t.Helper()
	names := must[[]string](t)(b.GrantsAt(t.Context(), key, d))
	i := slices.IndexFunc(names, func(name string) bool { return strings.HasSuffix(name, "/unwrap/1/1") })
	if i < 0 {
		t.Fatalf("no grant to imitate among %v", names)
	}
	_, err := b.Customer.CreateGrant(t.Context(), &kms.CreateGrantInput{KeyId: aws.String(string(key)),
		Name: aws.String(strings.Replace(names[i], "/1/1", "/1/9", 1)), GranteePrincipal: aws.String(harness.WorkerRole),
		RetiringPrincipal: aws.String(harness.RegistrarRole), Operations: []types.GrantOperation{types.GrantOperationReEncryptFrom},
		Constraints: &types.GrantConstraints{EncryptionContextSubset: map[string]string{d.Reserved.Key: d.Reserved.Value}}})
	if err != nil {
		t.Fatal(err)
	}
}

// takeStatementsOut leaves a key to its account alone.
func takeStatementsOut(t *testing.T, b *harness.Bench, key broker.KeyARN) {
	t.Helper()
	policy := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"` + harness.CustomerRoot + `"},"Action":"kms:*","Resource":"*"}]}`
	if _, err := b.Customer.PutKeyPolicy(t.Context(), &kms.PutKeyPolicyInput{KeyId: aws.String(string(key)), Policy: &policy}); err != nil {
		t.Fatal(err)
	}
}
