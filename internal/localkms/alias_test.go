package localkms_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/keybroker/keybroker/internal/localkms"
)

// AWS KMS API Reference, UpdateAlias and DeleteAlias.
func TestAliasMovesAndGoes(t *testing.T) {
	clock := newClock()
	h := newKMS(t, localkms.Config{Now: clock.Now})
	c, ctx := as(h, admin), t.Context()
	from, to, name := newKey(t, h, ""), newKey(t, h, ""), aws.String("alias/papers")
	must[*kms.CreateAliasOutput](t)(c.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: name, TargetKeyId: &from}))
	made := clock.Now()
	clock.advance(time.Hour)
	must[*kms.UpdateAliasOutput](t)(c.UpdateAlias(ctx, &kms.UpdateAliasInput{AliasName: name, TargetKeyId: &to}))
	if got := *must[*kms.DescribeKeyOutput](t)(c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: name})).KeyMetadata.Arn; got != to {
		t.Errorf("the alias names %s, want %s", got, to)
	}
	a := must[*kms.ListAliasesOutput](t)(c.ListAliases(ctx, &kms.ListAliasesInput{KeyId: &to})).Aliases
	if len(a) != 1 || !a[0].CreationDate.Equal(made) || !a[0].LastUpdatedDate.Equal(clock.Now()) {
		t.Errorf("listed as %+v", a)
	}
	must[*kms.DeleteAliasOutput](t)(c.DeleteAlias(ctx, &kms.DeleteAliasInput{AliasName: name}))
	const gone = "Alias arn:aws:kms:us-west-2:111122223333:alias/papers is not found."
	_, err := c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: name})
	wantRefusal(t, err, "NotFoundException", gone)
	_, err = c.DeleteAlias(ctx, &kms.DeleteAliasInput{AliasName: name})
	wantRefusal(t, err, "NotFoundException", gone)
	_, err = c.UpdateAlias(ctx, &kms.UpdateAliasInput{AliasName: name, TargetKeyId: &to})
	wantRefusal(t, err, "NotFoundException", gone)
}

// AWS KMS API Reference, UpdateAlias: the same type and usage; AWS KMS Developer
// Guide, "Quotas": 50 aliases a key, and "Controlling access to aliases": the
// alias's account, its present key and its next one have a say each.
func TestAliasesAreRefused(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	c, ctx := as(h, admin), t.Context()
	key, other, mac := newKey(t, h, ""), newKey(t, h, ""), *newKeyOf(t, c, "HMAC_256", "GENERATE_VERIFY_MAC").Arn
	locked := newKey(t, h, `{"Statement":[
	  {"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:root"},"Action":"kms:*","Resource":"*"},
	  {"Effect":"Deny","Principal":"*","Action":["kms:UpdateAlias","kms:DeleteAlias"],"Resource":"*"}]}`)
	for i := range 50 {
		must[*kms.CreateAliasOutput](t)(c.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: aws.String(fmt.Sprint("alias/a", i)), TargetKeyId: &key}))
	}
	must[*kms.CreateAliasOutput](t)(c.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: aws.String("alias/locked"), TargetKeyId: &locked}))
	must[*kms.CreateAliasOutput](t)(c.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: aws.String("alias/b"), TargetKeyId: &other}))
	must[*kms.UpdateAliasOutput](t)(c.UpdateAlias(ctx, &kms.UpdateAliasInput{AliasName: aws.String("alias/a0"), TargetKeyId: &key}))

	full := refusal{"LimitExceededException", "The key " + key + " has reached the quota of 50 aliases."}
	denied := func(operation string) refusal {
		return refusal{"AccessDeniedException", "User: " + admin + " is not authorized to perform: kms:" + operation + " on resource: " + locked +
			" with an explicit deny in a resource-based policy"}
	}
	update := func(name, target string) error {
		_, err := c.UpdateAlias(ctx, &kms.UpdateAliasInput{AliasName: &name, TargetKeyId: &target})
		return err
	}
	remove := func(name string) error {
		_, err := c.DeleteAlias(ctx, &kms.DeleteAliasInput{AliasName: &name})
		return err
	}
	_, oneMore := c.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: aws.String("alias/a50"), TargetKeyId: &key})
	unprefixed := refusal{"ValidationException", `Alias must start with the prefix "alias/". Please see https://docs.aws.amazon.com/kms/latest/developerguide/kms-alias.html`}
	for name, tc := range map[string]struct {
		err  error
		want refusal
	}{
		"a 51st":                   {oneMore, full},
		"moved to a full key":      {update("alias/b", key), full},
		"moved to another kind":    {update("alias/b", mac), refusal{"ValidationException", "Alias alias/b cannot move from a key with KeySpec SYMMETRIC_DEFAULT and KeyUsage ENCRYPT_DECRYPT to one with KeySpec HMAC_256 and KeyUsage GENERATE_VERIFY_MAC."}},
		"the next key denies":      {update("alias/b", locked), denied("UpdateAlias")},
		"the present key denies":   {update("alias/locked", other), denied("UpdateAlias")},
		"its key denies":           {remove("alias/locked"), denied("DeleteAlias")},
		"without prefix, updated":  {update("b", other), unprefixed},
		"without prefix, deleted":  {remove("b"), unprefixed},
		"AWS's own, updated":       {update("alias/aws/ebs", other), refusal{"NotAuthorizedException", ""}},
		"AWS's own, deleted":       {remove("alias/aws/ebs"), refusal{"NotAuthorizedException", ""}},
		"another account's target": {update("alias/b", "arn:aws:kms:us-west-2:444455556666:key/12345678-1234-1234-1234-123456789012"), refusal{"NotFoundException", "Key 'arn:aws:kms:us-west-2:444455556666:key/12345678-1234-1234-1234-123456789012' does not exist"}},
	} {
		t.Run(name, func(t *testing.T) { wantRefusal(t, tc.err, tc.want.code, tc.want.message) })
	}
}
