package localkms_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/keybroker/keybroker/internal/localkms"
)

func decryptGrant(key, grantee string) *kms.CreateGrantInput {
	return &kms.CreateGrantInput{
		KeyId: &key, GranteePrincipal: &grantee, Operations: []types.GrantOperation{types.GrantOperationDecrypt},
	}
}

func grantsOf(t testing.TB, h http.Handler, caller, key string) []types.GrantListEntry {
	t.Helper()
	var all []types.GrantListEntry
	for pages := kms.NewListGrantsPaginator(as(h, caller), &kms.ListGrantsInput{KeyId: &key}); pages.HasMorePages(); {
		all = append(all, must[*kms.ListGrantsOutput](t)(pages.NextPage(t.Context())).Grants...)
	}
	return all
}

// AWS KMS API Reference, GrantConstraints; Developer Guide, "Creating grants",
// Using grant constraints: keys without regard to case, values exactly.
func TestGrantConstraints(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	subset := func(kv ...string) *types.GrantConstraints {
		return &types.GrantConstraints{EncryptionContextSubset: pairs(kv...)}
	}
	equals := func(kv ...string) *types.GrantConstraints {
		return &types.GrantConstraints{EncryptionContextEquals: pairs(kv...)}
	}
	for name, tc := range map[string]struct {
		constraint *types.GrantConstraints
		context    map[string]string
		allowed    bool
	}{
		"no constraint, no context":         {nil, nil, true},
		"no constraint, some context":       {nil, pairs("a", "1"), true},
		"empty constraint":                  {subset(), pairs("a", "1"), true},
		"subset met exactly":                {subset("a", "1"), pairs("a", "1"), true},
		"subset with more":                  {subset("a", "1"), pairs("a", "1", "b", "2"), true},
		"subset of two":                     {subset("a", "1", "b", "2"), pairs("a", "1", "b", "2", "c", "3"), true},
		"subset missing one":                {subset("a", "1", "b", "2"), pairs("a", "1"), false},
		"subset without context":            {subset("a", "1"), nil, false},
		"subset with other value":           {subset("a", "1"), pairs("a", "2"), false},
		"subset, key in other case":         {subset("Domain", "x"), pairs("dOMAIN", "x"), true},
		"subset, value in other case":       {subset("domain", "x"), pairs("domain", "X"), false},
		"equals met":                        {equals("a", "1"), pairs("a", "1"), true},
		"equals with more":                  {equals("a", "1"), pairs("a", "1", "b", "2"), false},
		"equals with less":                  {equals("a", "1", "b", "2"), pairs("a", "1"), false},
		"equals, key in other case":         {equals("A", "1"), pairs("a", "1"), true},
		"equals without context":            {equals("a", "1"), nil, false},
		"equals, two keys fold to one":      {equals("a", "1"), pairs("a", "1", "A", "1"), false},
		"equals, value in other case":       {equals("a", "x"), pairs("a", "X"), false},
		"subset, neither of two keys folds": {subset("a", "1"), pairs("b", "1", "c", "1"), false},
	} {
		t.Run(name, func(t *testing.T) {
			key := newKey(t, h, "")
			blob := must[*kms.EncryptOutput](t)(as(h, admin).Encrypt(t.Context(),
				&kms.EncryptInput{KeyId: &key, Plaintext: []byte("x"), EncryptionContext: tc.context})).CiphertextBlob
			in := decryptGrant(key, worker)
			in.Constraints = tc.constraint
			must[*kms.CreateGrantOutput](t)(as(h, admin).CreateGrant(t.Context(), in))
			_, err := as(h, worker).Decrypt(t.Context(), &kms.DecryptInput{CiphertextBlob: blob, EncryptionContext: tc.context})
			want := "AccessDeniedException"
			if tc.allowed {
				want = ""
			}
			wantCode(t, err, want)
		})
	}
}

// Each grant operation opens exactly one door (AWS KMS Developer Guide, "Grants in
// AWS KMS", Grant operations).
func TestGrantOperations(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	home := newKey(t, h, `{"Statement":{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*"}}`)
	ctx := t.Context()
	w := as(h, worker)
	atHome := must[*kms.EncryptOutput](t)(w.Encrypt(ctx, &kms.EncryptInput{KeyId: &home, Plaintext: []byte("x")})).CiphertextBlob
	doors := map[types.GrantOperation]func(key string, blob []byte) error{
		types.GrantOperationEncrypt: func(key string, _ []byte) error {
			_, err := w.Encrypt(ctx, &kms.EncryptInput{KeyId: &key, Plaintext: []byte("x")})
			return err
		},
		types.GrantOperationDecrypt: func(_ string, blob []byte) error {
			_, err := w.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob})
			return err
		},
		types.GrantOperationGenerateDataKey: func(key string, _ []byte) error {
			_, err := w.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: &key, KeySpec: types.DataKeySpecAes256})
			return err
		},
		types.GrantOperationGenerateDataKeyWithoutPlaintext: func(key string, _ []byte) error {
			_, err := w.GenerateDataKeyWithoutPlaintext(ctx, &kms.GenerateDataKeyWithoutPlaintextInput{KeyId: &key, KeySpec: types.DataKeySpecAes256})
			return err
		},
		types.GrantOperationReEncryptFrom: func(_ string, blob []byte) error {
			_, err := w.ReEncrypt(ctx, &kms.ReEncryptInput{CiphertextBlob: blob, DestinationKeyId: &home})
			return err
		},
		types.GrantOperationReEncryptTo: func(key string, _ []byte) error {
			_, err := w.ReEncrypt(ctx, &kms.ReEncryptInput{CiphertextBlob: atHome, DestinationKeyId: &key})
			return err
		},
		types.GrantOperationDescribeKey: func(key string, _ []byte) error {
			_, err := w.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &key})
			return err
		},
	}
	for granted := range doors {
		t.Run(string(granted), func(t *testing.T) {
			key := newKey(t, h, "")
			blob := must[*kms.EncryptOutput](t)(as(h, admin).Encrypt(ctx, &kms.EncryptInput{KeyId: &key, Plaintext: []byte("x")})).CiphertextBlob
			in := decryptGrant(key, worker)
			in.Operations = []types.GrantOperation{granted}
			must[*kms.CreateGrantOutput](t)(as(h, admin).CreateGrant(ctx, in))
			for operation, open := range doors {
				want := "AccessDeniedException"
				if operation == granted {
					want = ""
				}
				if got := refusalOf(open(key, blob)); got.code != want {
					t.Errorf("%s under a grant of %s: got %q, want %q", operation, granted, got.code, want)
				}
			}
		})
	}
}

// AWS KMS Developer Guide, "Creating grants": constraints do not apply to
// DescribeKey.
func TestConstraintDoesNotApplyToDescribeKey(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	key := newKey(t, h, "")
	in := decryptGrant(key, worker)
	in.Operations = append(in.Operations, types.GrantOperationDescribeKey)
	in.Constraints = &types.GrantConstraints{EncryptionContextEquals: pairs("a", "1")}
	must[*kms.CreateGrantOutput](t)(as(h, admin).CreateGrant(t.Context(), in))
	must[*kms.DescribeKeyOutput](t)(as(h, worker).DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: &key}))
}

// A grant to an account reaches its principals, one to a role only the role.
func TestGrantee(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	for name, tc := range map[string]struct {
		grantee string
		callers map[string]string
	}{
		"role":    {worker, pairs(worker, "", registrar, "AccessDeniedException", brokerRoot, "AccessDeniedException", stranger, "AccessDeniedException")},
		"account": {brokerRoot, pairs(worker, "", registrar, "", brokerRoot, "", stranger, "AccessDeniedException")},
	} {
		t.Run(name, func(t *testing.T) {
			key := newKey(t, h, "")
			blob := must[*kms.EncryptOutput](t)(as(h, admin).Encrypt(t.Context(), &kms.EncryptInput{KeyId: &key, Plaintext: []byte("x")})).CiphertextBlob
			must[*kms.CreateGrantOutput](t)(as(h, admin).CreateGrant(t.Context(), decryptGrant(key, tc.grantee)))
			for caller, want := range tc.callers {
				_, err := as(h, caller).Decrypt(t.Context(), &kms.DecryptInput{CiphertextBlob: blob})
				if got := refusalOf(err).code; got != want {
					t.Errorf("%s: got %q, want %q", caller, got, want)
				}
			}
		})
	}
}

// AWS KMS Developer Guide, "Grants in AWS KMS", Grant token and eventual
// consistency.
func TestGrantTokens(t *testing.T) {
	clock := newClock()
	h := newKMS(t, localkms.Config{Now: clock.Now, GrantDelay: time.Minute})
	key, ctx := newKey(t, h, ""), t.Context()
	blob := must[*kms.EncryptOutput](t)(as(h, admin).Encrypt(ctx, &kms.EncryptInput{KeyId: &key, Plaintext: []byte("x")})).CiphertextBlob
	in := decryptGrant(key, worker)
	in.Name = aws.String("one")
	first := must[*kms.CreateGrantOutput](t)(as(h, admin).CreateGrant(ctx, in))
	again := must[*kms.CreateGrantOutput](t)(as(h, admin).CreateGrant(ctx, in))
	other := must[*kms.CreateGrantOutput](t)(as(h, admin).CreateGrant(ctx, decryptGrant(key, stranger)))
	decrypt := func(caller string, tokens ...string) string {
		_, err := as(h, caller).Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob, GrantTokens: tokens})
		return refusalOf(err).code
	}
	check := func(when, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: got %q, want %q", when, got, want)
		}
	}
	check("new grant without token", decrypt(worker), "AccessDeniedException")
	check("new grant with its token", decrypt(worker, *first.GrantToken), "")
	check("new grant with its second token", decrypt(worker, *again.GrantToken), "")
	check("with the token of another grant", decrypt(worker, *other.GrantToken), "AccessDeniedException")
	check("a token in another's hands", decrypt(registrar, *first.GrantToken), "AccessDeniedException")
	check("with a malformed token", decrypt(worker, *first.GrantToken, "nonsense"), "InvalidGrantTokenException")
	check("with an altered token", decrypt(worker, "A"+(*first.GrantToken)[1:]), "InvalidGrantTokenException")
	check("a bad token where the policy allows", decrypt(admin, "nonsense"), "InvalidGrantTokenException")
	if n := len(grantsOf(t, h, admin, key)); n != 0 {
		t.Errorf("%d grants are listed within the delay", n)
	}

	clock.advance(time.Minute - time.Millisecond)
	check("just before the delay ends", decrypt(worker), "AccessDeniedException")
	clock.advance(time.Millisecond)
	check("after the delay", decrypt(worker), "")
	if n := len(grantsOf(t, h, admin, key)); n != 2 {
		t.Errorf("%d grants are listed after the delay, want 2", n)
	}
	must[*kms.RetireGrantOutput](t)(as(h, customerRoot).RetireGrant(ctx, &kms.RetireGrantInput{GrantToken: again.GrantToken}))
	check("retired, with its token", decrypt(worker, *first.GrantToken), "AccessDeniedException")
	check("a retired grant's token does no harm", decrypt(admin, *first.GrantToken), "")
}

// AWS KMS API Reference, CreateGrant, Name: a repetition returns the same id and
// a new token; other parameters, or no name, make another grant.
func TestGrantName(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	key := newKey(t, h, brokerPolicy)
	base := func() *kms.CreateGrantInput {
		return &kms.CreateGrantInput{
			KeyId: &key, GranteePrincipal: aws.String(worker), RetiringPrincipal: aws.String(registrar), Name: aws.String("kb/1:a_b-c"),
			Operations:  []types.GrantOperation{types.GrantOperationDecrypt, types.GrantOperationEncrypt},
			Constraints: &types.GrantConstraints{EncryptionContextSubset: pairs("a", "1", "b", "2")},
		}
	}
	first := must[*kms.CreateGrantOutput](t)(as(h, admin).CreateGrant(t.Context(), base()))
	for name, tc := range map[string]struct {
		change func(*kms.CreateGrantInput)
		caller string
		same   bool
	}{
		"identical":      {func(*kms.CreateGrantInput) {}, admin, true},
		"by a colleague": {func(*kms.CreateGrantInput) {}, colleague, true},
		"operations turned": {func(in *kms.CreateGrantInput) {
			in.Operations[0], in.Operations[1] = in.Operations[1], in.Operations[0]
		}, admin, true},
		"by another account": {func(*kms.CreateGrantInput) {}, registrar, false},
		"other grantee":      {func(in *kms.CreateGrantInput) { in.GranteePrincipal = aws.String(stranger) }, admin, false},
		"other retirer":      {func(in *kms.CreateGrantInput) { in.RetiringPrincipal = nil }, admin, false},
		"fewer operations":   {func(in *kms.CreateGrantInput) { in.Operations = in.Operations[:1] }, admin, false},
		"other constraint":   {func(in *kms.CreateGrantInput) { in.Constraints.EncryptionContextSubset["a"] = "2" }, admin, false},
		"other kind of constraint": {func(in *kms.CreateGrantInput) {
			in.Constraints.EncryptionContextSubset, in.Constraints.EncryptionContextEquals = nil, in.Constraints.EncryptionContextSubset
		}, admin, false},
		"no name": {func(in *kms.CreateGrantInput) { in.Name = nil }, admin, false},
	} {
		t.Run(name, func(t *testing.T) {
			in := base()
			tc.change(in)
			got := must[*kms.CreateGrantOutput](t)(as(h, tc.caller).CreateGrant(t.Context(), in))
			if same := *got.GrantId == *first.GrantId; same != tc.same {
				t.Errorf("same grant: %v, want %v", same, tc.same)
			}
			if *got.GrantToken == *first.GrantToken {
				t.Error("the token was given out before")
			}
		})
	}
	if n, want := len(grantsOf(t, h, admin, key)), 8; n != want {
		t.Errorf("%d grants, want %d", n, want)
	}
}

// AWS KMS API Reference, CreateGrant.
func TestCreateGrantValidation(t *testing.T) {
	h := newKMS(t, localkms.Config{GrantsPerKey: 1})
	key := newKey(t, h, "")
	nine := map[string]string{}
	for i := range 9 {
		nine[fmt.Sprint("k", i)] = "v"
	}
	const detected = "1 validation error detected: "
	for name, tc := range map[string]struct {
		change func(*kms.CreateGrantInput)
		want   refusal
	}{
		"both constraints": {func(in *kms.CreateGrantInput) {
			in.Constraints = &types.GrantConstraints{EncryptionContextSubset: pairs("a", "1"), EncryptionContextEquals: pairs("a", "1")}
		}, refusal{"ValidationException", "More than one constraint supplied"}},
		"nine pairs": {func(in *kms.CreateGrantInput) {
			in.Constraints = &types.GrantConstraints{EncryptionContextSubset: nine}
		},
			refusal{"ValidationException", "An encryption context constraint can have at most 8 pairs."}},
		"long value": {func(in *kms.CreateGrantInput) {
			in.Constraints = &types.GrantConstraints{EncryptionContextEquals: pairs("a", strings.Repeat("ä", 385))}
		}, refusal{"ValidationException", "A value of an encryption context constraint can have at most 384 characters."}},
		"service principal as grantee": {func(in *kms.CreateGrantInput) { in.GranteePrincipal = aws.String("voiceid.amazonaws.com") },
			refusal{"InvalidArnException", "ARN does not refer to a valid principal: voiceid.amazonaws.com"}},
		"bad retirer": {func(in *kms.CreateGrantInput) { in.RetiringPrincipal = aws.String("arn:aws:iam::1:role/x") },
			refusal{"InvalidArnException", "ARN does not refer to a valid principal: arn:aws:iam::1:role/x"}},
		"no such operation": {func(in *kms.CreateGrantInput) { in.Operations = []types.GrantOperation{"Decrypt", "Fly"} },
			refusal{"ValidationException", detected + "Value '[Decrypt, Fly]' at 'operations' failed to satisfy constraint: Member must satisfy constraint: " +
				"[Member must satisfy enum value set: [Decrypt, Encrypt, GenerateDataKey, GenerateDataKeyWithoutPlaintext, GenerateDataKeyPair, " +
				"GenerateDataKeyPairWithoutPlaintext, ReEncryptFrom, ReEncryptTo, CreateGrant, RetireGrant, DescribeKey, Sign, Verify, GetPublicKey, " +
				"GenerateMac, VerifyMac, DeriveSharedSecret, Encapsulate, Decapsulate]]"}},
		"operation of other keys": {func(in *kms.CreateGrantInput) { in.Operations = []types.GrantOperation{types.GrantOperationSign} },
			refusal{"ValidationException", "Grant operation Sign is not valid for a key with KeySpec SYMMETRIC_DEFAULT."}},
		"no operation": {func(in *kms.CreateGrantInput) { in.Operations = []types.GrantOperation{} },
			refusal{"ValidationException", "Operations must contain at least one grant operation."}},
		"bad name": {func(in *kms.CreateGrantInput) { in.Name = aws.String("a b") },
			refusal{"ValidationException", detected + "Value 'a b' at 'name' failed to satisfy constraint: Member must satisfy regular expression pattern: ^[a-zA-Z0-9:/_-]+$"}},
		"service grantee": {func(in *kms.CreateGrantInput) { in.GranteeServicePrincipal = aws.String("x.amazonaws.com") },
			refusal{"UnsupportedOperationException", "localkms does not support GranteeServicePrincipal."}},
		"source ARN": {func(in *kms.CreateGrantInput) {
			in.Constraints = &types.GrantConstraints{SourceArn: aws.String("arn:aws:s3:::b")}
		},
			refusal{"UnsupportedOperationException", "localkms does not support the grant constraint SourceArn."}},
	} {
		t.Run(name, func(t *testing.T) {
			in := decryptGrant(key, worker)
			tc.change(in)
			_, err := as(h, admin).CreateGrant(t.Context(), in)
			wantRefusal(t, err, tc.want.code, tc.want.message)
		})
	}
	named := decryptGrant(key, worker)
	named.Name = aws.String("only")
	must[*kms.CreateGrantOutput](t)(as(h, admin).CreateGrant(t.Context(), named))
	must[*kms.CreateGrantOutput](t)(as(h, admin).CreateGrant(t.Context(), named))
	_, err := as(h, admin).CreateGrant(t.Context(), decryptGrant(key, worker))
	wantRefusal(t, err, "LimitExceededException", "The key "+key+" has reached the quota of 1 grants.")
}

// AWS KMS Developer Guide, "Creating grants": who holds CreateGrant by a grant can
// pass on no more than the grant allows.
func TestGrantByGrant(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	equals := &types.GrantConstraints{EncryptionContextEquals: pairs("a", "1")}
	subset := &types.GrantConstraints{EncryptionContextSubset: pairs("a", "1")}
	stricter := &types.GrantConstraints{EncryptionContextSubset: pairs("A", "1", "b", "2")}
	looser := &types.GrantConstraints{EncryptionContextSubset: pairs("b", "2")}
	decrypt, encrypt := types.GrantOperationDecrypt, types.GrantOperationEncrypt
	for name, tc := range map[string]struct {
		parent, child *types.GrantConstraints
		operation     types.GrantOperation
		allowed       bool
	}{
		"the same":               {subset, subset, decrypt, true},
		"more pairs":             {subset, stricter, decrypt, true},
		"subset to equals":       {subset, equals, decrypt, true},
		"equals to equals":       {equals, equals, decrypt, true},
		"unconstrained to any":   {nil, looser, decrypt, true},
		"unconstrained to none":  {nil, nil, decrypt, true},
		"equals to subset":       {equals, subset, decrypt, false},
		"no constraint":          {subset, nil, decrypt, false},
		"other pairs":            {subset, looser, decrypt, false},
		"an operation not given": {subset, subset, encrypt, false},
	} {
		t.Run(name, func(t *testing.T) {
			key := newKey(t, h, "")
			parent := decryptGrant(key, registrar)
			parent.Operations = append(parent.Operations, types.GrantOperationCreateGrant)
			parent.Constraints = tc.parent
			must[*kms.CreateGrantOutput](t)(as(h, admin).CreateGrant(t.Context(), parent))
			child := decryptGrant(key, worker)
			child.Operations = []types.GrantOperation{tc.operation}
			child.Constraints = tc.child
			_, err := as(h, registrar).CreateGrant(t.Context(), child)
			want := "AccessDeniedException"
			if tc.allowed {
				want = ""
			}
			wantCode(t, err, want)
		})
	}
}
