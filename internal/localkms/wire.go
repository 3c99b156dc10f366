package localkms

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	contentType  = "application/x-amz-json-1.1"
	targetPrefix = "TrentService."

	// maxBody bounds a request in bytes. The largest legal one is a PutKeyPolicy
	// of 32,768 bytes, escaped.
	maxBody = 1 << 20
)

// request is one call in service: who asks, where, and when.
type request struct {
	caller *identity
	region string
	now    time.Time
	call   Call // what Observe will be told

	sourceIP  string // empty in process
	userAgent string
	secure    bool // came over TLS

	plan    *plan // the faults that were in force when the work began; may be nil
	dropped bool  // the answer does not get through
}

// stamp is the time of the request as the state keeps it.
func (r *request) stamp() time.Time { return stamp(r.now) }

// stamp is a time as the state keeps it.
func stamp(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }

// operation decodes a body, validates it and serves it.
type operation func(k *KMS, r *request, body []byte) (any, error)

// input is a typed request body that can check itself against the constraints
// of the KMS service model.
type input[T any] interface {
	*T
	validate(*validation)
}

// serve makes an operation of a typed function.
func serve[In any, P input[In], Out any](run func(*KMS, *request, P) (Out, error)) operation {
	return func(k *KMS, r *request, body []byte) (any, error) {
		in := P(new(In))
		if err := decode(body, in); err != nil {
			return nil, err
		}
		var v validation
		in.validate(&v)
		if err := v.err(); err != nil {
			return nil, err
		}
		return run(k, r, in)
	}
}

// ServeHTTP answers one request to KMS (AWS JSON 1.1) or STS (AWS Query). An answer
// that is to be lost ends with a panic of http.ErrAbortHandler, which closes the
// connection.
func (k *KMS) ServeHTTP(w http.ResponseWriter, hr *http.Request) {
	r := &request{now: k.now(), userAgent: hr.UserAgent(), secure: hr.TLS != nil}
	r.sourceIP, _, _ = net.SplitHostPort(hr.RemoteAddr) // in process there is none
	r.call.RequestID = newUUID()
	serve := k.serveKMS
	if isSTS(hr) {
		serve = k.serveSTS
	}
	status, kind, body := serve(r, hr)
	if k.observe != nil {
		k.observe(r.call)
	}
	if r.dropped {
		panic(http.ErrAbortHandler)
	}
	h := w.Header()
	h.Set("Content-Type", kind)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("X-Amzn-Requestid", r.call.RequestID)
	w.WriteHeader(status)
	_, _ = w.Write(body) // the caller went away: there is nobody to tell
}

func (k *KMS) serveKMS(r *request, hr *http.Request) (status int, kind string, body []byte) {
	out, err := k.dispatch(r, hr)
	status, body = encode(out, err, &r.call)
	return status, contentType, body
}

func (k *KMS) dispatch(r *request, hr *http.Request) (any, error) {
	name, ok := strings.CutPrefix(hr.Header.Get("X-Amz-Target"), targetPrefix)
	if !ok || hr.Method != http.MethodPost {
		return nil, fault(codeUnknownOperation, "")
	}
	r.call.Operation = name
	body, err := readBody(hr)
	if err != nil {
		return nil, err
	}
	if err := k.authenticate(r, hr, body, kmsService); err != nil {
		return nil, err
	}
	run, ok := k.operations[name]
	if !ok {
		if isUnsupported(name) {
			return nil, faultf(codeUnsupportedOperation, "localkms does not support the operation %s.", name)
		}
		return nil, fault(codeUnknownOperation, "")
	}
	if r.plan = k.plan.Load(); r.plan != nil {
		if err := k.inject(hr.Context(), r, body); err != nil {
			return nil, err
		}
	}
	return run(k, r, body)
}

func readBody(hr *http.Request) ([]byte, error) {
	var buf bytes.Buffer
	if n := hr.ContentLength; n > 0 && n <= maxBody {
		buf.Grow(int(n) + bytes.MinRead)
	}
	if _, err := buf.ReadFrom(io.LimitReader(hr.Body, maxBody+1)); err != nil {
		return nil, fault(codeSerialization, "The request body could not be read.")
	}
	if buf.Len() > maxBody {
		return nil, faultf(codeSerialization, "The request body is larger than %d bytes.", maxBody)
	}
	return buf.Bytes(), nil
}

// decode reads a JSON object into a typed request. Like AWS it ignores members
// it does not know. It refuses text that is not UTF-8, whose repair would make
// different encryption contexts equal.
func decode(body []byte, into any) error {
	body = bytes.TrimSpace(body)
	if len(body) == 0 || body[0] != '{' || !utf8.Valid(body) {
		return fault(codeSerialization, "The request body is not a JSON object in UTF-8.")
	}
	if err := json.Unmarshal(body, into); err != nil {
		var wrongType *json.UnmarshalTypeError
		if errors.As(err, &wrongType) {
			return faultf(codeSerialization, "%s can not be converted to the type of %s.",
				strings.ToUpper(wrongType.Value)+"_VALUE", wrongType.Field)
		}
		return fault(codeSerialization, "The request body is not valid JSON.")
	}
	return nil
}

// errorBody is the AWS JSON 1.1 shape of an error. An error without a text has no
// message, as recorded from AWS.
type errorBody struct {
	Type    string `json:"__type"`
	Message string `json:"message,omitempty"`
}

// encode renders an answer and notes the error code in the call.
func encode(out any, err error, call *Call) (status int, body []byte) {
	if err == nil {
		if body, err = json.Marshal(out); err == nil {
			return http.StatusOK, body
		}
	}
	f := asFault(err)
	call.ErrorCode = f.code
	body, _ = json.Marshal(errorBody{f.code, f.message}) // two strings always marshal
	return f.status(), body
}

// epoch is a timestamp as AWS JSON 1.1 writes it: seconds since 1970 with three
// decimals.
type epoch time.Time

func (t epoch) MarshalJSON() ([]byte, error) {
	return strconv.AppendFloat(nil, float64(time.Time(t).UnixMilli())/1000, 'f', 3, 64), nil
}

// empty is the answer of operations that return nothing.
type empty struct{}
