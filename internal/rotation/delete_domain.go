package rotation

import (
	"context"
	"errors"
	"slices"
	"strconv"

	"github.com/keybroker/keybroker/internal/broker"
)

// DeleteDomain is a DeleteDomain call.
type DeleteDomain struct {
	Request     broker.Request
	Domain      broker.DomainID
	Etag        string // "" deletes whatever version is there
	Reason      string // needed with CryptoShred
	CryptoShred bool
}

// shredBatch is how many rows one transaction of a shredding removes; ours.
const shredBatch = 1000

// DeleteDomain ends a domain for good. Its uid is never used again, its id
// neither. A domain that has data keys is refused, or on whose keys a service was
// that keeps its own, unless its data is to be shredded: then every wrapped key
// is removed, and what was encrypted with them can be read by nobody once the
// last copies are gone. Either way its jobs end,
// and its grants are retired. The will is committed first; rows and grants
// follow, if need be after a crash.
func (e *Engine) DeleteDomain(ctx context.Context, caller broker.Caller, in DeleteDomain) error {
	if in.CryptoShred && in.Reason == "" {
		return fieldInvalid("reason", "must say why the data is shredded: it goes into the audit log")
	}
	var d broker.Domain
	err := e.store.Update(ctx, func(tx Tx) (err error) {
		if done, err := broker.Begin(ctx, tx, caller, in.Request); done != "" || err != nil {
			return err
		}
		if d, err = tx.Domain(ctx, in.Domain); err != nil {
			return notFound(err, broker.ReasonDomainNotFound, in.Domain.Name())
		}
		if err := tx.LockDomain(ctx, d.UID, broker.Exclusive); err != nil {
			return err
		}
		if d, err = tx.DomainByUID(ctx, d.UID); err != nil {
			return err
		}
		if err := mayDelete(ctx, tx, d, in); err != nil {
			return err
		}
		if err := e.endEverything(ctx, tx, caller, d); err != nil {
			return err
		}
		if err := tx.Audit(ctx, broker.AuditEvent{Caller: caller.Subject, Action: "domains.delete", Domain: d.UID, Resource: d.ID.Name(),
			Outcome: broker.AuditDone, RequestID: in.Request.ID,
			Detail: map[string]string{"reason": in.Reason, "crypto_shred": strconv.FormatBool(in.CryptoShred)}}); err != nil {
			return err
		}
		return broker.Finish(ctx, tx, caller, in.Request, d.ID.Name())
	})
	if err != nil || d.UID == "" {
		return err
	}
	e.nudge()
	e.cfg.At("delete.committed")
	return e.clearDeleted(context.WithoutCancel(ctx), d)
}

func mayDelete(ctx context.Context, tx Tx, d broker.Domain, in DeleteDomain) error {
	if in.Etag != "" && in.Etag != d.Etag() {
		return checkEtag(d, in.Etag)
	}
	if in.CryptoShred {
		return nil
	}
	rows, err := tx.ListDataKeys(ctx, d.UID, "", 1)
	if err != nil {
		return err
	}
	if len(rows) > 0 {
		return notEmpty(d, "the domain has data keys: delete them first, or ask for crypto_shred with a reason")
	}
	keys, err := tx.DomainKeys(ctx, d.UID)
	if err != nil {
		return err
	}
	keys = slices.DeleteFunc(keys, func(k broker.DomainKey) bool { return !k.Unretired() })
	self, err := selfGrantsOn(ctx, tx, d.UID, keys)
	if err != nil || len(self) == 0 {
		return err
	}
	return notEmpty(d, "the domain has, or had, grants of INVENTORY_SELF, and what those services keep wrapped would be lost: ask for crypto_shred with a reason")
}

func notEmpty(d broker.Domain, detail string) error {
	return &broker.Error{Kind: broker.ErrPrecondition, Reason: broker.ReasonDomainNotEmpty, Resource: d.ID.Name(), Detail: detail}
}

// endEverything takes the domain out of use: no job works on it, no key wants a
// grant, no store is accepted.
func (e *Engine) endEverything(ctx context.Context, tx Tx, caller broker.Caller, d broker.Domain) error {
	jobs, err := tx.UnfinishedJobs(ctx, d.UID)
	if err != nil {
		return err
	}
	for _, j := range jobs {
		if j.Open() {
			if _, err := e.end(ctx, tx, caller, d, j, Cancelled); err != nil {
				return err
			}
		}
	}
	grants, err := tx.LiveGrants(ctx, d.UID)
	if err != nil {
		return err
	}
	for _, g := range grants {
		g.State = broker.GrantRevoked
		if err := tx.UpdateGrant(ctx, g); err != nil {
			return err
		}
	}
	keys, err := tx.DomainKeys(ctx, d.UID)
	if err != nil {
		return err
	}
	for _, k := range keys {
		if k.State == broker.KeyRetired || k.State == broker.KeyAbandoned {
			continue
		}
		k.State = broker.KeyClosed
		if err := tx.UpdateDomainKey(ctx, k); err != nil {
			return err
		}
	}
	d.State, d.KeyChange = broker.DomainDeleted, broker.KeyChange{}
	d.ImportSources = nil
	return tx.UpdateDomain(ctx, d)
}

// clearDeleted removes the rows of a deleted domain and retires its grants, and
// then its keys.
func (e *Engine) clearDeleted(ctx context.Context, d broker.Domain) error {
	for {
		var n int
		err := e.store.Update(ctx, func(tx Tx) (err error) {
			n, err = tx.ShredDataKeys(ctx, d.UID, shredBatch)
			return err
		})
		if err != nil {
			return err
		}
		if n == 0 { // a page may be short because the sweep is at the same rows
			break
		}
	}
	_, err := e.broker.RetireEpochs(ctx, d.UID, broker.KMSGrantRange{})
	if broker.ClassOf(err) != "" {
		e.cfg.Logger.WarnContext(ctx, "grants of a deleted domain not retired yet", "domain", d.UID, "error", err)
		return nil // the sweep goes on with them
	}
	if err != nil {
		return err
	}
	return e.retireDeleted(ctx, d)
}

// retireDeleted ends the keys of a deleted domain whose rows are gone, once no KMS
// grant of it may exist either: from then on nobody looks at the domain again, and
// its keys are listed no longer for its sake.
func (e *Engine) retireDeleted(ctx context.Context, d broker.Domain) error {
	return e.store.Update(ctx, func(tx Tx) error {
		if err := tx.LockDomain(ctx, d.UID, broker.Exclusive); err != nil {
			return err
		}
		made, err := tx.RecordedKMSGrants(ctx, d.UID, broker.KMSGrantRange{})
		if err != nil || len(made) > 0 {
			return err
		}
		open, err := tx.KMSIntents(ctx, d.UID, broker.KMSGrantRange{})
		if err != nil || len(open) > 0 {
			return err
		}
		keys, err := tx.DomainKeys(ctx, d.UID)
		if err != nil {
			return err
		}
		keys = slices.DeleteFunc(keys, func(k broker.DomainKey) bool { return k.State != broker.KeyClosed })
		if len(keys) == 0 {
			return nil
		}
		for _, k := range keys {
			k.State, k.RetireTime = broker.KeyRetired, tx.Now()
			if err := tx.UpdateDomainKey(ctx, k); err != nil {
				return err
			}
		}
		return tx.Audit(ctx, broker.AuditEvent{Caller: broker.System.Subject, Action: "domains.cleared", Domain: d.UID,
			Resource: d.ID.Name(), Outcome: broker.AuditDone})
	})
}

// sweepDeleted finishes what deletions left, after a crash or a refusal of KMS.
func (e *Engine) sweepDeleted(ctx context.Context) error {
	var domains []broker.Domain
	err := e.store.View(ctx, func(tx Tx) (err error) {
		domains, err = tx.DeletedDomains(ctx, 100)
		return err
	})
	for _, d := range domains {
		err = errors.Join(err, e.clearDeleted(ctx, d))
	}
	return err
}
