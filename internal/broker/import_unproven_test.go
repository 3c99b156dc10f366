package broker_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/test/harness"
)

// ownItem makes a blob under a key, with the domain's own pair.
func (b *importBench) ownItem(id broker.DataKeyID, key broker.KeyARN) (broker.ImportItem, []byte) {
	b.t.Helper()
	return b.item(id, key, legacyContext.With(b.domain("acme").Reserved))
}

// unproven imports with allow_unproven, and gives how often KMS was asked to
// re-encrypt.
func (b *importBench) unproven(requestID string, items ...broker.ImportItem) (results []broker.ImportResult, calls int) {
	b.t.Helper()
	b.Calls()
	in := broker.ImportDataKeys{Domain: "acme", Items: items, AllowUnproven: true}
	if requestID != "" {
		in.Request = request("ImportDataKeys", requestID, "body")
	}
	results, err := b.Broker.ImportDataKeys(b.t.Context(), harness.Caller, in)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, c := range b.Calls() {
		if c.Operation == "ReEncrypt" && c.Principal == harness.WorkerRole {
			calls++
		}
	}
	return results, calls
}

// Under the only key that the domain ever had, a blob with the domain's pair is
// kept as it is. What needs the call gets it, in the same request: a blob of
// another key or without the pair, and one that replaces a row.
func TestImportUnproven(t *testing.T) {
	b := newImport(t)
	d := b.domain("acme")
	replaced := b.mustDataKey("replaced")
	b.mustDataKey("taken")
	b.mustDataKey("gone")
	if err := b.Broker.DeleteDataKey(t.Context(), harness.Caller, broker.Request{}, "acme", "gone", ""); err != nil {
		t.Fatal(err)
	}
	own, plaintext := b.ownItem("own", d.KMSKey)
	replacement, _ := b.ownItem("replaced", d.KMSKey)
	replacement.Etag = replaced.Etag()
	taken, _ := b.ownItem("taken", d.KMSKey)
	gone, _ := b.ownItem("gone", d.KMSKey)
	foreign, _ := b.ownItem("foreign", b.legacy)
	items := []broker.ImportItem{own, b.legacyItem("legacy"), replacement, taken, gone, foreign}
	want := []broker.Reason{"", "", "", broker.ReasonDataKeyAlreadyExists, broker.ReasonDataKeyIDDeleted, broker.ReasonImportSourceNotAllowed}

	since := 0
	b.audited(&since)
	for try, wantCalls := range []int{2, 0} { // a repeat asks nobody
		results, calls := b.unproven("r", items...)
		for i, r := range results {
			if got := broker.ReasonOf(r.Err); got != want[i] {
				t.Errorf("try %d, %s: got %q (%v), want %q", try+1, items[i].ID, got, r.Err, want[i])
			}
			if unproven := r.Key.KeyMaterialID == ""; r.Err == nil && unproven != (items[i].ID == "own") {
				t.Errorf("try %d: %s is answered as of key material %q", try+1, items[i].ID, r.Key.KeyMaterialID)
			}
		}
		if calls != wantCalls {
			t.Errorf("try %d: %d calls of ReEncrypt, want %d", try+1, calls, wantCalls)
		}
	}
	row, err := b.getDataKey("own")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(row.Ciphertext, own.Ciphertext) || row.KMSKey != d.KMSKey || row.KeyMaterialID != "" || row.KMSRequestID != "" {
		t.Errorf("stored %+v", row)
	}
	if diff := cmp.Diff(own.SourceContext, row.EncryptionContext); diff != "" {
		t.Error(diff)
	}
	b.wantHolds("own", plaintext)
	events := b.query(`select detail from audit_event where action = 'dataKeys.import' and seq > ?`, since)
	if len(events) != 1 {
		t.Fatalf("%d events of one import", len(events))
	}
	for _, part := range []string{`"stored":"3"`, `"refused":"3"`, `"unproven":"1"`, `"kms_key":"` + string(d.KMSKey) + `"`, `"merkle_root":"`} {
		if !strings.Contains(events[0], part) {
			t.Errorf("audited %s, without %s", events[0], part)
		}
	}
}

// A domain that had another key, gets one, or cannot use its own has its imports
// proved, whatever their caller allows.
func TestImportUnprovenIsProvedAllTheSame(t *testing.T) {
	for name, prepare := range map[string]func(b *importBench){
		"a change is PREPARING": func(b *importBench) {
			b.beginChange("acme")
			for len(b.query(`select 1 from domain_key where state = 'PREPARING'`)) == 0 {
				if _, err := b.Step(b.t.Context()); err != nil {
					b.t.Fatal(err)
				}
			}
		},
		"a change has switched": func(b *importBench) {
			_, next := b.beginChange("acme")
			b.untilSwitched("acme", next)
		},
		"a change has ended": func(b *importBench) {
			job, _ := b.beginChange("acme")
			if _, err := b.Finish(b.t.Context(), "acme", job); err != nil {
				b.t.Fatal(err)
			}
		},
		"the key is inaccessible": func(b *importBench) {
			b.road.fail("GenerateDataKeyWithoutPlaintext", "DisabledException")
			_, err := b.createDataKey("lost")
			wantReason(b.t, err, broker.ReasonKeyDisabled)
			b.road.open()
		},
	} {
		for when, before := range map[string]bool{"before": true, "between KMS and the store": false} {
			t.Run(name+" "+when, func(t *testing.T) {
				b := newImport(t)
				if before {
					prepare(b)
				}
				item, plaintext := b.ownItem("k", b.domain("acme").KMSKey)
				if !before {
					b.at = func(point string) {
						if point == "import.reencrypted" {
							b.at = nil
							prepare(b)
						}
					}
				}
				results, _ := b.unproven("r", item)
				if !before && name == "a change has ended" {
					wantReason(t, results[0].Err, broker.ReasonImportSourceNotAllowed) // its key is retired
					return
				}
				if results[0].Err != nil {
					t.Fatal(results[0].Err)
				}
				if results[0].Key.KeyMaterialID == "" {
					t.Error("KMS was not asked")
				}
				b.wantHolds("k", plaintext)
				if d := b.domain("acme"); d.State != broker.DomainActive {
					t.Errorf("the domain is %s, and its key was used", d.State)
				}
			})
		}
	}
}

// What was kept unproven and is no key of the domain's is found by the next job
// that reads it, by name; a key change does not end well over it, and no report
// calls the old key safe.
func TestUnprovenGarbageIsFound(t *testing.T) {
	ctx := t.Context()
	b := newImport(t)
	old := b.domain("acme").KMSKey
	var items []broker.ImportItem
	for i := range 5 {
		item, _ := b.ownItem(broker.DataKeyID(fmt.Sprint("k", i)), old)
		items = append(items, item)
	}
	items[2].Ciphertext = []byte("garbage")
	wrong, _ := b.item("k3", old, broker.Context{"tenant": "other"}.With(b.domain("acme").Reserved))
	items[3].Ciphertext = wrong.Ciphertext
	if results, calls := b.unproven("", items...); calls != 0 || results[2].Err != nil || results[3].Err != nil {
		t.Fatalf("%d calls, %+v", calls, results)
	}
	ends := func(job broker.JobID, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		v, err := b.Finish(ctx, "acme", job)
		if err != nil || v.State != rotation.Failed || v.Progress.Failed != 2 {
			t.Fatalf("the %s job ended %s with %d failures, %v; want %s with 2", v.Kind, v.State, v.Progress.Failed, err, rotation.Failed)
		}
		failures, err := b.Engine.ListFailures(ctx, harness.Caller, "acme", job, "", 10)
		if err != nil || len(failures) != 2 || failures[0].DataKey != "k2" || failures[1].DataKey != "k3" {
			t.Errorf("failures %+v, %v; want k2 and k3", failures, err)
		}
	}
	verify, err := b.Engine.CreateJob(ctx, harness.Caller, rotation.NewJob{Domain: "acme", Kind: rotation.KindVerify})
	ends(verify.ID, err)
	change, _ := b.beginChange("acme")
	ends(change, nil)
	report, err := b.Engine.RetirementReport(ctx, harness.Caller, "acme", change)
	if err != nil || report.Keys[0].Safe || report.Keys[0].Key != old {
		t.Errorf("report %s, %v", report.Canonical, err)
	}
}

// A change back to the key that rows are still under relabels them without a call,
// but for the unproven: every key change proves every row.
func TestUnprovenRowsAreNotRelabelled(t *testing.T) {
	ctx := t.Context()
	b := newImport(t)
	first := b.domain("acme").KMSKey
	b.mustDataKey("proven")
	item, plaintext := b.ownItem("unproven", first)
	if results, calls := b.unproven("", item); calls != 0 || results[0].Err != nil {
		t.Fatal(calls, results[0].Err)
	}
	away, next := b.beginChange("acme")
	b.at = func(point string) {
		if point == "switch.committed" { // so that the rows stay behind
			b.at = nil
			if _, err := b.Engine.PauseJob(ctx, harness.Caller, rotation.JobAct{Domain: "acme", Job: away}); err != nil {
				t.Error(err)
			}
		}
	}
	b.untilSwitched("acme", next)
	back, err := b.ChangeKey(ctx, "acme", first)
	if err != nil {
		t.Fatal(err)
	}
	v, err := b.Finish(ctx, "acme", back.ID)
	if err != nil || v.State != rotation.Succeeded || v.Progress.Relabelled != 1 {
		t.Fatalf("%s with %d relabelled, %v; want the one that was proven", v.State, v.Progress.Relabelled, err)
	}
	if row, err := b.getDataKey("unproven"); err != nil || row.KeyMaterialID == "" || row.KMSKey != first {
		t.Errorf("%+v, %v", row, err)
	}
	b.wantHolds("unproven", plaintext)
}
