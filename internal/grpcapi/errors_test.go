package grpcapi_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/keybroker/keybroker/internal/broker"
	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// canary is text that must never reach a client or, where it is a secret, a log.
const canary = "c4n4ry"

// getDomain is the shortest call; it gives the status that the client sees.
func (d *door) getDomain(t testing.TB) *status.Status {
	t.Helper()
	_, err := d.call(t.Context(), t, "DomainService/GetDomain", `{"name":"domains/acme"}`)
	return status.Convert(err)
}

// render is a status in one line: code, reason and the kinds of details.
func render(s *status.Status) string {
	reason, kinds := "-", []string{}
	for _, d := range s.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			reason = d.GetReason()
			if d.GetDomain() != "keybroker" {
				kinds = append(kinds, "WRONG DOMAIN "+d.GetDomain())
			}
		case *errdetails.RetryInfo:
			kinds = append(kinds, "RetryInfo "+d.GetRetryDelay().AsDuration().String())
		default:
			kinds = append(kinds, strings.TrimPrefix(fmt.Sprintf("%T", d), "*errdetails."))
		}
	}
	return strings.TrimSpace(fmt.Sprintf("%-30s %-20s %s", reason, s.Code(), strings.Join(kinds, ", ")))
}

// published reads errors.proto: the code that each reason's comment begins with,
// "" where it gives none.
func published(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile("../../proto/keybroker/v1/errors.proto")
	if err != nil {
		t.Fatal(err)
	}
	codeOf := map[string]string{}
	entry := regexp.MustCompile(`((?:  //[^\n]*\n)+)  REASON_([A-Z_]+) = \d+;`)
	first := regexp.MustCompile(`^  // ([A-Z_]+): `)
	for _, m := range entry.FindAllStringSubmatch(string(text), -1) {
		codeOf[m[2]] = ""
		if c := first.FindStringSubmatch(m[1]); c != nil {
			codeOf[m[2]] = c[1]
		}
	}
	return codeOf
}

// What the comments of an RPC promise is known to the API.
func TestPromisedReasons(t *testing.T) {
	files, err := filepath.Glob("../../proto/keybroker/v1/*.proto")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	promise := regexp.MustCompile(`(?s)Errors: (.*?)\n *rpc (\w+)`)
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range promise.FindAllStringSubmatch(string(text), -1) {
			for _, reason := range regexp.MustCompile(`\b[A-Z]+(_[A-Z]+)+\b`).FindAllString(m[1], -1) {
				if _, ok := keybrokerv1.Reason_value["REASON_"+reason]; !ok {
					t.Errorf("%s promises %s, which is no value of keybroker.v1.Reason", m[2], reason)
				}
			}
		}
	}
}

func TestEveryReason(t *testing.T) {
	f := newFake()
	d := serve(t, f, nil)
	codeOf := published(t)
	var table strings.Builder
	given := constantsOf(t, "../broker", "Reason")
	for reason := range codeOf {
		if !slices.Contains(given, reason) && reason != "UNSPECIFIED" && reason != "INTERNAL" {
			t.Errorf("%s is never given", reason)
		}
	}
	for _, reason := range given {
		if _, ok := keybrokerv1.Reason_value["REASON_"+reason]; !ok {
			t.Errorf("%s is no value of keybroker.v1.Reason", reason)
			continue
		}
		f.err = fmt.Errorf("while doing something: %w", &broker.Error{Kind: broker.ErrPrecondition, Reason: broker.Reason(reason),
			Resource: "domains/acme", Detail: "the detail", Violations: []broker.Violation{{Field: "a.b", Description: "must be c"}}})
		got := d.getDomain(t)
		fmt.Fprintln(&table, render(got))
		if want := codeOf[reason]; want != "" && want != screaming(got.Code()) {
			t.Errorf("%s is sent with %s, and errors.proto says %s", reason, got.Code(), want)
		}
		if !strings.Contains(got.Message(), "the detail; a.b: must be c (domains/acme)") {
			t.Errorf("%s: message %q", reason, got.Message())
		}
	}
	const golden = "testdata/reasons.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(table.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), table.String()); diff != "" {
		t.Errorf("run with -update if this is meant (-want +got):\n%s", diff)
	}
}

// screaming writes a code as the API's comments do.
func screaming(c codes.Code) string {
	return strings.ToUpper(regexp.MustCompile(`([a-z])([A-Z])`).ReplaceAllString(c.String(), "${1}_${2}"))
}

func TestErrorsOfOtherKinds(t *testing.T) {
	lost := errors.New(canary)
	for _, test := range []struct {
		name string
		err  error
		want string // reason, code, details
	}{
		{"bare invalid", fmt.Errorf("%s: %w", canary, broker.ErrInvalid), "FIELD_INVALID InvalidArgument"},
		{"bare not found", fmt.Errorf("%s: %w", canary, broker.ErrNotFound), "- NotFound"},
		{"bare exists", fmt.Errorf("%s: %w", canary, broker.ErrAlreadyExists), "- AlreadyExists"},
		{"bare precondition", fmt.Errorf("%s: %w", canary, broker.ErrPrecondition), "- FailedPrecondition PreconditionFailure"},
		{"lost compare-and-swap", fmt.Errorf("%s: %w", canary, broker.ErrConflict), "ETAG_MISMATCH Aborted"},
		{"bare denied", fmt.Errorf("%s: %w", canary, broker.ErrDenied), "- PermissionDenied"},
		{"bare exhausted", fmt.Errorf("%s: %w", canary, broker.ErrExhausted), "- ResourceExhausted"},
		{"bare unavailable", fmt.Errorf("%s: %w", canary, broker.ErrUnavailable), "STORE_UNAVAILABLE Unavailable RetryInfo 1s"},
		{"denied without a reason", &broker.Error{Kind: broker.ErrDenied, Detail: "no"}, "- PermissionDenied"},
		{"of a newer room", &broker.Error{Kind: broker.ErrExhausted, Reason: "NEW_REASON", Detail: "no"}, "NEW_REASON ResourceExhausted"},
		{"retry advice", &broker.Error{Kind: broker.ErrUnavailable, Reason: broker.ReasonKMSUnavailable, RetryAfter: 3 * time.Second}, "KMS_UNAVAILABLE Unavailable RetryInfo 3s"},
		{"deadline", fmt.Errorf("%s: %w", canary, context.DeadlineExceeded), "- DeadlineExceeded"},
		{"cancelled", fmt.Errorf("%s: %w", canary, context.Canceled), "- Canceled"},
		{"KMS, not translated", &broker.KMSError{Class: broker.KMSInvalidRequest, Code: canary, Err: lost}, "INTERNAL Internal RequestInfo"},
		{"a status from below", status.Error(codes.NotFound, canary), "INTERNAL Internal RequestInfo"},
		{"unknown", fmt.Errorf("select: %w", lost), "INTERNAL Internal RequestInfo"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFake()
			f.err = test.err
			d := serve(t, f, nil)
			got := d.getDomain(t)
			if one := strings.Join(strings.Fields(render(got)), " "); one != test.want {
				t.Errorf("got %s, want %s", one, test.want)
			}
			if strings.Contains(got.Proto().String(), canary) {
				t.Errorf("the client sees %v", got.Proto())
			}
			if strings.Contains(test.err.Error(), canary) && !strings.Contains(d.log.String(), canary) {
				t.Errorf("the log lacks the cause: %s", d.log)
			}
		})
	}
}

func TestErrorSaysMoreThanItShould(t *testing.T) {
	// A cleanup that fails beside the refusal is for the log alone.
	f := newFake()
	f.err = errors.Join(&broker.Error{Kind: broker.ErrPrecondition, Reason: broker.ReasonGrantEnded, Detail: "the detail"}, errors.New(canary))
	d := serve(t, f, nil)
	if got := d.getDomain(t); strings.Contains(got.Proto().String(), canary) || got.Code() != codes.FailedPrecondition {
		t.Errorf("the client sees %v", got.Proto())
	}
	if !strings.Contains(d.log.String(), canary) {
		t.Errorf("the log lacks the cause: %s", d.log)
	}
}

// No handler swallows an error, and each names what it is about.
func TestEveryRPCPassesErrorsOn(t *testing.T) {
	f := newFake()
	d := serve(t, f, nil)
	types := map[string]string{
		"domains/acme": "Domain", "domains/acme/grants/g": "Grant", "domains/acme/dataKeys/k": "DataKey",
		"domains/acme/reencryptionJobs/j/failures/k": "ReencryptionFailure", "domains/acme/reencryptionJobs/j": "ReencryptionJob", "domains/acme/reencryptionJobs/j/retirementReport": "RetirementReport",
	}
	for _, r := range rpcs {
		for resource, want := range types {
			f.err = &broker.Error{Kind: broker.ErrConflict, Reason: broker.ReasonEtagMismatch, Resource: resource, Detail: "stale"}
			_, err := d.call(t.Context(), t, r.method, r.request)
			s := status.Convert(err)
			if s.Code() != codes.Aborted || reasonOf(err) != "ETAG_MISMATCH" {
				t.Errorf("%s: %v", r.method, err)
				continue
			}
			for _, detail := range s.Details() {
				if info, ok := detail.(*errdetails.ResourceInfo); ok && (info.GetResourceName() != resource || info.GetResourceType() != "keybroker.v1."+want) {
					t.Errorf("%s: %v, want a %s", r.method, info, want)
				}
			}
		}
	}
}

func TestErrorsStaySmall(t *testing.T) {
	// A status travels in headers; invalid UTF-8 would stop it altogether.
	f := newFake()
	e := &broker.Error{Kind: broker.ErrPrecondition, Reason: broker.ReasonGrantEnded, Resource: "domains/" + strings.Repeat("ä", 9000),
		Detail: "\xff" + strings.Repeat("ä", 9000)}
	for range 500 {
		e.Violations = append(e.Violations, broker.Violation{Field: strings.Repeat("f", 9000), Description: strings.Repeat("ä", 9000)})
	}
	f.err = e
	got := serve(t, f, nil).getDomain(t)
	if got.Code() != codes.FailedPrecondition || len(got.Details()) == 0 {
		t.Fatalf("got %v", got)
	}
	// The details go as base64, the message with percent signs beside it.
	if size := proto.Size(got.Proto())*4/3 + 3*len(got.Message()); size > 8<<10 {
		t.Errorf("the status takes %d bytes of trailers", size)
	}
}

func TestPanicBecomesInternal(t *testing.T) {
	for name, value := range map[string]any{"a value": canary, "an error": errors.New(canary)} {
		t.Run(name, func(t *testing.T) {
			for _, method := range []string{"DomainService/GetDomain", "ReencryptionService/WatchReencryptionJob"} {
				f := newFake()
				f.panicWith = value
				d := serve(t, f, nil)
				request := map[string]string{"DomainService/GetDomain": `{"name":"domains/acme"}`,
					"ReencryptionService/WatchReencryptionJob": `{"name":"domains/acme/reencryptionJobs/job1"}`}[method]
				_, err := d.call(t.Context(), t, method, request)
				if got := status.Convert(err); got.Code() != codes.Internal || strings.Contains(got.Proto().String(), canary) {
					t.Errorf("%s: the client sees %v", method, got.Proto())
				}
				if log := d.log.String(); strings.Contains(log, canary) || !strings.Contains(log, "fake_test.go") {
					t.Errorf("%s: the log must say where, and not the value: %s", method, log)
				}
			}
		})
	}
}
