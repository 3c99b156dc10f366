package rotation

import (
	"bytes"
	"encoding/json"
	"strings"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
)

// canonical renders a report's content as RFC 8785 (JSON Canonicalization
// Scheme) would: keys sorted, no spaces, nothing escaped that need not be. The
// names are those of the API's RetirementReport; a time that is absent there is
// absent here. All numbers are integers, so their form is plain.
func canonical(r Report) ([]byte, error) {
	entries := make([]object, len(r.Keys))
	for i, k := range r.Keys {
		entries[i] = k.object()
	}
	report := object{"name": broker.JobName(r.Domain, r.Job) + "/retirementReport", "entries": entries}
	report.setTime("evaluate_time", r.EvaluateTime)
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	if err := e.Encode(report); err != nil {
		return nil, err
	}
	return []byte(plainSeparators(strings.TrimSuffix(out.String(), "\n"))), nil
}

// plainSeparators takes back the two escapes of the encoder which RFC 8785 does not
// have: of U+2028 and U+2029. An escaped backslash before such letters is text.
func plainSeparators(encoded string) string {
	return strings.NewReplacer(`\\`, `\\`, `\u2028`, "\u2028", `\u2029`, "\u2029").Replace(encoded)
}

// An object is one of JSON; the encoder sorts its keys.
type object map[string]any

func (o object) setTime(name string, t time.Time) {
	if !t.IsZero() {
		o[name] = t.UTC().Format(time.RFC3339Nano)
	}
}

func (k KeyRetirement) object() object {
	blockers := make([]object, len(k.Blockers))
	for i, b := range k.Blockers {
		blockers[i] = object{"kind": "KIND_" + string(b.Kind), "resource": b.Resource, "count": b.Count, "at_least": b.AtLeast, "message": b.Message}
		blockers[i].setTime("until", b.Until)
	}
	moved := make([]object, len(k.Moved))
	for i, m := range k.Moved {
		moved[i] = object{"source_key_material_id": m.SourceMaterial, "destination_key_material_id": m.NewMaterial, "rows": m.Rows}
	}
	inventories := make([]object, len(k.Inventories))
	for i, s := range k.Inventories {
		inventories[i] = s.object()
	}
	out := object{"kms_key": string(k.Key), "safe_to_retire": k.Safe, "blockers": blockers, "rows_moved": moved,
		"grants_retired": k.GrantsRetired, "confirm": append([]string{}, k.Confirm...),
		"self_inventories": inventories}
	out.setTime("safe_after", k.SafeAfter)
	out.setTime("listed_time", k.ListTime)
	out.setTime("last_row_moved_time", k.LastMoveTime)
	return out
}

func (s SelfInventory) object() object {
	out := object{"grant": broker.GrantName(s.Domain, s.Grant.ID), "grantee_principal": s.Grant.Grantee, "state": "STATE_PENDING"}
	if w := s.Settled; w != nil {
		out["state"], out["kms_key"], out["caller"], out["reason"] = "STATE_"+string(w.Kind), string(s.KMSKey), w.Caller, w.Reason
		out["items"], out["given_up_items"] = w.Items, w.GivenUp
		out.setTime("settle_time", w.Time)
	}
	return out
}
