package broker

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// NewDataKey is a CreateDataKey call.
type NewDataKey struct {
	Request Request
	Domain  DomainID
	ID      DataKeyID // "" mints one
	Context Context
	KeySpec string // "" is DefaultKeySpec
}

// storeAttempts is how often a store follows a domain from key to key before it
// gives up; a domain changes keys rarely.
const storeAttempts = 5

// errEpochMoved tells a store's retry loop that the domain has another key now.
var errEpochMoved = errors.New("the domain's key changed meanwhile")

// CreateDataKey has KMS make a wrapped data key under the domain's key and
// stores it. The plaintext never leaves KMS. A key that was made under a key
// which a switch has meanwhile replaced is dropped and made again: nothing is
// ever stored under any but the present epoch.
func (b *Broker) CreateDataKey(ctx context.Context, caller Caller, in NewDataKey) (DataKeyView, error) {
	if in.KeySpec == "" {
		in.KeySpec = DefaultKeySpec
	}
	if in.ID == "" {
		in.ID = DataKeyID(b.cfg.NewID())
	} else if !dataKeyIDPattern.MatchString(string(in.ID)) {
		return DataKeyView{}, invalidField(ReasonFieldInvalid, "data_key_id", "must match %s", dataKeyIDPattern)
	}
	if !keySpecs[in.KeySpec] {
		return DataKeyView{}, invalidField(ReasonFieldInvalid, "data_key.key_spec", "must be AES_256 or AES_128")
	}
	var view DataKeyView
	var lost *lostAccess
	for range storeAttempts {
		d, done, err := b.openForStore(ctx, caller, in.Request, in.Domain)
		if err != nil {
			return DataKeyView{}, err
		}
		if done != "" {
			return b.readByName(ctx, caller, done)
		}
		if err := validateContext("data_key.context", in.Context, d.Reserved); err != nil {
			return DataKeyView{}, err
		}
		if lost.at(d.Epoch) {
			return DataKeyView{}, b.loseKey(ctx, d, lost)
		}
		wrapped, err := b.worker.GenerateDataKeyWithoutPlaintext(ctx, GenerateDataKey{
			Key: d.KMSKey, KeySpec: in.KeySpec, Context: in.Context.With(d.Reserved)})
		b.cfg.At("datakey.generated")
		if err == nil && wrapped.Key != d.KMSKey {
			err = fmt.Errorf("KMS answered with another key than %s", d.KMSKey)
		}
		if ClassOf(err).LostAccess() || ClassOf(err) == KMSIncorrectKey {
			lost = &lostAccess{epoch: d.Epoch, cause: err}
			continue
		}
		if err != nil {
			return DataKeyView{}, RefusedByKMS(err, d.ID.Name())
		}
		k := DataKey{Domain: d.UID, ID: in.ID, UID: DataKeyUID(b.cfg.NewID()), Ciphertext: wrapped.Ciphertext,
			Context: in.Context, KeySpec: in.KeySpec, Epoch: d.Epoch, KeyMaterialID: wrapped.KeyMaterialID,
			KMSRequestID: wrapped.RequestID, Version: 1}
		view, err = b.storeNewDataKey(ctx, caller, in.Request, k)
		if !errors.Is(err, errEpochMoved) {
			return view, err
		}
		lost = nil
	}
	return DataKeyView{}, movedTooOften(in.Domain)
}

// openForStore reads the domain that a store is meant for. For a request that
// was done before, it gives the resource it made.
func (b *Broker) openForStore(ctx context.Context, caller Caller, r Request, id DomainID) (d Domain, done string, err error) {
	err = b.store.View(ctx, func(tx Tx) error {
		rec, err := begin(ctx, tx, caller, r)
		if err != nil {
			return err
		}
		if rec != nil && rec.Done {
			done = rec.Resource
			return nil
		}
		if d, err = tx.Domain(ctx, id); err != nil {
			return domainNotFound(err, id)
		}
		return NeedKey(d)
	})
	return d, done, err
}

// NeedKey refuses what takes a key in a domain that has none yet.
func NeedKey(d Domain) error {
	if d.Epoch == 0 {
		return precondition(ReasonDomainPendingKey, d.ID.Name(), "the domain has no key yet: call ChangeKey, and wait until it is ACTIVE")
	}
	return nil
}

// storeNewDataKey stores k, if the domain's key is still the one that made it.
func (b *Broker) storeNewDataKey(ctx context.Context, caller Caller, r Request, k DataKey) (DataKeyView, error) {
	var view DataKeyView
	var done string
	err := b.store.Update(ctx, func(tx Tx) error {
		done = ""
		if err := tx.LockDomain(ctx, k.Domain, Shared); err != nil {
			return err
		}
		d, err := tx.DomainByUID(ctx, k.Domain)
		if err != nil {
			return err
		}
		rec, err := begin(ctx, tx, caller, r)
		if err != nil {
			return err
		}
		if rec != nil && rec.Done {
			done = rec.Resource
			return nil
		}
		if err := checkStoreEpoch(d, k.Epoch); err != nil {
			return err
		}
		name := DataKeyName(d.ID, k.ID)
		k.CreateTime, k.UpdateTime = tx.Now(), tx.Now()
		if err := tx.InsertDataKey(ctx, k); err != nil {
			return alreadyExists(err, ReasonDataKeyAlreadyExists, name)
		}
		if err := tx.Audit(ctx, AuditEvent{Caller: caller.Subject, Action: "dataKeys.create", Domain: d.UID,
			Resource: name, Outcome: AuditDone, RequestID: r.ID, KMSRequestID: k.KMSRequestID}); err != nil {
			return err
		}
		view = DataKeyView{DataKey: k, DomainID: d.ID, KMSKey: d.KMSKey, EncryptionContext: k.Context.With(d.Reserved)}
		if err := markAccessible(ctx, tx, d); err != nil {
			return err
		}
		return finish(ctx, tx, caller, r, name)
	})
	if err == nil && done != "" {
		return b.readByName(ctx, caller, done)
	}
	return view, err
}

// readByName answers a repeated request: the resource as it is now.
func (b *Broker) readByName(ctx context.Context, caller Caller, name string) (DataKeyView, error) {
	d, k, err := ParseDataKeyName("name", name)
	if err != nil {
		return DataKeyView{}, err
	}
	return b.GetDataKey(ctx, caller, d, k)
}

// lostAccess is a KMS refusal at an epoch. Only when the epoch is still the
// same at a second look is it the loss of access to the domain's key.
type lostAccess struct {
	epoch Epoch
	cause error
}

func (l *lostAccess) at(e Epoch) bool { return l != nil && l.epoch == e }

// loseKey marks the domain, unless it has another key by now, and gives the
// refusal for the caller.
func (b *Broker) loseKey(ctx context.Context, d Domain, lost *lostAccess) error {
	err := b.store.Update(ctx, func(tx Tx) error {
		now, err := tx.DomainByUID(ctx, d.UID)
		if err != nil || now.Epoch != lost.epoch || now.State != DomainActive {
			return err
		}
		now.State, now.InaccessibleSince = DomainKeyInaccessible, tx.Now()
		if err := tx.UpdateDomain(ctx, now); err != nil {
			return err
		}
		return tx.Audit(ctx, AuditEvent{Caller: System.Subject, Action: "domains.keyInaccessible", Domain: d.UID,
			Resource: d.ID.Name(), Outcome: AuditDone, Detail: map[string]string{"class": string(ClassOf(lost.cause))}})
	})
	if err != nil && !errors.Is(err, ErrConflict) {
		return err
	}
	return RefusedByKMS(lost.cause, d.ID.Name())
}

// markAccessible heals a domain whose key was just used with success.
func markAccessible(ctx context.Context, tx Tx, d Domain) error {
	if d.State != DomainKeyInaccessible {
		return nil
	}
	d.State, d.InaccessibleSince = DomainActive, time.Time{}
	if err := tx.UpdateDomain(ctx, d); err != nil {
		return err
	}
	return tx.Audit(ctx, AuditEvent{Caller: System.Subject, Action: "domains.keyAccessible", Domain: d.UID,
		Resource: d.ID.Name(), Outcome: AuditDone})
}

func movedTooOften(id DomainID) error {
	return &Error{Kind: ErrConflict, Reason: ReasonKeyChangeInProgress, Resource: id.Name(),
		Detail: "the domain's key changed again and again during the call: repeat it"}
}
