package broker

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"
)

// NewDomain is a CreateDomain call.
type NewDomain struct {
	Request       Request
	ID            DomainID
	DisplayName   string
	Region        string
	KeyAccounts   []string
	ImportSources []string
	Labels        map[string]string
}

// Limits of a domain's own fields; ours.
const (
	maxDisplayName   = 128
	maxLabels        = 32
	maxLabelValue    = 256
	maxKeyAccounts   = 20
	maxImportSources = 20
)

var labelKeyPattern = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,62}$`)

// CreateDomain registers a domain without a key: its owner needs the uid to
// write the key policy first. The worker's own grant is registered with it, so
// that a key change finds the broker's grants and the services' in one list. A
// repeat answers the domain as it is by then, with its keys.
func (b *Broker) CreateDomain(ctx context.Context, caller Caller, in NewDomain) (Domain, []DomainKey, error) {
	if err := in.validate(b.partition()); err != nil {
		return Domain{}, nil, err
	}
	var d Domain
	var keys []DomainKey
	err := b.store.Update(ctx, func(tx Tx) error {
		keys = nil
		rec, err := begin(ctx, tx, caller, in.Request)
		if err != nil {
			return err
		}
		if rec != nil {
			if d, err = tx.Domain(ctx, in.ID); err != nil {
				return domainNotFound(err, in.ID)
			}
			keys, err = tx.DomainKeys(ctx, d.UID)
			return err
		}
		d = b.newDomain(in)
		d.CreateTime, d.UpdateTime = tx.Now(), tx.Now()
		if err := tx.InsertDomain(ctx, d); err != nil {
			return alreadyExists(err, ReasonDomainAlreadyExists, d.ID.Name())
		}
		if err := tx.InsertGrant(ctx, b.workerGrant(d)); err != nil {
			return fmt.Errorf("insert the worker's grant: %w", err)
		}
		if err := tx.Audit(ctx, AuditEvent{Caller: caller.Subject, Action: "domains.create", Domain: d.UID,
			Resource: d.ID.Name(), Outcome: AuditDone, RequestID: in.Request.ID}); err != nil {
			return err
		}
		return finish(ctx, tx, caller, in.Request, d.ID.Name())
	})
	return d, keys, err
}

func (b *Broker) newDomain(in NewDomain) Domain {
	uid := DomainUID(b.cfg.NewUID())
	return Domain{
		ID: in.ID, UID: uid, DisplayName: in.DisplayName, Region: in.Region, State: DomainPendingKey,
		Reserved:    b.ReservedPair(uid, in.Region),
		KeyAccounts: in.KeyAccounts, ImportSources: in.ImportSources, Labels: in.Labels, Version: 1,
	}
}

// ReservedPair renders the reserved pair of a domain, or of one that might be.
// A domain's own is the one that was stored with it.
func (b *Broker) ReservedPair(uid DomainUID, region string) Pair {
	render := strings.NewReplacer("{uid}", string(uid), "{region}", region)
	return Pair{Key: b.cfg.ReservedKey, Value: render.Replace(b.cfg.ReservedValue)}
}

// workerGrant is what the worker role needs of each key: to make wrapped data
// keys, and to move them; never Decrypt.
func (b *Broker) workerGrant(d Domain) Grant {
	return Grant{
		Domain: d.UID, ID: "keybroker-worker", UID: GrantUID(b.cfg.NewID()), Worker: true, Grantee: b.cfg.WorkerRole,
		Operations: []string{"GenerateDataKeyWithoutPlaintext", "ReEncryptFrom", "ReEncryptTo"},
		Inventory:  InventoryBroker, State: GrantActive, Version: 1, CreateTime: d.CreateTime, UpdateTime: d.UpdateTime,
	}
}

func (in NewDomain) validate(partition string) error {
	if !domainIDPattern.MatchString(string(in.ID)) {
		return invalidField(ReasonFieldInvalid, "domain_id", "must match %s", domainIDPattern)
	}
	if !regionPattern.MatchString(in.Region) {
		return invalidField(ReasonFieldInvalid, "domain.region", "must be an AWS Region such as us-east-1")
	}
	if utf8.RuneCountInString(in.DisplayName) > maxDisplayName {
		return invalidField(ReasonFieldInvalid, "domain.display_name", "must have at most %d characters", maxDisplayName)
	}
	if len(in.Labels) > maxLabels {
		return invalidField(ReasonFieldInvalid, "domain.labels", "must have at most %d entries", maxLabels)
	}
	for key, value := range in.Labels {
		if !labelKeyPattern.MatchString(key) || utf8.RuneCountInString(value) > maxLabelValue {
			return invalidField(ReasonFieldInvalid, "domain.labels", "must have keys that match %s and values of at most %d characters", labelKeyPattern, maxLabelValue)
		}
	}
	if len(in.KeyAccounts) > maxKeyAccounts {
		return invalidField(ReasonFieldInvalid, "domain.key_accounts", "must have at most %d entries", maxKeyAccounts)
	}
	for _, a := range in.KeyAccounts {
		if !accountPattern.MatchString(a) {
			return invalidField(ReasonFieldInvalid, "domain.key_accounts", "must be AWS account ids of 12 digits")
		}
	}
	if len(in.ImportSources) > maxImportSources {
		return invalidField(ReasonFieldInvalid, "domain.import_source_keys", "must have at most %d entries", maxImportSources)
	}
	for _, arn := range in.ImportSources {
		p, ok := parseKeyARN(arn)
		if !ok || p.Alias {
			return invalidField(ReasonKeyARNInvalid, "domain.import_source_keys", "must be full KMS key ARNs")
		}
		if p.Region != in.Region || p.Partition != partition {
			return invalidField(ReasonKeyRegionMismatch, "domain.import_source_keys", "must be in the domain's Region %s (partition %s)", in.Region, partition)
		}
	}
	return nil
}
