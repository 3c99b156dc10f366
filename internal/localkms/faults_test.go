package localkms_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/google/go-cmp/cmp"

	"github.com/keybroker/keybroker/internal/localkms"
)

// witness keeps what a KMS observes.
type witness struct {
	mu    sync.Mutex
	calls []localkms.Call
}

func (w *witness) observe(c localkms.Call) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls = append(w.calls, c)
}

// injected returns how many calls each fault befell, and forgets them.
func (w *witness) injected() map[string]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	found := map[string]int{}
	for _, c := range w.calls {
		if c.Injected != "" {
			found[c.Injected]++
		}
	}
	w.calls = nil
	return found
}

func setFaults(t testing.TB, h *localkms.KMS, f localkms.Faults) {
	t.Helper()
	if err := h.SetFaults(f); err != nil {
		t.Fatal(err)
	}
}

// AWS KMS Developer Guide, "Request quotas": symmetric cryptographic operations
// share one per account and region, charged to the caller; "Throttling AWS KMS
// requests" has the text.
func TestQuota(t *testing.T) {
	clock, seen := newClock(), &witness{}
	h := newKMS(t, localkms.Config{Now: clock.Now, Observe: seen.observe})
	key := newKey(t, h, `{"Statement":{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*"}}`)
	setFaults(t, h, localkms.Faults{RequestsPerSecond: 10})
	encrypt := encryptWith(t, nil)
	passed := func(caller string, calls int) int {
		n := 0
		for range calls {
			switch err := encrypt(as(h, caller), key); {
			case err == nil:
				n++
			default:
				wantRefusal(t, err, "ThrottlingException", "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls.")
			}
		}
		return n
	}
	if n := passed(admin, 15); n != 10 {
		t.Errorf("%d of 15 calls passed, want a second's worth", n)
	}
	if n := passed(colleague, 1); n != 0 {
		t.Error("another of the account has a quota of its own")
	}
	if n := passed(worker, 15); n != 10 {
		t.Errorf("%d calls of another account passed, want 10", n)
	}
	must[*kms.DescribeKeyOutput](t)(as(h, admin).DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: &key}))
	if _, err := in(h, admin, "eu-west-1").Encrypt(t.Context(), &kms.EncryptInput{KeyId: &key, Plaintext: []byte("x")}); refusalOf(err).code != "NotFoundException" {
		t.Errorf("in another region: %v", err)
	}
	clock.advance(300 * time.Millisecond)
	if n := passed(admin, 5); n != 3 {
		t.Errorf("%d calls passed after 0.3 s, want 3", n)
	}
	clock.advance(time.Hour)
	if n := passed(admin, 20); n != 10 {
		t.Errorf("%d calls passed after an hour, want 10", n)
	}
	if diff := cmp.Diff(map[string]int{"quota": 5 + 1 + 5 + 2 + 10}, seen.injected()); diff != "" {
		t.Error(diff)
	}
	setFaults(t, h, localkms.Faults{})
	if n := passed(admin, 20); n != 20 {
		t.Errorf("without faults %d of 20 calls passed", n)
	}
}

// Latency holds a request up, by its own operation's rule before the general one,
// and no longer than its caller waits.
func TestLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		seen := &witness{}
		h := newKMS(t, localkms.Config{Now: time.Now, Observe: seen.observe})
		key := newKey(t, h, "")
		setFaults(t, h, localkms.Faults{Latency: map[string]time.Duration{"Encrypt": 3 * time.Second, "*": time.Second, "ListGrants": 0}})
		took := func(call func()) time.Duration {
			start := time.Now()
			call()
			return time.Since(start)
		}
		c := as(h, admin)
		for name, tc := range map[string]struct {
			call func()
			want time.Duration
		}{
			"named": {func() { wantCode(t, encryptWith(t, nil)(c, key), "") }, 3 * time.Second},
			"general": {func() {
				must[*kms.DescribeKeyOutput](t)(c.DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: &key}))
			}, time.Second},
			"spared": {func() { must[*kms.ListGrantsOutput](t)(c.ListGrants(t.Context(), &kms.ListGrantsInput{KeyId: &key})) }, 0},
			"impatient": {func() {
				ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
				defer cancel()
				if _, err := c.DisableKey(ctx, &kms.DisableKeyInput{KeyId: &key}); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("impatient: %v", err)
				}
			}, 500 * time.Millisecond},
		} {
			if got := took(tc.call); got != tc.want {
				t.Errorf("%s took %s, want %s", name, got, tc.want)
			}
		}
		if diff := cmp.Diff(map[string]int{"latency": 3}, seen.injected()); diff != "" {
			t.Error(diff)
		}
		wantCode(t, encryptWith(t, nil)(c, key), "") // nothing was disabled
	})
}

func TestConfiguredSleep(t *testing.T) {
	var slept time.Duration
	h := newKMS(t, localkms.Config{
		Faults: localkms.Faults{Latency: map[string]time.Duration{"*": time.Minute}},
		Sleep: func(_ context.Context, d time.Duration) error {
			slept += d
			return nil
		},
	})
	newKey(t, h, "")
	if slept != time.Minute {
		t.Errorf("slept %s", slept)
	}
}

// Statuses: AWS KMS API Reference, Errors of Encrypt.
func TestInjectedErrors(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	key := newKey(t, h, "")
	body := fmt.Sprintf(`{"KeyId":%q,"Plaintext":"eA=="}`, key)
	for code, status := range map[string]int{
		"KMSInternalException": 500, "KeyUnavailableException": 500, "DependencyTimeoutException": 503, "ThrottlingException": 400,
		"AccessDeniedException": 400, "DisabledException": 400, "KMSInvalidStateException": 400, "NotFoundException": 400, "LimitExceededException": 400,
	} {
		setFaults(t, h, localkms.Faults{Errors: []localkms.ErrorFault{{Operation: "Encrypt", Code: code, Rate: 1}}})
		if a := post(t, h, "TrentService.Encrypt", admin, body); a.status != status || a.code() != code || a.fields["message"] == "" {
			t.Errorf("%s: %d %s", code, a.status, a.body)
		}
		if a := post(t, h, "TrentService.Encrypt", "", body); a.code() != "MissingAuthenticationTokenException" {
			t.Errorf("before authentication: %s", a.body)
		}
		if a := post(t, h, "TrentService.DescribeKey", admin, body); a.status != 200 {
			t.Errorf("another operation: %s", a.body)
		}
	}
	setFaults(t, h, localkms.Faults{Errors: []localkms.ErrorFault{{Operation: "*", Code: "AccessDeniedException", Rate: 1}}})
	wantRefusal(t, encryptWith(t, nil)(as(h, admin), key), "AccessDeniedException",
		"User: "+admin+" is not authorized to perform: kms:Encrypt on resource: * because no resource-based policy allows the kms:Encrypt action")
}

// The n-th call of an operation has the same fate under the same seed, whatever
// else is called, and about as many as asked for are struck.
func TestChanceIsRepeatable(t *testing.T) {
	seen := &witness{}
	h := newKMS(t, localkms.Config{Observe: seen.observe})
	key, c := newKey(t, h, ""), as(h, admin)
	faults := func(seed uint64) localkms.Faults {
		return localkms.Faults{Seed: seed, Errors: []localkms.ErrorFault{
			{Operation: "Encrypt", Code: "KMSInternalException", Rate: 0.2}, {Operation: "Encrypt", Code: "ThrottlingException", Rate: 0.2},
		}}
	}
	const calls = 2000
	run := func(seed uint64, meanwhile func()) string {
		setFaults(t, h, faults(seed))
		var fate strings.Builder
		for range calls {
			meanwhile()
			fate.WriteString(refusalOf(encryptWith(t, nil)(c, key)).code + ",")
		}
		return fate.String()
	}
	first := run(1, func() {})
	struck := seen.injected()
	for code, want := range map[string]float64{"KMSInternalException": 0.2 * calls, "ThrottlingException": 0.8 * 0.2 * calls} {
		if got := float64(struck[code]); math.Abs(got-want) > 5*math.Sqrt(want) {
			t.Errorf("%s struck %v times, want about %v", code, got, want)
		}
	}
	again := run(1, func() {
		must[*kms.DescribeKeyOutput](t)(c.DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: &key}))
	})
	if first != again {
		t.Error("the same seed gave another fate")
	}
	if first == run(2, func() {}) {
		t.Error("another seed gave the same fate")
	}
}

// An answer is lost after the work was done: in process as over a socket the
// caller sees a closed connection, and the state has changed.
func TestLostAnswers(t *testing.T) {
	for name, client := range map[string]func(t *testing.T, h http.Handler) *kms.Client{
		"in process": func(_ *testing.T, h http.Handler) *kms.Client { return as(h, admin) },
		"by socket": func(t *testing.T, h http.Handler) *kms.Client {
			server := httptest.NewServer(h)
			t.Cleanup(server.Close)
			return as(h, admin, func(o *kms.Options) { o.BaseEndpoint, o.HTTPClient = &server.URL, server.Client() })
		},
	} {
		t.Run(name, func(t *testing.T) {
			seen := &witness{}
			h := newKMS(t, localkms.Config{Observe: seen.observe})
			key, c, ctx := newKey(t, h, ""), client(t, h), t.Context()
			setFaults(t, h, localkms.Faults{LostAnswers: map[string]float64{"CreateGrant": 1, "Encrypt": 1}})
			in := decryptGrant(key, worker)
			in.Name = aws.String("n")
			for range 2 {
				if _, err := c.CreateGrant(ctx, in); !errors.Is(err, io.EOF) {
					t.Errorf("got %v, want a closed connection", err)
				}
			}
			if err := encryptWith(t, nil)(c, "alias/none"); !errors.Is(err, io.EOF) {
				t.Errorf("a refusal: got %v, want a closed connection", err)
			}
			if n := len(grantsOf(t, h, admin, key)); n != 1 {
				t.Errorf("%d grants, want 1", n)
			}
			if diff := cmp.Diff(map[string]int{"lost-answer": 3}, seen.injected()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestKeyIsDisabledAtACall(t *testing.T) {
	seen := &witness{}
	h := newKMS(t, localkms.Config{Observe: seen.observe})
	key, other := newKey(t, h, ""), newKey(t, h, "")
	c, ctx := as(h, admin), t.Context()
	blob := must[*kms.EncryptOutput](t)(c.Encrypt(ctx, &kms.EncryptInput{KeyId: &key, Plaintext: []byte("x")})).CiphertextBlob
	move := func() string {
		_, err := c.ReEncrypt(ctx, &kms.ReEncryptInput{CiphertextBlob: blob, SourceKeyId: &key, DestinationKeyId: &other})
		return refusalOf(err).message
	}
	for name, tc := range map[string]struct{ key, disabled string }{"named by the call": {"", other}, "source": {key, key}} {
		t.Run(name, func(t *testing.T) {
			setFaults(t, h, localkms.Faults{DisableKeys: []localkms.DisableFault{{Operation: "ReEncrypt", Call: 3, Key: tc.key}}})
			for call := 1; call <= 4; call++ {
				want := ""
				if call >= 3 {
					want = tc.disabled + " is disabled."
				}
				if got := move(); got != want {
					t.Errorf("call %d: %q, want %q", call, got, want)
				}
			}
			must[*kms.EnableKeyOutput](t)(c.EnableKey(ctx, &kms.EnableKeyInput{KeyId: &tc.disabled}))
			if got := move(); got != "" {
				t.Errorf("after EnableKey: %q", got)
			}
			if diff := cmp.Diff(map[string]int{"disabled-key": 1}, seen.injected()); diff != "" {
				t.Error(diff)
			}
		})
	}
	setFaults(t, h, localkms.Faults{DisableKeys: []localkms.DisableFault{{Operation: "Decrypt", Call: 1}}})
	must[*kms.DecryptOutput](t)(c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob})) // names no key
}

// AWS KMS Developer Guide, "Grants in AWS KMS", Eventual consistency.
func TestGrantDelayAtRunTime(t *testing.T) {
	clock, seen := newClock(), &witness{}
	h := newKMS(t, localkms.Config{Now: clock.Now, Observe: seen.observe, GrantDelay: time.Second})
	key, ctx := newKey(t, h, ""), t.Context()
	encryptGrant := func(to string) *kms.CreateGrantOutput {
		in := decryptGrant(key, to)
		in.Operations = []types.GrantOperation{types.GrantOperationEncrypt}
		return must[*kms.CreateGrantOutput](t)(as(h, admin).CreateGrant(ctx, in))
	}
	encryptGrant(worker)
	clock.advance(time.Second)
	setFaults(t, h, localkms.Faults{GrantDelay: time.Minute})
	wantCode(t, encryptWith(t, nil)(as(h, worker), key), "") // it was there before
	late := encryptGrant(stranger)
	wantCode(t, encryptWith(t, nil)(as(h, stranger), key), "AccessDeniedException")
	clock.advance(time.Second)
	wantCode(t, encryptWith(t, nil)(as(h, stranger), key), "AccessDeniedException")
	wantCode(t, encryptWith(t, nil)(as(h, registrar), key), "AccessDeniedException")
	must[*kms.EncryptOutput](t)(as(h, stranger).Encrypt(ctx, &kms.EncryptInput{KeyId: &key, Plaintext: []byte("x"), GrantTokens: []string{*late.GrantToken}}))
	if n := len(grantsOf(t, h, admin, key)); n != 1 {
		t.Errorf("%d grants are listed, want 1", n)
	}
	// The first refusal was Config.GrantDelay's doing, the third nobody's.
	if diff := cmp.Diff(map[string]int{"hidden-grant": 1}, seen.injected()); diff != "" {
		t.Error(diff)
	}
	clock.advance(time.Minute - time.Second)
	wantCode(t, encryptWith(t, nil)(as(h, stranger), key), "")
}

// A grant that has ended gives what it gave, and is listed where it was, for a
// while. To those who change things it is gone at once.
func TestRetireDelay(t *testing.T) {
	clock, seen := newClock(), &witness{}
	h := newKMS(t, localkms.Config{Now: clock.Now, Observe: seen.observe})
	key, ctx := newKey(t, h, ""), t.Context()
	blob := must[*kms.EncryptOutput](t)(as(h, admin).Encrypt(ctx, &kms.EncryptInput{KeyId: &key, Plaintext: []byte("x"), EncryptionContext: pairs("a", "1")})).CiphertextBlob
	var ids []string
	for _, name := range []string{"first", "second", "third"} {
		in := decryptGrant(key, worker)
		in.Name, in.RetiringPrincipal = &name, aws.String(registrar)
		in.Constraints = &types.GrantConstraints{EncryptionContextSubset: pairs("a", "1")}
		ids = append(ids, *must[*kms.CreateGrantOutput](t)(as(h, admin).CreateGrant(ctx, in)).GrantId)
	}
	decrypt := func(caller string) string {
		_, err := as(h, caller).Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob, EncryptionContext: pairs("a", "1")})
		return refusalOf(err).code
	}
	end := func(id string, revoke bool) error {
		if revoke {
			_, err := as(h, admin).RevokeGrant(ctx, &kms.RevokeGrantInput{KeyId: &key, GrantId: &id})
			return err
		}
		_, err := as(h, registrar).RetireGrant(ctx, &kms.RetireGrantInput{KeyId: &key, GrantId: &id})
		return err
	}
	listed := func(want ...string) {
		t.Helper()
		var found []string
		for pages := kms.NewListGrantsPaginator(as(h, admin), &kms.ListGrantsInput{KeyId: &key, Limit: aws.Int32(1)}); pages.HasMorePages(); {
			for _, g := range must[*kms.ListGrantsOutput](t)(pages.NextPage(ctx)).Grants {
				found = append(found, *g.GrantId)
			}
		}
		var toRetire []string
		for _, g := range retirable(t, h, registrar, registrar) {
			toRetire = append(toRetire, *g.GrantId)
		}
		if diff := cmp.Diff(want, found) + cmp.Diff(want, toRetire); diff != "" {
			t.Errorf("listed (-want +got):\n%s", diff)
		}
		one := must[*kms.ListGrantsOutput](t)(as(h, admin).ListGrants(ctx, &kms.ListGrantsInput{KeyId: &key, GrantId: &ids[1]})).Grants
		if len(one) == 1 != strings.Contains(strings.Join(want, " "), ids[1]) {
			t.Errorf("by its id %d grants are listed", len(one))
		}
	}
	setFaults(t, h, localkms.Faults{RetireDelay: time.Minute})
	wantCode(t, end(ids[1], true), "")
	wantCode(t, end(ids[0], false), "")
	wantCode(t, end(ids[0], false), "NotFoundException")
	listed(ids...)
	if got := decrypt(worker); got != "" || len(seen.injected()) != 0 {
		t.Errorf("by the grant that lives: %q", got)
	}
	clock.advance(30 * time.Second)
	wantCode(t, end(ids[2], false), "")
	clock.advance(30 * time.Second)
	listed(ids[2])
	if got := decrypt(worker) + decrypt(stranger); got != "AccessDeniedException" {
		t.Errorf("by the grant that ended, then without any: %q", got)
	}
	if diff := cmp.Diff(map[string]int{"retired-grant": 1}, seen.injected()); diff != "" {
		t.Error(diff)
	}
	// A grant by the same name is another.
	in := decryptGrant(key, worker)
	in.Name, in.RetiringPrincipal = aws.String("third"), aws.String(registrar)
	in.Constraints = &types.GrantConstraints{EncryptionContextSubset: pairs("a", "1")}
	again := *must[*kms.CreateGrantOutput](t)(as(h, admin).CreateGrant(ctx, in)).GrantId
	listed(ids[2], again)
	wantCode(t, end(again, true), "")
	setFaults(t, h, localkms.Faults{})
	listed()
	if got := decrypt(worker); got != "AccessDeniedException" {
		t.Errorf("after the end of the faults: %q", got)
	}
}

func TestFaultsAreChecked(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	for want, f := range map[string]localkms.Faults{
		`unknown operation "Fly"`:         {Latency: map[string]time.Duration{"Fly": 1}},
		`unknown operation "*"`:           {DisableKeys: []localkms.DisableFault{{Operation: "*", Call: 1}}},
		"call 0 of Encrypt":               {DisableKeys: []localkms.DisableFault{{Operation: "Encrypt"}}},
		"rate 1.5 of Encrypt":             {LostAnswers: map[string]float64{"Encrypt": 1.5}},
		"rate NaN of *":                   {Errors: []localkms.ErrorFault{{Operation: "*", Code: "ThrottlingException", Rate: math.NaN()}}},
		`error "Oops" is none of`:         {Errors: []localkms.ErrorFault{{Operation: "*", Code: "Oops"}}},
		"requests per second -1":          {RequestsPerSecond: -1},
		"latency -1ns of Encrypt":         {Latency: map[string]time.Duration{"Encrypt": -1}},
		"grant delay -1ns and retire":     {GrantDelay: -1},
		"grant delay 0s and retire delay": {RetireDelay: -1},
	} {
		if err := h.SetFaults(f); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
		if _, err := localkms.New(localkms.Config{Now: newClock().Now, Faults: f}); err == nil {
			t.Errorf("New takes %s", want)
		}
	}
	if diff := cmp.Diff(localkms.Faults{}, h.Faults()); diff != "" {
		t.Error(diff)
	}
}

func TestAdminHandler(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	do := func(method, body string) (int, string) {
		rec := httptest.NewRecorder()
		h.AdminHandler().ServeHTTP(rec, httptest.NewRequest(method, "/", strings.NewReader(body)))
		return rec.Code, strings.TrimSpace(rec.Body.String())
	}
	if status, body := do(http.MethodGet, ""); status != 200 || body != "{}" {
		t.Errorf("at first %d %s", status, body)
	}
	const plan = `{"seed":7,"requests_per_second":100,"latency":{"*":"20ms","ReEncrypt":"1.5s"},` +
		`"errors":[{"operation":"ReEncrypt","code":"KMSInternalException","rate":0.01}],"lost_answers":{"ReEncrypt":0.005},` +
		`"disable_keys":[{"operation":"ReEncrypt","call":1000}],"grant_delay":"5m0s","retire_delay":"1m0s"}`
	if status, body := do(http.MethodPut, plan); status != 200 || body != plan {
		t.Errorf("put %d\n%s\nwant\n%s", status, body, plan)
	}
	if _, body := do(http.MethodGet, ""); body != plan {
		t.Errorf("got\n%s\nwant\n%s", body, plan)
	}
	want := localkms.Faults{
		Seed: 7, RequestsPerSecond: 100, Latency: map[string]time.Duration{"*": 20 * time.Millisecond, "ReEncrypt": 1500 * time.Millisecond},
		Errors:      []localkms.ErrorFault{{Operation: "ReEncrypt", Code: "KMSInternalException", Rate: 0.01}},
		LostAnswers: map[string]float64{"ReEncrypt": 0.005}, DisableKeys: []localkms.DisableFault{{Operation: "ReEncrypt", Call: 1000}},
		GrantDelay: 5 * time.Minute, RetireDelay: time.Minute,
	}
	if diff := cmp.Diff(want, h.Faults()); diff != "" {
		t.Errorf("in force (-want +got):\n%s", diff)
	}
	h.Faults().Latency["*"] = 0 // the caller's to keep
	for body, message := range map[string]string{
		`{"latency":{"*":20}}`:            "",
		`{"latencies":{}}`:                "unknown field",
		`{"latency":{"*":"soon"}}`:        "invalid duration",
		`{"lost_answers":{"Encrypt":2}}`:  "rate 2 of Encrypt",
		`{"seed":1} {"seed":2}`:           "",
		``:                                "",
		`{"requests_per_second":"a lot"}`: "",
	} {
		if status, answer := do(http.MethodPut, body); status != 400 || !strings.Contains(answer, message) {
			t.Errorf("%s: %d %s", body, status, answer)
		}
	}
	if status, _ := do(http.MethodPost, plan); status != 405 {
		t.Errorf("POST: %d", status)
	}
	if diff := cmp.Diff(want, h.Faults()); diff != "" {
		t.Errorf("a refused plan changed the one in force:\n%s", diff)
	}
	if status, body := do(http.MethodPut, "{}"); status != 200 || body != "{}" {
		t.Errorf("the end: %d %s", status, body)
	}
	text, err := json.Marshal(struct{ F localkms.Faults }{want}) // a value, as in a config file
	if err != nil || string(text) != `{"F":`+plan+`}` {
		t.Errorf("%s, %v", text, err)
	}
}
