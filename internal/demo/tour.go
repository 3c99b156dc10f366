package demo

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

// Tour is what a newcomer finds at a broker that was started to be tried out.
type Tour struct {
	// Broker is the broker's address, host:port, reached in plaintext: loopback.
	Broker string
	// KMSEndpoint is the URL of KMS, Region the Region of the customer's keys.
	KMSEndpoint, Region string
	Customer            Account
}

// The tour's names: a registered domain that waits for its first key, and two
// keys of the customer's whose policy lets the broker serve that domain.
const (
	TourDomain = "domains/tour"
	TourOldKey = "alias/old"
	TourNewKey = "alias/new"
)

// Prepare makes what is not there yet. It may be stopped anywhere and repeated.
func (t Tour) Prepare(ctx context.Context) error {
	conn, err := connect(t.Broker)
	if err != nil {
		return err
	}
	defer conn.Close()
	domains := keybrokerv1.NewDomainServiceClient(conn)
	_, err = domains.CreateDomain(ctx, &keybrokerv1.CreateDomainRequest{
		DomainId: "tour", Domain: &keybrokerv1.Domain{DisplayName: "The tour's customer", Region: t.Region},
	})
	if err != nil && !exists(err) {
		return fmt.Errorf("prepare %s: %w", TourDomain, err)
	}
	customer := newKMS(Config{KMSEndpoint: t.KMSEndpoint, Region: t.Region}, t.Customer, &http.Transport{})
	for _, alias := range []string{TourOldKey, TourNewKey} {
		if err := t.prepareKey(ctx, domains, customer, alias); err != nil {
			return fmt.Errorf("prepare %s: %w", alias, err)
		}
	}
	return nil
}

// prepareKey makes the key behind an alias and gives it the domain's policy. A
// key that was made by a start which was killed before its alias stays unused.
func (t Tour) prepareKey(ctx context.Context, domains keybrokerv1.DomainServiceClient, customer *kms.Client, alias string) error {
	key, err := customer.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &alias})
	var absent *types.NotFoundException
	switch {
	case errors.As(err, &absent):
		made, err := customer.CreateKey(ctx, &kms.CreateKeyInput{Description: aws.String("keybroker tour: " + alias)})
		if err != nil {
			return err
		}
		if _, err := customer.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: &alias, TargetKeyId: made.KeyMetadata.KeyId}); err != nil {
			return err
		}
		return t.givePolicy(ctx, domains, customer, *made.KeyMetadata.KeyId)
	case err != nil:
		return err
	}
	return t.givePolicy(ctx, domains, customer, *key.KeyMetadata.KeyId)
}

// givePolicy merges the broker's statements into the key's policy.
func (t Tour) givePolicy(ctx context.Context, domains keybrokerv1.DomainServiceClient, customer *kms.Client, key string) error {
	present, err := customer.GetKeyPolicy(ctx, &kms.GetKeyPolicyInput{KeyId: &key})
	if err != nil {
		return err
	}
	policy, err := domains.GenerateKeyPolicy(ctx, &keybrokerv1.GenerateKeyPolicyRequest{
		Name: TourDomain,
		Base: &keybrokerv1.GenerateKeyPolicyRequest_ExistingPolicyDocument{ExistingPolicyDocument: *present.Policy},
	})
	if err != nil || policy.GetPolicyDocument() == *present.Policy {
		return err
	}
	document := policy.GetPolicyDocument()
	_, err = customer.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: &key, Policy: &document})
	return err
}
