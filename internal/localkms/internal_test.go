package localkms

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keybroker/keybroker/test/kmsmodel"
)

// parseContext is the inverse of appendContext. That it exists proves that no two
// contexts share bytes.
func parseContext(b []byte) (context map[string]string, ok bool) {
	take := func() (string, bool) {
		if len(b) < 4 {
			return "", false
		}
		n := int(binary.BigEndian.Uint32(b))
		if len(b)-4 < n {
			return "", false
		}
		s := string(b[4 : 4+n])
		b = b[4+n:]
		return s, true
	}
	if len(b) < 4 {
		return nil, false
	}
	n := binary.BigEndian.Uint32(b)
	b = b[4:]
	context = map[string]string{}
	last := ""
	for i := range n {
		name, ok1 := take()
		value, ok2 := take()
		if !ok1 || !ok2 || (i > 0 && name <= last) {
			return nil, false
		}
		context[name], last = value, name
	}
	return context, len(b) == 0
}

func FuzzContextIsInjective(f *testing.F) {
	f.Add("tenant", "a", "env", "p")
	f.Add("tenan", "ta", "env", "p")
	f.Add("", "", "a", "")
	f.Add("a", "\x00\x00\x00\x01b", "c", "")
	f.Add("A", "1", "a", "1")
	f.Fuzz(func(t *testing.T, k1, v1, k2, v2 string) {
		for _, context := range []map[string]string{nil, {k1: v1}, {k1: v1, k2: v2}, {k2: v1, k1: v2}} {
			got, ok := parseContext(appendContext(nil, context))
			if !ok || !maps.Equal(got, context) {
				t.Fatalf("%q came back as %q, %v", context, got, ok)
			}
		}
	})
}

// What parses as a header is what newHeader writes.
func FuzzBlobHeader(f *testing.F) {
	ref := keyRef{"111122223333", "us-west-2", newUUID()}
	head, err := newHeader(ref, randomHex(materialSize))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append(head, 1, 2, 3))
	f.Add(head[:20])
	f.Fuzz(func(t *testing.T, blob []byte) {
		b, err := parseBlob(blob)
		if err != nil {
			return
		}
		again, err := newHeader(b.ref, b.materialID)
		if err != nil {
			t.Fatal(err)
		}
		copy(again[offSalt:offRegion], b.head[offSalt:offRegion])
		end := len(again) - checksumSize
		binary.BigEndian.PutUint32(again[end:], checksum(again[:end]))
		if !bytes.Equal(again, b.head) || !bytes.Equal(slices.Concat(b.head, b.body), blob) {
			t.Errorf("header %x came back as %x", b.head, again)
		}
	})
}

// A key can hold several materials: the newest encrypts, all decrypt, and only
// those it has.
func TestSeveralMaterials(t *testing.T) {
	generation := func() *material {
		m, err := newMaterial(randomHex(materialSize), []byte(randomHex(materialSize/2)))
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	k := &key{ref: keyRef{"111122223333", "us-west-2", newUUID()}}
	first := resolved{key: k, settings: &settings{materials: []*material{generation()}}}
	both := resolved{key: k, settings: &settings{materials: append(slices.Clone(first.materials), generation())}}
	for _, sealer := range []resolved{first, both} {
		blob, err := sealer.seal([]byte("x"), nil)
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := parseBlob(blob)
		if err != nil || parsed.materialID != sealer.current().id || parsed.ref != k.ref {
			t.Fatalf("header %+v, %v", parsed, err)
		}
		if plaintext, err := both.open(parsed, nil); err != nil || string(plaintext) != "x" {
			t.Errorf("both materials: %q, %v", plaintext, err)
		}
		if _, err := first.open(parsed, nil); (err == nil) != (sealer.current() == first.current()) {
			t.Errorf("the first material alone: %v", err)
		}
	}
}

// Errors have the form in which the SDK's own record of the wire has each of them.
func TestSnapshotErrors(t *testing.T) {
	theirs, err := kmsmodel.Snapshots("response_snapshot", ".error.snap")
	if err != nil {
		t.Fatal(err)
	}
	for code, want := range theirs {
		_, got := encode(nil, fault(code, "__Message__"), &Call{})
		if !bytes.Equal(got, want) {
			t.Errorf("%s: %s, want %s", code, got, want)
		}
	}
}

// RFC 4231, test case 1.
func TestMacVectors(t *testing.T) {
	m, err := newMaterial(randomHex(materialSize), bytes.Repeat([]byte{0x0b}, 20))
	if err != nil {
		t.Fatal(err)
	}
	for algorithm, want := range map[string]string{
		"HMAC_SHA_224": "896fb1128abbdf196832107cd49df33f47b4b1169912ba4f53684b22",
		"HMAC_SHA_256": "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
		"HMAC_SHA_384": "afd03944d84895626b0825f4ab46907f15f9dadbe4101ec682aa034c7cebc59cfaea9ea9076ede7f4af152e8b2fa9cb6",
		"HMAC_SHA_512": "87aa7cdea5ef619d4ff0b4241a1d6cb02379f4e2ce4ec2787ad0b30545e17cdedaa833b7d6b8a702038b274eaea3f4e4be9d914eeb61f1702e696c203a126854",
	} {
		if got := fmt.Sprintf("%x", m.mac(algorithm, []byte("Hi There"))); got != want {
			t.Errorf("%s: %s, want %s", algorithm, got, want)
		}
	}
}

// model is the rule of grants as the documentation words it, in the plainest
// form: look at every grant.
func model(grants map[string]*grant, caller *identity, a *access, tokens []string, now time.Time, delay time.Duration) bool {
	lower := func(m map[string]string) map[string][]string {
		out := map[string][]string{}
		for k, v := range m {
			out[strings.ToLower(k)] = append(out[strings.ToLower(k)], v)
		}
		return out
	}
	inside := func(want, have map[string]string) bool {
		folded := lower(have)
		for k, v := range want {
			if !slices.Contains(folded[strings.ToLower(k)], v) {
				return false
			}
		}
		return true
	}
	for _, g := range grants {
		if g.Grantee != caller.arn && g.Grantee != caller.root() {
			continue
		}
		if now.Sub(g.Created) < delay && !slices.Contains(tokens, g.ID) {
			continue
		}
		if !slices.Contains(g.Operations, a.operation) {
			continue
		}
		if a.takesContext {
			if e := g.Constraint.Equals; len(e) > 0 && (len(e) != len(a.context) || !inside(e, a.context) || !inside(a.context, e)) {
				continue
			}
			if !inside(g.Constraint.Subset, a.context) {
				continue
			}
		}
		return true
	}
	return false
}

// The indexed look-up and the plain rule agree, through insertions, removals and
// the passing of time.
func TestGrantsAgainstModel(t *testing.T) {
	for seed := range uint64(200) {
		compareWithModel(t, rand.New(rand.NewPCG(seed, 1)))
	}
}

func compareWithModel(t *testing.T, rnd *rand.Rand) {
	pick := func(list ...string) string { return list[rnd.IntN(len(list))] }
	contextOf := func(most int) map[string]string {
		m := map[string]string{}
		for range rnd.IntN(most + 1) {
			m[pick("a", "A", "b", "")] = pick("1", "2")
		}
		return m
	}
	k := &KMS{grantDelay: time.Minute, state: newState(newTokenSecret())}
	set, plain := newGrantSet(), map[string]*grant{}
	now := time.Unix(1_800_000_000, 0)
	all, err := parsePolicy(identityPolicy, "all", `{"Statement":{"Effect":"Allow","Action":"kms:*","Resource":"*"}}`)
	if err != nil {
		t.Fatal(err)
	}
	callers := []*identity{newIdentity("arn:aws:iam::111122223333:role/a", all), newIdentity("arn:aws:iam::111122223333:root")}
	for step := range 150 {
		now = now.Add(time.Duration(rnd.IntN(20)) * time.Second)
		switch rnd.IntN(4) {
		case 0, 1:
			g := &grant{
				ID: fmt.Sprint(step), Seq: set.nextSeq, Grantee: callers[rnd.IntN(2)].arn, Retiring: pick("", "r"), Created: now,
				Operations: []string{pick("Decrypt", "DescribeKey", "ReEncryptTo"), pick("Encrypt", "DescribeKey")},
			}
			if pairs := contextOf(3); rnd.IntN(2) == 0 {
				g.Constraint.Subset = pairs
			} else {
				g.Constraint.Equals = pairs
			}
			set.insert(g)
			plain[g.ID] = g
		case 2:
			for id, g := range plain {
				set.remove(g)
				delete(plain, id)
				break
			}
		}
		operation := pick("Decrypt", "Encrypt", "DescribeKey", "ReEncryptTo")
		a := &access{operation: operation, takesContext: operation != "DescribeKey"}
		if a.takesContext {
			a.context = contextOf(4)
		}
		var tokens []string
		if rnd.IntN(2) == 0 {
			tokens = []string{fmt.Sprint(rnd.IntN(step + 1))}
		}
		r := &request{caller: callers[rnd.IntN(2)], now: now}
		q := k.newQuery(r, &resolved{key: &key{grants: set}}, a)
		got := k.grantAllowing(q, q.ownOpinions(), tokens) != nil
		if want := model(plain, r.caller, a, tokens, now, time.Minute); got != want {
			t.Fatalf("%s as %s in %q: got %v, want %v", operation, r.caller.arn, a.context, got, want)
		}
	}
	for _, g := range plain {
		set.remove(g)
	}
	if len(set.byID)+len(set.all)+len(set.byGrantee)+len(set.byRetiring)+len(set.byName)+len(set.buckets) != 0 {
		t.Error("an empty set still holds something")
	}
}

// Of 50,000 grants to one role on one key, a request looks at a handful.
func TestGrantLookupIsSelective(t *testing.T) {
	set := newGrantSet()
	for i := range DefaultGrantsPerKey {
		set.insert(&grant{
			ID: fmt.Sprint(i), Seq: set.nextSeq, Grantee: "role", Operations: []string{"Decrypt"},
			Constraint: Constraint{Subset: map[string]string{"env": "prod", "tenant": fmt.Sprint(i)}},
		})
	}
	looked := 0
	for range set.candidates("role", &access{takesContext: true, context: map[string]string{"env": "prod", "tenant": "777"}}) {
		looked++
	}
	if looked > 3 {
		t.Errorf("looked at %d grants", looked)
	}
}

// After any prefix of a journal the state is that of its whole lines.
func TestReplayOfEveryPrefix(t *testing.T) {
	ref, doomed := keyRef{"111122223333", "us-west-2", newUUID()}, keyRef{"111122223333", "us-west-2", newUUID()}
	when := time.Unix(1_800_000_000, 0).UTC()
	grantOf := func(id string, seq uint64) *grant {
		return &grant{ID: id, Seq: seq, Grantee: "arn:aws:iam::111122223333:role/a", Operations: []string{"Decrypt"}, Created: when}
	}
	batches := [][]*event{
		{{Opened: &openedEvent{journalVersion, newTokenSecret(), when}}},
		{{Key: &keyEvent{
			Ref: ref, Created: when, Enabled: true, Policy: defaultPolicy(ref.Account),
			Materials: []materialEvent{{ID: randomHex(materialSize), Raw: newTokenSecret()}},
		}}},
		{{Alias: &aliasEvent{Ref: aliasRef{ref.Account, ref.Region, "alias/a"}, Target: ref, Created: when}}},
		{{Grant: &grantEvent{ref, grantOf("g1", 1)}}, {Grant: &grantEvent{ref, grantOf("g2", 2)}}}, // one sync, two changes
		{{Enabled: &enabledEvent{Key: ref}}},
		{{Retired: &retiredEvent{Key: ref, GrantID: "g1"}}},
		{{Rotated: &rotatedEvent{ref, newMaterialEvent(kind{spec: symmetricSpec})}}},
		{{Deletion: &deletionEvent{ref, when}}},
		{{Deletion: &deletionEvent{Key: ref}}},
		{{Key: &keyEvent{
			Ref: doomed, Created: when, Enabled: true, Policy: defaultPolicy(ref.Account), Deletion: when,
			Materials: []materialEvent{{ID: randomHex(materialSize), Raw: newTokenSecret()}},
		}}},
		{{Key: &keyEvent{
			Ref: keyRef{ref.Account, ref.Region, newUUID()}, Created: when, Enabled: true, Policy: defaultPolicy(ref.Account),
			Spec: "HMAC_256", Usage: generateVerifyMac,
		}}},
		{{Alias: &aliasEvent{Ref: aliasRef{ref.Account, ref.Region, "alias/b"}, Target: doomed, Created: when}}},
		{{Deleted: &doomed}},
		{{Rotation: &rotationEvent{ref, rotationPlan{Days: 90, Next: when}}}},
		{{Rotated: &rotatedEvent{ref, materialEvent{ID: randomHex(materialSize), Raw: newTokenSecret(), Rotated: when, Automatic: true}}}},
		{{Enabled: &enabledEvent{ref, true, when.AddDate(1, 0, 0)}}},
		{{Rotation: &rotationEvent{Key: ref}}},
		{{Used: &usedEvent{ref, use{Operation: "Encrypt", Time: when, RequestID: newUUID()}}}},
		{{Used: &usedEvent{ref, use{Operation: "Decrypt", Time: when.Add(time.Hour), RequestID: newUUID()}}}},
		{{Described: &descriptionEvent{ref, "papers"}}},
		{{Tagged: &tagsEvent{ref, []tag{{"env", "prod"}, {"team", ""}}}}},
		{{Tagged: &tagsEvent{ref, []tag{{"env", "test"}}}}},
		{{Alias: &aliasEvent{aliasRef{ref.Account, ref.Region, "alias/a"}, ref, when, when.Add(time.Hour)}}},
		{{Unaliased: &aliasRef{ref.Account, ref.Region, "alias/a"}}},
		{{Policy: &policyEvent{ref, strings.Replace(defaultPolicy(ref.Account), "kms:*", "kms:Put*", 1)}}},
	}
	show := func(s *state) string {
		var b bytes.Buffer
		for e := range s.events {
			if e.Opened == nil {
				if err := writeLine(&b, []*event{e}); err != nil {
					t.Fatal(err)
				}
			}
		}
		return b.String()
	}
	var journal bytes.Buffer
	whole := newState(newTokenSecret())
	ends, states := []int{0}, []string{""}
	for _, batch := range batches {
		if err := writeLine(&journal, batch); err != nil {
			t.Fatal(err)
		}
		for _, e := range batch {
			if err := whole.apply(e); err != nil {
				t.Fatal(err)
			}
		}
		ends, states = append(ends, journal.Len()), append(states, show(whole))
	}
	lines := 0
	for n := range journal.Len() + 1 {
		if lines+1 < len(ends) && n == ends[lines+1] {
			lines++
		}
		s := newState(newTokenSecret())
		if err := s.replay(bytes.NewReader(journal.Bytes()[:n])); err != nil {
			t.Fatalf("cut at byte %d: %v", n, err)
		}
		if got := show(s); got != states[lines] {
			t.Fatalf("cut at byte %d: got\n%s\nwant\n%s", n, got, states[lines])
		}
	}
	if lines != len(batches) {
		t.Errorf("reached line %d of %d", lines, len(batches))
	}
}

// A whole last line that says what this program does not know was acknowledged by
// a newer one. It is refused where it stands, and stays on disk.
func TestLineOfANewerProgram(t *testing.T) {
	for _, text := range []string{`[{"sealed":{"key":"k"}}]`, `[{"enabled":{"key":{},"by":"b"}}]`, `{"batch":[]}`, `[{}`} {
		dir := t.TempDir()
		k, err := New(Config{Dir: dir, Now: time.Now})
		if err != nil {
			t.Fatal(err)
		}
		if err := k.Close(); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, journalName)
		before, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		before = fmt.Appendf(before, "%08x %s\n", crc32.Checksum([]byte(text), crc32.MakeTable(crc32.Castagnoli)), text)
		if err := os.WriteFile(path, before, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := New(Config{Dir: dir, Now: time.Now}); err == nil || !strings.Contains(err.Error(), "line 2: ") {
			t.Errorf("%s: opened with %v", text, err)
		}
		if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, before) {
			t.Errorf("%s: the journal was changed: %v", text, err)
		}
	}
}

// What a policy has to be is decided when it is put. One that a journal holds was
// accepted once, and does not keep the KMS from opening.
func TestPolicyOfAnOlderProgram(t *testing.T) {
	ref := keyRef{"111122223333", "us-west-2", newUUID()}
	taken := defaultPolicy(ref.Account) + "}"
	if _, err := parseKeyPolicy(taken); err == nil {
		t.Fatal("the policy would be accepted today")
	}
	s := newState(newTokenSecret())
	made := &keyEvent{Ref: ref, Policy: taken, Materials: []materialEvent{newMaterialEvent(kind{symmetricSpec, encryptDecrypt})}}
	for _, e := range []*event{{Key: made}, {Policy: &policyEvent{ref, taken}}} {
		if err := s.apply(e); err != nil {
			t.Error(err)
		}
	}
}

// A rotation that is decided, and not yet on disk, governs what is encrypted from
// then on. The material gets there before anything under it leaves.
func TestMaterialIsOnDiskBeforeItsCiphertext(t *testing.T) {
	dir := t.TempDir()
	k, err := New(Config{Dir: dir, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	ref := keyRef{"111122223333", "us-west-2", newUUID()}
	symmetric := kind{symmetricSpec, encryptDecrypt}
	made := &keyEvent{Ref: ref, Enabled: true, Policy: defaultPolicy(ref.Account), Materials: []materialEvent{newMaterialEvent(symmetric)}}
	if err := k.change(func(*state) (*event, error) { return &event{Key: made}, nil }); err != nil {
		t.Fatal(err)
	}
	next := newMaterialEvent(symmetric)
	if err := k.decide(func(*state) (*event, error) { return &event{Rotated: &rotatedEvent{ref, next}}, nil }); err != nil {
		t.Fatal(err)
	}
	key, err := k.lookup(&request{now: time.Now()}, ref)
	if err != nil {
		t.Fatal(err)
	}
	blob, err := k.seal(key, []byte("x"), nil)
	if err != nil {
		t.Fatal(err)
	}
	crashed, err := readJournal(filepath.Join(dir, journalName))
	if err != nil {
		t.Fatal(err)
	}
	found, err := crashed.get(ref)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := parseBlob(blob)
	if err != nil || sealed.materialID != next.ID {
		t.Fatalf("encrypted under %s, want %s: %v", sealed.materialID, next.ID, err)
	}
	if plaintext, err := found.open(sealed, nil); err != nil || string(plaintext) != "x" {
		t.Errorf("after a crash: %q, %v", plaintext, err)
	}
}
