package brokertest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
)

// ErrAnswerLost is what a caller's transport gets where a Fault lost the answer.
var ErrAnswerLost = errors.New("the answer was lost")

// A Fault is what becomes of one request to KMS: the first of these that is set.
type Fault struct {
	// Code and Message answer the request with an error of KMS's, unsent.
	Code, Message string
	// Status answers the request with that HTTP status and a page of HTML, as a
	// load balancer does, unsent.
	Status int
	// Body answers the request with success and that body, unsent.
	Body string
	// LoseRequest fails the request before it is sent.
	LoseRequest bool
	// LoseAnswer sends the request, lets KMS act on it, and loses the answer.
	LoseAnswer bool
	// Rewrite alters the body of a good answer.
	Rewrite func(body string) string
}

// Faults is a transport to KMS that fails when told to. It is safe for
// concurrent use, has no goroutine and no timer.
type Faults struct {
	next http.RoundTripper

	mu      sync.Mutex
	planned map[string][]Fault
	sent    map[string]int
}

// NewFaults makes a transport that hands on to next what it does not fail.
func NewFaults(next http.RoundTripper) *Faults {
	return &Faults{next: next, planned: map[string][]Fault{}, sent: map[string]int{}}
}

// Plan lets the next requests of an operation, one each, meet the faults.
func (f *Faults) Plan(operation string, faults ...Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.planned[operation] = append(f.planned[operation], faults...)
}

// Clear forgets the faults that no request has met.
func (f *Faults) Clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.planned)
}

// Attempts counts the requests of an operation so far, failed ones included.
func (f *Faults) Attempts(operation string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sent[operation]
}

func (f *Faults) take(operation string) (Fault, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sent[operation]++
	queue := f.planned[operation]
	if len(queue) == 0 {
		return Fault{}, false
	}
	f.planned[operation] = queue[1:]
	return queue[0], true
}

// RoundTrip implements http.RoundTripper.
func (f *Faults) RoundTrip(r *http.Request) (*http.Response, error) {
	_, operation, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
	fault, planned := f.take(operation)
	if !planned {
		return f.next.RoundTrip(r)
	}
	switch {
	case fault.LoseRequest:
		return nil, errors.Join(ErrAnswerLost, drain(r.Body))
	case fault.Code != "":
		body := fmt.Sprintf(`{"__type":%q,"message":%q}`, fault.Code, fault.Message)
		return answer(r, http.StatusBadRequest, "application/x-amz-json-1.1", body), drain(r.Body)
	case fault.Body != "":
		return answer(r, http.StatusOK, "application/x-amz-json-1.1", fault.Body), drain(r.Body)
	case fault.Status != 0:
		return answer(r, fault.Status, "text/html", "<html>not KMS</html>"), drain(r.Body)
	}
	resp, err := f.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return nil, err
	}
	if fault.LoseAnswer {
		return nil, ErrAnswerLost
	}
	if fault.Rewrite != nil {
		body = []byte(fault.Rewrite(string(body)))
	}
	resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	resp.Header.Set("Content-Length", strconv.Itoa(len(body)))
	return resp, nil
}

// drain does to a request's body what the contract of a transport asks for.
func drain(body io.ReadCloser) error {
	if body == nil {
		return nil
	}
	_, err := io.Copy(io.Discard, body)
	return errors.Join(err, body.Close())
}

func answer(r *http.Request, status int, contentType, body string) *http.Response {
	return &http.Response{
		Status: strconv.Itoa(status) + " " + http.StatusText(status), StatusCode: status,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{
			"Content-Type":     {contentType},
			"Content-Length":   {strconv.Itoa(len(body))},
			"X-Amzn-Requestid": {FaultRequestID},
		},
		ContentLength: int64(len(body)),
		Body:          io.NopCloser(strings.NewReader(body)),
		Request:       r,
	}
}

// FaultRequestID is the request id of the answers that Faults makes up.
const FaultRequestID = "fa017000-0000-4000-8000-000000000000"
