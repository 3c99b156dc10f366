package kmsmodel

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
)

// Recorder judges exchanges and remembers what was wrong with them. All methods may
// be called concurrently, and on nil, which judges nothing.
type Recorder struct {
	model *Model

	mu         sync.Mutex // guards the rest
	exchanges  int
	operations map[string]bool
	faults     map[string]bool
	notes      map[string]bool
}

// NewRecorder returns a recorder that judges by a model.
func NewRecorder(m *Model) *Recorder {
	return &Recorder{model: m, operations: map[string]bool{}, faults: map[string]bool{}, notes: map[string]bool{}}
}

// An Exchange is one request and its answer.
type Exchange struct {
	Operation string // without the service
	Request   []byte
	Status    int
	Header    http.Header
	Answer    []byte

	// Injected says that the answer is a fault that a test asked for: the operation
	// need not declare it.
	Injected bool
}

// Transport returns a transport that judges all KMS calls that go through it, in
// the goroutine of the request. injected tells, at the time of an answer, whether
// faults were asked for; it may be nil.
func (r *Recorder) Transport(next http.RoundTripper, injected func() bool) http.RoundTripper {
	return transport{r, next, injected}
}

type transport struct {
	recorder *Recorder
	next     http.RoundTripper
	injected func() bool
}

// RoundTrip implements http.RoundTripper.
func (t transport) RoundTrip(req *http.Request) (*http.Response, error) {
	operation, ok := strings.CutPrefix(req.Header.Get("X-Amz-Target"), "TrentService.")
	if !ok || t.recorder == nil {
		return t.next.RoundTrip(req)
	}
	var sent bytes.Buffer
	if req.Body != nil {
		read := req.Clone(req.Context())
		read.Body = struct {
			io.Reader
			io.Closer
		}{io.TeeReader(req.Body, &sent), req.Body}
		req = read
	}
	resp, err := t.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	answer, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err != nil {
		return nil, err
	}
	resp.Body = io.NopCloser(bytes.NewReader(answer))
	t.recorder.Judge(Exchange{
		operation, sent.Bytes(), resp.StatusCode, resp.Header, answer, t.injected != nil && t.injected(),
	})
	return resp, nil
}

// Judge holds one exchange against the model. A request that the model forbids has
// to be refused, and no other one is asked of it: clients are tested with worse.
func (r *Recorder) Judge(e Exchange) {
	if r == nil {
		return
	}
	op, known := r.model.operations[e.Operation]
	var v verdict
	if e.Header.Get("Content-Type") != "application/x-amz-json-1.1" {
		v.fault("answer", "has the Content-Type %q", e.Header.Get("Content-Type"))
	}
	if e.Header.Get("X-Amzn-Requestid") == "" {
		v.fault("answer", "has no request id")
	}
	answer, err := decode(e.Answer)
	switch {
	case err != nil:
		v.fault("answer", "is no JSON object: %v", err)
	case e.Status == http.StatusOK && known:
		r.judgeSuccess(op, e, answer, &v)
	case e.Status == http.StatusOK:
		v.notes = append(v.notes, "the operation")
	default:
		r.judgeError(op, known, e, answer, &v)
	}
	r.keep(e.Operation, &v)
}

// verdict is what an exchange has against the model.
type verdict struct {
	faults []string
	notes  []string // what could not be judged
}

func (v *verdict) fault(path, format string, args ...any) {
	v.faults = append(v.faults, path+" "+fmt.Sprintf(format, args...))
}

func (r *Recorder) judgeSuccess(op operation, e Exchange, answer map[string]any, v *verdict) {
	request, err := decode(e.Request)
	if err != nil {
		v.fault("request", "was accepted and is no JSON object: %v", err)
	}
	if op.Input != nil {
		var f findings
		r.model.check("request", op.Input.Shape, request, &f)
		r.forbids(v, f.faults, "and was accepted")
		r.forbids(v, f.values, "is not in the model and was accepted")
		v.notes = append(v.notes, f.members...) // like AWS: what is not known is passed over
	}
	if op.Output == nil {
		if len(answer) > 0 {
			v.fault("answer", "has members, and the operation has none")
		}
		return
	}
	var f findings
	r.model.check("answer", op.Output.Shape, answer, &f)
	v.faults = append(v.faults, f.faults...)
	r.forbids(v, f.values, "is not in the model")
	r.forbids(v, f.members, "is not in the model")
}

// forbids passes judgement on what a later model may allow: a fault, unless this
// one is too old to tell.
func (r *Recorder) forbids(v *verdict, what []string, why string) {
	for _, w := range what {
		if r.model.current() {
			v.fault(w, "%s", why)
		} else {
			v.notes = append(v.notes, w)
		}
	}
}

// judgeError also takes UnsupportedOperationException from every operation, if the
// text says whose limit that is.
func (r *Recorder) judgeError(op operation, known bool, e Exchange, answer map[string]any, v *verdict) {
	code, _ := answer["__type"].(string)
	message, named := answer["message"].(string)
	own := code == "UnsupportedOperationException" && strings.HasPrefix(message, "localkms does not ")
	switch e.Status {
	case http.StatusBadRequest:
	case http.StatusInternalServerError, http.StatusServiceUnavailable:
		if !slices.Contains([]string{"KMSInternalException", "KeyUnavailableException", "DependencyTimeoutException"}, code) {
			v.fault("answer", "has status %d and code %s", e.Status, code)
		}
	default:
		v.fault("answer", "has status %d", e.Status)
	}
	if named && message == "" {
		v.fault("answer", "has an empty message, where AWS has none")
	}
	for member := range answer {
		if member != "__type" && member != "message" {
			v.fault("answer", "has the member %s", member)
		}
	}
	switch {
	case code == "":
		v.fault("answer", "has no __type")
	case e.Injected || own || r.model.declares(op, code):
	case !known || !r.model.current():
		v.notes = append(v.notes, code)
	default:
		v.fault("answer", "has the code %s, which the operation does not declare", code)
	}
}

func (r *Recorder) keep(operation string, v *verdict) {
	var by string
	if len(v.faults) > 0 {
		by = " (" + caller() + ")"
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.exchanges++
	r.operations[operation] = true
	for _, fault := range v.faults {
		r.faults[operation+": "+fault+by] = true
	}
	for _, note := range v.notes {
		r.notes[operation+" "+note] = true
	}
}

// caller names the test that an exchange belongs to, when it is in the goroutine of
// the request.
func caller() string {
	pcs := make([]uintptr, 100)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs)])
	for {
		frame, more := frames.Next()
		_, name, _ := strings.Cut(frame.Function[strings.LastIndex(frame.Function, "/")+1:], ".")
		for _, prefix := range []string{"Test", "Fuzz", "Example", "Benchmark"} {
			if strings.HasPrefix(name, prefix) {
				return name
			}
		}
		if !more {
			return "unknown test"
		}
	}
}

// Faults are the violations so far, each once, sorted.
func (r *Recorder) Faults() []string {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(maps.Keys(r.faults))
}

// Summary says what was judged by what, and what could not be.
func (r *Recorder) Summary() string {
	if r == nil {
		return "nothing was checked against AWS's model of KMS"
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	text := fmt.Sprintf("botocore %s: %d exchanges of %d operations checked", r.model.Version, r.exchanges, len(r.operations))
	if len(r.notes) > 0 {
		text += "; not judged, since this model lacks or forbids it: " + strings.Join(slices.Sorted(maps.Keys(r.notes)), ", ")
	}
	return text
}
