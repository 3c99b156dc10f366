package scenarios_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/keybroker/keybroker/internal/awskms"
	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/localkms"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/test/harness"
)

// documentedPolicy is a policy of docs/deploy.md, for the harness's account.
func documentedPolicy(t *testing.T, name string) string {
	t.Helper()
	text := must[string](t)(harness.Document("../../docs/deploy.md", "policy: "+name))
	return strings.ReplaceAll(text, "111122223333", harness.BrokerAccount)
}

// documented is a bench whose broker is what docs/deploy.md makes of it: the pod's
// role assumes the other two. A policy that is empty is none.
func documented(t *testing.T, registrar, worker string) *harness.Bench {
	t.Helper()
	const node = "arn:aws:iam::" + harness.BrokerAccount + ":user/node"
	role := func(name, trust, policy string) localkms.Role {
		r := localkms.Role{Name: name, TrustPolicy: localkms.PolicyDocument(trust)}
		if policy != "" {
			r.Policies = map[string]localkms.PolicyDocument{"documented": localkms.PolicyDocument(policy)}
		}
		return r
	}
	trust := documentedPolicy(t, "trust")
	account := localkms.Account{
		ID:    harness.BrokerAccount,
		Users: []localkms.User{{Name: "node", AccessKeys: []localkms.AccessKey{{ID: "AKIANODE", Secret: "node"}}}},
		Roles: []localkms.Role{
			role("keybroker", `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Principal":{"AWS":"`+node+`"},"Action":"sts:AssumeRole"}}`, documentedPolicy(t, "pod")),
			role("keybroker-registrar", trust, registrar),
			role("keybroker-worker", trust, worker),
		},
	}
	return newBench(t, harness.Config{
		Accounts: []localkms.Account{account},
		Roles: func(road http.RoundTripper) awskms.Roles {
			// Nothing is remembered: sessions end by the clock of the bench.
			assume := func(as aws.CredentialsProvider, name string) aws.CredentialsProvider {
				return stscreds.NewAssumeRoleProvider(sts.New(sts.Options{Region: harness.Region, BaseEndpoint: aws.String("http://kms.test"),
					Credentials: as, HTTPClient: &http.Client{Transport: road}}), "arn:aws:iam::"+harness.BrokerAccount+":role/"+name)
			}
			pod := assume(credentials.NewStaticCredentialsProvider("AKIANODE", "node", ""), "keybroker")
			return awskms.Roles{Registrar: assume(pod, "keybroker-registrar"), Worker: assume(pod, "keybroker-worker")}
		},
	})
}

// denied gives the operations that KMS refused to the broker's roles.
func denied(b *harness.Bench) map[string]bool {
	operations := map[string]bool{}
	for _, c := range b.Calls() {
		ours := strings.Contains(c.Principal, ":"+harness.BrokerAccount+":")
		if ours && c.ErrorCode == "AccessDeniedException" && !c.DryRun { // the probes of ownership want a refusal
			operations[c.Operation] = true
		}
	}
	return operations
}

// The policies that docs/deploy.md gives to copy are enough for all that the
// broker does with customers' keys: onboarding, a grant for a service, a key
// change whose old key is closed to the broker before the end, and an import. None
// of the registrar's rights can be left out.
func TestDocumentedPolicies(t *testing.T) {
	registrar := documentedPolicy(t, "registrar")
	t.Run("as they are", func(t *testing.T) {
		b := documented(t, registrar, "")
		refused, v := changeKeyWithGrant(t, b)
		if len(refused) != 0 || v.State != rotation.Succeeded {
			t.Errorf("KMS refused %v; the change ended %s in %s: %s %+v", refused, v.State, v.Phase, v.FailMessage, v.Block)
		}
	})
	for _, action := range []string{"kms:DescribeKey", "kms:CreateGrant", "kms:ListGrants", "kms:ListRetirableGrants"} {
		t.Run("without "+action, func(t *testing.T) {
			less := strings.Replace(registrar, `"`+action+`"`, `"kms:GetKeyPolicy"`, 1)
			if less == registrar {
				t.Fatalf("%s is not in %s", action, registrar)
			}
			b := documented(t, less, "")
			refused, v := changeKeyWithGrant(t, b)
			if _, operation, _ := strings.Cut(action, ":"); !refused[operation] && v.State == rotation.Succeeded {
				t.Errorf("all went well")
			}
		})
	}
	t.Run("import", func(t *testing.T) { testImport(t, true) })
	t.Run("import without the worker's policy", func(t *testing.T) { testImport(t, false) })
}

// changeKeyWithGrant onboards a domain, gives a service a grant, and changes the
// key. It gives what KMS refused until the old key's owner closed it to the broker,
// and what became of the change.
func changeKeyWithGrant(t *testing.T, b *harness.Bench) (map[string]bool, rotation.JobView) {
	t.Helper()
	ctx := t.Context()
	must[broker.Domain](t)(b.NewDomain(ctx, "acme"))
	old := must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))
	stuck := func(v rotation.JobView) bool { return v.State != rotation.Running }
	if v := workUntil(t, b, must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", old)), stuck); v.State != rotation.Succeeded {
		return denied(b), v
	}
	must[broker.GrantView](t)(b.Broker.CreateGrant(ctx, harness.Caller, broker.NewGrant{Domain: "acme", ID: "orders",
		Grantee: harness.ServiceRole, Operations: []string{"Decrypt"}, TTL: broker.MaxGrantTTL}))
	createKeys(t, b, "acme", 6)
	job := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))))
	v := workUntil(t, b, job, func(v rotation.JobView) bool { return v.Phase == rotation.Retiring || stuck(v) })
	if err := b.Broker.SweepOrphans(ctx); err != nil {
		t.Log(err) // what KMS refused of it counts, see below
	}
	refused := denied(b)
	if !stuck(v) {
		takeStatementsOut(t, b, old)
		v = workUntil(t, b, job, stuck)
	}
	return refused, v
}

// A blob under a key of another account, made before anybody knew the broker, is
// imported with the worker's policy and not without it.
func testImport(t *testing.T, allowed bool) {
	ctx := t.Context()
	worker := ""
	if allowed {
		const key = "arn:aws:kms:eu-central-1:444455556666:key/1234abcd-12ab-34cd-56ef-1234567890ab"
		document := documentedPolicy(t, "worker")
		if worker = strings.Replace(document, key, "arn:aws:kms:"+harness.Region+":"+harness.CustomerAccount+":key/*", 1); worker == document {
			t.Fatalf("%s is not in %s", key, document)
		}
	}
	b := documented(t, documentedPolicy(t, "registrar"), worker)
	made := must[*kms.CreateKeyOutput](t)(b.Customer.CreateKey(ctx, &kms.CreateKeyInput{}))
	legacy := broker.KeyARN(aws.ToString(made.KeyMetadata.Arn))
	must[broker.Domain](t)(b.NewDomain(ctx, "acme", string(legacy)))
	context := broker.Context{"service": "legacy"}
	policy := must[broker.KeyPolicy](t)(b.Broker.GenerateKeyPolicy(ctx, harness.Caller, broker.KeyPolicyRequest{Domain: "acme",
		KeyAccount: harness.CustomerAccount, Profile: broker.PolicyImportSource, ImportContext: context}))
	must[*kms.PutKeyPolicyOutput](t)(b.Customer.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: made.KeyMetadata.Arn, Policy: &policy.Document}))
	job := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))))
	must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID))
	blob := must[*kms.GenerateDataKeyOutput](t)(b.Customer.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: made.KeyMetadata.Arn,
		KeySpec: "AES_256", EncryptionContext: context}))
	results := must[[]broker.ImportResult](t)(b.Broker.ImportDataKeys(ctx, harness.Caller, broker.ImportDataKeys{Domain: "acme",
		Items: []broker.ImportItem{{ID: "k", Ciphertext: blob.CiphertextBlob, SourceKey: legacy, SourceContext: context}}}))
	if err := results[0].Err; (err == nil) != allowed || (!allowed && broker.ReasonOf(err) != broker.ReasonKeyAccessDenied) {
		t.Errorf("the import gave %v", err)
	}
}
