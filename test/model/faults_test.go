package model_test

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"pgregory.net/rapid"
)

// The kinds of mishaps on the broker's road to KMS.
const (
	lost      = "lost answer" // after the work was done
	throttled = "throttled"
	failing   = "KMS failed" // before any work was done
	denied    = "denied"
	slow      = "slow"
	timedOut  = "timed out" // by what happened meanwhile
)

// A mishap befalls some calls, after some others.
type mishap struct {
	kind         string
	after, calls int
	delay        time.Duration // of slow
}

// A road is the broker's way to KMS. The customers and services have theirs to
// themselves.
type road struct {
	mu      sync.Mutex
	mishaps []mishap
	strikes map[string]bool      // in this action
	last    map[string]time.Time // when a kind struck last
	hold    *hold
	crashAt string // the point at which a replica ends, "" for none
}

// A hold stops one call on its way, until somebody lets it go on.
type hold struct {
	operation string // "" is any
	after     int    // calls of it
	before    bool   // KMS has done the work; else it has yet to
	reached   chan struct{}
	release   chan struct{}
}

func newRoad() *road { return &road{strikes: map[string]bool{}, last: map[string]time.Time{}} }

// begin forgets what struck in the last action.
func (r *road) begin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.strikes)
}

func (r *road) strike(kind string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.note(kind)
}

func (r *road) note(kind string) { r.strikes[kind], r.last[kind] = true, time.Now() }

// struck says whether a mishap of a kind befell the present action.
func (r *road) struck(kind string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.strikes[kind]
}

func (r *road) struckAny() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.strikes) > 0
}

// happened says whether a mishap of a kind has befallen a call since.
func (r *road) happened(kind string, since time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	last, ever := r.last[kind]
	return ever && !last.Before(since)
}

func (r *road) arm(m mishap) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mishaps = append(r.mishaps, m)
}

// calm ends all faults.
func (r *road) calm() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mishaps, r.crashAt = nil, ""
	clear(r.strikes)
}

// next gives the mishap that befalls the present call, if one does.
func (r *road) next() (befalls mishap) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var left []mishap
	for _, m := range r.mishaps {
		switch {
		case m.after > 0:
			m.after--
		case befalls.kind == "":
			befalls = m
			m.calls--
			r.note(m.kind)
		}
		if m.calls > 0 {
			left = append(left, m)
		}
	}
	r.mishaps = left
	return befalls
}

func (r *road) wrap(on http.RoundTripper) http.RoundTripper {
	return roundTrip(func(req *http.Request) (*http.Response, error) {
		m := r.next()
		switch m.kind {
		case throttled:
			return refusal("ThrottlingException"), nil
		case failing:
			return refusal("KMSInternalException"), nil
		case denied:
			return refusal("AccessDeniedException"), nil
		case slow:
			select {
			case <-time.After(m.delay):
			case <-req.Context().Done():
			}
		}
		held := r.takeHold(req)
		if held != nil && !held.before {
			held.wait()
		}
		if err := req.Context().Err(); err != nil { // it was never sent
			r.strike(timedOut)
			return nil, err
		}
		resp, err := on.RoundTrip(req)
		if held != nil && held.before {
			held.wait()
		}
		if req.Context().Err() != nil {
			r.strike(timedOut)
		}
		if err != nil || m.kind != lost {
			return resp, err
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		return nil, errLost
	})
}

// holdNext stops a call, which tells by reached that it has stopped.
func (r *road) holdNext(h *hold) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hold = h
}

func (r *road) takeHold(req *http.Request) *hold {
	r.mu.Lock()
	defer r.mu.Unlock()
	h := r.hold
	if h == nil || h.operation != "" && req.Header.Get("X-Amz-Target") != "TrentService."+h.operation {
		return nil
	}
	if h.after > 0 {
		h.after--
		return nil
	}
	r.hold = nil
	return h
}

func (h *hold) wait() {
	close(h.reached)
	<-h.release
}

func (r *road) armCrash(point string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.crashAt = point
}

// crashes says, once, that a replica is to end at a point.
func (r *road) crashes(point string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	hit := r.crashAt == point
	if hit {
		r.crashAt = ""
	}
	return hit
}

// refusal is an error in the form that KMS gives it.
func refusal(code string) *http.Response {
	body := `{"__type":"` + code + `","message":"a mishap"}`
	return &http.Response{StatusCode: http.StatusBadRequest, Body: io.NopCloser(strings.NewReader(body)),
		Header: http.Header{"Content-Type": {"application/x-amz-json-1.1"}, "X-Amzn-Requestid": {"mishap"}}}
}

var errLost = errors.New("connection reset by peer")

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// loseAnswer loses three in a row, so that the foreground's own retries do not
// hide the loss.
func (m *machine) loseAnswer(t *rapid.T) {
	m.road.arm(mishap{kind: lost, after: rapid.IntRange(0, 6).Draw(t, "after"), calls: 3})
}

func (m *machine) mishap(t *rapid.T) {
	h := mishap{kind: rapid.SampledFrom([]string{lost, throttled, failing, denied, slow}).Draw(t, "kind"),
		after: rapid.IntRange(0, 6).Draw(t, "after"), calls: rapid.IntRange(1, 10).Draw(t, "calls")}
	h.delay = rapid.SampledFrom([]time.Duration{time.Second, 6 * time.Second, 11 * time.Second}).Draw(t, "delay")
	m.road.arm(h)
}
