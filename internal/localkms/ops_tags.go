package localkms

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

const (
	maxTags        = 50     // on a key (AWS KMS Developer Guide, "Tags in AWS KMS")
	reservedTagKey = "aws:" // what no tag key begins with, in any case (recorded)
)

// tag is one of a key's tags, as it goes over the wire and into the journal.
type tag struct {
	TagKey   string
	TagValue string
}

// tagInput is a tag in a request, which may lack either part.
type tagInput struct {
	TagKey   *string
	TagValue *string
}

// tags checks the members of a list of tags against the service model.
func (v *validation) tags(list []tagInput) {
	for i, t := range list {
		member := "tags." + strconv.Itoa(i+1) + ".member."
		v.requiredText(t.TagKey, member+"tagKey", maxTagKey)
		v.required(t.TagValue != nil, member+"tagValue")
		if t.TagValue != nil {
			v.length(len([]rune(*t.TagValue)), 0, maxTagValue, quoted(*t.TagValue), member+"tagValue")
		}
	}
}

// newTags returns the tags of a request, by key. The texts of what it refuses were
// recorded.
func newTags(list []tagInput) ([]tag, error) {
	tags := make([]tag, len(list))
	for i, t := range list {
		tags[i] = tag{*t.TagKey, *t.TagValue}
		if isReservedTag(*t.TagKey) {
			return nil, errReservedTag()
		}
	}
	slices.SortFunc(tags, byTagKey)
	for i := 1; i < len(tags); i++ {
		if tags[i-1].TagKey == tags[i].TagKey {
			return nil, fault(codeTag, "Duplicate tag keys")
		}
	}
	if len(tags) > maxTags {
		return nil, errTooManyTags()
	}
	return tags, nil
}

func byTagKey(a, b tag) int { return cmp.Compare(a.TagKey, b.TagKey) }

func isReservedTag(key string) bool {
	return len(key) >= len(reservedTagKey) && strings.EqualFold(key[:len(reservedTagKey)], reservedTagKey)
}

func errReservedTag() error { return fault(codeTag, "Tags beginning with aws: are reserved") }

func errTooManyTags() error { return fault(codeTag, "Too many tags") }

// tagAttributes are what policies can test of tags in a request (IAM User Guide,
// "AWS global condition context keys", aws:RequestTag and aws:TagKeys).
func tagAttributes(list []tagInput) []attribute {
	var found []attribute
	var keys []string
	for _, t := range list {
		keys = append(keys, *t.TagKey)
		found = append(found, attributeOf(requestTagPrefix+*t.TagKey, *t.TagValue))
	}
	return append(found, attributeOf("aws:TagKeys", keys...))
}

type tagResourceInput struct {
	KeyID *string `json:"KeyId"`
	Tags  []tagInput
}

func (in *tagResourceInput) validate(v *validation) {
	v.requiredText(in.KeyID, "keyId", maxKeyID)
	v.required(in.Tags != nil, "tags")
	v.tags(in.Tags)
}

// tagResource adds tags to a key; one that it has already gets another value.
func (k *KMS) tagResource(r *request, in *tagResourceInput) (*empty, error) {
	added, err := newTags(in.Tags)
	if err != nil {
		return nil, err
	}
	return k.retag(r, *in.KeyID, "TagResource", tagAttributes(in.Tags), func(tags []tag) ([]tag, error) {
		for _, t := range added {
			if i, has := slices.BinarySearchFunc(tags, t, byTagKey); has {
				tags[i] = t
			} else {
				tags = slices.Insert(tags, i, t)
			}
		}
		if len(tags) > maxTags {
			return nil, errTooManyTags()
		}
		return tags, nil
	})
}

type untagResourceInput struct {
	KeyID   *string `json:"KeyId"`
	TagKeys []string
}

func (in *untagResourceInput) validate(v *validation) {
	v.requiredText(in.KeyID, "keyId", maxKeyID)
	v.required(in.TagKeys != nil, "tagKeys")
	for i := range in.TagKeys {
		v.text(&in.TagKeys[i], "tagKeys."+strconv.Itoa(i+1)+".member", maxTagKey)
	}
}

// untagResource takes tags from a key. Those that it does not have are passed over.
func (k *KMS) untagResource(r *request, in *untagResourceInput) (*empty, error) {
	if slices.ContainsFunc(in.TagKeys, isReservedTag) {
		return nil, errReservedTag()
	}
	return k.retag(r, *in.KeyID, "UntagResource", []attribute{attributeOf("aws:TagKeys", in.TagKeys...)}, func(tags []tag) ([]tag, error) {
		return slices.DeleteFunc(tags, func(t tag) bool { return slices.Contains(in.TagKeys, t.TagKey) }), nil
	})
}

// retag changes the tags of a key. The list that change gets is its to alter.
func (k *KMS) retag(r *request, id, operation string, also []attribute, change func([]tag) ([]tag, error)) (*empty, error) {
	key, err := k.owned(r, id, operation, also...)
	if err != nil {
		return nil, err
	}
	return &empty{}, k.change(func(s *state) (*event, error) {
		now, err := s.get(key.ref)
		if err == nil {
			err = now.notPending()
		}
		if err != nil {
			return nil, err
		}
		tags, err := change(slices.Clone(now.tags))
		if err != nil || slices.Equal(tags, now.tags) {
			return nil, err
		}
		return &event{Tagged: &tagsEvent{key.ref, tags}}, nil
	})
}

type listResourceTagsInput struct {
	KeyID  *string `json:"KeyId"`
	Limit  *int
	Marker *string
}

func (in *listResourceTagsInput) validate(v *validation) {
	v.requiredText(in.KeyID, "keyId", maxKeyID)
	v.number(in.Limit, "limit", 1, maxTags)
	v.text(in.Marker, "marker", maxMarker)
}

type listResourceTagsOutput struct {
	Tags       []tag
	Truncated  bool
	NextMarker string `json:",omitempty"`
}

// listResourceTags lists the tags of a key, by their keys. A marker holds the last
// key of the page before.
func (k *KMS) listResourceTags(r *request, in *listResourceTagsInput) (*listResourceTagsOutput, error) {
	last, err := r.readMarker(in.Marker)
	if err != nil {
		return nil, err
	}
	key, err := k.owned(r, *in.KeyID, "ListResourceTags")
	if err != nil {
		return nil, err
	}
	out := &listResourceTagsOutput{}
	after := slices.DeleteFunc(slices.Clone(key.tags), func(t tag) bool { return t.TagKey <= last })
	if limit := pageSize(in.Limit, maxTags); len(after) > limit {
		after, out.Truncated, out.NextMarker = after[:limit], true, r.writeMarker(after[limit-1].TagKey)
	}
	out.Tags = slices.Concat([]tag{}, after) // never null
	return out, k.settle()
}
