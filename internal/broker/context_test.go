package broker_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/test/harness"
)

// oneDomain is a store that knows one domain under its first key, and forgets
// everything else: enough for a use case that only adds.
type oneDomain struct {
	broker.Tx
	d      broker.Domain
	stored []broker.DataKey
}

func (s *oneDomain) Update(_ context.Context, fn func(broker.Tx) error) error { return fn(s) }
func (s *oneDomain) View(_ context.Context, fn func(broker.Tx) error) error   { return fn(s) }

func (s *oneDomain) Now() time.Time { return time.Unix(1_700_000_000, 0).UTC() }
func (s *oneDomain) LockDomain(context.Context, broker.DomainUID, broker.LockMode) error {
	return nil
}
func (s *oneDomain) Domain(context.Context, broker.DomainID) (broker.Domain, error) { return s.d, nil }
func (s *oneDomain) DomainByUID(context.Context, broker.DomainUID) (broker.Domain, error) {
	return s.d, nil
}
func (s *oneDomain) DomainKeys(context.Context, broker.DomainUID) ([]broker.DomainKey, error) {
	return []broker.DomainKey{{Domain: s.d.UID, Epoch: 1, KMSKey: s.d.KMSKey, State: broker.KeyCurrent}}, nil
}
func (s *oneDomain) InsertDataKey(_ context.Context, k broker.DataKey) error {
	s.stored = append(s.stored, k)
	return nil
}
func (s *oneDomain) InsertDataKeys(_ context.Context, keys []broker.DataKey) ([]error, error) {
	s.stored = append(s.stored, keys...)
	return make([]error, len(keys)), nil
}
func (s *oneDomain) Audit(context.Context, broker.AuditEvent) error { return nil }

// heard is a KMS that keeps the contexts it is given.
type heard struct {
	key broker.KeyARN

	mu                  sync.Mutex // items of an import are asked for at the same time
	source, destination []broker.Context
}

func (h *heard) GenerateDataKeyWithoutPlaintext(_ context.Context, g broker.GenerateDataKey) (broker.WrappedKey, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.destination = append(h.destination, maps.Clone(g.Context))
	return broker.WrappedKey{Ciphertext: []byte("blob"), Key: h.key}, nil
}

func (h *heard) ReEncrypt(_ context.Context, r broker.ReEncrypt) (broker.ReEncrypted, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.source = append(h.source, maps.Clone(r.SourceContext))
	h.destination = append(h.destination, maps.Clone(r.DestinationContext))
	return broker.ReEncrypted{Ciphertext: []byte("blob"), DestinationKey: h.key}, nil
}

const (
	presentKey = broker.KeyARN("arn:aws:kms:us-east-1:111122223333:key/present")
	legacyKey  = broker.KeyARN("arn:aws:kms:us-east-1:111122223333:key/legacy")
)

func ourPair() broker.Pair { return broker.Pair{Key: "keybroker:domain", Value: "UID2345"} }

// newHeard gives a broker over one domain, and what KMS hears of it.
func newHeard(t interface{ Fatal(...any) }) (*broker.Broker, *oneDomain, *heard) {
	store := &oneDomain{d: broker.Domain{ID: "acme", UID: "UID2345", Region: "us-east-1", State: broker.DomainActive, Epoch: 1,
		KMSKey: presentKey, Reserved: ourPair(), ImportSources: []string{string(legacyKey)}}}
	kms := &heard{key: presentKey}
	return brokerOver(t, store, kms), store, kms
}

func brokerOver(t interface{ Fatal(...any) }, store broker.Store, worker broker.Worker) *broker.Broker {
	id := func() string { return strings.Repeat("0", 26) }
	b, err := broker.New(broker.Config{Deployment: "test", RegistrarRole: harness.RegistrarRole, WorkerRole: harness.WorkerRole,
		NewID: id, NewUID: id}, store, nil, worker)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// checkReserved: exactly one pair has the reserved key, however one spells it,
// and it is the database's (I4, T4).
func checkReserved(t interface{ Fatalf(string, ...any) }, c broker.Context) {
	found := 0
	folded := map[string]string{}
	for key, value := range c {
		if strings.EqualFold(key, ourPair().Key) {
			found++
			if key != ourPair().Key || value != ourPair().Value {
				t.Fatalf("KMS was given %q=%q for the reserved pair", key, value)
			}
		} else if strings.HasPrefix(strings.ToLower(key), "keybroker:") {
			t.Fatalf("KMS was given the caller's %q", key)
		}
		for other := range folded {
			if strings.EqualFold(key, other) {
				t.Fatalf("KMS was given both %q and %q", key, other)
			}
		}
		folded[key] = value
	}
	if found != 1 {
		t.Fatalf("KMS was given %d reserved pairs in %q", found, c)
	}
	if len(c) > 8 {
		t.Fatalf("KMS was given %d pairs", len(c))
	}
}

// T4: for any context of a caller, the reserved pair reaches KMS once and as
// the database has it; what the caller may not say is refused before KMS hears
// of it.
func FuzzContext(f *testing.F) {
	long := strings.Repeat("v", broker.MaxContextValue)
	f.Add("tenant", "acme", "purpose", "orders", uint8(0))
	f.Add("KEYBROKER:DOMAIN", "x", "a", "b", uint8(0))
	f.Add("keybroker:domain", "UID2345", "a", "b", uint8(0))
	f.Add("keybroker:domaın", "x", "KEYBROKER:domaİn", "y", uint8(0))
	f.Add("\u212aeybroker:domain", "x", "\u212aEYBROKER:DOMAIN", "y", uint8(0))
	f.Add("keybroker:domain\x00", "x", "a\x00", "b", uint8(0))
	f.Add("a", "b\x00", "c", "\u0100", uint8(0))
	f.Add("ſ", "x", "s", "y", uint8(0))
	f.Add("a", "x", "A", "y", uint8(0))
	f.Add("a", long, "b", long+"v", uint8(0))
	f.Add("a", strings.Repeat("é", broker.MaxContextValue), "b", "\xff", uint8(0))
	f.Add("", "", "", "", uint8(5))
	f.Add("a", "x", "b", "y", uint8(5))
	f.Add("a", "x", "b", "y", uint8(6))
	f.Fuzz(func(t *testing.T, k1, v1, k2, v2 string, more uint8) {
		pairs := broker.Context{k1: v1, k2: v2}
		for i := range more % 10 {
			pairs[fmt.Sprintf("filler%d", i)] = "x"
		}
		b, store, kms := newHeard(t)
		_, err := b.CreateDataKey(t.Context(), harness.Caller, broker.NewDataKey{Domain: "acme", Context: maps.Clone(pairs)})
		checkOutcome(t, pairs, err, store, kms)

		b, store, kms = newHeard(t)
		results, err := b.ImportDataKeys(t.Context(), harness.Caller, broker.ImportDataKeys{Domain: "acme", Items: []broker.ImportItem{
			{ID: "k", Ciphertext: []byte("blob"), SourceKey: legacyKey, SourceContext: maps.Clone(pairs)}}})
		if err != nil {
			t.Fatal(err)
		}
		if len(kms.source) == 0 {
			return // refused before KMS heard of it
		}
		checkOutcome(t, pairs, results[0].Err, store, kms)
		if !cmp.Equal(kms.source[0], pairs) {
			t.Fatalf("KMS was given the source context %q, want %q", kms.source[0], pairs)
		}
	})
}

func checkOutcome(t *testing.T, pairs broker.Context, err error, store *oneDomain, kms *heard) {
	t.Helper()
	if err != nil {
		if len(kms.destination) > 0 || len(store.stored) > 0 {
			t.Fatalf("%q was refused (%v) after KMS had heard of it", pairs, err)
		}
		for _, value := range pairs {
			if len(value) > 8 && strings.Contains(err.Error(), value) {
				t.Fatalf("the refusal quotes the value %q: %v", value, err)
			}
		}
		return
	}
	full := kms.destination[0]
	checkReserved(t, full)
	if want := pairs.With(ourPair()); !cmp.Equal(full, want) {
		t.Fatalf("KMS was given %q, want %q", full, want)
	}
	if !cmp.Equal(store.stored[0].Context.With(ourPair()), full) {
		t.Fatalf("stored %q, KMS was given %q", store.stored[0].Context, full)
	}
}

func TestContextRules(t *testing.T) {
	value := func(n int) broker.Context { return broker.Context{"a": strings.Repeat("v", n)} }
	pairs := func(n int) broker.Context {
		c := broker.Context{}
		for i := range n {
			c[fmt.Sprint("k", i)] = "v"
		}
		return c
	}
	for name, test := range map[string]struct {
		context broker.Context
		want    broker.Reason
	}{
		"none":                     {nil, ""},
		"seven pairs":              {pairs(7), ""},
		"eight pairs":              {pairs(8), broker.ReasonContextTooLarge},
		"384 characters":           {value(384), ""},
		"385 characters":           {value(385), broker.ReasonContextTooLarge},
		"384 of two bytes each":    {broker.Context{"a": strings.Repeat("é", 384)}, ""},
		"key of 128":               {broker.Context{strings.Repeat("k", 128): "v"}, ""},
		"key of 129":               {broker.Context{strings.Repeat("k", 129): "v"}, broker.ReasonContextKeyInvalid},
		"empty key":                {broker.Context{"": "v"}, broker.ReasonContextKeyInvalid},
		"empty value":              {broker.Context{"a": ""}, ""},
		"reserved":                 {broker.Context{"keybroker:domain": "v"}, broker.ReasonContextKeyReserved},
		"reserved and true":        {broker.Context{"keybroker:domain": "UID2345"}, broker.ReasonContextKeyReserved},
		"reserved, upper case":     {broker.Context{"KEYBROKER:DOMAIN": "v"}, broker.ReasonContextKeyReserved},
		"reserved prefix":          {broker.Context{"KeyBroker:other": "v"}, broker.ReasonContextKeyReserved},
		"dotless i":                {broker.Context{"keybroker:domaın": "v"}, broker.ReasonContextKeyInvalid},
		"Kelvin sign":              {broker.Context{"\u212aeybroker:domain": "v"}, broker.ReasonContextKeyInvalid},
		"NUL in the key":           {broker.Context{"keybroker:domain\x00": "v"}, broker.ReasonContextKeyInvalid},
		"not the prefix":           {broker.Context{"keybroker": "v"}, ""},
		"fold duplicates":          {broker.Context{"Tenant": "a", "tenant": "b"}, broker.ReasonContextDuplicateKey},
		"NUL in the value":         {broker.Context{"a": "v\x00"}, broker.ReasonContextValueInvalid},
		"line feed in the value":   {broker.Context{"a": "v\n"}, broker.ReasonContextValueInvalid},
		"DEL in the value":         {broker.Context{"a": "\x7f"}, broker.ReasonContextValueInvalid},
		"C1 control in the value":  {broker.Context{"a": "\u0085"}, broker.ReasonContextValueInvalid},
		"beyond Latin-1":           {broker.Context{"a": "\u0100"}, broker.ReasonContextValueInvalid},
		"no UTF-8":                 {broker.Context{"a": "\xff"}, broker.ReasonContextValueInvalid},
		"combining (not NFC)":      {broker.Context{"a": "e\u0301"}, broker.ReasonContextValueInvalid},
		"every character of a key": {broker.Context{"AZaz09_.:/@-": "v"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			b, _, _ := newHeard(t)
			_, err := b.CreateDataKey(t.Context(), harness.Caller, broker.NewDataKey{Domain: "acme", Context: test.context})
			wantReason(t, err, test.want)
		})
	}
}

// The context of an import: exactly this domain's pair makes a straggler;
// whatever else is reserved in any domain would be another tenant's blob (T1).
func TestImportContexts(t *testing.T) {
	const straggler, legacy = true, false
	for name, test := range map[string]struct {
		context broker.Context
		want    broker.Reason
		source  bool
	}{
		"legacy":                        {broker.Context{"tenant": "acme"}, "", legacy},
		"legacy without a context":      {nil, "", legacy},
		"own pair":                      {broker.Context{"keybroker:domain": "UID2345", "tenant": "acme"}, "", straggler},
		"own pair alone":                {broker.Context{"keybroker:domain": "UID2345"}, "", straggler},
		"another domain's pair":         {broker.Context{"keybroker:domain": "OTHER"}, broker.ReasonContextKeyReserved, straggler},
		"another's, as a legacy blob":   {broker.Context{"keybroker:domain": "OTHER"}, broker.ReasonContextKeyReserved, legacy},
		"own pair, value folded":        {broker.Context{"keybroker:domain": "uid2345"}, broker.ReasonContextKeyReserved, straggler},
		"own pair, key folded":          {broker.Context{"KeyBroker:Domain": "UID2345"}, broker.ReasonContextKeyReserved, straggler},
		"own pair twice":                {broker.Context{"keybroker:domain": "UID2345", "KEYBROKER:DOMAIN": "OTHER"}, broker.ReasonContextKeyReserved, straggler},
		"own pair with the Kelvin sign": {broker.Context{"\u212aeybroker:domain": "UID2345"}, broker.ReasonContextKeyReserved, straggler},
		"reserved prefix":               {broker.Context{"keybroker:x": "y"}, broker.ReasonContextKeyReserved, legacy},
		"straggler called legacy":       {broker.Context{"keybroker:domain": "UID2345"}, broker.ReasonImportSourceNotAllowed, legacy},
		"legacy called straggler":       {broker.Context{"tenant": "acme"}, broker.ReasonImportSourceNotAllowed, straggler},
		"control character":             {broker.Context{"tenant": "a\x00"}, broker.ReasonContextValueInvalid, legacy},
	} {
		t.Run(name, func(t *testing.T) {
			b, store, kms := newHeard(t)
			item := broker.ImportItem{ID: "k", Ciphertext: []byte("blob"), SourceKey: presentKey, SourceContext: test.context}
			if test.source == legacy {
				item.SourceKey = legacyKey
			}
			results, err := b.ImportDataKeys(t.Context(), harness.Caller, broker.ImportDataKeys{Domain: "acme", Items: []broker.ImportItem{item}})
			if err != nil {
				t.Fatal(err)
			}
			wantReason(t, results[0].Err, test.want)
			if test.want != "" {
				if len(kms.source) > 0 {
					t.Error("KMS heard of a refused item")
				}
				return
			}
			checkReserved(t, kms.destination[0])
			if _, ok := store.stored[0].Context["keybroker:domain"]; ok {
				t.Error("the reserved pair was stored with the caller's")
			}
		})
	}
}

// I4: of two different contexts, neither replaces the other on the way to KMS.
func TestContextsAreNotMixed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := rapid.MapOfN(rapid.StringMatching(`[a-z]{1,3}`), rapid.StringMatching(`[ -~]{0,5}`), 0, 7)
		one, two := broker.Context(draw.Draw(t, "one")), broker.Context(draw.Draw(t, "two"))
		if cmp.Equal(one, two) != cmp.Equal(one.With(ourPair()), two.With(ourPair())) {
			t.Fatalf("%q and %q are one context at KMS", one, two)
		}
		before := sha256.Sum256([]byte(fmt.Sprint(one)))
		one.With(ourPair())
		if before != sha256.Sum256([]byte(fmt.Sprint(one))) {
			t.Fatal("With changed its receiver")
		}
	})
}
