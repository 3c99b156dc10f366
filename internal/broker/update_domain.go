package broker

import (
	"context"
	"maps"
	"slices"
	"strings"
)

// DomainUpdate is an UpdateDomain call. Mask names the fields that change, as
// paths of the API's message; an empty one means every field that is given.
type DomainUpdate struct {
	Request       Request
	ID            DomainID
	Mask          []string
	DisplayName   string
	Labels        map[string]string
	KeyAccounts   []string
	ImportSources []string
	Etag          string // "" updates whatever version is there
}

// The paths that an update mask may have.
const (
	maskDisplayName   = "display_name"
	maskLabels        = "labels"
	maskKeyAccounts   = "key_accounts"
	maskImportSources = "import_source_keys"
	maskKMSKey        = "kms_key" // refused, and by name
)

// UpdateDomain changes a domain's own fields. Its key is changed by ChangeKey
// only. What key_accounts and import_source_keys allow counts from the next key
// change and the next import on. The audit row has their new values.
func (b *Broker) UpdateDomain(ctx context.Context, caller Caller, in DomainUpdate) (Domain, []DomainKey, error) {
	paths, err := in.paths()
	if err != nil {
		return Domain{}, nil, err
	}
	var d Domain
	var keys []DomainKey
	err = b.store.Update(ctx, func(tx Tx) (err error) {
		if d, err = tx.Domain(ctx, in.ID); err != nil {
			return domainNotFound(err, in.ID)
		}
		rec, err := begin(ctx, tx, caller, in.Request)
		if err != nil {
			return err
		}
		if rec == nil {
			if err := b.updateDomain(ctx, tx, caller, in, paths, d.UID); err != nil {
				return err
			}
		}
		if d, err = tx.DomainByUID(ctx, d.UID); err != nil {
			return err
		}
		keys, err = tx.DomainKeys(ctx, d.UID)
		return err
	})
	return d, keys, err
}

func (b *Broker) updateDomain(ctx context.Context, tx Tx, caller Caller, in DomainUpdate, paths []string, uid DomainUID) error {
	if err := tx.LockDomain(ctx, uid, Shared); err != nil {
		return err
	}
	d, err := tx.DomainByUID(ctx, uid)
	if err != nil {
		return err
	}
	if in.Etag != "" && in.Etag != d.Etag() {
		return etagMismatch(d.ID.Name())
	}
	if err := in.validate(paths, d, b.partition()); err != nil {
		return err
	}
	if detail := in.apply(paths, &d); len(detail) > 0 {
		if err := tx.UpdateDomain(ctx, d); err != nil {
			return err
		}
		if err := tx.Audit(ctx, AuditEvent{Caller: caller.Subject, Action: "domains.update", Domain: d.UID,
			Resource: d.ID.Name(), Outcome: AuditDone, RequestID: in.Request.ID, Detail: detail}); err != nil {
			return err
		}
	}
	return finish(ctx, tx, caller, in.Request, d.ID.Name())
}

// paths gives the fields to change, each once, sorted.
func (in DomainUpdate) paths() ([]string, error) {
	if len(in.Mask) > 0 {
		for _, p := range in.Mask {
			switch p {
			case maskDisplayName, maskLabels, maskKeyAccounts, maskImportSources:
			case maskKMSKey:
				return nil, invalidField(ReasonKeyChangedByChangeKey, "update_mask", "kms_key is not changed by UpdateDomain: call ChangeKey, which moves grants and data keys too")
			default:
				return nil, invalidField(ReasonFieldInvalid, "update_mask", "%q cannot be changed: allowed are %s, %s, %s and %s",
					p, maskDisplayName, maskLabels, maskKeyAccounts, maskImportSources)
			}
		}
		return slices.Compact(slices.Sorted(slices.Values(in.Mask))), nil
	}
	var given []string
	for path, set := range map[string]bool{maskDisplayName: in.DisplayName != "", maskLabels: len(in.Labels) > 0,
		maskKeyAccounts: len(in.KeyAccounts) > 0, maskImportSources: len(in.ImportSources) > 0} {
		if set {
			given = append(given, path)
		}
	}
	slices.Sort(given)
	return given, nil
}

// validate holds what changes against the rules of CreateDomain.
func (in DomainUpdate) validate(paths []string, d Domain, partition string) error {
	fields := NewDomain{ID: d.ID, Region: d.Region}
	for _, p := range paths {
		switch p {
		case maskDisplayName:
			fields.DisplayName = in.DisplayName
		case maskLabels:
			fields.Labels = in.Labels
		case maskKeyAccounts:
			fields.KeyAccounts = in.KeyAccounts
		case maskImportSources:
			fields.ImportSources = in.ImportSources
		}
	}
	return fields.validate(partition)
}

// apply changes d, and gives what the audit row says of what is new. Names and
// labels may say anything about people: only that they changed is kept.
func (in DomainUpdate) apply(paths []string, d *Domain) map[string]string {
	detail := map[string]string{}
	for _, p := range paths {
		switch {
		case p == maskDisplayName && d.DisplayName != in.DisplayName:
			d.DisplayName, detail[p] = in.DisplayName, "changed"
		case p == maskLabels && !maps.Equal(d.Labels, in.Labels):
			d.Labels, detail[p] = maps.Clone(in.Labels), "changed"
		case p == maskKeyAccounts && !slices.Equal(d.KeyAccounts, in.KeyAccounts):
			d.KeyAccounts, detail[p] = slices.Clone(in.KeyAccounts), strings.Join(in.KeyAccounts, ",")
		case p == maskImportSources && !slices.Equal(d.ImportSources, in.ImportSources):
			d.ImportSources, detail[p] = slices.Clone(in.ImportSources), strings.Join(in.ImportSources, ",")
		}
	}
	return detail
}
