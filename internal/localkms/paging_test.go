package localkms_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/google/go-cmp/cmp"

	"github.com/keybroker/keybroker/internal/localkms"
)

// Every list can be read by pages of any size, has a marker exactly when there is
// more, and takes no marker but its own (AWS KMS API Reference, Limit, Marker,
// Truncated and NextMarker of each operation).
func TestPaging(t *testing.T) {
	const n = 5
	h := newKMS(t, localkms.Config{})
	c, ctx, key := as(h, admin), t.Context(), newKey(t, h, "")
	for i := range n {
		must[*kms.CreateAliasOutput](t)(c.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: aws.String(fmt.Sprint("alias/", i)), TargetKeyId: &key}))
		must[*kms.TagResourceOutput](t)(c.TagResource(ctx, &kms.TagResourceInput{KeyId: &key, Tags: tagsOf(fmt.Sprint("k", i), "v")}))
		grant := decryptGrant(key, worker)
		grant.RetiringPrincipal = aws.String(admin)
		must[*kms.CreateGrantOutput](t)(c.CreateGrant(ctx, grant))
		rotate(t, c, key)
		if i > 0 { // the first is there
			newKey(t, h, "")
		}
	}
	lists := []struct {
		operation, items string
		most             int // AWS's limit of a page
		ask              map[string]any
	}{
		{"ListKeys", "Keys", 1000, map[string]any{}},
		{"ListAliases", "Aliases", 100, map[string]any{}},
		{"ListGrants", "Grants", 100, map[string]any{"KeyId": key}},
		{"ListRetirableGrants", "Grants", 100, map[string]any{"RetiringPrincipal": admin}},
		{"ListKeyRotations", "Rotations", 1000, map[string]any{"KeyId": key}},
		{"ListResourceTags", "Tags", 50, map[string]any{"KeyId": key}},
	}
	ask := func(t *testing.T, operation string, body map[string]any, more map[string]any) answer {
		t.Helper()
		body = maps.Clone(body)
		maps.Copy(body, more)
		text, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		return post(t, h, "TrentService."+operation, admin, string(text))
	}
	markers := map[string]any{}
	for _, list := range lists {
		markers[list.operation] = ask(t, list.operation, list.ask, map[string]any{"Limit": 1}).fields["NextMarker"]
	}
	for _, list := range lists {
		t.Run(list.operation, func(t *testing.T) {
			whole := ask(t, list.operation, list.ask, nil)
			want, _ := whole.fields[list.items].([]any)
			if len(want) != n || whole.fields["Truncated"] != false || whole.fields["NextMarker"] != nil {
				t.Fatalf("one page: %s", whole.body)
			}
			for limit := 1; limit <= n+1; limit++ {
				var got []any
				for marker := any(nil); ; {
					page := ask(t, list.operation, list.ask, map[string]any{"Limit": limit, "Marker": marker})
					items, _ := page.fields[list.items].([]any)
					got = append(got, items...)
					marker = page.fields["NextMarker"]
					if more := len(got) < n; page.status != http.StatusOK || len(items) > limit || len(items) == 0 ||
						page.fields["Truncated"] != more || (marker != nil) != more {
						t.Fatalf("limit %d, %d of %d: %s", limit, len(got), n, page.body)
					}
					if marker == nil {
						break
					}
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("by %d (-whole +pages):\n%s", limit, diff)
				}
			}
			foreign := slices.DeleteFunc(slices.Collect(maps.Values(markers)), func(m any) bool { return m == markers[list.operation] })
			for _, marker := range append(foreign, "x", "bTE6", "AAAA") {
				if a := ask(t, list.operation, list.ask, map[string]any{"Marker": marker}); a.code() != "InvalidMarkerException" {
					t.Errorf("marker %v: %s", marker, a.body)
				}
			}
			for limit, constraint := range map[int]string{0: "greater than or equal to 1", list.most + 1: fmt.Sprint("less than or equal to ", list.most)} {
				a := ask(t, list.operation, list.ask, map[string]any{"Limit": limit})
				want := fmt.Sprintf("1 validation error detected: Value '%d' at 'limit' failed to satisfy constraint: Member must have value %s", limit, constraint)
				if a.code() != "ValidationException" || a.message() != want {
					t.Errorf("got  %s %q\nwant ValidationException %q", a.code(), a.message(), want)
				}
			}
		})
	}
}
