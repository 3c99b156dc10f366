package localkms_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	ststypes "github.com/aws/aws-sdk-go-v2/service/sts/types"

	"github.com/keybroker/keybroker/internal/localkms"
)

// The cast of testdata/accounts.json.
const (
	alice        = "arn:aws:iam::111122223333:user/team/alice"
	bob          = "arn:aws:iam::111122223333:user/bob"
	homeRole     = "arn:aws:iam::111122223333:role/home"
	brokerRole   = "arn:aws:iam::444455556666:role/service/broker"
	aliceKey     = "AKIAALICE"
	bobKey       = "AKIABOB"
	rootKey      = "AKIAROOT"
	ourExternal  = "tenant-4711"
	sessionOfBob = "arn:aws:sts::111122223333:assumed-role/home/bob"
)

func accountsOf(t testing.TB) []localkms.Account {
	t.Helper()
	text, err := os.ReadFile("testdata/accounts.json")
	if err != nil {
		t.Fatal(err)
	}
	accounts, err := localkms.ReadAccounts(text)
	if err != nil {
		t.Fatal(err)
	}
	return accounts
}

// permanent is an access key of testdata/accounts.json: the secret is the name.
func permanent(id string) aws.CredentialsProvider {
	return credentials.NewStaticCredentialsProvider(id, strings.ToLower(strings.TrimPrefix(id, "AKIA")), "")
}

func temporaryOf(c *ststypes.Credentials) aws.CredentialsProvider {
	return credentials.NewStaticCredentialsProvider(*c.AccessKeyId, *c.SecretAccessKey, *c.SessionToken)
}

func kmsOf(h http.Handler, c aws.CredentialsProvider) *kms.Client {
	return kms.New(kms.Options{
		Region: region, Credentials: c, RetryMaxAttempts: 1, HTTPClient: &http.Client{Transport: localkms.RoundTripper(h)},
	})
}

func stsOf(h http.Handler, c aws.CredentialsProvider) *sts.Client {
	return sts.New(sts.Options{
		Region: region, Credentials: c, RetryMaxAttempts: 1, HTTPClient: &http.Client{Transport: localkms.RoundTripper(h)},
	})
}

func assume(t testing.TB, c *sts.Client, role, name string, change ...func(*sts.AssumeRoleInput)) *sts.AssumeRoleOutput {
	t.Helper()
	in := &sts.AssumeRoleInput{RoleArn: &role, RoleSessionName: &name}
	for _, f := range change {
		f(in)
	}
	return must[*sts.AssumeRoleOutput](t)(c.AssumeRole(t.Context(), in))
}

func withExternalID(in *sts.AssumeRoleInput) { in.ExternalId = aws.String(ourExternal) }

// AWS STS API Reference, GetCallerIdentity.
func TestGetCallerIdentity(t *testing.T) {
	h := newKMS(t, localkms.Config{Accounts: accountsOf(t)})
	session := temporaryOf(assume(t, stsOf(h, permanent(bobKey)), homeRole, "bob").Credentials)
	for want, c := range map[string]aws.CredentialsProvider{
		"111122223333 arn:aws:iam::111122223333:root 111122223333": permanent(rootKey),
		"111122223333 " + alice + " AIDA":                          permanent(aliceKey),
		"111122223333 " + sessionOfBob + " AROA:bob":               session,
	} {
		out := must[*sts.GetCallerIdentityOutput](t)(stsOf(h, c).GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{}))
		id := *out.UserId
		if strings.HasPrefix(id, "A") { // 21 characters, with what follows a role's behind a colon
			unique, session, _ := strings.Cut(id, ":")
			if len(unique) != 21 {
				t.Errorf("user id %s", id)
			}
			id = strings.TrimSuffix(unique[:4]+":"+session, ":")
		}
		if got := *out.Account + " " + *out.Arn + " " + id; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// AWS STS API Reference, AssumeRole; IAM User Guide, "Access to AWS accounts owned
// by third parties" (ExternalId), "Roles terms and concepts" (Role chaining).
func TestAssumeRole(t *testing.T) {
	clock := newClock()
	h := newKMS(t, localkms.Config{Accounts: accountsOf(t), Now: clock.Now})
	out := assume(t, stsOf(h, permanent(bobKey)), homeRole, "bob", func(in *sts.AssumeRoleInput) { in.DurationSeconds = aws.Int32(7200) })
	if c := out.Credentials; !strings.HasPrefix(*c.AccessKeyId, "ASIA") || len(*c.AccessKeyId) != 20 || len(*c.SecretAccessKey) != 40 ||
		!c.Expiration.Equal(clock.Now().Add(2*time.Hour).Truncate(time.Second)) {
		t.Errorf("credentials %s, %d characters of secret, until %s", *c.AccessKeyId, len(*c.SecretAccessKey), c.Expiration)
	}
	if *out.AssumedRoleUser.Arn != sessionOfBob || !strings.HasSuffix(*out.AssumedRoleUser.AssumedRoleId, ":bob") ||
		int(*out.SessionTokenSize) != len(*out.Credentials.SessionToken) {
		t.Errorf("assumed %s, %s, token of %d bytes", *out.AssumedRoleUser.Arn, *out.AssumedRoleUser.AssumedRoleId, *out.SessionTokenSize)
	}
	session := temporaryOf(out.Credentials)
	chained := assume(t, stsOf(h, session), brokerRole, "chained", withExternalID)
	if got, want := *chained.AssumedRoleUser.Arn, "arn:aws:sts::444455556666:assumed-role/broker/chained"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}

	denied := func(who, role string) refusal {
		return refusal{"AccessDenied", "User: " + who + " is not authorized to perform: sts:AssumeRole on resource: " + role}
	}
	invalid := func(message string) refusal {
		return refusal{"ValidationError", "1 validation error detected: Value " + message}
	}
	for name, tc := range map[string]struct {
		as         aws.CredentialsProvider
		role, name string
		change     func(*sts.AssumeRoleInput)
		want       refusal
	}{
		"another's external id": {permanent(aliceKey), brokerRole, "ok", func(in *sts.AssumeRoleInput) { in.ExternalId = aws.String("tenant-1") }, denied(alice, brokerRole)},
		"no external id":        {permanent(aliceKey), brokerRole, "ok", func(*sts.AssumeRoleInput) {}, denied(alice, brokerRole)},
		"no identity policy":    {permanent(bobKey), brokerRole, "ok", withExternalID, denied(bob, brokerRole)},
		"not trusted":           {permanent(aliceKey), homeRole, "ok", func(*sts.AssumeRoleInput) {}, denied(alice, homeRole)},
		"no such role":          {permanent(aliceKey), homeRole + "less", "ok", func(*sts.AssumeRoleInput) {}, denied(alice, homeRole+"less")},
		"root":                  {permanent(rootKey), homeRole, "ok", func(*sts.AssumeRoleInput) {}, refusal{"AccessDenied", "Roles may not be assumed by root accounts."}},
		"longer than the role lets": {permanent(bobKey), homeRole, "ok", func(in *sts.AssumeRoleInput) { in.DurationSeconds = aws.Int32(7201) },
			refusal{"ValidationError", "The requested DurationSeconds exceeds the MaxSessionDuration set for this role."}},
		"longer than a chain lets": {session, brokerRole, "ok", func(in *sts.AssumeRoleInput) {
			withExternalID(in)
			in.DurationSeconds = aws.Int32(3601)
		}, refusal{"ValidationError", "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining."}},
		"too short": {permanent(bobKey), homeRole, "ok", func(in *sts.AssumeRoleInput) { in.DurationSeconds = aws.Int32(899) },
			invalid("'899' at 'durationSeconds' failed to satisfy constraint: Member must have value greater than or equal to 900")},
		"too long": {permanent(bobKey), homeRole, "ok", func(in *sts.AssumeRoleInput) { in.DurationSeconds = aws.Int32(43201) },
			invalid("'43201' at 'durationSeconds' failed to satisfy constraint: Member must have value less than or equal to 43200")},
		"session name": {permanent(bobKey), homeRole, "a b", func(*sts.AssumeRoleInput) {},
			invalid(`'a b' at 'roleSessionName' failed to satisfy constraint: Member must satisfy regular expression pattern: [\w+=,.@-]*`)},
		"short session name": {permanent(bobKey), homeRole, "a", func(*sts.AssumeRoleInput) {},
			invalid("'a' at 'roleSessionName' failed to satisfy constraint: Member must have length greater than or equal to 2")},
		"external id": {permanent(bobKey), homeRole, "ok", func(in *sts.AssumeRoleInput) { in.ExternalId = aws.String("a b") },
			invalid(`'a b' at 'externalId' failed to satisfy constraint: Member must satisfy regular expression pattern: [\w+=,.@:\/-]*`)},
		"no role":          {permanent(bobKey), "arn:aws:iam::111122223333:user/bob", "ok", func(*sts.AssumeRoleInput) {}, refusal{"ValidationError", "arn:aws:iam::111122223333:user/bob is invalid"}},
		"bad policy":       {permanent(bobKey), homeRole, "ok", func(in *sts.AssumeRoleInput) { in.Policy = aws.String("{") }, refusal{"MalformedPolicyDocument", "Policy contains invalid JSON: unexpected EOF"}},
		"managed policies": {permanent(bobKey), homeRole, "ok", func(in *sts.AssumeRoleInput) { in.PolicyArns = []ststypes.PolicyDescriptorType{{Arn: aws.String("x")}} }, refusal{"UnsupportedOperation", "localkms does not support the parameter PolicyArns."}},
		"session tags": {permanent(bobKey), homeRole, "ok", func(in *sts.AssumeRoleInput) {
			in.Tags = []ststypes.Tag{{Key: aws.String("a"), Value: aws.String("b")}}
		}, refusal{"UnsupportedOperation", "localkms does not support the parameter Tags."}},
	} {
		t.Run(name, func(t *testing.T) {
			in := &sts.AssumeRoleInput{RoleArn: &tc.role, RoleSessionName: &tc.name}
			tc.change(in)
			_, err := stsOf(h, tc.as).AssumeRole(t.Context(), in)
			wantRefusal(t, err, tc.want.code, tc.want.message)
		})
	}
}

// Codes and statuses: AWS STS API Reference, Common Errors, and answers of AWS
// published in many issues (cognitect-labs/aws-api 27 for one).
func TestSTSErrors(t *testing.T) {
	clock := newClock()
	h := newKMS(t, localkms.Config{Accounts: accountsOf(t), Now: clock.Now})
	ctx := t.Context()
	wrong := credentials.NewStaticCredentialsProvider(bobKey, "wrong", "")
	nobody := credentials.NewStaticCredentialsProvider("AKIANOBODY", "x", "")
	_, err := stsOf(h, wrong).GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
	wantRefusal(t, err, "SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided. "+
		"Check your AWS Secret Access Key and signing method. Consult the service documentation for details.")
	_, err = stsOf(h, nobody).GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
	wantRefusal(t, err, "InvalidClientTokenId", "The security token included in the request is invalid.")
	_, err = stsOf(h, permanent(bobKey)).GetSessionToken(ctx, &sts.GetSessionTokenInput{})
	wantRefusal(t, err, "UnsupportedOperation", "localkms does not support the action GetSessionToken.")

	session := temporaryOf(assume(t, stsOf(h, permanent(bobKey)), homeRole, "bob").Credentials)
	clock.advance(time.Hour)
	_, err = stsOf(h, session).GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
	wantRefusal(t, err, "ExpiredToken", "The security token included in the request is expired")
	_, err = kmsOf(h, session).ListKeys(ctx, &kms.ListKeysInput{})
	wantRefusal(t, err, "ExpiredTokenException", "The security token included in the request is expired")

	for name, tc := range map[string]struct {
		form   string
		status int
		want   string
	}{
		"unsigned": {"Action=GetCallerIdentity&Version=2011-06-15", 403, "<Code>MissingAuthenticationToken</Code><Message>Request is missing Authentication Token</Message>"},
		"no form":  {"%zz", 400, "<Code>MalformedInput</Code>"},
	} {
		req := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(tc.form))
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, req)
		if body := rec.Body.String(); rec.Code != tc.status || !strings.Contains(body, tc.want) ||
			!strings.HasPrefix(body, `<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type>`) {
			t.Errorf("%s: %d %s", name, rec.Code, body)
		}
	}
}

// A token is worth nothing with another key, altered, or at another KMS; what is
// worth something is so after a restart too.
func TestSessionTokens(t *testing.T) {
	dir, ctx := t.TempDir(), t.Context()
	open := func(accounts []localkms.Account) *localkms.KMS {
		k, err := localkms.New(localkms.Config{Dir: dir, Accounts: accounts, Now: newClock().Now, ClockSkew: -1})
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	h := open(accountsOf(t))
	first := assume(t, stsOf(h, permanent(bobKey)), homeRole, "bob").Credentials
	second := assume(t, stsOf(h, permanent(bobKey)), homeRole, "bob").Credentials
	identify := func(h http.Handler, id, secret, token string) error {
		_, err := stsOf(h, credentials.NewStaticCredentialsProvider(id, secret, token)).GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
		return err
	}
	wantCode(t, identify(h, *first.AccessKeyId, *first.SecretAccessKey, *first.SessionToken), "")
	wantCode(t, identify(h, *first.AccessKeyId, *first.SecretAccessKey, *second.SessionToken), "InvalidClientTokenId")
	wantCode(t, identify(h, *first.AccessKeyId, *second.SecretAccessKey, *first.SessionToken), "SignatureDoesNotMatch")
	wantCode(t, identify(h, *first.AccessKeyId, *first.SecretAccessKey, ""), "InvalidClientTokenId")
	wantCode(t, identify(h, *first.AccessKeyId, *first.SecretAccessKey, "A"+(*first.SessionToken)[1:]), "InvalidClientTokenId")
	wantCode(t, identify(h, bobKey, "bob", *first.SessionToken), "InvalidClientTokenId")
	other := newKMS(t, localkms.Config{Accounts: accountsOf(t)})
	wantCode(t, identify(other, *first.AccessKeyId, *first.SecretAccessKey, *first.SessionToken), "InvalidClientTokenId")

	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	h = open(accountsOf(t))
	wantCode(t, identify(h, *first.AccessKeyId, *first.SecretAccessKey, *first.SessionToken), "")
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	without := accountsOf(t)
	without[0].Roles = nil
	h = open(without)
	defer h.Close()
	wantCode(t, identify(h, *first.AccessKeyId, *first.SecretAccessKey, *first.SessionToken), "InvalidClientTokenId")
}

// What names a role means its sessions: key policies, grantees, retirers, and
// kms:GranteePrincipal. What names a session means that one alone.
func TestSessionsActInTheirRole(t *testing.T) {
	accounts := accountsOf(t)
	accounts[1].Roles[0].Policies = nil // only what others give it
	h := newKMS(t, localkms.Config{Accounts: accounts, Principals: cast()})
	ctx := t.Context()
	one := kmsOf(h, temporaryOf(assume(t, stsOf(h, permanent(aliceKey)), brokerRole, "one", withExternalID).Credentials))
	two := kmsOf(h, temporaryOf(assume(t, stsOf(h, permanent(aliceKey)), brokerRole, "two", withExternalID).Credentials))
	const sessionOne = "arn:aws:sts::444455556666:assumed-role/broker/one"
	key := newKey(t, h, `{"Version":"2012-10-17","Statement":[
		{"Effect":"Allow","Principal":{"AWS":"111122223333"},"Action":"kms:*","Resource":"*","Condition":{"StringEqualsIfExists":{"kms:GranteePrincipal":["`+brokerRole+`","`+sessionOne+`"]}}}]}`)
	encrypt := encryptWith(t, nil)
	wantAllowed(t, encrypt(one, key), false)

	in := decryptGrant(key, brokerRole)
	in.Operations = []types.GrantOperation{"Encrypt"}
	toRole := must[*kms.CreateGrantOutput](t)(as(h, admin).CreateGrant(ctx, in))
	wantAllowed(t, encrypt(one, key), true)
	wantAllowed(t, encrypt(two, key), true)
	_, err := one.RetireGrant(ctx, &kms.RetireGrantInput{KeyId: &key, GrantId: toRole.GrantId})
	wantAllowed(t, err, false)
	must[*kms.RevokeGrantOutput](t)(as(h, admin).RevokeGrant(ctx, &kms.RevokeGrantInput{KeyId: &key, GrantId: toRole.GrantId}))

	in.GranteePrincipal, in.RetiringPrincipal = aws.String(sessionOne), aws.String(brokerRole)
	toSession := must[*kms.CreateGrantOutput](t)(as(h, admin).CreateGrant(ctx, in))
	wantAllowed(t, encrypt(one, key), true)
	wantAllowed(t, encrypt(two, key), false)
	_, err = two.RetireGrant(ctx, &kms.RetireGrantInput{KeyId: &key, GrantId: toSession.GrantId})
	wantAllowed(t, err, true)
	wantAllowed(t, encrypt(one, key), false)

	in.GranteePrincipal = aws.String(worker)
	_, err = as(h, admin).CreateGrant(ctx, in)
	wantAllowed(t, err, false)
}
