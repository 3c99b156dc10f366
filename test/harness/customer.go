package harness

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
)

// NewDomain registers a domain without a key.
func (b *Bench) NewDomain(ctx context.Context, id broker.DomainID, importSources ...string) (broker.Domain, error) {
	d, _, err := b.Broker.CreateDomain(ctx, Caller, broker.NewDomain{ID: id, Region: Region, ImportSources: importSources})
	return d, err
}

// NewKey makes a customer's key whose policy serves the domains.
func (b *Bench) NewKey(ctx context.Context, domains ...broker.DomainID) (broker.KeyARN, error) {
	in := broker.KeyPolicyRequest{KeyAccount: CustomerAccount, Profile: broker.PolicyStandard}
	for _, d := range domains {
		in.Domain = d
		policy, err := b.Broker.GenerateKeyPolicy(ctx, Caller, in)
		if err != nil {
			return "", err
		}
		in.KeyAccount, in.Existing = "", policy.Document
	}
	out, err := b.Customer.CreateKey(ctx, &kms.CreateKeyInput{Policy: aws.String(in.Existing)})
	if err != nil {
		return "", err
	}
	return broker.KeyARN(aws.ToString(out.KeyMetadata.Arn)), nil
}

// ChangeKey asks for a change with the domain's present etag.
func (b *Bench) ChangeKey(ctx context.Context, id broker.DomainID, key broker.KeyARN) (rotation.JobView, error) {
	d, _, err := b.Broker.GetDomain(ctx, Caller, id)
	if err != nil {
		return rotation.JobView{}, err
	}
	return b.Engine.ChangeKey(ctx, Caller, rotation.ChangeKey{Domain: id, KMSKey: string(key), Etag: d.Etag(), Reason: "test"})
}

// Step does one piece of whatever work there is: a step of each open job, or a
// batch. It reports whether anything moved.
func (b *Bench) Step(ctx context.Context) (moved bool, err error) { return b.StepWith(ctx, b.Engine) }

// StepWith is Step by one of the engines.
func (b *Bench) StepWith(ctx context.Context, e *rotation.Engine) (moved bool, err error) {
	jobs, err := b.OpenJobs(ctx)
	if err != nil {
		return false, err
	}
	for _, j := range jobs {
		stepped, err := e.StepJob(ctx, j.Ref())
		if err != nil {
			return moved, fmt.Errorf("step of job %s in %s: %w", j.ID, j.Phase, err)
		}
		moved = moved || stepped
	}
	worked, err := e.StepShard(ctx)
	return moved || worked, err
}

// OpenJobs gives every job that is not final, whether due or not, oldest first.
func (b *Bench) OpenJobs(ctx context.Context) (jobs []rotation.Job, err error) {
	err = b.Store.Rotation().View(ctx, func(tx rotation.Tx) error {
		domains, err := tx.ListDomains(ctx, "", 100)
		for _, d := range domains {
			unfinished, err := tx.UnfinishedJobs(ctx, d.UID)
			if err != nil {
				return err
			}
			jobs = append(jobs, unfinished...)
		}
		return err
	})
	jobs = slices.DeleteFunc(jobs, func(j rotation.Job) bool { return !j.Open() })
	slices.SortFunc(jobs, func(a, b rotation.Job) int {
		return cmp.Or(a.CreateTime.Compare(b.CreateTime), cmp.Compare(a.Domain, b.Domain), cmp.Compare(a.ID, b.ID))
	})
	return jobs, err
}

// Finish works until the job has ended, moving the clock where only time helps.
func (b *Bench) Finish(ctx context.Context, id broker.DomainID, job broker.JobID) (rotation.JobView, error) {
	const patience = 2000
	for range patience {
		view, err := b.Engine.GetJob(ctx, Caller, id, job)
		if err != nil || !view.Open() {
			return view, err
		}
		moved, err := b.Step(ctx)
		if err != nil {
			return view, err
		}
		if moved {
			continue
		}
		now := b.Clock.Now()
		switch {
		case view.WaitUntil.After(now):
			b.Clock.Advance(view.WaitUntil.Sub(now))
		default:
			b.Clock.Advance(b.Broker.Windows().GrantVisibility/4 + 1)
		}
	}
	view, err := b.Engine.GetJob(ctx, Caller, id, job)
	if err == nil {
		err = fmt.Errorf("job is still %s in %s: block %+v, waits for %q", view.State, view.Phase, view.Block, view.WaitMessage)
	}
	return view, err
}

// Onboard makes a domain with its first key and waits until it is ACTIVE.
func (b *Bench) Onboard(ctx context.Context, id broker.DomainID) (broker.Domain, broker.KeyARN, error) {
	if _, err := b.NewDomain(ctx, id); err != nil {
		return broker.Domain{}, "", err
	}
	key, err := b.NewKey(ctx, id)
	if err != nil {
		return broker.Domain{}, "", err
	}
	job, err := b.ChangeKey(ctx, id, key)
	if err != nil {
		return broker.Domain{}, "", err
	}
	if _, err := b.Finish(ctx, id, job.ID); err != nil {
		return broker.Domain{}, "", err
	}
	d, _, err := b.Broker.GetDomain(ctx, Caller, id)
	return d, key, err
}

// GrantsAt gives the Names of a domain's grants on a key, as KMS lists them to
// the key's owner.
func (b *Bench) GrantsAt(ctx context.Context, key broker.KeyARN, d broker.Domain) ([]string, error) {
	var names []string
	pages := kms.NewListGrantsPaginator(b.Customer, &kms.ListGrantsInput{KeyId: aws.String(string(key))})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, err
		}
		for _, g := range page.Grants {
			if boundTo(g, d.Reserved) {
				names = append(names, aws.ToString(g.Name))
			}
		}
	}
	return names, nil
}

func boundTo(g types.GrantListEntry, p broker.Pair) bool {
	if g.Constraints == nil {
		return false
	}
	for _, pairs := range []map[string]string{g.Constraints.EncryptionContextSubset, g.Constraints.EncryptionContextEquals} {
		for key, value := range pairs {
			if strings.EqualFold(key, p.Key) && value == p.Value {
				return true
			}
		}
	}
	return false
}
