package main

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/keybroker/keybroker/internal/localkms"
)

// The fault plan of the embedded KMS comes by flag, and is seen and replaced on
// its own listener.
func TestFaultsByFlagAndByCall(t *testing.T) {
	faults, err := readFaults(`{"requests_per_second":7}`)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	kms, err := startEmbedded(l, localkms.Config{Principals: devPrincipals(), Faults: faults})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := kms.stop(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	ask := func(method, body string) string {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, kms.url+faultsPath, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Close = true
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(text))
	}
	if got, want := ask(http.MethodGet, ""), `{"requests_per_second":7}`; got != want {
		t.Errorf("by flag: %s, want %s", got, want)
	}
	if got, want := ask(http.MethodPut, `{"latency":{"ReEncrypt":"8ms"}}`), `{"latency":{"ReEncrypt":"8ms"}}`; got != want {
		t.Errorf("by call: %s, want %s", got, want)
	}
	if got := ask(http.MethodPut, `{"chaos":1}`); !strings.Contains(got, "chaos") {
		t.Errorf("an unknown fault: %s", got)
	}
}

// A connection that nobody used yet does not hold up the end: Shutdown by itself
// waits for it longer than stop does.
func TestStopDoesNotWaitForUnusedConnections(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	kms, err := startEmbedded(l, localkms.Config{Principals: devPrincipals()})
	if err != nil {
		t.Fatal(err)
	}
	unused, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer unused.Close()
	// Connections are accepted in turn: after this answer, the server has both.
	response, err := http.Get(kms.url + faultsPath)
	if err != nil {
		t.Fatal(err)
	}
	if err := response.Body.Close(); err != nil {
		t.Fatal(err)
	}
	if err := kms.stop(t.Context()); err != nil {
		t.Error(err)
	}
}
