package localkms_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/google/go-cmp/cmp"

	"github.com/keybroker/keybroker/internal/localkms"
)

// explained collects decisions.
type explained struct {
	mu  sync.Mutex
	all []localkms.Decision
}

func (e *explained) add(d localkms.Decision) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, d)
}

// last returns the last decision, without what differs from run to run.
func (e *explained) last(t *testing.T) localkms.Decision {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	d := e.all[len(e.all)-1]
	if d.RequestID == "" || d.Time.IsZero() {
		t.Errorf("%+v has no request id or time", d)
	}
	d.RequestID, d.Time = "", time.Time{}
	return d
}

func TestExplain(t *testing.T) {
	var log explained
	clock := newClock()
	h := newKMS(t, localkms.Config{Accounts: accountsOf(t), Principals: cast(), Now: clock.Now, GrantDelay: time.Minute, Explain: log.add})
	ctx := t.Context()
	const secret = "value-of-the-context"
	key := newKey(t, h, `{"Version":"2012-10-17","Statement":[
		{"Sid":"Account","Effect":"Allow","Principal":{"AWS":"111122223333"},"Action":"kms:*","Resource":"*"},
		{"Sid":"Tenant","Effect":"Allow","Principal":{"AWS":"`+bob+`"},"Action":"kms:Encrypt","Resource":"*",
		 "Condition":{"StringEquals":{"kms:EncryptionContext:tenant":"`+secret+`"}}},
		{"Effect":"Deny","Principal":"*","Action":"kms:Decrypt","Resource":"*","Condition":{"Null":{"kms:EncryptionContext:tenant":"true"}}}]}`)
	byBob := kmsOf(h, permanent(bobKey))
	encrypt := func(c *kms.Client, context map[string]string) { _ = encryptWith(t, context)(c, key) }
	want := func(d localkms.Decision) {
		t.Helper()
		if d.Resource == "" {
			d.Resource = key
		}
		if diff := cmp.Diff(d, log.last(t)); diff != "" {
			t.Errorf("decision (-want +got):\n%s", diff)
		}
	}
	encrypt(byBob, pairs("tenant", secret))
	want(localkms.Decision{Principal: bob, Action: "kms:Encrypt", Allowed: true, Reason: "key policy, statement 2 (Tenant)", ContextKeys: []string{"tenant"}})
	encrypt(byBob, pairs("tenant", "another", "env", "prod"))
	want(localkms.Decision{
		Principal: bob, Action: "kms:Encrypt", Reason: "because no identity-based policy allows the kms:Encrypt action", ContextKeys: []string{"env", "tenant"},
		Nearest: []string{
			"key policy, statement 1 (Account): leaves it to the identity policies of account 111122223333",
			"key policy, statement 2 (Tenant): condition StringEquals kms:EncryptionContext:tenant: no value of the request meets it",
		},
	})
	encrypt(byBob, nil)
	if got, want := log.last(t).Nearest[1], "key policy, statement 2 (Tenant): condition StringEquals kms:EncryptionContext:tenant: the request does not have the key"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	_, err := as(h, admin).Decrypt(ctx, &kms.DecryptInput{DryRun: aws.Bool(true), DryRunModifiers: []types.DryRunModifierType{"IGNORE_CIPHERTEXT"}, KeyId: &key})
	wantAllowed(t, err, false)
	want(localkms.Decision{Principal: admin, Action: "kms:Decrypt", Reason: "key policy, statement 3 denies it", Nearest: []string{
		"identity policy everything, statement 1: allows it, which is not enough",
		"key policy, statement 1 (Account): leaves it to the identity policies of account 111122223333",
		"key policy, statement 2 (Tenant): names other principals",
	}})

	in := decryptGrant(key, bob)
	in.Operations = []types.GrantOperation{"Encrypt"}
	in.Constraints = &types.GrantConstraints{EncryptionContextSubset: pairs("object", secret)}
	constrained := must[*kms.CreateGrantOutput](t)(as(h, admin).CreateGrant(ctx, in))
	clock.advance(time.Minute)
	in.Constraints, in.Operations = nil, []types.GrantOperation{"Encrypt", "Decrypt"}
	young := must[*kms.CreateGrantOutput](t)(as(h, admin).CreateGrant(ctx, in))
	encrypt(byBob, pairs("object", "another"))
	if got, want := log.last(t).Nearest[1], "grant "+*young.GrantId+": is not visible yet; its token would make it so"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, want := log.last(t).Nearest[3], "grant "+*constrained.GrantId+": constraint EncryptionContextSubset object: the request has not that pair"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	encrypt(byBob, pairs("object", secret))
	want(localkms.Decision{Principal: bob, Action: "kms:Encrypt", Allowed: true, Reason: "grant " + *constrained.GrantId + " to " + bob, ContextKeys: []string{"object"}})

	_, err = byBob.ListKeys(ctx, &kms.ListKeysInput{})
	wantAllowed(t, err, false)
	want(localkms.Decision{Principal: bob, Action: "kms:ListKeys", Resource: "*", Reason: "because no identity-based policy allows the kms:ListKeys action"})
	_, err = stsOf(h, permanent(aliceKey)).AssumeRole(ctx, &sts.AssumeRoleInput{RoleArn: aws.String(brokerRole), RoleSessionName: aws.String("ok"), ExternalId: aws.String(secret)})
	wantCode(t, err, "AccessDenied")
	want(localkms.Decision{Principal: alice, Action: "sts:AssumeRole", Resource: brokerRole, Reason: "because no role trust policy allows the sts:AssumeRole action", Nearest: []string{
		"identity policy keys, statement 2: allows it, which is not enough",
		"trust policy, statement 1: condition StringEquals sts:ExternalId: no value of the request meets it",
		"identity policy keys, statement 1: is about other actions",
	}})

	text, err := json.Marshal(log.all)
	if err != nil {
		t.Fatal(err)
	}
	for _, value := range []string{secret, "another", "prod"} {
		if strings.Contains(string(text), value) {
			t.Errorf("a decision repeats %q", value)
		}
	}
	refused := slices.DeleteFunc(slices.Clone(log.all), func(d localkms.Decision) bool { return d.Allowed })
	if diff := cmp.Diff(refused, h.Denials()); diff != "" {
		t.Errorf("denials (-want +got):\n%s", diff)
	}
}

// The newest refusals are kept, whoever asks for them, and shown to the machine.
func TestDenials(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	key := newKey(t, h, "")
	show := func(method, path string) (int, string) {
		rec := httptest.NewRecorder()
		h.AdminHandler().ServeHTTP(rec, httptest.NewRequest(method, path, nil))
		return rec.Code, strings.TrimSpace(rec.Body.String())
	}
	if code, body := show(http.MethodGet, "/explain"); code != http.StatusOK || body != "[]" {
		t.Errorf("of nothing: %d %s", code, body)
	}
	for range 130 {
		_ = encryptWith(t, nil)(as(h, stranger), key)
	}
	_ = encryptWith(t, nil)(as(h, worker), key)
	_ = encryptWith(t, nil)(as(h, admin), key)
	code, body := show(http.MethodGet, "/explain")
	var shown []localkms.Decision
	if err := json.Unmarshal([]byte(body), &shown); err != nil || code != http.StatusOK {
		t.Fatalf("%d %s: %v", code, body, err)
	}
	if n := len(shown); n != 128 {
		t.Errorf("shows %d", n)
	}
	if first, last := shown[0].Principal, shown[len(shown)-1].Principal; first != stranger || last != worker {
		t.Errorf("from %s to %s", first, last)
	}
	if text := shown[0].String(); !strings.Contains(text, "DENIED "+stranger+" kms:Encrypt on "+key+": because no resource-based policy allows") ||
		!strings.Contains(text, "\n  key policy, statement 1 (Enable IAM User Permissions): names other principals") {
		t.Errorf("in text: %s", text)
	}
	if code, _ := show(http.MethodPut, "/explain"); code != http.StatusMethodNotAllowed {
		t.Errorf("set: %d", code)
	}
	if code, body := show(http.MethodGet, "/faults"); code != http.StatusOK || body != "{}" {
		t.Errorf("beside it: %d %s", code, body)
	}
}
