package localkms

import (
	"slices"
	"strings"
)

// maxAliases is how many aliases a key may have (AWS KMS Developer Guide, "Quotas",
// Resource quotas).
const maxAliases = 50

// aliasInput is what CreateAlias and UpdateAlias take.
type aliasInput struct {
	AliasName   *string
	TargetKeyID *string `json:"TargetKeyId"`
}

func (in *aliasInput) validate(v *validation) {
	v.alias(in.AliasName)
	v.requiredText(in.TargetKeyID, "targetKeyId", maxKeyID)
}

func (k *KMS) createAlias(r *request, in *aliasInput) (*empty, error) {
	key, err := k.aliasTarget(r, in, "CreateAlias")
	if err != nil {
		return nil, err
	}
	ref := aliasRef{key.ref.Account, key.ref.Region, *in.AliasName}
	return &empty{}, k.change(func(s *state) (*event, error) {
		if err := s.mayTake(key, nil); err != nil {
			return nil, err
		}
		if s.aliases[ref] != nil {
			return nil, faultf(codeAlreadyExists, "An alias with the name %s already exists", ref.arn())
		}
		return &event{Alias: &aliasEvent{Ref: ref, Target: key.ref, Created: r.stamp()}}, nil
	})
}

// updateAlias moves an alias to another key of the same kind. Whoever does so has
// to be allowed to by both keys (AWS KMS API Reference, UpdateAlias).
func (k *KMS) updateAlias(r *request, in *aliasInput) (*empty, error) {
	old, err := k.aliased(r, *in.AliasName, "UpdateAlias")
	if err != nil {
		return nil, err
	}
	key, err := k.aliasTarget(r, in, "UpdateAlias")
	if err != nil {
		return nil, err
	}
	if old.kind != key.kind {
		return nil, faultf(codeValidation, "Alias %s cannot move from a key with KeySpec %s and KeyUsage %s to one with KeySpec %s and KeyUsage %s.",
			*in.AliasName, old.spec, old.usage, key.spec, key.usage)
	}
	ref := aliasRef{key.ref.Account, key.ref.Region, *in.AliasName}
	return &empty{}, k.change(func(s *state) (*event, error) {
		was := s.aliases[ref]
		if was == nil {
			return nil, errNoSuchAlias(ref)
		}
		if err := s.mayTake(key, was); err != nil {
			return nil, err
		}
		return &event{Alias: &aliasEvent{ref, key.ref, was.created, r.stamp()}}, nil
	})
}

// aliasTarget finds the key that an alias is to name.
func (k *KMS) aliasTarget(r *request, in *aliasInput, operation string) (resolved, error) {
	if err := k.authorizeAlias(r, *in.AliasName, operation); err != nil {
		return resolved{}, err
	}
	return k.owned(r, *in.TargetKeyID, operation)
}

// mayTake reports whether a key may get one more alias: no key that is to be
// deleted, and none that has the most it may have.
func (s *state) mayTake(key resolved, moved *alias) error {
	now, err := s.get(key.ref)
	if err == nil {
		err = now.notPending()
	}
	if err != nil {
		return err
	}
	if moved != nil && moved.target == key.ref {
		return nil
	}
	has := 0
	for _, a := range s.aliases {
		if a.target == key.ref {
			has++
		}
	}
	if has >= maxAliases {
		return faultf(codeLimitExceeded, "The key %s has reached the quota of %d aliases.", key.arn, maxAliases)
	}
	return nil
}

type deleteAliasInput struct{ AliasName *string }

func (in *deleteAliasInput) validate(v *validation) { v.alias(in.AliasName) }

// deleteAlias works in every state of the key.
func (k *KMS) deleteAlias(r *request, in *deleteAliasInput) (*empty, error) {
	key, err := k.aliased(r, *in.AliasName, "DeleteAlias")
	if err != nil {
		return nil, err
	}
	ref := aliasRef{key.ref.Account, key.ref.Region, *in.AliasName}
	return &empty{}, k.change(func(s *state) (*event, error) {
		if s.aliases[ref] == nil {
			return nil, errNoSuchAlias(ref)
		}
		return &event{Unaliased: &ref}, nil
	})
}

// aliased finds the key that an alias of the caller's account names, for an
// operation on the alias that the key has to allow too.
func (k *KMS) aliased(r *request, name, operation string) (resolved, error) {
	if err := k.authorizeAlias(r, name, operation); err != nil {
		return resolved{}, err
	}
	key, err := k.find(r, name, keyAliasForms)
	if err != nil {
		return resolved{}, err
	}
	r.call.KeyARN = key.arn
	return key, k.authorizeOwner(r, key, operation)
}

// authorizeAlias asks the caller's policies about the alias itself (AWS KMS
// Developer Guide, "Controlling access to aliases").
func (k *KMS) authorizeAlias(r *request, name, operation string) error {
	if strings.HasPrefix(name, "alias/aws/") {
		return fault(codeNotAuthorized, "")
	}
	return k.authorizeAccount(r, operation, aliasRef{r.caller.account, r.region, name}.arn())
}

func errNoSuchAlias(ref aliasRef) error {
	return faultf(codeNotFound, "Alias %s is not found.", ref.arn())
}

type listAliasesInput struct {
	KeyID  *string `json:"KeyId"`
	Limit  *int
	Marker *string
}

func (in *listAliasesInput) validate(v *validation) {
	v.text(in.KeyID, "keyId", maxKeyID)
	v.number(in.Limit, "limit", 1, maxPage)
	v.text(in.Marker, "marker", maxMarker)
}

type aliasEntry struct {
	AliasArn        string
	AliasName       string
	CreationDate    epoch
	LastUpdatedDate epoch
	TargetKeyID     string `json:"TargetKeyId"`
}

type listAliasesOutput struct {
	Aliases    []aliasEntry
	Truncated  bool
	NextMarker string `json:",omitempty"`
}

// listAliases lists the aliases of the caller's account and region, by name. A
// marker holds the last name of the page before.
func (k *KMS) listAliases(r *request, in *listAliasesInput) (*listAliasesOutput, error) {
	last, err := r.readMarker(in.Marker)
	if err != nil {
		return nil, err
	}
	if err := k.authorizeAccount(r, "ListAliases", "*"); err != nil {
		return nil, err
	}
	var target *keyRef
	if in.KeyID != nil {
		key, err := k.find(r, *in.KeyID, keyForms)
		if err != nil {
			return nil, err
		}
		target = &key.ref
	}
	out := &listAliasesOutput{Aliases: []aliasEntry{}}
	limit := pageSize(in.Limit, defaultPage)
	for _, a := range k.aliasesAfter(r, target, last) {
		if len(out.Aliases) == limit {
			out.Truncated = true
			out.NextMarker = r.writeMarker(out.Aliases[limit-1].AliasName)
			break
		}
		out.Aliases = append(out.Aliases, aliasEntry{
			AliasArn:        a.ref.arn(),
			AliasName:       a.ref.Name,
			CreationDate:    epoch(a.created),
			LastUpdatedDate: epoch(a.lastUpdated()),
			TargetKeyID:     a.target.ID,
		})
	}
	return out, k.settle()
}

func (k *KMS) aliasesAfter(r *request, target *keyRef, last string) []*alias {
	k.mu.RLock()
	defer k.mu.RUnlock()
	var found []*alias
	for _, a := range k.state.aliases {
		if a.ref.Account != r.caller.account || a.ref.Region != r.region || a.ref.Name <= last || target != nil && a.target != *target {
			continue
		}
		if _, err := k.state.alive(a.target, r.now); err == nil {
			found = append(found, a)
		}
	}
	slices.SortFunc(found, func(a, b *alias) int { return strings.Compare(a.ref.Name, b.ref.Name) })
	return found
}
