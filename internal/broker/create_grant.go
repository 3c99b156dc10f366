package broker

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"
)

// NewGrant is a CreateGrant call.
type NewGrant struct {
	Request    Request
	Domain     DomainID
	ID         GrantID // "" mints one
	Grantee    string
	Operations []string
	Constraint Constraint
	Inventory  Inventory // "" is InventoryBroker
	TTL        time.Duration
}

// Limits of a grant's life; ours. A grant that nobody renews ends.
const (
	MinGrantTTL = time.Minute
	MaxGrantTTL = 365 * 24 * time.Hour
)

// maxGrantee is KMS's limit of a principal, in characters (KMS API Reference,
// CreateGrant, GranteePrincipal).
const maxGrantee = 256

// A GrantView is a grant with what its reader needs. Tokens are set only by the
// calls that mint them, and are stored nowhere.
type GrantView struct {
	Grant
	DomainID DomainID
	KMSKeys  []KeyARN // on which KMS holds it now, or may, until it has retired it
	Tokens   []Secret
}

// CreateGrant makes a grant: at most two KMS grants (wrap and unwrap) on each
// key that the domain has open. Intents are committed before KMS is asked, so
// that no crash leaves a grant that nobody knows of.
func (b *Broker) CreateGrant(ctx context.Context, caller Caller, in NewGrant) (GrantView, error) {
	if err := b.validateGrant(&in); err != nil {
		return GrantView{}, err
	}
	var g Grant
	var repeat bool
	err := b.store.Update(ctx, func(tx Tx) (err error) {
		repeat = false
		d, err := tx.Domain(ctx, in.Domain)
		if err != nil {
			return domainNotFound(err, in.Domain)
		}
		rec, err := begin(ctx, tx, caller, in.Request)
		if err != nil {
			return err
		}
		if rec != nil {
			repeat = rec.Done
			g, err = takeOverGrant(ctx, tx, caller, in.Request, d, rec, b.patience())
			return err
		}
		if err := NeedKey(d); err != nil {
			return err
		}
		for field, c := range map[string]Context{"subset": in.Constraint.Subset, "equals": in.Constraint.Equals} {
			if err := validateContext("grant.constraints.encryption_context_"+field, c, d.Reserved); err != nil {
				return err
			}
		}
		g = Grant{Domain: d.UID, ID: in.ID, UID: GrantUID(b.cfg.NewID()), Grantee: in.Grantee, Operations: in.Operations,
			Constraint: in.Constraint, Inventory: in.Inventory, State: GrantCreating, ExpireTime: tx.Now().Add(in.TTL), Version: 1,
			CreateTime: tx.Now(), UpdateTime: tx.Now()}
		name := GrantName(d.ID, g.ID)
		if err := tx.InsertGrant(ctx, g); err != nil {
			return alreadyExists(err, ReasonGrantAlreadyExists, name)
		}
		if err := tx.Audit(ctx, AuditEvent{Caller: caller.Subject, Action: "grants.create", Domain: d.UID, Resource: name,
			Outcome: AuditIntended, RequestID: in.Request.ID,
			Detail: map[string]string{"grantee": g.Grantee, "operations": strings.Join(g.Operations, ","), "inventory": string(g.Inventory)}}); err != nil {
			return err
		}
		return inFlight(ctx, tx, caller, in.Request, name, b.patience())
	})
	if err != nil {
		return GrantView{}, err
	}
	if g.State == GrantFailed {
		return GrantView{}, precondition(ReasonGrantEnded, GrantName(in.Domain, g.ID), "KMS refused this grant when it was first asked for: create another")
	}
	if repeat {
		view, _, err := b.regrant(ctx, caller, g, Request{}, ensuring{})
		return view, err
	}
	return b.completeGrant(ctx, caller, in.Domain, g, in.Request)
}

// patience is how long a call that is at KMS may take before another one takes
// its request over: each of the KMS calls it makes is bounded.
func (b *Broker) patience() time.Duration { return 4 * b.cfg.KMSCallTimeout }

// takeOverGrant resumes a request whose first caller is presumed dead, or reads
// what a finished one made.
func takeOverGrant(ctx context.Context, tx Tx, caller Caller, r Request, d Domain, rec *RequestRecord, patience time.Duration) (Grant, error) {
	_, id, err := ParseGrantName("name", rec.Resource)
	if err != nil {
		return Grant{}, err
	}
	g, err := tx.Grant(ctx, d.UID, id)
	if err != nil {
		return Grant{}, notFound(err, ReasonGrantNotFound, rec.Resource)
	}
	if rec.Done {
		return g, nil
	}
	return g, inFlight(ctx, tx, caller, r, rec.Resource, patience)
}

// completeGrant makes the grant's KMS grants and answers. If KMS refuses one,
// the grant is given up and what was made of it is retired.
func (b *Broker) completeGrant(ctx context.Context, caller Caller, domain DomainID, g Grant, r Request) (GrantView, error) {
	tokens, err := b.EnsureGrant(ctx, caller, g.Domain, g.UID, r)
	if err != nil {
		cleanup := b.afterRefusal(context.WithoutCancel(ctx), caller, g, r, ClassOf(err))
		return GrantView{}, errors.Join(RefusedByKMS(err, GrantName(domain, g.ID)), cleanup)
	}
	view, err := b.grantView(ctx, g.Domain, g.UID)
	view.Tokens = tokens
	return view, err
}

// afterRefusal gives a grant up that KMS refuses. Where KMS only failed to
// answer, the request is let go, so that a repeat goes on with it at once.
func (b *Broker) afterRefusal(ctx context.Context, caller Caller, g Grant, r Request, class KMSClass) error {
	if class != "" && !class.Transient() {
		return b.endGrant(ctx, caller, g.Domain, g.UID, ending{state: GrantFailed, action: "grants.end"}, r)
	}
	return b.letGo(ctx, caller, r)
}

// letGo ends the patience of a request in flight: the call that was at work on
// it has failed.
func (b *Broker) letGo(ctx context.Context, caller Caller, r Request) error {
	return b.store.Update(ctx, func(tx Tx) error {
		rec, err := tx.RequestRecord(ctx, r.key(caller))
		if errors.Is(err, ErrNotFound) || rec.Done {
			return nil
		}
		if err != nil {
			return err
		}
		rec.Until = tx.Now().Add(-time.Microsecond)
		return tx.PutRequestRecord(ctx, rec)
	})
}

func (b *Broker) grantView(ctx context.Context, domain DomainUID, uid GrantUID) (GrantView, error) {
	var view GrantView
	err := b.store.View(ctx, func(tx Tx) error {
		d, err := tx.DomainByUID(ctx, domain)
		if err != nil {
			return err
		}
		g, err := tx.GrantByUID(ctx, domain, uid)
		if err != nil {
			return err
		}
		view, err = viewGrant(ctx, tx, d, g)
		return err
	})
	return view, err
}

func viewGrant(ctx context.Context, tx Tx, d Domain, g Grant) (GrantView, error) {
	made, err := tx.KMSGrants(ctx, g.Domain, g.UID)
	if err != nil {
		return GrantView{}, err
	}
	view := GrantView{Grant: g, DomainID: d.ID}
	for _, k := range made {
		if (k.State == KMSGrantLive || k.State == KMSGrantRetiring) && !slices.Contains(view.KMSKeys, k.KMSKey) {
			view.KMSKeys = append(view.KMSKeys, k.KMSKey)
		}
	}
	return view, nil
}

// GetGrant gives one grant. The worker's own is not found.
func (b *Broker) GetGrant(ctx context.Context, _ Caller, id DomainID, grant GrantID) (GrantView, error) {
	var view GrantView
	err := b.store.View(ctx, func(tx Tx) error {
		d, g, err := findGrant(ctx, tx, id, grant)
		if err != nil {
			return err
		}
		view, err = viewGrant(ctx, tx, d, g)
		return err
	})
	return view, err
}

func findGrant(ctx context.Context, tx Tx, id DomainID, grant GrantID) (Domain, Grant, error) {
	d, err := tx.Domain(ctx, id)
	if err != nil {
		return d, Grant{}, domainNotFound(err, id)
	}
	g, err := tx.Grant(ctx, d.UID, grant)
	if err == nil && g.Worker {
		err = ErrNotFound
	}
	return d, g, notFound(err, ReasonGrantNotFound, GrantName(id, grant))
}

func (b *Broker) validateGrant(in *NewGrant) error {
	if in.ID == "" {
		in.ID = GrantID(b.cfg.NewID())
	} else if !grantIDPattern.MatchString(string(in.ID)) {
		return invalidField(ReasonFieldInvalid, "grant_id", "must match %s", grantIDPattern)
	}
	if in.Inventory == "" {
		in.Inventory = InventoryBroker
	}
	if err := b.validateGrantee(in.Grantee); err != nil {
		return err
	}
	if in.TTL < MinGrantTTL || in.TTL > MaxGrantTTL {
		return invalidField(ReasonFieldInvalid, "grant.ttl", "must be %s to %s", MinGrantTTL, MaxGrantTTL)
	}
	if len(in.Operations) == 0 {
		return invalidField(ReasonOperationNotAllowed, "grant.operations", "must name at least one operation")
	}
	for _, op := range in.Operations {
		if !wrapOperations[op] && !unwrapOperations[op] && op != describeKey {
			return invalidField(ReasonOperationNotAllowed, "grant.operations", "%q cannot be granted; CreateGrant and RetireGrant never are", op)
		}
	}
	in.Operations = slices.Compact(slices.Sorted(slices.Values(in.Operations)))
	if len(in.Constraint.Subset) > 0 && len(in.Constraint.Equals) > 0 {
		return invalidField(ReasonConstraintInvalid, "grant.constraints", "give encryption_context_subset or encryption_context_equals, not both")
	}
	return nil
}

// validateGrantee admits IAM roles of the listed accounts only (T3): no users,
// no sessions, no account roots, no services, and never the broker's own roles.
func (b *Broker) validateGrantee(arn string) error {
	m := roleARNPattern.FindStringSubmatch(arn)
	if m == nil || len(arn) > maxGrantee || strings.ContainsAny(arn, "*?") {
		return invalidField(ReasonGranteeNotAllowed, "grant.grantee_principal", "must be the ARN of one IAM role (arn:aws:iam::ACCOUNT:role/NAME)")
	}
	if strings.EqualFold(arn, b.cfg.WorkerRole) || strings.EqualFold(arn, b.cfg.RegistrarRole) {
		return invalidField(ReasonGranteeNotAllowed, "grant.grantee_principal", "must not be one of the broker's own roles")
	}
	if m[1] != partitionOf(b.cfg.WorkerRole) || !slices.Contains(b.cfg.GranteeAccounts, m[2]) {
		return invalidField(ReasonGranteeNotAllowed, "grant.grantee_principal", "must be a role of an account listed in the broker's grantee_accounts")
	}
	return nil
}
