package rotation

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/keybroker/keybroker/internal/broker"
	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

// What an auditor files, and what the hash is about, keeps its form to the byte.
func TestCanonicalReport(t *testing.T) {
	at := func(minute int) time.Time {
		return time.Date(2026, 5, 4, 14, minute, 0, 0, time.FixedZone("CEST", 7200))
	}
	const old = "arn:aws:kms:us-east-1:111122223333:key/old"
	r := Report{Domain: "acme", Job: "job1", EvaluateTime: at(8).Add(1500 * time.Microsecond), Canonical: "stale", SHA256: "stale",
		Keys: []KeyRetirement{
			{Key: old, SafeAfter: at(7), GrantsRetired: 2, ListTime: at(5), LastMoveTime: at(4), Confirm: []string{"look at <it> & say"},
				Blockers: []Blocker{{Kind: BlockBackup, Count: 1, Message: "a backup", Until: at(9)}, {Kind: BlockRows, Resource: "domains/beta", Count: 3, AtLeast: true, Message: "rows"}},
				Moved:    []MaterialCount{{SourceKey: old, SourceMaterial: "m1", NewMaterial: "m2", Rows: 5}},
				Inventories: []SelfInventory{
					{Domain: "acme", Grant: broker.Grant{ID: "g1", Grantee: "role1"}},
					{Domain: "acme", Grant: broker.Grant{ID: "g2", Grantee: "role2"}, KMSKey: "arn:new",
						Settled: &Settlement{Kind: Attested, Caller: "caller", Items: 7, GivenUp: 1, Time: at(6)}},
				}},
			{Key: "arn:aws:kms:us-east-1:111122223333:key/older", Safe: true},
		}}
	if err := seal(&r); err != nil {
		t.Fatal(err)
	}
	want := strings.Join([]string{
		`{"entries":[`,
		`{"blockers":[`,
		`{"at_least":false,"count":1,"kind":"KIND_BACKUP_RETENTION","message":"a backup","resource":"","until":"2026-05-04T12:09:00Z"},`,
		`{"at_least":true,"count":3,"kind":"KIND_ROWS","message":"rows","resource":"domains/beta"}],`,
		`"confirm":["look at <it> & say"],"grants_retired":2,"kms_key":"arn:aws:kms:us-east-1:111122223333:key/old",`,
		`"last_row_moved_time":"2026-05-04T12:04:00Z","listed_time":"2026-05-04T12:05:00Z",`,
		`"rows_moved":[{"destination_key_material_id":"m2","rows":5,"source_key_material_id":"m1"}],`,
		`"safe_after":"2026-05-04T12:07:00Z","safe_to_retire":false,"self_inventories":[`,
		`{"grant":"domains/acme/grants/g1","grantee_principal":"role1","state":"STATE_PENDING"},`,
		`{"caller":"caller","given_up_items":1,"grant":"domains/acme/grants/g2","grantee_principal":"role2","items":7,"kms_key":"arn:new",`,
		`"reason":"","settle_time":"2026-05-04T12:06:00Z","state":"STATE_ATTESTED"}]},`,
		`{"blockers":[],"confirm":[],"grants_retired":0,"kms_key":"arn:aws:kms:us-east-1:111122223333:key/older",`,
		`"rows_moved":[],"safe_to_retire":true,"self_inventories":[]}],`,
		`"evaluate_time":"2026-05-04T12:08:00.0015Z","name":"domains/acme/reencryptionJobs/job1/retirementReport"}`,
	}, "")
	if diff := cmp.Diff(want, r.Canonical); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if sum := fmt.Sprintf("%x", sha256.Sum256([]byte(want))); r.SHA256 != sum {
		t.Errorf("hash %s, want %s", r.SHA256, sum)
	}
	// It says what the API's message says, under the same names.
	if err := protojson.Unmarshal([]byte(r.Canonical), &keybrokerv1.RetirementReport{}); err != nil {
		t.Error(err)
	}
}

// Of what people write, RFC 8785 (3.2.2.2) escapes the quotation mark, the backslash
// and control characters, and nothing else.
func TestCanonicalText(t *testing.T) {
	for given, want := range map[string]string{
		"a\u2028b\u2029c <&>é😀": "a\u2028b\u2029c <&>é😀",
		`a\u2028b\\u2029c`:      `a\\u2028b\\\\u2029c`,
		"\"\b\t\n\f\r\x1f\x7f":  "\\\"" + `\b\t\n\f\r\u001f` + "\x7f",
	} {
		r := Report{Keys: []KeyRetirement{{Inventories: []SelfInventory{{Settled: &Settlement{Kind: Overridden, Reason: given}}}}}}
		if err := seal(&r); err != nil {
			t.Fatal(err)
		}
		if text := `"reason":"` + want + `"`; !strings.Contains(r.Canonical, text) {
			t.Errorf("want %s in %s", text, r.Canonical)
		}
	}
}
