package demo

import (
	"context"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/service/kms"

	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

// makeDomain registers the customer's data with the broker. The legacy key is
// older than that: the domain may import from it.
func (r *run) makeDomain(ctx context.Context) error {
	if r.st.LegacyKey == "" && !r.st.Own.given() {
		key, err := r.createKey(ctx, "keybroker demo: legacy", nil)
		if err != nil {
			return err
		}
		r.st.LegacyKey = key
		if err := r.save(); err != nil {
			return err
		}
	}
	r.act()
	wanted := &keybrokerv1.Domain{
		DisplayName: "The demo's customer",
		Region:      r.cfg.Region,
		KeyAccounts: []string{r.cfg.Customer.id()},
	}
	if r.st.LegacyKey != "" {
		wanted.ImportSourceKeys = []string{r.st.LegacyKey}
	}
	domain, err := r.domains.CreateDomain(ctx, &keybrokerv1.CreateDomainRequest{
		DomainId: domainID, Domain: wanted, RequestId: "demo-domain",
	})
	if exists(err) { // by an earlier start, longer ago than the broker remembers requests
		domain, err = r.domains.GetDomain(ctx, &keybrokerv1.GetDomainRequest{Name: domainName})
	}
	if err != nil {
		return err
	}
	r.story.say("broker", "registered %s; every KMS call for it carries %s", domain.GetName(), pairs(domain.GetEncryptionContext()))
	return nil
}

// makeKeys makes the key that the domain begins with and the one that it will
// change to, both with the policy that the broker rendered; or takes those that
// the customer has.
func (r *run) makeKeys(ctx context.Context) error {
	if r.st.Own.given() {
		r.st.OldKey, r.st.NewKey = r.st.Own.Old, r.st.Own.New
		r.act()
		r.story.say("customer", "has two KMS keys, whose policies let the broker serve it")
		return nil
	}
	policy, err := r.domains.GenerateKeyPolicy(ctx, &keybrokerv1.GenerateKeyPolicyRequest{
		Name: domainName,
		Base: &keybrokerv1.GenerateKeyPolicyRequest_KeyAccount{KeyAccount: r.cfg.Customer.id()},
	})
	if err != nil {
		return err
	}
	document := policy.GetPolicyDocument()
	for _, key := range []struct {
		arn  *string
		name string
	}{{&r.st.OldKey, "old"}, {&r.st.NewKey, "new"}} {
		if *key.arn == "" {
			if *key.arn, err = r.createKey(ctx, "keybroker demo: "+key.name, &document); err != nil {
				return err
			}
			if err := r.save(); err != nil {
				return err
			}
		}
		r.act()
	}
	r.story.say("customer", "made two KMS keys with the policy that the broker rendered:\nthe broker may look at them and grant their use for this domain, no more")
	return nil
}

// createKey makes a key in the customer's account. KMS has no request ids: a key
// whose answer was lost stays behind, unused.
func (r *run) createKey(ctx context.Context, description string, policy *string) (string, error) {
	out, err := r.customer.CreateKey(ctx, &kms.CreateKeyInput{Description: &description, Policy: policy})
	if err != nil {
		return "", fmt.Errorf("the customer makes a KMS key: %w", err)
	}
	return *out.KeyMetadata.Arn, nil
}

// onboard gives the domain its first key: a change from none.
func (r *run) onboard(ctx context.Context) error {
	job, err := r.domains.ChangeKey(ctx, &keybrokerv1.ChangeKeyRequest{
		Name: domainName, KmsKey: r.st.OldKey, Reason: "onboarding", RequestId: "demo-onboard",
	})
	if err != nil && reasonOf(err) != "KEY_UNCHANGED" { // that is: an earlier start did it
		return err
	}
	r.act()
	if err == nil {
		if _, err := r.follow(ctx, job.GetName(), func(*keybrokerv1.ReencryptionJob) {}); err != nil {
			return err
		}
	}
	r.story.say("broker", "took %s as the domain's key", short(r.st.OldKey))
	return r.makeGrant(ctx)
}

// disableOldKey acts on the broker's verdict. A key that is not safe to retire
// stays enabled; the run then ends without success.
func (r *run) disableOldKey(ctx context.Context) error {
	report, err := r.awaitVerdict(ctx)
	if err != nil {
		return err
	}
	r.st.Safe = safe(report)
	if !r.st.Safe {
		for _, entry := range report.GetEntries() {
			for _, b := range entry.GetBlockers() {
				r.story.say("broker", "%s is still needed: %s", short(entry.GetKmsKey()), b.GetMessage())
			}
		}
		return nil
	}
	r.story.say("broker", "reports that the old key is safe to retire (report %s)", report.GetReportSha256()[:12])
	if r.st.Own.given() && !r.cfg.DisableOld {
		r.story.say("customer", "leaves the old key as it is, since nobody asked for more")
		return nil
	}
	if _, err := r.customer.DisableKey(ctx, &kms.DisableKeyInput{KeyId: &r.st.OldKey}); err != nil {
		return fmt.Errorf("the customer disables the old key: %w", err)
	}
	r.st.Disabled = true
	r.act()
	r.story.say("customer", "disabled the old key at KMS: what still needed it would be lost now")
	return nil
}
