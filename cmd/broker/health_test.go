package main

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
)

// A broker that has lost its database is not ready, and is no better for a
// restart.
func TestHealthWithoutDatabase(t *testing.T) {
	telemetry, err := newTelemetry(t.Context(), environment(), false)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	admin := startAdmin(l, telemetry, func(context.Context) error { return errors.New("password=hunter2") })
	t.Cleanup(func() {
		if err := errors.Join(admin.stop(), telemetry.shutdown(context.WithoutCancel(t.Context()))); err != nil {
			t.Error(err)
		}
	})
	address := l.Addr().String()
	code, _, stderr := call(t.Context(), environment(), "health", "--admin", address)
	if code != exitFailed || !strings.Contains(stderr, "database") || strings.Contains(stderr, "hunter2") {
		t.Errorf("ready: exit %d, %s", code, stderr)
	}
	if code, _, stderr := call(t.Context(), environment(), "health", "--live", "--admin", address); code != exitOK {
		t.Errorf("live: exit %d, %s", code, stderr)
	}
}
