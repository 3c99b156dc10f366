package demo

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestChooseFiles(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{"b", "a/2", "a/1", ".git/x", "sub/.git/x", ".keybroker-dev/x", "data/x", "empty"} {
		write(t, filepath.Join(dir, path), path)
	}
	write(t, filepath.Join(dir, "large"), strings.Repeat("x", maxFileSize+1))
	write(t, filepath.Join(dir, "full"), strings.Repeat("x", maxFileSize))
	if err := os.Symlink("b", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	got, err := chooseFiles(t.Context(), dir, filepath.Join(dir, "data"), maxFiles)
	if want := []string{"a/1", "a/2", "b", "empty", "full"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
	for i := range maxFiles {
		write(t, filepath.Join(dir, "many", strings.Repeat("f", i/250+1)+string(rune('A'+i%250))), "")
	}
	if got, err = chooseFiles(t.Context(), dir, "data", maxFiles); err != nil || len(got) != maxFiles {
		t.Errorf("%d files, %v, want %d", len(got), err, maxFiles)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := chooseFiles(ctx, dir, "data", maxFiles); !errors.Is(err, context.Canceled) {
		t.Errorf("after a stop: %v", err)
	}
}

func TestOpen(t *testing.T) {
	dir, data := t.TempDir(), filepath.Join(t.TempDir(), "demo")
	begun, err := Open(data, dir, 5, OwnKeys{})
	if err != nil || begun.Resumed || begun.Dir != dir || begun.Keys != 5 {
		t.Fatalf("new: %+v, %v", begun, err)
	}
	st, err := loadState(data)
	if err != nil {
		t.Fatal(err)
	}
	st.Stage = StageFill
	if err := st.save(data); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(data, "keybroker.db"), "rows")
	if begun, err = Open(data, t.TempDir(), 9, OwnKeys{}); err != nil || !begun.Resumed || begun.Dir != dir || begun.Keys != 5 || begun.Stage != StageFill {
		t.Errorf("stopped: %+v, %v", begun, err)
	}
	st.Stage = StageDone
	if err := st.save(data); err != nil {
		t.Fatal(err)
	}
	if begun, err = Open(data, dir, 9, OwnKeys{}); err != nil || begun.Resumed || begun.Keys != 9 {
		t.Errorf("finished: %+v, %v", begun, err)
	}
	if _, err := os.Stat(filepath.Join(data, "keybroker.db")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the finished run is still there: %v", err)
	}
	write(t, filepath.Join(data, stateFile), "{")
	if _, err := Open(data, dir, 1, OwnKeys{}); err == nil || !strings.Contains(err.Error(), "remove") {
		t.Errorf("damaged: %v", err)
	}
	foreign := t.TempDir()
	write(t, filepath.Join(foreign, "mine"), "x")
	if _, err := Open(foreign, dir, 1, OwnKeys{}); err == nil {
		t.Error("a foreign directory was taken")
	}
	killed := t.TempDir() // before the first state was whole
	write(t, filepath.Join(killed, stateFile+".next"), "{")
	if _, err := Open(killed, dir, 1, OwnKeys{}); err != nil {
		t.Errorf("killed at once: %v", err)
	}
}

func TestResultErrNamesEachFault(t *testing.T) {
	clean := Result{SafeToRetire: true}
	if err := clean.Err(); err != nil {
		t.Error(err)
	}
	for want, bad := range map[string]Result{
		"different": {SafeToRetire: true, Differing: 1},
		"old key":   {SafeToRetire: true, Left: 1},
		"grants":    {SafeToRetire: true, LiveOldGrants: 1},
		"reader":    {SafeToRetire: true, ReaderErrors: 1},
		"safe":      {},
	} {
		if err := bad.Err(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

func TestBar(t *testing.T) {
	now := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	var out bytes.Buffer
	b := newStory(&out, false, func() time.Time { return now }).bar("make keys", 21_500).resume(500)
	b.add(1)
	now = now.Add(10 * time.Second)
	b.add(10_499)
	b.wait("a wait")
	b.wait("a wait")
	b.add(10_500)
	b.end()
	want := `          make keys   [############............] 11,000 of 21,500, 1,050/s, 10s left
          a wait
          make keys   [########################] 21,500 of 21,500
`
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
}

func TestBarRedrawsOnATerminal(t *testing.T) {
	now := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	var out bytes.Buffer
	s := newStory(&out, true, func() time.Time { return now })
	b := s.bar("import", 4)
	for range 4 {
		now = now.Add(redraw)
		b.add(1)
	}
	b.end()
	s.say("broker", "done")
	if n := strings.Count(out.String(), "\n"); n != 1 || !strings.HasSuffix(out.String(), "\r\x1b[Kbroker    done\n") {
		t.Errorf("%q", out.String())
	}
}

func TestThousands(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", 21500: "21,500", 1234567: "1,234,567", -1000: "-1,000"} {
		if got := thousands(n); got != want {
			t.Errorf("%d: %s", n, got)
		}
	}
}

func TestRepeatAsTheBrokerAsks(t *testing.T) {
	failure := func(code codes.Code, reason string) error {
		s, err := status.New(code, "no").WithDetails(&errdetails.ErrorInfo{Reason: reason, Domain: "keybroker"})
		if err != nil {
			t.Fatal(err)
		}
		return s.Err()
	}
	for _, test := range []struct {
		err   error
		calls int
	}{
		{nil, 1},
		{failure(codes.Unavailable, "SHUTTING_DOWN"), 2},
		{failure(codes.ResourceExhausted, "KMS_THROTTLED"), 2},
		{failure(codes.Aborted, "REQUEST_IN_PROGRESS"), 2},
		{failure(codes.Aborted, "ETAG_MISMATCH"), 1},
		{failure(codes.AlreadyExists, "DATA_KEY_ALREADY_EXISTS"), 1},
		{failure(codes.PermissionDenied, ""), 1},
	} {
		calls := 0
		err := repeat(t.Context(), "m", nil, nil, nil, func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error {
			calls++
			if calls == 1 {
				return test.err
			}
			return nil
		})
		if calls != test.calls || (test.calls == 2) && err != nil {
			t.Errorf("%v: %d calls, %v", test.err, calls, err)
		}
	}
}
