package demo

import (
	"context"
	"fmt"
	"time"

	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

// leave ends a run on keys of the customer's own: it deletes the domain, with all
// data keys, and waits until KMS lists no grant of the domain's on either key.
func (r *run) leave(ctx context.Context) error {
	if !r.st.Own.given() {
		return nil
	}
	pair, err := r.deleteDomain(ctx)
	if err != nil {
		return err
	}
	start := r.cfg.Now()
	for {
		left := 0
		for _, key := range []string{r.st.OldKey, r.st.NewKey} {
			n, err := liveGrants(ctx, r.customer, key, pair)
			if err != nil {
				return fmt.Errorf("the customer lists grants: %w", err)
			}
			left += n
		}
		r.act()
		if left == 0 {
			break
		}
		if r.cfg.Now().Sub(start) > r.cfg.GrantVisibility+leavePatience {
			return fmt.Errorf("KMS still lists %d grants of the deleted domain", left)
		}
		if err := pause(ctx, leaveEvery); err != nil {
			return err
		}
	}
	r.story.say("broker", "deleted the domain and retired its grants: the customer finds none on either key")
	return nil
}

// How often KMS is asked for grants that should be gone, and how long beyond the
// time that KMS itself may take: the broker retires them in a periodic task.
const (
	leaveEvery    = 5 * time.Second
	leavePatience = time.Minute
)

// deleteDomain gives the domain's pair, by which KMS is searched for its grants.
func (r *run) deleteDomain(ctx context.Context) (map[string]string, error) {
	if len(r.st.Pair) == 0 {
		domain, err := r.domains.GetDomain(ctx, &keybrokerv1.GetDomainRequest{Name: domainName})
		if err != nil {
			return nil, err
		}
		r.st.Pair = domain.GetEncryptionContext()
		if err := r.save(); err != nil {
			return nil, err
		}
	}
	_, err := r.domains.DeleteDomain(ctx, &keybrokerv1.DeleteDomainRequest{
		Name: domainName, CryptoShred: true, Reason: "the demo is over", RequestId: "demo-leave",
	})
	return r.st.Pair, err
}
