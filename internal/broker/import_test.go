package broker_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/google/go-cmp/cmp"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/test/harness"
)

var legacyContext = broker.Context{"tenant": "acme"}

// An importBench has the domain "acme", and a customer's legacy key from which
// it may import.
type importBench struct {
	*bench
	legacy broker.KeyARN
}

func newImport(t *testing.T) *importBench {
	t.Helper()
	ctx := t.Context()
	b := &importBench{bench: newBench(t)}
	out, err := b.Customer.CreateKey(ctx, &kms.CreateKeyInput{})
	if err != nil {
		t.Fatal(err)
	}
	b.legacy = broker.KeyARN(aws.ToString(out.KeyMetadata.Arn))
	if _, err := b.NewDomain(ctx, "acme", string(b.legacy)); err != nil {
		t.Fatal(err)
	}
	policy, err := b.Broker.GenerateKeyPolicy(ctx, harness.Caller, broker.KeyPolicyRequest{Domain: "acme", KeyAccount: harness.CustomerAccount,
		Profile: broker.PolicyImportSource, ImportContext: legacyContext})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Customer.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: aws.String(string(b.legacy)), Policy: &policy.Document}); err != nil {
		t.Fatal(err)
	}
	job, _ := b.beginChange("acme")
	if _, err := b.Finish(ctx, "acme", job); err != nil {
		t.Fatal(err)
	}
	b.Calls()
	return b
}

// item makes a blob under a key, as a service did before it knew the broker.
func (b *importBench) item(id broker.DataKeyID, key broker.KeyARN, c broker.Context) (broker.ImportItem, []byte) {
	b.t.Helper()
	out, err := b.Customer.GenerateDataKey(b.t.Context(), &kms.GenerateDataKeyInput{KeyId: aws.String(string(key)), KeySpec: "AES_256", EncryptionContext: c})
	if err != nil {
		b.t.Fatal(err)
	}
	return broker.ImportItem{ID: id, Ciphertext: out.CiphertextBlob, SourceKey: key, SourceContext: c}, out.Plaintext
}

func (b *importBench) legacyItem(id broker.DataKeyID) broker.ImportItem {
	b.t.Helper()
	item, _ := b.item(id, b.legacy, legacyContext)
	return item
}

func (b *importBench) imports(requestID string, items ...broker.ImportItem) ([]broker.ImportResult, error) {
	in := broker.ImportDataKeys{Domain: "acme", Items: items}
	if requestID != "" {
		in.Request = request("ImportDataKeys", requestID, "body")
	}
	return b.Broker.ImportDataKeys(b.t.Context(), harness.Caller, in)
}

func (b *importBench) rows() int {
	b.t.Helper()
	return len(b.query(`select data_key_id from data_key`))
}

// wantHolds: the stored blob holds the very key that was imported (I9).
func (b *importBench) wantHolds(id broker.DataKeyID, plaintext []byte) {
	b.t.Helper()
	k, err := b.getDataKey(id)
	if err != nil {
		b.t.Fatal(err)
	}
	out, err := b.Customer.Decrypt(b.t.Context(), &kms.DecryptInput{CiphertextBlob: k.Ciphertext, EncryptionContext: k.EncryptionContext, KeyId: aws.String(string(k.KMSKey))})
	if err != nil {
		b.t.Fatal(err)
	}
	if !bytes.Equal(out.Plaintext, plaintext) {
		b.t.Error("the stored blob holds another key")
	}
}

func TestImportLegacyBlob(t *testing.T) {
	b := newImport(t)
	item, plaintext := b.item("k", b.legacy, legacyContext)
	results, err := b.imports("r", item)
	if err != nil || results[0].Err != nil {
		t.Fatal(err, results)
	}
	if d := b.domain("acme"); results[0].Key.KMSKey != d.KMSKey || len(results[0].Key.Ciphertext) != 0 || results[0].Key.KeySpec != "AES_256" {
		t.Errorf("%+v", results[0].Key)
	}
	b.wantHolds("k", plaintext)
	for _, c := range b.Calls() {
		if c.Principal != harness.WorkerRole {
			continue
		}
		if c.Operation != "ReEncrypt" {
			t.Errorf("the worker called %s", c.Operation)
		}
		checkPair(t, b.domain("acme"), c.EncryptionContext) // I4
	}
}

func checkPair(t *testing.T, d broker.Domain, c map[string]string) {
	t.Helper()
	if c[d.Reserved.Key] != d.Reserved.Value {
		t.Errorf("a call without the reserved pair: %q", c)
	}
}

// A straggler was made at KMS by a service under an older key, with the pair.
// The audit row says where blobs came from, and how often KMS was called without
// the reserved pair: also for what KMS refused (I4).
func TestImportTellsItsSources(t *testing.T) {
	b := newImport(t)
	d := b.domain("acme")
	straggler, _ := b.item("own", d.KMSKey, legacyContext.With(d.Reserved))
	spoiled := b.legacyItem("spoiled")
	spoiled.Ciphertext = spoiled.Ciphertext[1:]
	foreign := b.legacyItem("foreign")
	foreign.SourceKey = "arn:aws:kms:us-east-1:111122223333:key/nobody-listed-this"
	results, err := b.imports("", b.legacyItem("legacy"), straggler, spoiled, foreign)
	if err != nil {
		t.Fatal(err)
	}
	for i, refused := range []bool{false, false, true, true} {
		if (results[i].Err != nil) != refused {
			t.Fatalf("item %d: %v", i, results[i].Err)
		}
	}
	var got map[string]string
	if err := json.Unmarshal([]byte(b.query(`select detail from audit_event where action = 'dataKeys.import'`)[0]), &got); err != nil {
		t.Fatal(err)
	}
	delete(got, "merkle_root")
	sources := []string{string(b.legacy), string(d.KMSKey)}
	slices.Sort(sources)
	if diff := cmp.Diff(map[string]string{"stored": "2", "refused": "2", "kms_key": string(d.KMSKey),
		"source_keys": strings.Join(sources, " "), "without_reserved_pair": "2"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestImportStraggler(t *testing.T) {
	b := newImport(t)
	d := b.domain("acme")
	item, plaintext := b.item("old", d.KMSKey, legacyContext.With(d.Reserved))
	same, samePlaintext := b.item("same", d.KMSKey, legacyContext.With(d.Reserved))
	if results, err := b.imports("", same); err != nil || results[0].Err != nil {
		t.Fatal(err, results)
	}
	b.wantHolds("same", samePlaintext)

	_, next := b.beginChange("acme")
	early, _ := b.item("early", next, legacyContext.With(d.Reserved))
	results, err := b.imports("", early)
	if err != nil {
		t.Fatal(err)
	}
	wantReason(t, results[0].Err, broker.ReasonImportSourceNotAllowed) // it is not the domain's key yet
	b.untilSwitched("acme", next)
	if results, err := b.imports("", item); err != nil || results[0].Err != nil {
		t.Fatal(err, results)
	}
	b.wantHolds("old", plaintext)
	if k, err := b.getDataKey("old"); err != nil || k.KMSKey != next {
		t.Errorf("stored under %s, %v", k.KMSKey, err)
	}
}

// Items are refused one by one; the good ones are stored; a repeat answers the
// same, and stores nothing (I8).
func TestImportRefusesItems(t *testing.T) {
	b := newImport(t)
	b.mustDataKey("taken")
	b.mustDataKey("gone")
	if err := b.Broker.DeleteDataKey(t.Context(), harness.Caller, broker.Request{}, "acme", "gone", ""); err != nil {
		t.Fatal(err)
	}
	other := b.onboard("other")
	d := b.domain("acme")
	item := func(id broker.DataKeyID, change func(*broker.ImportItem)) broker.ImportItem {
		i := b.legacyItem(id)
		change(&i)
		return i
	}
	foreign, _ := b.item("foreign", other.KMSKey, broker.Context{}.With(other.Reserved))
	wrongContext, _ := b.item("context", b.legacy, broker.Context{"tenant": "acme", "extra": "x"})
	unlisted, _ := b.item("unlisted", other.KMSKey, legacyContext)
	denied, _ := b.item("denied", b.legacy, broker.Context{"tenant": "other"})
	claimed := b.legacyItem("claimed")
	claimed.SourceContext = legacyContext.With(d.Reserved)
	claimed.SourceKey = d.KMSKey
	items := []struct {
		item broker.ImportItem
		want broker.Reason
		kind error
	}{
		{item("good1", func(*broker.ImportItem) {}), "", nil},
		{item("taken", func(*broker.ImportItem) {}), broker.ReasonDataKeyAlreadyExists, broker.ErrAlreadyExists},
		{item("gone", func(*broker.ImportItem) {}), broker.ReasonDataKeyIDDeleted, broker.ErrAlreadyExists},
		{item("damaged", func(i *broker.ImportItem) { i.Ciphertext[len(i.Ciphertext)-1]++ }), broker.ReasonCiphertextInvalid, broker.ErrInvalid},
		{item("garbage", func(i *broker.ImportItem) { i.Ciphertext = []byte("garbage") }), broker.ReasonCiphertextInvalid, broker.ErrInvalid},
		{item("context", func(i *broker.ImportItem) { i.Ciphertext = wrongContext.Ciphertext }), broker.ReasonCiphertextInvalid, broker.ErrInvalid},
		{denied, broker.ReasonKeyAccessDenied, broker.ErrPrecondition},
		{foreign, broker.ReasonContextKeyReserved, broker.ErrInvalid},
		{unlisted, broker.ReasonImportSourceNotAllowed, broker.ErrInvalid},
		{item("control", func(i *broker.ImportItem) { i.SourceContext = broker.Context{"tenant": "a\x00"} }), broker.ReasonContextValueInvalid, broker.ErrInvalid},
		{claimed, broker.ReasonCiphertextWrongKey, broker.ErrInvalid},
		{item("good2", func(*broker.ImportItem) {}), "", nil},
	}
	var all []broker.ImportItem
	for _, i := range items {
		all = append(all, i.item)
	}
	for _, try := range []string{"first", "repeat"} {
		results, err := b.imports("r", all...)
		if err != nil {
			t.Fatal(err)
		}
		for i, r := range results {
			if got := broker.ReasonOf(r.Err); got != items[i].want || (r.Err != nil && !errors.Is(r.Err, items[i].kind)) {
				t.Errorf("%s, %s: got %q (%v), want %q of kind %v", try, items[i].item.ID, got, r.Err, items[i].want, items[i].kind)
			}
			if r.Err == nil && r.Key.ID != items[i].item.ID {
				t.Errorf("%s: the answer to %s is %s", try, items[i].item.ID, r.Key.ID)
			}
		}
		if n := b.rows(); n != 3 {
			t.Errorf("%s: %d rows, want taken, good1 and good2", try, n)
		}
	}
	// With the IMPORT_SOURCE statement of "acme", no other domain imports: it is
	// bound to the legacy context, and the source to the domain's own list (T1).
	results, err := b.Broker.ImportDataKeys(t.Context(), harness.Caller, broker.ImportDataKeys{Domain: "other", Items: []broker.ImportItem{b.legacyItem("theft")}})
	if err != nil {
		t.Fatal(err)
	}
	wantReason(t, results[0].Err, broker.ReasonImportSourceNotAllowed)
}

// A call that is wrong as a whole is refused as a whole, before KMS hears of it.
func TestImportRefusesCalls(t *testing.T) {
	b := newImport(t)
	good := b.legacyItem("k")
	for name, test := range map[string]struct {
		items []broker.ImportItem
		want  broker.Reason
	}{
		"none":            {nil, broker.ReasonFieldInvalid},
		"501":             {slices.Repeat([]broker.ImportItem{good}, broker.MaxImportItems+1), broker.ReasonFieldInvalid},
		"an id twice":     {[]broker.ImportItem{good, good}, broker.ReasonImportDuplicate},
		"no id":           {[]broker.ImportItem{good, {Ciphertext: good.Ciphertext, SourceKey: b.legacy}}, broker.ReasonFieldInvalid},
		"no blob":         {[]broker.ImportItem{{ID: "k", SourceKey: b.legacy}}, broker.ReasonFieldInvalid},
		"6145 bytes":      {[]broker.ImportItem{{ID: "k", SourceKey: b.legacy, Ciphertext: make([]byte, 6145)}}, broker.ReasonFieldInvalid},
		"other key spec":  {[]broker.ImportItem{{ID: "k", SourceKey: b.legacy, Ciphertext: good.Ciphertext, KeySpec: "RSA_2048"}}, broker.ReasonFieldInvalid},
		"source an alias": {[]broker.ImportItem{{ID: "k", Ciphertext: good.Ciphertext, SourceKey: "arn:aws:kms:us-east-1:111122223333:alias/a"}}, broker.ReasonKeyARNInvalid},
		"source an id":    {[]broker.ImportItem{{ID: "k", Ciphertext: good.Ciphertext, SourceKey: "a"}}, broker.ReasonKeyARNInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			b.Calls()
			_, err := b.imports("", test.items...)
			wantReason(t, err, test.want)
			if calls := b.Calls(); len(calls) > 0 {
				t.Errorf("KMS was called: %+v", calls)
			}
		})
	}
	items := []broker.ImportItem{good}
	if _, err := b.imports("", items...); err != nil || items[0].KeySpec != "" {
		t.Errorf("the caller's item was changed, %v", err)
	}
}

// If KMS fails to answer for one item, nothing at all is stored, and the same
// request may be made again.
func TestImportIsAllOrNothing(t *testing.T) {
	for code, want := range map[string]broker.Reason{"ThrottlingException": broker.ReasonKMSThrottled, "KMSInternalException": broker.ReasonKMSUnavailable} {
		t.Run(code, func(t *testing.T) {
			b := newImport(t)
			var items []broker.ImportItem
			for i := range 20 {
				items = append(items, b.legacyItem(broker.DataKeyID(fmt.Sprint("k", i))))
			}
			var mu sync.Mutex
			calls := 0
			b.road.set(func(op string, send func() (*http.Response, error)) (*http.Response, error) {
				mu.Lock()
				calls++
				failing := calls > 10
				mu.Unlock()
				if op == "ReEncrypt" && failing {
					return refusal(code), nil
				}
				return send()
			})
			_, err := b.imports("r", items...)
			wantReason(t, err, want)
			if n := b.rows(); n != 0 {
				t.Errorf("%d rows were stored", n)
			}
			b.road.open()
			results, err := b.imports("r", items...)
			if err != nil {
				t.Fatal(err)
			}
			for i, r := range results {
				if r.Err != nil {
					t.Errorf("item %d: %v", i, r.Err)
				}
			}
			if n := b.rows(); n != len(items) {
				t.Errorf("%d rows, want %d", n, len(items))
			}
		})
	}
}

// T10, I1: a switch between KMS's answer and the store moves the blob again.
func TestImportDuringASwitch(t *testing.T) {
	b := newImport(t)
	item, plaintext := b.item("k", b.legacy, legacyContext)
	_, next := b.beginChange("acme")
	b.road.after("ReEncrypt", func() { b.untilSwitched("acme", next) })
	results, err := b.imports("r", item)
	if err != nil || results[0].Err != nil {
		t.Fatal(err, results)
	}
	if k, err := b.getDataKey("k"); err != nil || k.KMSKey != next || results[0].Key.KMSKey != next {
		t.Errorf("stored under %s, answered with %s, %v", k.KMSKey, results[0].Key.KMSKey, err)
	}
	b.wantHolds("k", plaintext)
}

// I8: of equal calls at the same time one stores, and all answer alike.
func TestConcurrentImports(t *testing.T) {
	b := newImport(t)
	items := []broker.ImportItem{b.legacyItem("a"), b.legacyItem("b")}
	errs := make([]error, 6)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			results, err := b.imports("r", items...)
			errs[i] = err
			for _, r := range results {
				errs[i] = errors.Join(errs[i], r.Err)
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
	if events := b.query(`select count(*) from audit_event where action = 'dataKeys.import'`); events[0] != "1" || b.rows() != 2 {
		t.Errorf("%s events, %d rows", events[0], b.rows())
	}
}

// An import that used the key with success ends KEY_INACCESSIBLE.
func TestImportHeals(t *testing.T) {
	b := newImport(t)
	b.road.fail("GenerateDataKeyWithoutPlaintext", "DisabledException")
	_, err := b.createDataKey("k")
	wantReason(t, err, broker.ReasonKeyDisabled)
	if results, err := b.imports("", b.legacyItem("l")); err != nil || results[0].Err != nil {
		t.Fatal(err, results)
	}
	if d := b.domain("acme"); d.State != broker.DomainActive {
		t.Errorf("the domain is %s", d.State)
	}
}

// An item with an etag replaces a data key: whole, under the same name and uid,
// and only the very version that its caller read (I13).
func TestImportReplaces(t *testing.T) {
	b := newImport(t)
	b.mustDataKey("k")
	b.mustDataKey("gone")
	if err := b.Broker.DeleteDataKey(t.Context(), harness.Caller, broker.Request{}, "acme", "gone", ""); err != nil {
		t.Fatal(err)
	}
	before, err := b.getDataKey("k")
	if err != nil {
		t.Fatal(err)
	}
	b.Clock.Advance(time.Minute)
	var plaintexts [][]byte
	replacement := func(id broker.DataKeyID, etag string) broker.ImportItem {
		item, plaintext := b.item(id, b.legacy, legacyContext)
		item.Etag, item.KeySpec = etag, "AES_128"
		plaintexts = append(plaintexts, plaintext)
		return item
	}
	stale := []broker.ImportItem{replacement("k", "7"), replacement("gone", "1"), replacement("never", "1"), b.legacyItem("new")}
	want := []broker.Reason{broker.ReasonEtagMismatch, broker.ReasonDataKeyNotFound, broker.ReasonDataKeyNotFound, ""}
	kinds := []error{broker.ErrConflict, broker.ErrNotFound, broker.ErrNotFound, nil}
	for _, try := range []string{"first", "repeat"} {
		results, err := b.imports("stale", stale...)
		if err != nil {
			t.Fatal(err)
		}
		for i, r := range results {
			if broker.ReasonOf(r.Err) != want[i] || !errors.Is(r.Err, kinds[i]) {
				t.Errorf("%s, %s: %v, want %q of kind %v", try, stale[i].ID, r.Err, want[i], kinds[i])
			}
		}
	}
	if now, err := b.getDataKey("k"); err != nil || !cmp.Equal(now, before) {
		t.Errorf("a stale etag changed the row to %+v, %v", now, err)
	}

	good := replacement("k", before.Etag())
	for _, try := range []string{"first", "repeat"} {
		results, err := b.imports("good", good)
		if err != nil || results[0].Err != nil {
			t.Fatal(try, err, results)
		}
		got, row := results[0].Key, before
		row.Version, row.KeySpec, row.UpdateTime = before.Version+1, "AES_128", b.Clock.Now().Truncate(time.Microsecond)
		row.Context, row.EncryptionContext = legacyContext, legacyContext.With(b.domain("acme").Reserved)
		row.Ciphertext, row.KMSRequestID = nil, got.KMSRequestID
		if diff := cmp.Diff(row, got); diff != "" {
			t.Errorf("%s: %s", try, diff)
		}
	}
	b.wantHolds("k", plaintexts[len(plaintexts)-1])
	since := 0
	if events := strings.Join(b.audited(&since), "\n"); strings.Count(events, "test dataKeys.replace DONE good domains/acme/dataKeys/k") != 1 {
		t.Errorf("audited:\n%s", events)
	}
}

// A row that a job moves while the blob that replaces it is at KMS has another
// etag by then: nothing of the move is undone (I2).
func TestImportReplacesNothingThatMoved(t *testing.T) {
	b := newImport(t)
	b.mustDataKey("k")
	before, err := b.getDataKey("k")
	if err != nil {
		t.Fatal(err)
	}
	item := b.legacyItem("k")
	item.Etag = before.Etag()
	job, _ := b.beginChange("acme")
	b.road.after("ReEncrypt", func() {
		if _, err := b.Finish(t.Context(), "acme", job); err != nil {
			t.Error(err)
		}
	})
	results, err := b.imports("", item)
	if err != nil {
		t.Fatal(err)
	}
	wantReason(t, results[0].Err, broker.ReasonEtagMismatch)
	now, err := b.getDataKey("k")
	if err != nil {
		t.Fatal(err)
	}
	if now.Version != before.Version+1 || now.KMSKey == before.KMSKey {
		t.Errorf("version %d under %s after the move from version %d", now.Version, now.KMSKey, before.Version)
	}
}
