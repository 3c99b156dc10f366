package brokertest_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keybroker/keybroker/internal/brokertest"
)

// serverOnly tells the test binary to start a server and wait to be killed.
const serverOnly = "KEYBROKER_TEST_SERVER_ONLY"

func TestMain(m *testing.M) {
	if os.Getenv(serverOnly) == "" {
		os.Exit(m.Run())
	}
	var p brokertest.Postgres
	at, _, err := p.Create(context.Background())
	if err != nil {
		panic(err)
	}
	fmt.Println(at)
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// ownServer wants a server of our own, whatever is given.
func ownServer(t *testing.T) *brokertest.Postgres {
	t.Setenv(brokertest.PostgresURL, "")
	p := &brokertest.Postgres{}
	p.Need(t)
	return p
}

// TestPostgresLeavesNothing: the server is gone with its directory once it is
// stopped, and whoever comes later is told.
func TestPostgresLeavesNothing(t *testing.T) {
	p := ownServer(t)
	at, drop, err := p.Create(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p.Restart(t)
	if err := drop(); err != nil {
		t.Error(err)
	}
	if err := p.Stop(); err != nil {
		t.Errorf("Stop: %v", err)
	}
	if dir := socketDir(t, at); !isGone(dir) {
		t.Errorf("%s is still there", dir)
	}
	if _, _, err := p.Create(t.Context()); err == nil {
		t.Error("a database on a server that was stopped")
	}
}

// TestPostgresDiesWithItsProcess: nobody has to clean up after a killed test.
func TestPostgresDiesWithItsProcess(t *testing.T) {
	if err := ownServer(t).Stop(); err != nil { // skips where there is none to start
		t.Fatal(err)
	}
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = append(os.Environ(), serverOnly+"=yes", brokertest.PostgresURL+"=")
	child.Stderr = os.Stderr
	if _, err := child.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	at, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	at = strings.TrimSpace(at)
	// A whole connection: one that has not said its name yet, and meets the stop,
	// keeps PostgreSQL 15 for authentication_timeout, a minute.
	conn, err := pgx.Connect(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // it was killed
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if said, err := conn.WaitForNotification(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("the server still runs: %v, %v", said, err)
	}
	awaitGone(ctx, t, socketDir(t, at))
}

// awaitGone looks again and again: whoever removes the directory is nobody's child.
func awaitGone(ctx context.Context, t *testing.T, dir string) {
	t.Helper()
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	for !isGone(dir) {
		select {
		case <-look.C:
		case <-ctx.Done():
			t.Fatalf("%s is still there", dir)
		}
	}
}

func socketDir(t *testing.T, at string) string {
	t.Helper()
	u, err := url.Parse(at)
	if err != nil {
		t.Fatal(err)
	}
	return u.Query().Get("host")
}

func isGone(path string) bool {
	_, err := os.Stat(path)
	return errors.Is(err, os.ErrNotExist)
}
