package awskms

import (
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync"
)

// A Fence is a transport to KMS for tools that work on somebody's own keys: it
// counts requests, and sends none of an operation that it was not told of, nor
// any beyond its limit. It is safe for concurrent use.
type Fence struct {
	next    http.RoundTripper
	allowed map[string]bool
	limit   int

	mu   sync.Mutex
	sent map[string]int
	all  int
	full chan struct{} // closed when the limit refuses the first request
}

// A FenceError is why a request was not sent.
type FenceError struct {
	Operation string
	// Limit is the limit that was reached; 0 where the operation is not allowed.
	Limit int
}

func (e *FenceError) Error() string {
	if e.Limit == 0 {
		return "kms:" + e.Operation + " is not among the operations that may be called here"
	}
	return fmt.Sprintf("%d KMS calls were made, which is the limit here", e.Limit)
}

// NewFence lets limit requests of the named operations pass to next; nil is our
// own transport.
func NewFence(next http.RoundTripper, limit int, operations ...string) *Fence {
	if next == nil {
		next = newTransport(64, defaultTimeout/foregroundAttempts)
	}
	f := &Fence{next: next, allowed: map[string]bool{}, limit: limit, sent: map[string]int{}, full: make(chan struct{})}
	for _, o := range operations {
		f.allowed[o] = true
	}
	return f
}

// RoundTrip implements http.RoundTripper.
func (f *Fence) RoundTrip(r *http.Request) (*http.Response, error) {
	_, operation, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
	if err := f.admit(operation); err != nil {
		if r.Body != nil {
			_ = r.Body.Close() // it was not read
		}
		return nil, err
	}
	return f.next.RoundTrip(r)
}

func (f *Fence) admit(operation string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case !f.allowed[operation]:
		return &FenceError{Operation: operation}
	case f.all >= f.limit:
		select {
		case <-f.full:
		default:
			close(f.full)
		}
		return &FenceError{Operation: operation, Limit: f.limit}
	}
	f.sent[operation]++
	f.all++
	return nil
}

// Full is closed once the limit has refused a request: what goes on would wait
// for an answer that never comes.
func (f *Fence) Full() <-chan struct{} { return f.full }

// Calls gives how many requests have passed.
func (f *Fence) Calls() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.all
}

// Counts gives how many requests of each operation have passed.
func (f *Fence) Counts() map[string]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.sent)
}

// CloseIdleConnections lets http.Client and KMS.Close give connections back.
func (f *Fence) CloseIdleConnections() {
	if t, ok := f.next.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
}
