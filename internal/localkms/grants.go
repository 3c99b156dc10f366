package localkms

import (
	"cmp"
	"iter"
	"maps"
	"slices"
	"sort"
	"strings"
	"time"
)

// The operations that a grant on a symmetric key may allow (AWS KMS Developer
// Guide, "Grants in AWS KMS", Grant operations).
var grantOperations = []string{
	"Decrypt", "Encrypt", "GenerateDataKey", "GenerateDataKeyWithoutPlaintext", "GenerateDataKeyPair",
	"GenerateDataKeyPairWithoutPlaintext", "ReEncryptFrom", "ReEncryptTo", "CreateGrant", "RetireGrant", "DescribeKey",
}

// The grant operations that only keys of other kinds have, and all that the
// service model knows.
var foreignGrantOperations = []string{
	"Sign", "Verify", "GetPublicKey", "GenerateMac", "VerifyMac", "DeriveSharedSecret", "Encapsulate", "Decapsulate",
}

// Those grant operations that have no encryption context, and that are looked up
// here: who may retire a grant is told by the grant itself.
var contextless = []string{"DescribeKey", "CreateGrant", "GenerateMac", "VerifyMac"}

// grant is one grant on one key. It is never altered once it stands in the state.
type grant struct {
	ID         string     `json:"id"` // 64 hexadecimal digits
	Seq        uint64     `json:"seq"`
	Name       string     `json:"name,omitempty"`
	Grantee    string     `json:"grantee"`
	Retiring   string     `json:"retiring,omitempty"`
	Issuer     string     `json:"issuer"` // account, 12 digits
	Operations []string   `json:"operations"`
	Constraint Constraint `json:"constraint,omitzero"`
	Created    time.Time  `json:"created"`

	at bucket // where grantSet.insert put it
}

func (g *grant) allows(operation string) bool { return slices.Contains(g.Operations, operation) }

// same reports whether a request for b asks for what a already is, which makes a
// CreateGrant with the same Name a repetition. Operations are a set.
func (g *grant) same(b *grant) bool {
	return g.Name == b.Name && g.Grantee == b.Grantee && g.Retiring == b.Retiring && g.Issuer == b.Issuer &&
		slices.Equal(operationSet(g.Operations), operationSet(b.Operations)) &&
		maps.Equal(g.Constraint.Subset, b.Constraint.Subset) && maps.Equal(g.Constraint.Equals, b.Constraint.Equals)
}

func operationSet(operations []string) []string {
	return slices.Compact(slices.Sorted(slices.Values(operations)))
}

func (c *Constraint) none() bool { return len(c.Subset) == 0 && len(c.Equals) == 0 }

// pairs returns the constraint's pairs, of whichever kind.
func (c *Constraint) pairs() map[string]string {
	if len(c.Equals) > 0 {
		return c.Equals
	}
	return c.Subset
}

// kind is the value of kms:GrantConstraintType, or "" without a constraint.
func (c *Constraint) kind() string {
	switch {
	case len(c.Equals) > 0:
		return "EncryptionContextEquals"
	case len(c.Subset) > 0:
		return "EncryptionContextSubset"
	}
	return ""
}

// admits reports whether a request with this encryption context is within the
// constraint.
func (c *Constraint) admits(context map[string]string) bool {
	if len(c.Equals) > 0 {
		return len(c.Equals) == len(context) && includes(context, c.Equals) && includes(c.Equals, context)
	}
	return includes(context, c.Subset)
}

// covers reports whether a grant with constraint child allows no more than one
// with c: it may add pairs to a Subset and turn it into an Equals, never the
// reverse (AWS KMS Developer Guide, "Creating grants", Using grant constraints).
func (c *Constraint) covers(child *Constraint) bool {
	switch {
	case c.none():
		return true
	case len(c.Equals) > 0:
		return len(child.Equals) > 0 && c.admits(child.Equals)
	}
	return includes(child.pairs(), c.Subset)
}

// includes reports whether have holds all pairs of want, keys without regard to
// case and values exactly.
func includes(have, want map[string]string) bool {
	for name, value := range want {
		if got, ok := have[name]; ok && got == value {
			continue
		}
		if !includesFolded(have, name, value) {
			return false
		}
	}
	return true
}

func includesFolded(have map[string]string, name, value string) bool {
	name = fold(name)
	for other, got := range have {
		if got == value && fold(other) == name {
			return true
		}
	}
	return false
}

// fold maps context keys that differ only by case to one.
func fold(name string) string { return strings.ToLower(name) }

// bucket is where the grants of a grantee are looked for. A grant with a
// constraint lies under one of its pairs, since it can only match a request that
// has that pair. Operations without an encryption context look under unbound.
type bucket struct {
	grantee     string
	kind        bucketKind
	name, value string // of kind paired: a pair of the constraint, its name folded
}

type bucketKind int8

const (
	unconstrained bucketKind = iota // grants without a constraint
	paired                          // grants with a constraint
	unbound                         // all that allow an operation without an encryption context
)

// grantSet holds the grants of one key, indexed for each way they are looked up.
// Every list is in order of Seq. Guarded by KMS.mu.
type grantSet struct {
	nextSeq    uint64
	byID       map[string]*grant
	all        []*grant
	byGrantee  map[string][]*grant
	byRetiring map[string][]*grant
	byName     map[string][]*grant
	buckets    map[bucket][]*grant
	ended      []endedGrant // in no index: Faults.RetireDelay keeps them alive for a while
}

// endedGrant is a grant that was retired or revoked.
type endedGrant struct {
	*grant
	until time.Time // when nobody uses it any more
}

func newGrantSet() *grantSet {
	return &grantSet{
		nextSeq:    1,
		byID:       map[string]*grant{},
		byGrantee:  map[string][]*grant{},
		byRetiring: map[string][]*grant{},
		byName:     map[string][]*grant{},
		buckets:    map[bucket][]*grant{},
	}
}

func (s *grantSet) insert(g *grant) {
	s.nextSeq = max(s.nextSeq, g.Seq+1)
	s.byID[g.ID] = g
	s.all = append(s.all, g)
	s.byGrantee[g.Grantee] = append(s.byGrantee[g.Grantee], g)
	if g.Retiring != "" {
		s.byRetiring[g.Retiring] = append(s.byRetiring[g.Retiring], g)
	}
	if g.Name != "" {
		s.byName[g.Name] = append(s.byName[g.Name], g)
	}
	g.at = s.choose(g)
	s.buckets[g.at] = append(s.buckets[g.at], g)
	if u := (bucket{grantee: g.Grantee, kind: unbound}); g.needsNoContext() {
		s.buckets[u] = append(s.buckets[u], g)
	}
}

// choose returns the emptiest bucket a grant may lie in: of 50,000 grants to one
// role, each with an environment and a tenant, it finds the tenant.
func (s *grantSet) choose(g *grant) bucket {
	best := bucket{grantee: g.Grantee, kind: unconstrained}
	for name, value := range g.Constraint.pairs() {
		b := bucket{g.Grantee, paired, fold(name), value}
		if best.kind == unconstrained || len(s.buckets[b]) < len(s.buckets[best]) {
			best = b
		}
	}
	return best
}

// needsNoContext reports whether the grant allows an operation that has no
// encryption context.
func (g *grant) needsNoContext() bool {
	return slices.ContainsFunc(g.Operations, func(operation string) bool {
		return slices.Contains(contextless, operation)
	})
}

func (s *grantSet) remove(g *grant) {
	delete(s.byID, g.ID)
	s.all = without(s.all, g)
	drop(s.byGrantee, g.Grantee, g)
	if g.Retiring != "" {
		drop(s.byRetiring, g.Retiring, g)
	}
	if g.Name != "" {
		drop(s.byName, g.Name, g)
	}
	drop(s.buckets, g.at, g)
	if g.needsNoContext() {
		drop(s.buckets, bucket{grantee: g.Grantee, kind: unbound}, g)
	}
}

// linger keeps a removed grant alive until some time, and forgets those whose
// time is over.
func (s *grantSet) linger(g *grant, now, until time.Time) {
	s.ended = slices.DeleteFunc(s.ended, func(old endedGrant) bool { return !now.Before(old.until) })
	s.ended = append(s.ended, endedGrant{g, until})
}

// withEnded adds those of the ended grants that are asked for to a list, in order
// of Seq. It takes ended for its own, and leaves list alone.
func withEnded(list, ended []*grant, asked func(*grant) bool) []*grant {
	ended = slices.DeleteFunc(ended, func(g *grant) bool { return !asked(g) })
	if len(ended) == 0 {
		return list
	}
	whole := slices.Concat(list, ended)
	slices.SortFunc(whole, func(a, b *grant) int { return cmp.Compare(a.Seq, b.Seq) })
	return whole
}

func drop[K comparable](index map[K][]*grant, at K, g *grant) {
	if rest := without(index[at], g); len(rest) > 0 {
		index[at] = rest
	} else {
		delete(index, at)
	}
}

func without(list []*grant, g *grant) []*grant {
	if i := after(list, g.Seq-1); i < len(list) && list[i] == g {
		return slices.Delete(list, i, i+1)
	}
	return list
}

// after returns the index of the first grant whose Seq is above seq.
func after(list []*grant, seq uint64) int {
	return sort.Search(len(list), func(i int) bool { return list[i].Seq > seq })
}

// candidates yields the grants that may let a grantee do a thing: few, however
// many the key has. Operation and constraint are still to be checked.
func (s *grantSet) candidates(grantee string, a *access) iter.Seq[*grant] {
	return func(yield func(*grant) bool) {
		if !a.takesContext {
			each(s.buckets[bucket{grantee: grantee, kind: unbound}], yield)
			return
		}
		if !each(s.buckets[bucket{grantee: grantee, kind: unconstrained}], yield) {
			return
		}
		for name, value := range a.context {
			if !each(s.buckets[bucket{grantee, paired, fold(name), value}], yield) {
				return
			}
		}
	}
}

func each(list []*grant, yield func(*grant) bool) bool {
	for _, g := range list {
		if !yield(g) {
			return false
		}
	}
	return true
}

// named returns the grant that a CreateGrant with a Name repeats, if any.
func (s *grantSet) named(g *grant) *grant {
	for _, old := range s.byName[g.Name] {
		if g.Name != "" && old.same(g) {
			return old
		}
	}
	return nil
}
