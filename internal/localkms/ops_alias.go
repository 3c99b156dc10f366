package localkms

import (
	"encoding/base64"
	"slices"
	"strings"
	"time"
)

type createAliasInput struct {
	AliasName   *string
	TargetKeyID *string `json:"TargetKeyId"`
}

func (in *createAliasInput) validate(v *validation) {
	v.required(in.AliasName != nil, "aliasName")
	v.name(in.AliasName, "aliasName")
	v.requiredText(in.TargetKeyID, "targetKeyId", maxKeyID)
	name := text(in.AliasName)
	v.rule(strings.HasPrefix(name, "alias/") && name != "alias/", `Alias must start with the prefix "alias/". `+
		`Please see https://docs.aws.amazon.com/kms/latest/developerguide/kms-alias.html`)
}

func (k *KMS) createAlias(r *request, in *createAliasInput) (*empty, error) {
	if strings.HasPrefix(*in.AliasName, "alias/aws/") {
		return nil, fault(codeNotAuthorized, "")
	}
	key, err := k.owned(r, *in.TargetKeyID, "CreateAlias")
	if err != nil {
		return nil, err
	}
	ref := aliasRef{key.ref.Account, key.ref.Region, *in.AliasName}
	return &empty{}, k.change(func(s *state) (*event, error) {
		now, err := s.get(key.ref)
		if err == nil {
			err = now.notPending()
		}
		if err != nil {
			return nil, err
		}
		if s.aliases[ref] != nil {
			return nil, faultf(codeAlreadyExists, "An alias with the name %s already exists", ref.arn())
		}
		return &event{Alias: &aliasEvent{ref, key.ref, r.now.UTC().Truncate(time.Millisecond)}}, nil
	})
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
	last, err := readMarker(in.Marker)
	if err != nil {
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
	limit := pageSize(in.Limit)
	for _, a := range k.aliasesAfter(r, target, last) {
		if len(out.Aliases) == limit {
			out.Truncated = true
			out.NextMarker = writeMarker(out.Aliases[limit-1].AliasName)
			break
		}
		out.Aliases = append(out.Aliases, aliasEntry{
			AliasArn:        a.ref.arn(),
			AliasName:       a.ref.Name,
			CreationDate:    epoch(a.created),
			LastUpdatedDate: epoch(a.created),
			TargetKeyID:     a.target.ID,
		})
	}
	return out, k.settle()
}

func (k *KMS) aliasesAfter(r *request, target *keyRef, last string) []*alias {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return slices.DeleteFunc(k.state.sortedAliases(), func(a *alias) bool {
		_, err := k.state.alive(a.target, r.now)
		return err != nil || a.ref.Account != r.caller.account || a.ref.Region != r.region || a.ref.Name <= last ||
			(target != nil && a.target != *target)
	})
}

func pageSize(limit *int) int {
	if limit == nil {
		return defaultPage
	}
	return *limit
}

// A marker is opaque to callers: base64 of where the next page begins.

func writeMarker(position string) string {
	return base64.URLEncoding.EncodeToString([]byte("m1:" + position))
}

// readMarker returns the position in a marker, "" without one.
func readMarker(marker *string) (string, error) {
	if marker == nil {
		return "", nil
	}
	decoded, err := base64.URLEncoding.DecodeString(*marker)
	position, ok := strings.CutPrefix(string(decoded), "m1:")
	if err != nil || !ok || position == "" {
		return "", errInvalidMarker()
	}
	return position, nil
}

func errInvalidMarker() error {
	return fault(codeInvalidMarker, "The request was rejected because the marker that specifies where pagination should next begin is not valid.")
}
