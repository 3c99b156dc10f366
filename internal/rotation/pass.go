package rotation

import (
	"context"
	"slices"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
)

// A Pass is one run of a service through the wrapped data keys that it keeps
// itself. The client holds it, sealed by the front door, between one stream and
// the next: the broker keeps nothing of a pass before it ends in an attestation.
type Pass struct {
	ID     string
	Domain broker.DomainUID
	Owner  PassOwner
	// Epoch is the domain's when the pass began, at BeginTime.
	Epoch     broker.Epoch
	BeginTime time.Time
	// Items counts the receipts that told where a key is now.
	Items int64
}

// A PassOwner says whose wrapped keys they are: one grant's, or those of every
// grant of a role in the domain. Exactly one is set.
type PassOwner struct {
	Grant   broker.GrantID
	Grantee string // IAM role ARN
}

// With counts receipts.
func (p Pass) With(receipts []Receipt) Pass {
	for _, r := range receipts {
		if r.Err == nil {
			p.Items++
		}
	}
	return p
}

// OpenPass is the header of a ReencryptStream.
type OpenPass struct {
	Domain broker.DomainID
	Owner  PassOwner
	// Resume is the pass to go on with, nil for a new one.
	Resume *Pass
}

// A PassView is a pass with what its client needs to know of the domain.
type PassView struct {
	Pass
	KMSKey broker.KeyARN
	// Older are the keys that are not retired, newest first: where wrapped keys
	// may still be.
	Older []broker.KeyARN
	// AttestAfter is when a pass must begin to be able to attest; zero: any time.
	AttestAfter time.Time
}

// OpenPass begins a pass, or goes on with one. It stores nothing.
func (e *Engine) OpenPass(ctx context.Context, _ broker.Caller, in OpenPass) (PassView, error) {
	var view PassView
	err := e.store.View(ctx, func(tx Tx) error {
		d, err := tx.Domain(ctx, in.Domain)
		if err != nil {
			return notFound(err, broker.ReasonDomainNotFound, in.Domain.Name())
		}
		if err := broker.NeedKey(d); err != nil {
			return err
		}
		if _, err := in.Owner.grants(ctx, tx, d); err != nil {
			return err
		}
		view = PassView{KMSKey: d.KMSKey}
		if in.Resume != nil {
			view.Pass = *in.Resume
			if err := view.stillAt(d); err != nil {
				return err
			}
		} else {
			view.Pass = Pass{ID: e.cfg.NewID(), Domain: d.UID, Owner: in.Owner, Epoch: d.Epoch, BeginTime: tx.Now()}
		}
		keys, err := tx.DomainKeys(ctx, d.UID)
		if err != nil {
			return err
		}
		for _, k := range slices.Backward(replacedUnretired(keys, d.Epoch)) {
			if k.KMSKey != d.KMSKey && !slices.Contains(view.Older, k.KMSKey) {
				view.Older = append(view.Older, k.KMSKey)
			}
		}
		view.AttestAfter, err = e.drained(ctx, tx, d.UID, d.Epoch)
		return err
	})
	return view, err
}

// domain reads a pass's domain.
func (p Pass) domain(ctx context.Context, tx Tx) (broker.Domain, error) {
	d, err := tx.DomainByUID(ctx, p.Domain)
	if err == nil && d.State == broker.DomainDeleted {
		err = broker.ErrNotFound
	}
	return d, notFound(err, broker.ReasonDomainNotFound, d.ID.Name())
}

// lockDomain is domain, held against a switch of its key.
func (p Pass) lockDomain(ctx context.Context, tx Tx) (broker.Domain, error) {
	if err := tx.LockDomain(ctx, p.Domain, broker.Shared); err != nil {
		return broker.Domain{}, err
	}
	return p.domain(ctx, tx)
}

// stillAt refuses a pass that began under another key of the domain: what it was
// answered then may be under an older key now.
func (p Pass) stillAt(d broker.Domain) error {
	if p.Domain == d.UID && p.Epoch == d.Epoch {
		return nil
	}
	return &broker.Error{Kind: broker.ErrConflict, Reason: broker.ReasonKeyChangedMeanwhile, Resource: d.ID.Name(),
		Detail: "the domain's key changed since the pass began: begin a new pass, without a resume_token, over all wrapped keys"}
}

// grants gives the owner's grants of INVENTORY_SELF, live or ended; there is at
// least one.
func (o PassOwner) grants(ctx context.Context, tx Tx, d broker.Domain) ([]broker.Grant, error) {
	if o.Grant != "" {
		g, err := selfGrant(ctx, tx, d, o.Grant)
		return []broker.Grant{g}, err
	}
	owned, err := tx.SelfGrants(ctx, d.UID, o.Grantee)
	if err != nil {
		return nil, err
	}
	if len(owned) == 0 {
		return nil, notSelf(d.ID.Name(), "the role has no grant of INVENTORY_SELF in this domain")
	}
	return owned, nil
}

// selfGrant gives a grant of INVENTORY_SELF by its id.
func selfGrant(ctx context.Context, tx Tx, d broker.Domain, id broker.GrantID) (broker.Grant, error) {
	name := broker.GrantName(d.ID, id)
	g, err := tx.Grant(ctx, d.UID, id)
	if err == nil && g.Worker {
		err = broker.ErrNotFound
	}
	if err != nil {
		return g, notFound(err, broker.ReasonGrantNotFound, name)
	}
	if g.Inventory != broker.InventorySelf {
		return g, notSelf(name, "the grant is of INVENTORY_BROKER: its wrapped keys are the broker's to move")
	}
	return g, nil
}

func notSelf(resource, detail string) error {
	return &broker.Error{Kind: broker.ErrPrecondition, Reason: broker.ReasonGrantNotSelf, Resource: resource, Detail: detail}
}
