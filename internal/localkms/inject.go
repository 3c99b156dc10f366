package localkms

import (
	"context"
	"encoding/json"
	"hash/fnv"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// What a fault is called in Call.Injected. An error goes by its code.
const (
	injectedQuota    = "quota"
	injectedLatency  = "latency"
	injectedDisabled = "disabled-key"
	injectedLost     = "lost-answer"
	injectedHidden   = "hidden-grant"
	injectedRetired  = "retired-grant"
)

// quotaOperations share the quota of symmetric cryptographic operations (AWS KMS
// Developer Guide, "Request quotas").
var quotaOperations = []string{
	"Encrypt", "Decrypt", "GenerateDataKey", "GenerateDataKeyWithoutPlaintext", "ReEncrypt", "GenerateMac", "VerifyMac", "GenerateRandom",
}

// plan is a Faults in force. A nil plan is a good day.
type plan struct {
	faults Faults                    // never changes
	since  time.Time                 // when it was set
	calls  map[string]*atomic.Uint64 // calls so far, by operation; the map never changes

	mu   sync.Mutex // guards used
	used map[quotaKey]*allowance
}

type quotaKey struct{ account, region string }

// allowance is a token bucket.
type allowance struct {
	tokens float64
	at     time.Time // when tokens was right
}

// injected notes a fault in the call.
func (r *request) injected(what string) {
	if r.call.Injected != "" {
		what = r.call.Injected + "," + what
	}
	r.call.Injected = what
}

// inject lets the plan's faults befall a request before its work is done.
func (k *KMS) inject(ctx context.Context, r *request, body []byte) error {
	p, operation := r.plan, r.call.Operation
	call := p.calls[operation].Add(1)
	if slices.Contains(quotaOperations, operation) && !p.allows(quotaKey{r.caller.account, r.region}, r.now) {
		r.injected(injectedQuota)
		return fault(codeThrottling, throttled)
	}
	if d := named(p.faults.Latency, operation); d > 0 {
		r.injected(injectedLatency)
		if err := k.sleep(ctx, d); err != nil {
			r.dropped = true // the caller went away
			return err
		}
		r.now = k.now()
	}
	for i, e := range p.faults.Errors {
		if (e.Operation == operation || e.Operation == AnyOperation) && p.strikes(e.Rate, operation, call, uint64(i)+1) {
			r.injected(e.Code)
			return e.error(r)
		}
	}
	for _, d := range p.faults.DisableKeys {
		if d.Operation == operation && d.Call == call {
			if err := k.disableNow(r, d.Key, body); err != nil {
				return err
			}
		}
	}
	if p.strikes(named(p.faults.LostAnswers, operation), operation, call, 0) {
		r.injected(injectedLost)
		r.dropped = true
	}
	return nil
}

// named returns what a fault says of an operation.
func named[V any](by map[string]V, operation string) V {
	if v, ok := by[operation]; ok {
		return v
	}
	return by[AnyOperation]
}

func (e *ErrorFault) error(r *request) error {
	if e.Code == codeAccessDenied {
		return errDenied(r.caller.arn, r.call.Operation, "*", "because no resource-based policy allows the kms:"+r.call.Operation+" action")
	}
	return fault(e.Code, injectable[e.Code])
}

// allows takes one request from an account's quota, if there is any left.
func (p *plan) allows(key quotaKey, now time.Time) bool {
	rate := p.faults.RequestsPerSecond
	if rate == 0 {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	most := max(rate, 1)
	a := p.used[key]
	if a == nil {
		a = &allowance{most, now}
		p.used[key] = a
	}
	if passed := now.Sub(a.at); passed > 0 {
		a.tokens = min(most, a.tokens+rate*passed.Seconds())
		a.at = now
	}
	if a.tokens < 1 {
		return false
	}
	a.tokens--
	return true
}

// strikes draws whether a fault befalls one call. The draw is a function of the
// seed, the operation, the number of the call and the rule alone.
func (p *plan) strikes(rate float64, operation string, call, rule uint64) bool {
	if rate == 0 {
		return false
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(operation)) // never fails: see hash.Hash
	x := h.Sum64()
	for _, part := range []uint64{p.faults.Seed, call, rule} {
		x = scramble(x ^ part)
	}
	return float64(x>>11)/(1<<53) < rate
}

// scramble is a step of SplitMix64 (Steele, Lea, Flood: "Fast splittable
// pseudorandom number generators", 2014): a bijection whose every output bit
// hangs on every input bit. It decides over test faults and nothing else.
func scramble(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// disableNow disables a key, or the one that a request names. Nothing happens when
// there is no such key in the region of the request, or it is unusable already.
func (k *KMS) disableNow(r *request, id string, body []byte) error {
	if id == "" {
		id = keyNamedIn(body)
	}
	return k.change(func(s *state) (*event, error) {
		ref, unknown := s.locate(r, id, keyAliasForms)
		if key := s.keys[ref]; unknown == nil && key != nil && key.settings.enabled {
			r.injected(injectedDisabled)
			return &event{Enabled: &enabledEvent{Key: ref}}, nil
		}
		return nil, nil
	})
}

func keyNamedIn(body []byte) string {
	var in struct {
		KeyID            string `json:"KeyId"`
		DestinationKeyID string `json:"DestinationKeyId"`
	}
	_ = json.Unmarshal(body, &in) // the request will be told
	if in.KeyID != "" {
		return in.KeyID
	}
	return in.DestinationKeyID
}

// grantDelay returns how long a grant made at some time stays unseen, where it
// would be otherwise without the plan.
func (p *plan) grantDelay(created time.Time, otherwise time.Duration) time.Duration {
	if p == nil || p.faults.GrantDelay == 0 || created.Before(p.since) {
		return otherwise
	}
	return p.faults.GrantDelay
}

// lingering returns the ended grants of a key that still count.
func (p *plan) lingering(s *grantSet, now time.Time) []*grant {
	if p == nil || p.faults.RetireDelay == 0 {
		return nil
	}
	var list []*grant
	for _, g := range s.ended {
		if now.Before(g.until) {
			list = append(list, g.grant)
		}
	}
	return list
}

// sleep waits, but not longer than ctx.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
