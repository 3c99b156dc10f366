package localkms

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
)

// RoundTripper returns a transport that calls h in the goroutine of the request:
// no socket, no timer, no other goroutine, so it works under testing/synctest. A
// request whose context is done is not handed to h. When h drops the connection,
// as a lost answer does, the request fails with what a client reads then: io.EOF.
func RoundTripper(h http.Handler) http.RoundTripper {
	return inProcess{h}
}

type inProcess struct{ handler http.Handler }

// RoundTrip implements http.RoundTripper.
func (t inProcess) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		defer req.Body.Close()
	}
	if err := req.Context().Err(); err != nil {
		return nil, err
	}
	in := req.Clone(req.Context()) // the contract forbids a change to req
	in.RequestURI = req.URL.RequestURI()
	if in.Body == nil {
		in.Body = http.NoBody
	}
	if in.Host == "" {
		in.Host = req.URL.Host
	}
	rec := &recorder{header: http.Header{}}
	if answers(t.handler, rec, in) {
		return rec.response(req), nil
	}
	if err := req.Context().Err(); err != nil {
		return nil, err
	}
	return nil, errDropped
}

var errDropped = fmt.Errorf("the server closed the connection without an answer: %w", io.EOF)

// answers reports whether h answered.
func answers(h http.Handler, w http.ResponseWriter, r *http.Request) (answered bool) {
	defer func() {
		if v := recover(); v != nil {
			if err, ok := v.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
				panic(v)
			}
		}
	}()
	h.ServeHTTP(w, r)
	return true
}

// recorder is a ResponseWriter that keeps what was written.
type recorder struct {
	header http.Header
	status int
	sent   http.Header // header as it was at WriteHeader
	body   bytes.Buffer
}

func (w *recorder) Header() http.Header { return w.header }

func (w *recorder) WriteHeader(status int) {
	if w.status == 0 {
		w.status, w.sent = status, w.header.Clone()
	}
}

func (w *recorder) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.body.Write(p)
}

func (w *recorder) response(req *http.Request) *http.Response {
	w.WriteHeader(http.StatusOK)
	return &http.Response{
		Status:        strconv.Itoa(w.status) + " " + http.StatusText(w.status),
		StatusCode:    w.status,
		Proto:         "HTTP/1.1",
		ProtoMajor:    1,
		ProtoMinor:    1,
		Header:        w.sent,
		Body:          io.NopCloser(&w.body),
		ContentLength: int64(w.body.Len()),
		Request:       req,
	}
}
