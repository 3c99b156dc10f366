package model_test

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
)

// faults is a road to KMS that can lose an answer after the work was done.
type faults struct {
	mu   sync.Mutex
	next int // answers until the lost one; below 0 loses none
	held bool
	used bool

	crashAt   string // the point at which the process ends, "" for none
	throttled int    // calls to come that KMS throttles

	hookOn string // the operation after whose next answer hook runs, once
	hook   func()
}

// amid runs hook once, after KMS has done the next call of an operation that is
// no dry run and before its caller gets the answer.
func (f *faults) amid(operation string, hook func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hookOn, f.hook = operation, hook
}

func (f *faults) takeHook(r *http.Request, dry bool) func() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.hook == nil || dry || r.Header.Get("X-Amz-Target") != "TrentService."+f.hookOn {
		return nil
	}
	hook := f.hook
	f.hook = nil
	return hook
}

func (f *faults) wrap(road http.RoundTripper) http.RoundTripper {
	return roundTrip(func(r *http.Request) (*http.Response, error) {
		if f.throttle() {
			return refusal("ThrottlingException"), nil
		}
		resp, err := road.RoundTrip(r)
		// A dry run never succeeds (AWS answers DryRunOperationException).
		if hook := f.takeHook(r, err != nil || resp.StatusCode != http.StatusOK); hook != nil {
			hook()
		}
		if err != nil || !f.lose() {
			return resp, err
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		return nil, errLost
	})
}

// A crash is what is thrown at a point where the process ends.
type crash string

// at is called by the broker and the engine at each of their points.
func (f *faults) at(point string) {
	f.mu.Lock()
	hit := f.crashAt == point
	if hit {
		f.crashAt = ""
	}
	f.mu.Unlock()
	if hit {
		panic(crash(point))
	}
}

func (f *faults) armCrash(point string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.crashAt = point
}

// throttleNext has KMS throttle the broker's next n calls, before it does any work.
func (f *faults) throttleNext(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.throttled = n
}

func (f *faults) throttle() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.throttled == 0 {
		return false
	}
	f.throttled--
	f.held = true
	return true
}

// refusal is an error in the form that KMS gives it.
func refusal(code string) *http.Response {
	body := `{"__type":"` + code + `","message":"Rate exceeded"}`
	return &http.Response{StatusCode: http.StatusBadRequest, Body: io.NopCloser(strings.NewReader(body)),
		Header: http.Header{"Content-Type": {"application/x-amz-json-1.1"}, "X-Amzn-Requestid": {"throttled"}}}
}

var errLost = errors.New("connection reset by peer")

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// loseNext arranges for an answer to be lost, after some others; -1 for none.
func (f *faults) loseNext(after int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.next, f.used = after, after >= 0
}

func (f *faults) lose() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.used {
		return false
	}
	f.next--
	// Three in a row, so that the foreground's own retries do not hide the loss.
	if f.next < 0 {
		f.held = true
		f.used = f.next > -3
		return true
	}
	return false
}

// tookHold reports, once, that an answer was lost since it was last asked.
func (f *faults) tookHold() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	held := f.held
	f.held = false
	return held
}
