package broker

import "context"

// ListKMSGrants gives the grants of ours on a key, as KMS shows them, and perhaps
// others. Where the key's owner does not let the broker list them any more, it
// asks for those that the registrar may retire: it is the retiring principal of
// every grant that the broker makes, and KMS tells it so whatever the key's policy
// says (KMS API Reference, ListRetirableGrants). If that is denied too, the error
// is the owner's refusal.
func (b *Broker) ListKMSGrants(ctx context.Context, key KeyARN) ([]ListedGrant, error) {
	listed, denied := b.registrar.ListGrants(ctx, key, "")
	if ClassOf(denied) != KMSDenied {
		return listed, denied
	}
	listed, err := b.registrar.ListRetirableGrants(ctx, key, b.cfg.RegistrarRole)
	if ClassOf(err) == KMSDenied {
		return nil, denied
	}
	return listed, err
}
