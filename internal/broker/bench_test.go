package broker_test

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	_ "modernc.org/sqlite" // the audit rows are read past the store

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/localkms"
	"github.com/keybroker/keybroker/test/harness"
)

var windows = broker.Windows{GrantVisibility: 5 * time.Minute, MaxStoreDelay: time.Hour, MaxReadDelay: 15 * time.Minute}

// callTimeout is the harness's KMSCallTimeout: patience is four of them, and an
// intent has settled after one and a visibility window.
const (
	callTimeout = 10 * time.Second
	patience    = 4 * callTimeout
	settling    = callTimeout + 5*time.Minute
)

// A bench is a whole broker on localkms and SQLite, with a road to KMS that a
// test may block.
type bench struct {
	*harness.Bench
	t    *testing.T
	dir  string
	road *road
	at   func(point string) // what happens at a point of broker.Config.At
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, dir: t.TempDir(), road: &road{}}
	h, err := harness.New(t.Context(), harness.Config{Dir: b.dir, Windows: windows, Transport: b.road.over,
		At: func(_ *harness.Replica, point string) {
			if b.at != nil {
				b.at(point)
			}
		}})
	if err != nil {
		t.Fatal(err)
	}
	b.Bench = h
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// newActive gives a bench with the domain "acme" under its first key.
func newActive(t *testing.T) *bench {
	t.Helper()
	b := newBench(t)
	b.onboard("acme")
	b.Calls()
	return b
}

func (b *bench) onboard(id broker.DomainID) broker.Domain {
	b.t.Helper()
	d, _, err := b.Onboard(b.t.Context(), id)
	if err != nil {
		b.t.Fatal(err)
	}
	return d
}

func (b *bench) domain(id broker.DomainID) broker.Domain {
	b.t.Helper()
	d, _, err := b.Broker.GetDomain(b.t.Context(), harness.Caller, id)
	if err != nil {
		b.t.Fatal(err)
	}
	return d
}

// beginChange accepts a key change and gives the new key.
func (b *bench) beginChange(id broker.DomainID) (broker.JobID, broker.KeyARN) {
	b.t.Helper()
	key, err := b.NewKey(b.t.Context(), id)
	if err != nil {
		b.t.Fatal(err)
	}
	job, err := b.ChangeKey(b.t.Context(), id, key)
	if err != nil {
		b.t.Fatal(err)
	}
	return job.ID, key
}

// untilSwitched steps a change until the domain has the key.
func (b *bench) untilSwitched(id broker.DomainID, key broker.KeyARN) {
	b.t.Helper()
	for range 100 {
		if b.domain(id).KMSKey == key {
			return
		}
		if moved, err := b.Step(b.t.Context()); err != nil {
			b.t.Fatal(err)
		} else if !moved {
			b.Clock.Advance(time.Minute)
		}
	}
	b.t.Fatalf("%s was never switched to %s", id, key)
}

func (b *bench) atKMS(key broker.KeyARN) []types.GrantListEntry {
	b.t.Helper()
	out, err := b.Customer.ListGrants(b.t.Context(), &kms.ListGrantsInput{KeyId: aws.String(string(key)), Limit: aws.Int32(100)})
	if err != nil {
		b.t.Fatal(err)
	}
	return out.Grants
}

// serviceGrants are the KMS grants on a key that are not the worker's.
func (b *bench) serviceGrants(key broker.KeyARN) []types.GrantListEntry {
	b.t.Helper()
	var grants []types.GrantListEntry
	for _, g := range b.atKMS(key) {
		if aws.ToString(g.GranteePrincipal) == harness.ServiceRole {
			grants = append(grants, g)
		}
	}
	return grants
}

// revoke takes a grant away as the key's owner.
func (b *bench) revoke(key broker.KeyARN, g types.GrantListEntry) {
	b.t.Helper()
	if _, err := b.Customer.RevokeGrant(b.t.Context(), &kms.RevokeGrantInput{KeyId: aws.String(string(key)), GrantId: g.GrantId}); err != nil {
		b.t.Fatal(err)
	}
}

// query reads the database file itself: each row's columns, joined by spaces.
func (b *bench) query(text string, args ...any) []string {
	b.t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(b.dir, "keybroker.db")+"?mode=ro")
	if err != nil {
		b.t.Fatal(err)
	}
	defer db.Close()
	rows, err := db.QueryContext(b.t.Context(), text, args...)
	if err != nil {
		b.t.Fatal(err)
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		b.t.Fatal(err)
	}
	var lines []string
	for rows.Next() {
		values := make([]any, len(columns))
		for i := range values {
			values[i] = new(any)
		}
		if err := rows.Scan(values...); err != nil {
			b.t.Fatal(err)
		}
		texts := make([]string, len(values))
		for i, v := range values {
			texts[i] = fmt.Sprint(*v.(*any))
		}
		lines = append(lines, strings.Join(texts, " "))
	}
	if err := rows.Err(); err != nil {
		b.t.Fatal(err)
	}
	return lines
}

// kmsGrantStates gives what the database says of the service's KMS grants.
func (b *bench) kmsGrantStates() []string {
	b.t.Helper()
	return b.query(`select key_epoch, kind, attempt, state from kms_grant where not worker order by key_epoch, kind, attempt`)
}

// onDisk reports whether the bytes stand in any file of the database.
func (b *bench) onDisk(what []byte) bool {
	b.t.Helper()
	files, err := filepath.Glob(filepath.Join(b.dir, "keybroker.db*"))
	if err != nil || len(files) == 0 {
		b.t.Fatalf("no database files: %v", err)
	}
	for _, f := range files {
		content, err := os.ReadFile(f)
		if err != nil {
			b.t.Fatal(err)
		}
		if bytes.Contains(content, what) {
			return true
		}
	}
	return false
}

// A road carries requests to KMS. While on is set, it decides what becomes of
// each: send hands the request over.
type road struct {
	mu sync.Mutex
	on func(operation string, send func() (*http.Response, error)) (*http.Response, error)
}

func (r *road) set(on func(operation string, send func() (*http.Response, error)) (*http.Response, error)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.on = on
}

func (r *road) open() { r.set(nil) }

// lose drops the answers to an operation; KMS did the work.
func (r *road) lose(operation string) {
	r.set(func(op string, send func() (*http.Response, error)) (*http.Response, error) {
		answer, err := send()
		if op != operation || err != nil {
			return answer, err
		}
		answer.Body.Close()
		return nil, errLost
	})
}

// fail answers an operation with an error code; KMS never saw it.
func (r *road) fail(operation, code string) {
	r.set(func(op string, send func() (*http.Response, error)) (*http.Response, error) {
		if op != operation {
			return send()
		}
		return refusal(code), nil
	})
}

// after runs do once, when KMS has done an operation and before its answer
// arrives.
func (r *road) after(operation string, do func()) {
	r.set(func(op string, send func() (*http.Response, error)) (*http.Response, error) {
		answer, err := send()
		if op == operation {
			r.open()
			do()
		}
		return answer, err
	})
}

var errLost = errors.New("the connection was reset")

func refusal(code string) *http.Response {
	body := `{"__type":"` + code + `","message":"injected"}`
	return &http.Response{Status: "400 Bad Request", StatusCode: http.StatusBadRequest, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header:        http.Header{"Content-Type": {"application/x-amz-json-1.1"}, "X-Amzn-Requestid": {"injected"}},
		ContentLength: int64(len(body)), Body: io.NopCloser(strings.NewReader(body))}
}

func (r *road) over(next http.RoundTripper) http.RoundTripper {
	return roundTrip(func(req *http.Request) (*http.Response, error) {
		_, operation, _ := strings.Cut(req.Header.Get("X-Amz-Target"), ".")
		r.mu.Lock()
		on := r.on
		r.mu.Unlock()
		if on == nil {
			return next.RoundTrip(req)
		}
		return on(operation, func() (*http.Response, error) { return next.RoundTrip(req) })
	})
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// request gives a request id with a body that hashes to the text.
func request(method, id, body string) broker.Request {
	r := broker.Request{Method: "/keybroker.v1/" + method, ID: id}
	copy(r.Hash[:], body)
	return r
}

// wantReason fails the test unless err has the reason; "" wants no error.
func wantReason(t *testing.T, err error, want broker.Reason) {
	t.Helper()
	if want == "" {
		if err != nil {
			t.Fatalf("unexpected error: %v", err)
		}
		return
	}
	if got := broker.ReasonOf(err); got != want {
		t.Fatalf("got %q (%v), want %q", got, err, want)
	}
}

// clientOf gives a client in one of the harness's roles, past the road.
func clientOf(b *bench, id, secret string) *kms.Client {
	return kms.New(kms.Options{Region: harness.Region, BaseEndpoint: aws.String("http://kms.test"), RetryMaxAttempts: 1,
		Credentials: credentials.NewStaticCredentialsProvider(id, secret, ""),
		HTTPClient:  &http.Client{Transport: localkms.RoundTripper(b.KMS)}})
}

// resourceOf gives the resource that an error names.
func resourceOf(err error) string {
	var e *broker.Error
	if errors.As(err, &e) {
		return e.Resource
	}
	return ""
}

// configOf is what the bench was made with, for a restart.
func configOf(b *bench) harness.Config {
	return harness.Config{Dir: b.dir, Windows: windows, Transport: b.road.over}
}

// now is the time as the database keeps it.
func (b *bench) now() time.Time { return b.Clock.Now().Truncate(time.Microsecond) }
