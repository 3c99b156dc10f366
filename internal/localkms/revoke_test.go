package localkms_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/google/go-cmp/cmp"

	"github.com/keybroker/keybroker/internal/localkms"
)

// retirable lists page by page, two at a time.
func retirable(t testing.TB, h http.Handler, caller, principal string) []types.GrantListEntry {
	t.Helper()
	var all []types.GrantListEntry
	pages := kms.NewListRetirableGrantsPaginator(as(h, caller), &kms.ListRetirableGrantsInput{RetiringPrincipal: &principal, Limit: aws.Int32(2)})
	for pages.HasMorePages() {
		all = append(all, must[*kms.ListRetirableGrantsOutput](t)(pages.NextPage(t.Context())).Grants...)
	}
	return all
}

// AWS KMS API Reference, RevokeGrant, Required permissions.
func TestRevokeGrant(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	revoking := strings.ReplaceAll(brokerPolicy, `"kms:CreateGrant"`, `"kms:RevokeGrant"`)
	everything := []types.GrantOperation{"Decrypt", "CreateGrant", "RetireGrant", "DescribeKey"}
	for name, tc := range map[string]struct {
		policy, caller string
		bareID         bool
		code           string
	}{
		"the key's account":              {brokerPolicy, admin, false, ""},
		"by key id":                      {brokerPolicy, admin, true, ""},
		"its root":                       {brokerPolicy, customerRoot, false, ""},
		"another account that may":       {revoking, registrar, false, ""},
		"another account by bare id":     {revoking, registrar, true, "NotFoundException"},
		"another account that may not":   {brokerPolicy, registrar, false, "AccessDeniedException"},
		"the grantee, whatever it may":   {brokerPolicy, worker, false, "AccessDeniedException"},
		"the retiring principal":         {brokerPolicy, brokerRoot, false, "AccessDeniedException"},
		"the root without a policy":      {`{"Statement":{"Effect":"Allow","Principal":{"AWS":"` + admin + `"},"Action":"kms:*","Resource":"*"}}`, customerRoot, false, "AccessDeniedException"},
		"an account that was shut out":   {strings.Replace(brokerPolicy, `"Statement": [`, `"Statement": [{"Effect":"Deny","Principal":"*","Action":"kms:RevokeGrant","Resource":"*"},`, 1), admin, false, "AccessDeniedException"},
		"a stranger with the grant's id": {brokerPolicy, stranger, false, "AccessDeniedException"},
	} {
		t.Run(name, func(t *testing.T) {
			key, ctx := newKey(t, h, tc.policy), t.Context()
			in := decryptGrant(key, worker)
			in.Operations, in.RetiringPrincipal = everything, aws.String(brokerRoot)
			grant := must[*kms.CreateGrantOutput](t)(as(h, admin).CreateGrant(ctx, in))
			id := key
			if tc.bareID {
				id = key[strings.LastIndex(key, "/")+1:]
			}
			_, err := as(h, tc.caller).RevokeGrant(ctx, &kms.RevokeGrantInput{KeyId: &id, GrantId: grant.GrantId, DryRun: aws.Bool(true)})
			if want := tc.code; want == "" {
				wantCode(t, err, "DryRunOperationException")
			} else {
				wantCode(t, err, want)
			}
			_, err = as(h, tc.caller).RevokeGrant(ctx, &kms.RevokeGrantInput{KeyId: &id, GrantId: grant.GrantId})
			wantCode(t, err, tc.code)
			left := len(retirable(t, h, brokerRoot, brokerRoot))
			if (left == 0) != (tc.code == "") {
				t.Errorf("%d grants are left", left)
			}
			if tc.code == "" {
				_, err = as(h, tc.caller).RevokeGrant(ctx, &kms.RevokeGrantInput{KeyId: &id, GrantId: grant.GrantId})
				wantRefusal(t, err, "NotFoundException", "Grant ID "+*grant.GrantId+" not found")
			} else {
				must[*kms.RetireGrantOutput](t)(as(h, brokerRoot).RetireGrant(ctx, &kms.RetireGrantInput{KeyId: &key, GrantId: grant.GrantId}))
			}
		})
	}
}

// AWS KMS API Reference, ListRetirableGrants: per Region, on keys of any account,
// for principals of the caller's own.
func TestListRetirableGrants(t *testing.T) {
	clock := newClock()
	h := newKMS(t, localkms.Config{Now: clock.Now, GrantDelay: time.Minute})
	ctx := t.Context()
	var want []string
	make3 := func(c *kms.Client, key string) {
		for i, retirer := range []string{registrar, registrar, worker, brokerRoot, registrar} {
			in := decryptGrant(key, stranger)
			in.RetiringPrincipal = &retirer
			id := *must[*kms.CreateGrantOutput](t)(c.CreateGrant(ctx, in)).GrantId
			if i == 0 || i == 1 || i == 4 {
				want = append(want, key+" "+id)
			}
		}
	}
	keys := []string{newKey(t, h, ""), newKey(t, h, ""), newKey(t, h, "")}
	own := *must[*kms.CreateKeyOutput](t)(as(h, registrar).CreateKey(ctx, &kms.CreateKeyInput{})).KeyMetadata.Arn
	for _, key := range keys {
		make3(as(h, admin), key)
	}
	make3(as(h, registrar), own)
	elsewhere := *must[*kms.CreateKeyOutput](t)(in(h, admin, "eu-west-1").CreateKey(ctx, &kms.CreateKeyInput{})).KeyMetadata.Arn
	grant := decryptGrant(elsewhere, stranger)
	grant.RetiringPrincipal = aws.String(registrar)
	must[*kms.CreateGrantOutput](t)(in(h, admin, "eu-west-1").CreateGrant(ctx, grant))

	if n := len(retirable(t, h, registrar, registrar)); n != 0 {
		t.Errorf("%d grants are listed within the delay", n)
	}
	clock.advance(time.Minute)
	list := func(caller string) map[string]bool {
		found := map[string]bool{}
		for _, g := range retirable(t, h, caller, registrar) {
			if at := *g.KeyId + " " + *g.GrantId; found[at] {
				t.Errorf("%s is listed twice", at)
			} else {
				found[at] = true
			}
		}
		return found
	}
	all := map[string]bool{}
	for _, at := range want {
		all[at] = true
	}
	for _, caller := range []string{registrar, worker, brokerRoot} {
		if diff := cmp.Diff(all, list(caller)); diff != "" {
			t.Errorf("as %s (-want +got):\n%s", caller, diff)
		}
	}
	// The key on which a page ended vanishes: the next page goes on behind it.
	first := must[*kms.ListRetirableGrantsOutput](t)(as(h, registrar).ListRetirableGrants(ctx,
		&kms.ListRetirableGrantsInput{RetiringPrincipal: aws.String(registrar), Limit: aws.Int32(3)}))
	for _, g := range first.Grants {
		must[*kms.RetireGrantOutput](t)(as(h, registrar).RetireGrant(ctx, &kms.RetireGrantInput{KeyId: g.KeyId, GrantId: g.GrantId}))
	}
	rest := must[*kms.ListRetirableGrantsOutput](t)(as(h, registrar).ListRetirableGrants(ctx,
		&kms.ListRetirableGrantsInput{RetiringPrincipal: aws.String(registrar), Marker: first.NextMarker}))
	if len(rest.Grants) != 9 || rest.Truncated {
		t.Errorf("%d grants follow, truncated %v, want 9, false", len(rest.Grants), rest.Truncated)
	}

	const either = "Either RetiringPrincipal or RetiringServicePrincipal must be specified."
	for name, tc := range map[string]struct {
		in   kms.ListRetirableGrantsInput
		want refusal
	}{
		"nobody":          {kms.ListRetirableGrantsInput{}, refusal{"ValidationException", either}},
		"no ARN":          {kms.ListRetirableGrantsInput{RetiringPrincipal: aws.String("me")}, refusal{"InvalidArnException", "ARN does not refer to a valid principal: me"}},
		"another account": {kms.ListRetirableGrantsInput{RetiringPrincipal: aws.String(admin)}, refusal{"AccessDeniedException", "User: " + registrar + " is not authorized to perform: kms:ListRetirableGrants on resource: " + admin + " because no resource-based policy allows the kms:ListRetirableGrants action"}},
		"a service":       {kms.ListRetirableGrantsInput{RetiringServicePrincipal: aws.String("s3.amazonaws.com")}, refusal{"UnsupportedOperationException", "localkms does not support RetiringServicePrincipal."}},
		"bad marker":      {kms.ListRetirableGrantsInput{RetiringPrincipal: aws.String(registrar), Marker: aws.String("bTE6TGlzdFJldGlyYWJsZUdyYW50czox")}, refusal{"InvalidMarkerException", "The request was rejected because the marker that specifies where pagination should next begin is not valid."}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := as(h, registrar).ListRetirableGrants(ctx, &tc.in)
			wantRefusal(t, err, tc.want.code, tc.want.message)
		})
	}
}
