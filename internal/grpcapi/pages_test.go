package grpcapi_test

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/grpcapi"
	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

// reasonOf gives the ErrorInfo's reason of a call's error.
func reasonOf(err error) string {
	return strings.Fields(render(status.Convert(err)))[0]
}

// listKeys lists all data keys, page by page, and gives their ids and the sizes
// of the pages.
func listKeys(t *testing.T, d *door, fields string) (ids []string, pages []int) {
	t.Helper()
	token := ""
	for {
		got, err := d.call(t.Context(), t, "DataKeyService/ListDataKeys", fmt.Sprintf(`{"parent":"domains/-","page_token":%q%s}`, token, fields))
		if err != nil {
			t.Fatal(err)
		}
		answer := got.(*keybrokerv1.ListDataKeysResponse)
		for _, k := range answer.GetDataKeys() {
			_, id, err := broker.ParseDataKeyName("name", k.GetName())
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, string(id))
		}
		pages = append(pages, len(answer.GetDataKeys()))
		if token = answer.GetNextPageToken(); token == "" {
			return ids, pages
		}
	}
}

func TestPages(t *testing.T) {
	for _, test := range []struct {
		rows   int
		fields string
		want   string // sizes of the pages
	}{
		{0, ``, "[0]"},
		{1, ``, "[1]"},
		{50, ``, "[50]"},
		{51, ``, "[50 1]"},
		{3, `,"page_size":1`, "[1 1 1]"},
		{251, `,"page_size":1000`, "[250 1]"},
		{10, `,"filter":"key_spec = AES_128"`, "[5]"},
		{10, `,"filter":"key_spec = \"AES_128\"","page_size":2`, "[2 2 1]"},
		{10, `,"filter":"key_spec=AES_256 AND kms_key = \"` + string(keyNew) + `\""`, "[5]"},
		// A filter that nothing passes: bounded work per call, and a token to go on.
		{4500, `,"filter":"key_material_id = other"`, "[0 0 0]"},
	} {
		f := newFake()
		f.rows = test.rows
		ids, pages := listKeys(t, serve(t, f, nil), test.fields)
		if got := fmt.Sprint(pages); got != test.want {
			t.Errorf("%d rows%s: pages %s, want %s", test.rows, test.fields, got, test.want)
		}
		seen := map[string]bool{}
		for _, id := range ids {
			if seen[id] {
				t.Errorf("%d rows%s: %s came twice", test.rows, test.fields, id)
			}
			seen[id] = true
		}
	}
}

func TestPageSizes(t *testing.T) {
	f := newFake()
	f.rows = 1
	d := serve(t, f, nil)
	for _, test := range []struct {
		method, request string
		limit           int // one more than the page
	}{
		{"DomainService/ListDomains", `{}`, 51},
		{"DomainService/ListDomains", `{"page_size":9999}`, 501},
		{"DataKeyService/ListDataKeys", `{"parent":"domains/acme"}`, 51},
		{"DataKeyService/ListDataKeys", `{"parent":"domains/acme","page_size":9999}`, 251},
		{"ReencryptionService/ListReencryptionJobs", `{"parent":"domains/-","page_size":9999}`, 251},
	} {
		if _, err := d.call(t.Context(), t, test.method, test.request); err != nil {
			t.Fatal(err)
		}
		asked := f.last()
		if got := asked[len(asked)-1]; got != test.limit {
			t.Errorf("%s %s: fetched %v, want %d", test.method, test.request, got, test.limit)
		}
	}
	_, err := d.call(t.Context(), t, "DomainService/ListDomains", `{"page_size":-1}`)
	if got := reasonOf(err); got != "FIELD_INVALID" {
		t.Errorf("a negative page size answers %s", got)
	}
}

func TestForeignPageTokens(t *testing.T) {
	f := newFake()
	f.rows = 3
	now := time.Now()
	d := serve(t, f, func(c *grpcapi.Config) { c.Now = func() time.Time { return now } })
	got, err := d.call(t.Context(), t, "DataKeyService/ListDataKeys", `{"parent":"domains/acme","page_size":1,"filter":"key_spec = AES_256"}`)
	if err != nil {
		t.Fatal(err)
	}
	token := got.(*keybrokerv1.ListDataKeysResponse).GetNextPageToken()
	const same = `"parent":"domains/acme","filter":"key_spec = AES_256"`
	use := func(d *door, method, fields string) error {
		_, err := d.call(t.Context(), t, method, fmt.Sprintf(`{%s,"page_token":%q}`, fields, token))
		return err
	}
	if err := use(d, "DataKeyService/ListDataKeys", same+`,"page_size":7`); err != nil {
		t.Errorf("another page size: %v", err)
	}
	stranger := serve(t, f, func(c *grpcapi.Config) { c.PageTokenKey[0]++ })
	late := serve(t, f, func(c *grpcapi.Config) { c.Now = func() time.Time { return now.Add(24*time.Hour + 2*time.Second) } })
	early := serve(t, f, func(c *grpcapi.Config) { c.Now = func() time.Time { return now.Add(-time.Hour) } })
	other := serve(t, f, func(c *grpcapi.Config) { c.CallerFunc = grpcapi.PeerCaller })
	for name, err := range map[string]error{
		"another parent":     use(d, "DataKeyService/ListDataKeys", `"parent":"domains/beta","filter":"key_spec = AES_256"`),
		"every domain":       use(d, "DataKeyService/ListDataKeys", `"parent":"domains/-","filter":"key_spec = AES_256"`),
		"another filter":     use(d, "DataKeyService/ListDataKeys", `"parent":"domains/acme"`),
		"another method":     use(d, "ReencryptionService/ListReencryptionJobs", `"parent":"domains/acme"`),
		"another key":        use(stranger, "DataKeyService/ListDataKeys", same),
		"older than 24 h":    use(late, "DataKeyService/ListDataKeys", same),
		"made in the future": use(early, "DataKeyService/ListDataKeys", same),
		"another caller":     use(other, "DataKeyService/ListDataKeys", same),
	} {
		if s := status.Convert(err); s.Code() != codes.InvalidArgument || reasonOf(err) != "PAGE_TOKEN_INVALID" {
			t.Errorf("%s: %v", name, s)
		}
	}
}

func TestFilters(t *testing.T) {
	f := newFake()
	f.rows = 1
	d := serve(t, f, nil)
	for _, test := range []struct {
		method, filter string
		want           int // -1: FILTER_INVALID
	}{
		{"DomainService/ListDomains", ``, 1},
		{"DomainService/ListDomains", `  `, 1},
		{"DomainService/ListDomains", `state = STATE_ACTIVE AND labels.tier = "gold"`, 1},
		{"DomainService/ListDomains", `state = STATE_ACTIVE AND labels.tier = "silver"`, 0},
		{"DomainService/ListDomains", `labels.other = ""`, 1},
		{"DomainService/ListDomains", `kms_key = ` + string(keyNew), 1},
		{"DomainService/ListDomains", `labels.tier = "with \" and \\"`, 0},
		{"DomainService/ListDomains", `uid = "uid1"`, -1},
		{"DomainService/ListDomains", `state = STATE_ACTIVE OR labels.tier = "gold"`, -1},
		{"DomainService/ListDomains", `state = STATE_ACTIVE AND`, -1},
		{"DomainService/ListDomains", `state = STATE_ACTIVE and state = STATE_ACTIVE`, -1},
		{"DomainService/ListDomains", `state != STATE_ACTIVE`, -1},
		{"DomainService/ListDomains", `state = "STATE_ACTIVE`, -1},
		{"DomainService/ListDomains", `state`, -1},
		{"DomainService/ListDomains", `labels = gold`, -1},
		{"DomainService/ListDomains", `state.x = gold`, -1},
		{"ReencryptionService/ListReencryptionJobs", `state = STATE_RUNNING AND phase = PHASE_REENCRYPTING AND target_kms_key = "` + string(keyNew) + `"`, 1},
		{"ReencryptionService/ListReencryptionJobs", `state = STATE_BLOCKED`, 0},
		{"ReencryptionService/ListReencryptionJobs", `reason = x`, -1},
	} {
		parent := `"parent":"domains/acme",`
		if test.method == "DomainService/ListDomains" {
			parent = ""
		}
		got, err := d.call(t.Context(), t, test.method, fmt.Sprintf(`{%s"filter":%q}`, parent, test.filter))
		n := -1
		switch answer := got.(type) {
		case *keybrokerv1.ListDomainsResponse:
			n = len(answer.GetDomains())
		case *keybrokerv1.ListReencryptionJobsResponse:
			n = len(answer.GetReencryptionJobs())
		}
		if test.want < 0 {
			if reasonOf(err) != "FILTER_INVALID" || !strings.Contains(err.Error(), "kms_key") {
				t.Errorf("%s: %v, want FILTER_INVALID that names the fields", test.filter, err)
			}
		} else if err != nil || n != test.want {
			t.Errorf("%s: %d rows (%v), want %d", test.filter, n, err, test.want)
		}
	}
}

// FuzzPageToken sends tokens with flipped, cut and added bytes: all but the true
// one are refused, and nothing panics.
func FuzzPageToken(f *testing.F) {
	fake := newFake()
	fake.rows = 3
	d := serve(f, fake, nil)
	got, err := d.call(f.Context(), f, "DomainService/ListDomains", `{"page_size":1}`)
	if err != nil {
		f.Fatal(err)
	}
	token := got.(*keybrokerv1.ListDomainsResponse).GetNextPageToken()
	raw, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		f.Fatal(err)
	}
	for i := range raw {
		f.Add(i, byte(1), len(raw), "")
	}
	f.Add(0, byte(0), 5, "")
	f.Add(0, byte(0), 0, "AA")
	f.Add(0, byte(0), len(raw), "=")
	f.Add(0, byte(0), len(raw), "\n")
	f.Add(0, byte(0), 0, "not base64!")
	f.Fuzz(func(t *testing.T, at int, flip byte, length int, tail string) {
		bent := append([]byte(nil), raw...)
		if at >= 0 && at < len(bent) {
			bent[at] ^= flip
		}
		if length >= 0 && length < len(bent) {
			bent = bent[:length]
		}
		sent := base64.RawURLEncoding.EncodeToString(bent) + tail
		if sent == token || sent == "" || len(sent) > 1024 {
			return
		}
		client := keybrokerv1.NewDomainServiceClient(d.conn)
		_, err := client.ListDomains(t.Context(), &keybrokerv1.ListDomainsRequest{PageToken: strings.ToValidUTF8(sent, "?")})
		if reasonOf(err) != "PAGE_TOKEN_INVALID" {
			t.Errorf("%q: %v", sent, err)
		}
	})
}
