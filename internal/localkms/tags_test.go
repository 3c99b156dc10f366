package localkms_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/keybroker/keybroker/internal/localkms"
)

// listTags reads the tags of a key, page by page.
func listTags(t *testing.T, c *kms.Client, key string) (all []types.Tag) {
	t.Helper()
	for pages := kms.NewListResourceTagsPaginator(c, &kms.ListResourceTagsInput{KeyId: &key, Limit: aws.Int32(2)}); pages.HasMorePages(); {
		all = append(all, must[*kms.ListResourceTagsOutput](t)(pages.NextPage(t.Context())).Tags...)
	}
	return all
}

// AWS KMS API Reference, TagResource, UntagResource and ListResourceTags.
func TestTags(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	c, ctx := as(h, admin), t.Context()
	key := *must[*kms.CreateKeyOutput](t)(c.CreateKey(ctx, &kms.CreateKeyInput{Tags: tagsOf("tag2", "b", "tag1", "")})).KeyMetadata.Arn
	want := func(tags ...string) {
		t.Helper()
		if diff := cmp.Diff(tagsOf(tags...), listTags(t, c, key), cmpopts.IgnoreUnexported(types.Tag{})); diff != "" {
			t.Errorf("tags (-want +got):\n%s", diff)
		}
	}
	want("tag1", "", "tag2", "b")
	must[*kms.TagResourceOutput](t)(c.TagResource(ctx, &kms.TagResourceInput{KeyId: &key, Tags: tagsOf("tag3", "c", "tag2", "B")}))
	want("tag1", "", "tag2", "B", "tag3", "c")
	must[*kms.UntagResourceOutput](t)(c.UntagResource(ctx, &kms.UntagResourceInput{KeyId: &key, TagKeys: []string{"tag1", "tag3", "never there"}}))
	want("tag2", "B")
	must[*kms.UntagResourceOutput](t)(c.UntagResource(ctx, &kms.UntagResourceInput{KeyId: &key, TagKeys: []string{"tag2"}}))
	want()
	_, err := c.ListResourceTags(ctx, &kms.ListResourceTagsInput{KeyId: &key, Marker: aws.String("x")})
	wantCode(t, err, "InvalidMarkerException")
}

// manyTags are n tags with different keys.
func manyTags(n int) (tags []types.Tag) {
	for i := range n {
		tags = append(tags, tagsOf(fmt.Sprintf("key-%02d", i), "v")...)
	}
	return tags
}

// The texts were recorded from CreateKey and TagResource, 2025-01. That a key has
// 50 tags and gets one more was not.
func TestTagsAreRefused(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	c, ctx := as(h, admin), t.Context()
	key := newKey(t, h, "")
	tooLong := func(value, member string, most int) refusal {
		return refusal{"ValidationException", fmt.Sprintf("1 validation error detected: Value '%s' at 'tags.1.member.%s' failed to satisfy constraint: "+
			"Member must have length less than or equal to %d", value, member, most)}
	}
	reserved := refusal{"TagException", "Tags beginning with aws: are reserved"}
	for name, tc := range map[string]struct {
		tags []types.Tag
		want refusal
	}{
		"duplicate":            {tagsOf("a", "1", "b", "2", "a", "3"), refusal{"TagException", "Duplicate tag keys"}},
		"too many":             {manyTags(51), refusal{"TagException", "Too many tags"}},
		"reserved":             {tagsOf("aws:x", "1"), reserved},
		"reserved, upper case": {tagsOf("AWS:x", "1"), reserved},
		"long key":             {tagsOf(strings.Repeat("a", 129), "1"), tooLong(strings.Repeat("a", 129), "tagKey", 128)},
		"long value":           {tagsOf("a", strings.Repeat("v", 257)), tooLong(strings.Repeat("v", 257), "tagValue", 256)},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.CreateKey(ctx, &kms.CreateKeyInput{Tags: tc.tags})
			wantRefusal(t, err, tc.want.code, tc.want.message)
			_, err = c.TagResource(ctx, &kms.TagResourceInput{KeyId: &key, Tags: tc.tags})
			wantRefusal(t, err, tc.want.code, tc.want.message)
		})
	}
	if got := listTags(t, c, key); len(got) != 0 {
		t.Errorf("refused requests left %d tags", len(got))
	}
	must[*kms.TagResourceOutput](t)(c.TagResource(ctx, &kms.TagResourceInput{KeyId: &key, Tags: manyTags(50)}))
	must[*kms.TagResourceOutput](t)(c.TagResource(ctx, &kms.TagResourceInput{KeyId: &key, Tags: tagsOf("key-00", "another")}))
	_, err := c.TagResource(ctx, &kms.TagResourceInput{KeyId: &key, Tags: tagsOf("one more", "")})
	wantRefusal(t, err, "TagException", "Too many tags")
	if got := listTags(t, c, key); len(got) != 50 || *got[0].TagValue != "another" {
		t.Errorf("%d tags, the first with %q", len(got), *got[0].TagValue)
	}
	_, err = c.UntagResource(ctx, &kms.UntagResourceInput{KeyId: &key, TagKeys: []string{"aws:x"}})
	wantRefusal(t, err, reserved.code, reserved.message)
}
