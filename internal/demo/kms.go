package demo

import (
	"context"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// newKMS gives the SDK's client for an account. The SDK's way from an
// aws.Config works as well; this one has no need for files or environment.
func newKMS(c Config, a Account, transport http.RoundTripper) *kms.Client {
	o := kms.Options{
		Region:      c.Region,
		HTTPClient:  &http.Client{Transport: transport, Timeout: 10 * time.Second},
		Credentials: a.Credentials,
	}
	if c.KMSEndpoint != "" {
		o.BaseEndpoint = &c.KMSEndpoint
	}
	return kms.New(o)
}

// A decrypter is what the client package asks of KMS, in a service's own role.
type decrypter struct{ kms *kms.Client }

// Decrypt implements client.Decrypter.
func (d decrypter) Decrypt(ctx context.Context, blob []byte, encryptionContext map[string]string, kmsKey string, grantTokens []string) ([]byte, error) {
	out, err := d.kms.Decrypt(ctx, &kms.DecryptInput{
		CiphertextBlob:    blob,
		EncryptionContext: encryptionContext,
		KeyId:             &kmsKey,
		GrantTokens:       grantTokens,
	})
	if err != nil {
		return nil, err
	}
	return out.Plaintext, nil
}

// liveGrants counts the grants on a key whose constraint holds a pair. Only the
// key's owner needs to be believed here, and KMS.
func liveGrants(ctx context.Context, owner *kms.Client, key string, pair map[string]string) (int, error) {
	n := 0
	pages := kms.NewListGrantsPaginator(owner, &kms.ListGrantsInput{KeyId: &key})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return 0, err
		}
		for _, g := range page.Grants {
			if g.Constraints != nil && boundTo(g.Constraints, pair) {
				n++
			}
		}
	}
	return n, nil
}

func boundTo(c *types.GrantConstraints, pair map[string]string) bool {
	for key, value := range pair {
		if c.EncryptionContextSubset[key] != value && c.EncryptionContextEquals[key] != value {
			return false
		}
	}
	return len(pair) > 0
}
