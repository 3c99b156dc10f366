package scenarios_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
)

// A refusal stands on the broker's road to KMS, and has an operation answered with
// an error of KMS's where the request names something; "" as operation is none.
type refusal struct{ operation, code, naming, message string }

func (f *refusal) over(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		if f.operation == "" || !strings.HasSuffix(r.Header.Get("X-Amz-Target"), "."+f.operation) || !bytes.Contains(body, []byte(f.naming)) {
			r = r.Clone(r.Context())
			r.Body = io.NopCloser(bytes.NewReader(body))
			return next.RoundTrip(r)
		}
		said, err := json.Marshal(map[string]string{"message": f.message})
		if err != nil {
			return nil, err
		}
		return &http.Response{StatusCode: http.StatusBadRequest, ProtoMajor: 1, ProtoMinor: 1, Request: r, Body: io.NopCloser(bytes.NewReader(said)),
			Header: http.Header{"X-Amzn-Errortype": {f.code}, "Content-Type": {"application/x-amz-json-1.1"}}}, nil
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
