package localkms

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"time"
)

// AnyOperation stands for every operation that [Faults] does not name otherwise.
const AnyOperation = "*"

// Faults is what a KMS is to do worse than it could, so that its callers can be
// tested against what AWS does on a bad day. The zero value is a good day. Its
// JSON form has durations as text, "150ms".
//
// They befall requests whose caller is known, in this order: the quota, the
// latency, an error, a key that is disabled; then the work is done, and last the
// answer may be lost. Chance is drawn from Seed and the number of the call among
// those of its operation, so the n-th call of an operation always has the same
// fate, whatever runs beside it.
type Faults struct {
	Seed uint64

	// RequestsPerSecond is the quota that an account's symmetric cryptographic
	// operations share in a region; 0 is no quota. As at AWS the account is the
	// caller's, not the key's. A second's worth may come at once.
	RequestsPerSecond float64

	// Latency is how long a call waits before anything is done, by operation. When
	// its caller goes away meanwhile, nothing is, and Observe is told of a
	// KMSInternalException.
	Latency map[string]time.Duration

	// Errors fail calls before any work is done. The first that strikes counts.
	Errors []ErrorFault

	// LostAnswers is how many answers are lost after the work was done, from 0 to
	// 1, by operation: the connection is dropped.
	LostAnswers map[string]float64

	// DisableKeys disables keys, for good: until EnableKey.
	DisableKeys []DisableFault

	// GrantDelay takes the place of Config.GrantDelay, when above 0, for grants
	// made from now on.
	GrantDelay time.Duration

	// RetireDelay is how long a grant that is retired or revoked from now on still
	// gives what it gave, and is still listed. A restart ends it, as does another
	// plan without it.
	RetireDelay time.Duration
}

// ErrorFault answers some calls with an error.
type ErrorFault struct {
	Operation string  `json:"operation"` // or AnyOperation
	Code      string  `json:"code"`      // one of those that AWS answers with for reasons of its own
	Rate      float64 `json:"rate"`      // from 0 to 1
}

// DisableFault disables a key just before one call is served.
type DisableFault struct {
	Operation string `json:"operation"`     // which calls are counted
	Call      uint64 `json:"call"`          // which of them, from 1, since the faults were set
	Key       string `json:"key,omitempty"` // ARN; empty: the key that the call names, of ReEncrypt the destination
}

// injectable are the errors that Errors may have, with their texts. That of
// AccessDeniedException names the caller and is made elsewhere.
var injectable = map[string]string{
	codeAccessDenied:      "",
	codeDependencyTimeout: "The system timed out while trying to fulfill the request.",
	codeDisabled:          "The key is disabled.",
	codeInternal:          "The request was rejected because an internal exception occurred.",
	codeInvalidState:      "The key is in a state that does not allow the request.",
	codeKeyUnavailable:    "The request was rejected because the key was not available.",
	codeLimitExceeded:     "The request was rejected because a quota was exceeded.",
	codeNotFound:          "The request was rejected because the key or grant was not found.",
	codeThrottling:        throttled,
}

// throttled is the text of AWS (AWS KMS Developer Guide, "Throttling AWS KMS
// requests").
const throttled = "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls."

// check reports all that is wrong with a plan.
func (f *Faults) check(known map[string]operation) error {
	var faults []error
	wrong := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	name := func(operation string, any bool) {
		if _, ok := known[operation]; !ok && !(any && operation == AnyOperation) {
			wrong("unknown operation %q", operation)
		}
	}
	rate := func(operation string, r float64) {
		name(operation, true)
		if !(r >= 0 && r <= 1) { // also refuses NaN
			wrong("rate %v of %s is not within 0 and 1", r, operation)
		}
	}
	if !(f.RequestsPerSecond >= 0) {
		wrong("requests per second %v is below 0", f.RequestsPerSecond)
	}
	for operation, d := range f.Latency {
		name(operation, true)
		if d < 0 {
			wrong("latency %s of %s is below 0", d, operation)
		}
	}
	for _, e := range f.Errors {
		rate(e.Operation, e.Rate)
		if _, ok := injectable[e.Code]; !ok {
			wrong("error %q is none of %v", e.Code, slices.Sorted(maps.Keys(injectable)))
		}
	}
	for operation, r := range f.LostAnswers {
		rate(operation, r)
	}
	for _, d := range f.DisableKeys {
		name(d.Operation, false)
		if d.Call == 0 {
			wrong("call 0 of %s: calls are counted from 1", d.Operation)
		}
	}
	if f.GrantDelay < 0 || f.RetireDelay < 0 {
		wrong("grant delay %s and retire delay %s must not be below 0", f.GrantDelay, f.RetireDelay)
	}
	return errors.Join(faults...)
}

func (f *Faults) none() bool {
	return f.RequestsPerSecond == 0 && len(f.Latency) == 0 && len(f.Errors) == 0 && len(f.LostAnswers) == 0 &&
		len(f.DisableKeys) == 0 && f.GrantDelay == 0 && f.RetireDelay == 0
}

func (f *Faults) clone() Faults {
	c := *f
	c.Latency, c.LostAnswers = maps.Clone(f.Latency), maps.Clone(f.LostAnswers)
	c.Errors, c.DisableKeys = slices.Clone(f.Errors), slices.Clone(f.DisableKeys)
	return c
}

// SetFaults puts a plan in force for the requests that come from now on, in place
// of the one before: calls are counted from 1 again, and the quota is unused. It
// refuses operations and errors that it does not know, and rates beyond 0 and 1.
func (k *KMS) SetFaults(f Faults) error {
	if err := f.check(k.operations); err != nil {
		return fmt.Errorf("localkms: faults: %w", err)
	}
	if f.none() {
		k.plan.Store(nil)
		return nil
	}
	p := &plan{
		faults: f.clone(),
		since:  k.now().Truncate(time.Millisecond),
		calls:  make(map[string]*atomic.Uint64, len(k.operations)),
		used:   map[quotaKey]*allowance{},
	}
	for operation := range k.operations {
		p.calls[operation] = new(atomic.Uint64)
	}
	k.plan.Store(p)
	return nil
}

// Faults returns the plan in force. It is the caller's to keep.
func (k *KMS) Faults() Faults {
	p := k.plan.Load()
	if p == nil {
		return Faults{}
	}
	return p.faults.clone()
}
