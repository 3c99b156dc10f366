package broker_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/google/go-cmp/cmp"

	"github.com/keybroker/keybroker/internal/broker"
)

// sweep does what the periodic sweep does.
func (b *bench) sweep() {
	b.t.Helper()
	if err := b.Broker.Sweep(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
}

// wantNoOrphans: each of the service's grants at KMS is one that the database
// knows to be live (T6, I7).
func (b *bench) wantNoOrphans(key broker.KeyARN) {
	b.t.Helper()
	known := b.query(`select kms_grant_id from kms_grant where state = 'LIVE'`)
	for _, g := range b.serviceGrants(key) {
		if !slices.Contains(known, aws.ToString(g.GrantId)) {
			b.t.Errorf("KMS has %s, which the database does not", aws.ToString(g.Name))
		}
	}
	if open := b.query(`select name, state from kms_grant where state in ('INTENDED', 'RETIRING')`); len(open) > 0 {
		b.t.Errorf("open after the sweep: %q", open)
	}
}

// I8: an answer that is lost is asked for again under the same Name.
func TestLostAnswerIsRepeated(t *testing.T) {
	b := newActive(t)
	d := b.domain("acme")
	b.road.lose("CreateGrant")
	_, err := b.createGrant(newGrant("r1"))
	wantReason(t, err, broker.ReasonKMSUnavailable)
	if n := len(b.serviceGrants(d.KMSKey)); n != 1 {
		t.Fatalf("KMS made %d grants, want the one whose answer was lost", n)
	}
	b.road.open()
	g, err := b.createGrant(newGrant("r1")) // at once: the first call let go
	if err != nil {
		t.Fatal(err)
	}
	if n := len(b.serviceGrants(d.KMSKey)); n != 2 {
		t.Errorf("KMS has %d grants, want one of each kind", n)
	}
	if err := b.useKey(d.KMSKey, map[string]string{d.Reserved.Key: d.Reserved.Value, "tenant": "acme"}, g.Tokens); err != nil {
		t.Errorf("the repeat's tokens: %v", err)
	}
	b.wantNoOrphans(d.KMSKey)
}

// Only a listing closes an intent without an answer, and only when the call has
// ended and KMS shows what it made.
func TestLostAnswerIsSettled(t *testing.T) {
	for name, test := range map[string]struct {
		made   bool
		settle []string
	}{
		"KMS had done it": {true, []string{"1 unwrap 1 FAILED", "1 wrap 1 LIVE"}},
		"KMS never heard": {false, []string{"1 unwrap 1 FAILED", "1 wrap 1 FAILED"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newActive(t)
			key := b.domain("acme").KMSKey
			b.road.set(func(op string, send func() (*http.Response, error)) (*http.Response, error) {
				if op != "CreateGrant" {
					return send()
				}
				if test.made {
					_, _ = send()
				}
				return nil, errLost
			})
			_, err := b.createGrant(newGrant("r1"))
			wantReason(t, err, broker.ReasonKMSUnavailable)
			b.road.open()

			b.Clock.Advance(settling - time.Microsecond)
			b.sweep()
			if diff := cmp.Diff([]string{"1 unwrap 1 INTENDED", "1 wrap 1 INTENDED"}, b.kmsGrantStates()); diff != "" {
				t.Errorf("settled too early: %s", diff)
			}
			b.Clock.Advance(time.Microsecond)
			b.sweep()
			if diff := cmp.Diff(test.settle, b.kmsGrantStates()); diff != "" {
				t.Error(diff)
			}
			b.wantNoOrphans(key)

			b.Clock.Advance(time.Hour)
			b.sweep()
			if left := b.serviceGrants(key); len(left) != 0 {
				t.Errorf("%d grants outlived the TTL (I7)", len(left))
			}
		})
	}
}

// T6: whatever becomes of any one KMS call, and of the repeat, no sweep later
// than the settling time leaves a grant that nobody knows of, and none outlives
// its TTL.
func TestNoOrphansUnderFaults(t *testing.T) {
	faults := map[string]func(send func() (*http.Response, error)) (*http.Response, error){
		"lost": func(send func() (*http.Response, error)) (*http.Response, error) {
			_, _ = send()
			return nil, errLost
		},
		"unsent":   func(func() (*http.Response, error)) (*http.Response, error) { return nil, errLost },
		"disabled": func(func() (*http.Response, error)) (*http.Response, error) { return refusal("DisabledException"), nil },
		"throttled": func(func() (*http.Response, error)) (*http.Response, error) {
			return refusal("ThrottlingException"), nil
		},
	}
	for first, fault := range faults {
		for nth := range 2 {
			repeats := []string{"nothing", "repeat", "lost", "unsent", "disabled", "restart"}
			if first == "disabled" || first == "throttled" {
				repeats = repeats[:2] // KMS did nothing: less can go wrong
			}
			for _, then := range repeats {
				t.Run(fmt.Sprint(first, nth, then), func(t *testing.T) {
					b := newActive(t)
					key := b.domain("acme").KMSKey
					seen := map[string]bool{}
					b.road.set(func(op string, send func() (*http.Response, error)) (*http.Response, error) {
						if op != "CreateGrant" {
							return send()
						}
						if len(seen) < nth { // a retry of the adapter is no other call
							seen[op+fmt.Sprint(len(seen))] = true
							return send()
						}
						return fault(send)
					})
					if _, err := b.createGrant(newGrant("r1")); err == nil {
						t.Fatal("the fault went unnoticed")
					}
					b.road.open()
					switch then {
					case "nothing":
					case "repeat":
						_, _ = b.createGrant(newGrant("r1"))
					case "restart":
						if err := b.Restart(configOf(b)); err != nil {
							t.Fatal(err)
						}
						_, _ = b.createGrant(newGrant("r1"))
					default:
						b.road.set(func(op string, send func() (*http.Response, error)) (*http.Response, error) {
							if op != "CreateGrant" {
								return send()
							}
							return faults[then](send)
						})
						_, _ = b.createGrant(newGrant("r1"))
						b.road.open()
					}
					b.Clock.Advance(settling)
					b.sweep()
					b.wantNoOrphans(key)
					b.Clock.Advance(time.Hour)
					b.sweep()
					if left := b.serviceGrants(key); len(left) != 0 {
						t.Errorf("%d grants outlived the TTL (I7)", len(left))
					}
				})
			}
		}
	}
}

// A refusal of the repeat says nothing of what the first call did.
func TestRefusedRepeatLeavesTheIntentOpen(t *testing.T) {
	b := newActive(t)
	key := b.domain("acme").KMSKey
	b.road.lose("CreateGrant")
	_, err := b.createGrant(newGrant("r1"))
	wantReason(t, err, broker.ReasonKMSUnavailable)
	b.road.fail("CreateGrant", "DisabledException")
	_, err = b.createGrant(newGrant("r1"))
	wantReason(t, err, broker.ReasonKeyDisabled)
	b.road.open()
	if n := len(b.serviceGrants(key)); n != 1 {
		t.Fatalf("KMS has %d grants, want that of the lost answer", n)
	}
	b.Clock.Advance(settling)
	b.sweep()
	if left := b.serviceGrants(key); len(left) != 0 {
		t.Errorf("%d grants of a failed grant are left at KMS", len(left))
	}
	b.wantNoOrphans(key)
}

// While a call is at KMS, a repeat is told so; after its patience one takes
// over, and both end with the same KMS grants (I8).
func TestRepeatWhileInFlight(t *testing.T) {
	b := newActive(t)
	key := b.domain("acme").KMSKey
	var taken broker.GrantView
	b.road.after("CreateGrant", func() {
		_, err := b.createGrant(newGrant("r1"))
		wantReason(t, err, broker.ReasonRequestInProgress)
		other := newGrant("r1")
		other.Request.Hash[0]++
		_, err = b.createGrant(other)
		wantReason(t, err, broker.ReasonRequestIDReused)
		b.Clock.Advance(patience)
		_, err = b.createGrant(newGrant("r1"))
		wantReason(t, err, broker.ReasonRequestInProgress)
		b.Clock.Advance(time.Microsecond)
		taken = b.mustGrant(newGrant("r1"))
	})
	g := b.mustGrant(newGrant("r1"))
	if taken.UID != g.UID || len(taken.Tokens) != 2 || len(g.Tokens) != 2 {
		t.Errorf("grants %q and %q with %d and %d tokens", taken.UID, g.UID, len(taken.Tokens), len(g.Tokens))
	}
	if n := len(b.serviceGrants(key)); n != 2 {
		t.Errorf("KMS has %d grants, want one of each kind", n)
	}
	b.wantNoOrphans(key)
}

func TestConcurrentCreateGrant(t *testing.T) {
	b := newActive(t)
	var wg sync.WaitGroup
	errs := make([]error, 8)
	in := newGrant("r1")
	for i := range errs {
		wg.Go(func() { _, errs[i] = b.createGrant(in) })
	}
	wg.Wait()
	for _, err := range errs {
		if r := broker.ReasonOf(err); err != nil && r != broker.ReasonRequestInProgress {
			t.Errorf("unexpected %v", err)
		}
	}
	if !slices.Contains(errs, nil) {
		t.Error("no call succeeded")
	}
	key := b.domain("acme").KMSKey
	if n := len(b.serviceGrants(key)); n != 2 {
		t.Errorf("KMS has %d grants, want one of each kind", n)
	}
	b.wantNoOrphans(key)
}

// A grant that ends while it is being made is answered without tokens, and
// nothing of it stays at KMS (I7).
func TestGrantEndsWhileItIsMade(t *testing.T) {
	b := newActive(t)
	key := b.domain("acme").KMSKey
	b.road.after("CreateGrant", func() {
		b.Clock.Advance(time.Hour)
		b.sweep()
	})
	g, err := b.createGrant(newGrant("r1"))
	if err != nil {
		t.Fatal(err)
	}
	if g.State != broker.GrantExpired || len(g.Tokens) != 0 {
		t.Errorf("%s with %d tokens", g.State, len(g.Tokens))
	}
	b.wantNoOrphans(key)
	if left := b.serviceGrants(key); len(left) != 0 {
		t.Errorf("%d grants are left at KMS", len(left))
	}
	b.Calls()
	again, err := b.createGrant(newGrant("r1"))
	if err != nil || again.State != broker.GrantExpired || len(again.Tokens) != 0 {
		t.Errorf("a repeat: %s with %d tokens, %v", again.State, len(again.Tokens), err)
	}
	if calls := b.Calls(); len(calls) != 0 {
		t.Errorf("a repeat for an ended grant calls KMS: %+v", calls)
	}
}

// A switch between KMS's answer and its record: the answer comes with wrap on
// the new key and unwrap on both, and the older wrap grant is retired.
func TestCreateGrantDuringASwitch(t *testing.T) {
	for name, moment := range map[string]string{"before PREPARING": "before", "during PREPARING": "during"} {
		t.Run(name, func(t *testing.T) {
			b := newActive(t)
			d := b.domain("acme")
			var next broker.KeyARN
			if moment == "during" {
				_, next = b.beginChange("acme")
			}
			b.road.after("CreateGrant", func() {
				if moment == "before" {
					_, next = b.beginChange("acme")
				}
				b.untilSwitched("acme", next)
			})
			g := b.mustGrant(newGrant("r1"))
			for key, want := range map[broker.KeyARN][]string{d.KMSKey: {"unwrap"}, next: {"unwrap", "wrap"}} {
				var kinds []string
				for _, k := range b.serviceGrants(key) {
					kinds = append(kinds, strings.Split(aws.ToString(k.Name), "/")[3])
				}
				slices.Sort(kinds)
				if diff := cmp.Diff(want, kinds); diff != "" {
					t.Errorf("on %s: %s", key, diff)
				}
				b.wantNoOrphans(key)
			}
			if err := b.useKey(next, map[string]string{d.Reserved.Key: d.Reserved.Value, "tenant": "acme"}, g.Tokens); err != nil {
				t.Errorf("the answer's tokens do not open the new key: %v", err)
			}
		})
	}
}
