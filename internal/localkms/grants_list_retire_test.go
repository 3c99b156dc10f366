package localkms_test

import (
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/keybroker/keybroker/internal/localkms"
)

// AWS KMS API Reference, ListGrants and GrantListEntry.
func TestListGrants(t *testing.T) {
	clock := newClock()
	h := newKMS(t, localkms.Config{Now: clock.Now})
	key, ctx := newKey(t, h, brokerPolicy), t.Context()
	var ids []string
	for i := range 120 {
		in := decryptGrant(key, []string{worker, stranger}[i%2])
		if i == 0 {
			in.Name, in.RetiringPrincipal = aws.String("first"), aws.String(registrar)
			in.Constraints = &types.GrantConstraints{EncryptionContextEquals: pairs("a", "1")}
		}
		ids = append(ids, *must[*kms.CreateGrantOutput](t)(as(h, registrar).CreateGrant(ctx, in)).GrantId)
	}
	list := func(in *kms.ListGrantsInput) *kms.ListGrantsOutput {
		in.KeyId = &key
		return must[*kms.ListGrantsOutput](t)(as(h, registrar).ListGrants(ctx, in))
	}
	one := list(&kms.ListGrantsInput{GrantId: &ids[0]})
	want := []types.GrantListEntry{{
		Constraints:       &types.GrantConstraints{EncryptionContextEquals: pairs("a", "1")},
		CreationDate:      aws.Time(clock.Now()),
		GrantId:           &ids[0],
		GranteePrincipal:  aws.String(worker),
		IssuingAccount:    aws.String(brokerRoot),
		KeyId:             &key,
		Name:              aws.String("first"),
		Operations:        []types.GrantOperation{types.GrantOperationDecrypt},
		RetiringPrincipal: aws.String(registrar),
	}}
	if diff := cmp.Diff(want, one.Grants, cmpopts.IgnoreUnexported(types.GrantListEntry{}, types.GrantConstraints{})); diff != "" {
		t.Errorf("entry (-want +got):\n%s", diff)
	}

	page := list(&kms.ListGrantsInput{})
	if len(page.Grants) != 50 || !page.Truncated || page.NextMarker == nil {
		t.Errorf("first page has %d grants, truncated %v, want 50, true", len(page.Grants), page.Truncated)
	}
	// Grants that vanish between the pages neither hide nor repeat others.
	for _, id := range []string{ids[10], ids[49], ids[60]} {
		must[*kms.RetireGrantOutput](t)(as(h, brokerRoot).RetireGrant(ctx, &kms.RetireGrantInput{KeyId: &key, GrantId: &id}))
	}
	rest := list(&kms.ListGrantsInput{Marker: page.NextMarker, Limit: aws.Int32(100)})
	if len(rest.Grants) != 69 || rest.Truncated || *rest.Grants[0].GrantId != ids[50] {
		t.Errorf("rest has %d grants, truncated %v, want 69, false", len(rest.Grants), rest.Truncated)
	}
	if byGrantee := list(&kms.ListGrantsInput{GranteePrincipal: aws.String(stranger), Limit: aws.Int32(100)}); len(byGrantee.Grants) != 59 {
		t.Errorf("%d grants to the stranger, want 59", len(byGrantee.Grants))
	}
	if none := list(&kms.ListGrantsInput{GrantId: &ids[0], GranteePrincipal: aws.String(stranger)}); len(none.Grants) != 0 {
		t.Errorf("both filters together found %d grants", len(none.Grants))
	}
	if none := list(&kms.ListGrantsInput{GrantId: &ids[10]}); len(none.Grants) != 0 || none.Truncated {
		t.Error("a retired grant is listed")
	}
	for _, tc := range []struct {
		in      kms.ListGrantsInput
		code    string
		message string
	}{
		{kms.ListGrantsInput{Limit: aws.Int32(0)}, "ValidationException", "1 validation error detected: Value '0' at 'limit' failed to satisfy constraint: Member must have value greater than or equal to 1"},
		{kms.ListGrantsInput{Limit: aws.Int32(101)}, "ValidationException", "1 validation error detected: Value '101' at 'limit' failed to satisfy constraint: Member must have value less than or equal to 100"},
		{kms.ListGrantsInput{Marker: aws.String("bad")}, "InvalidMarkerException", "The request was rejected because the marker that specifies where pagination should next begin is not valid."},
	} {
		tc.in.KeyId = &key
		_, err := as(h, registrar).ListGrants(ctx, &tc.in)
		wantRefusal(t, err, tc.code, tc.message)
	}
}

// AWS KMS Developer Guide, "Retiring and revoking grants".
func TestRetireGrant(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	key := newKey(t, h, brokerPolicy)
	id := key[strings.LastIndex(key, "/")+1:]
	ctx := t.Context()
	withRetire := func(in *kms.CreateGrantInput) { in.Operations = append(in.Operations, types.GrantOperationRetireGrant) }
	retiring := func(arn string) func(*kms.CreateGrantInput) {
		return func(in *kms.CreateGrantInput) { in.RetiringPrincipal = &arn }
	}
	for name, tc := range map[string]struct {
		grant           func(*kms.CreateGrantInput)
		issuer, retirer string
		code            string
	}{
		"the retiring principal":             {retiring(registrar), admin, registrar, ""},
		"of the retiring account":            {retiring(brokerRoot), admin, registrar, ""},
		"a grantee with RetireGrant":         {withRetire, admin, worker, ""},
		"a grantee without":                  {retiring(registrar), admin, worker, "AccessDeniedException"},
		"the root of the issuing account":    {retiring(worker), registrar, brokerRoot, ""},
		"another of the issuing account":     {retiring(worker), admin, colleague, ""},
		"the root of the key's account only": {retiring(worker), registrar, customerRoot, ""},
		"nobody":                             {retiring(registrar), admin, stranger, "AccessDeniedException"},
	} {
		t.Run(name, func(t *testing.T) {
			in := decryptGrant(key, worker)
			tc.grant(in)
			for _, byToken := range []bool{true, false} {
				g := must[*kms.CreateGrantOutput](t)(as(h, tc.issuer).CreateGrant(ctx, in))
				retire := &kms.RetireGrantInput{KeyId: &key, GrantId: g.GrantId}
				if byToken {
					retire = &kms.RetireGrantInput{GrantToken: g.GrantToken}
				}
				_, err := as(h, tc.retirer).RetireGrant(ctx, retire)
				wantCode(t, err, tc.code)
				if tc.code == "" {
					_, err = as(h, tc.retirer).RetireGrant(ctx, retire)
					wantRefusal(t, err, "NotFoundException", "Grant ID "+*g.GrantId+" not found")
				}
			}
		})
	}
	unknown := strings.Repeat("0", 64)
	const combination = "You must specify either GrantToken, or both KeyId and GrantId, but not a combination of both."
	for name, tc := range map[string]struct {
		in   kms.RetireGrantInput
		want refusal
	}{
		"unknown id":   {kms.RetireGrantInput{KeyId: &key, GrantId: &unknown}, refusal{"NotFoundException", "Grant ID " + unknown + " not found"}},
		"bare key id":  {kms.RetireGrantInput{KeyId: &id, GrantId: &unknown}, refusal{"InvalidArnException", "Invalid arn " + id}},
		"bad token":    {kms.RetireGrantInput{GrantToken: aws.String("x")}, refusal{"InvalidGrantTokenException", "The request was rejected because the specified grant token is not valid."}},
		"nothing":      {kms.RetireGrantInput{}, refusal{"ValidationException", combination}},
		"all":          {kms.RetireGrantInput{KeyId: &key, GrantId: &unknown, GrantToken: &unknown}, refusal{"ValidationException", combination}},
		"key ID alone": {kms.RetireGrantInput{KeyId: &key}, refusal{"ValidationException", combination}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := as(h, admin).RetireGrant(ctx, &tc.in)
			wantRefusal(t, err, tc.want.code, tc.want.message)
		})
	}
}
