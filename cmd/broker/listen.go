package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
)

// checkAddress refuses what is neither loopback nor, where allowed, a unix
// socket: callers are not authenticated yet. setting names the flag or field.
func checkAddress(setting, address string, unix bool) error {
	if path, ok := strings.CutPrefix(address, "unix:"); ok && unix {
		if path == "" {
			return fmt.Errorf("%s: unix: needs the path of a socket", setting)
		}
		return nil
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%s: %q is no host:port, such as 127.0.0.1:8443", setting, address)
	}
	if ip := net.ParseIP(host); host == "localhost" || (ip != nil && ip.IsLoopback()) {
		return nil
	}
	return fmt.Errorf("%s: %q is beyond loopback, and callers are not authenticated yet: use 127.0.0.1", setting, address)
}

// listen opens a listener on a checked address.
func listen(ctx context.Context, setting, address string) (net.Listener, error) {
	var config net.ListenConfig
	network := "tcp"
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		network, address = "unix", path
		removeStale(ctx, path)
	}
	l, err := config.Listen(ctx, network, address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("%s: %s is in use: stop what listens there, or choose another address", setting, address)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", setting, err)
	}
	if tcp, ok := l.Addr().(*net.TCPAddr); ok && !tcp.IP.IsLoopback() {
		return nil, errors.Join(fmt.Errorf("%s: %s is beyond loopback: use 127.0.0.1", setting, address), l.Close())
	}
	return l, nil
}

// removeStale removes a socket that nobody listens on, as a killed server
// leaves it.
func removeStale(ctx context.Context, path string) {
	info, err := os.Stat(path)
	if err != nil || info.Mode().Type() != os.ModeSocket {
		return
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err == nil {
		_ = conn.Close() // somebody answers: Listen will say so
		return
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		_ = os.Remove(path) // if that fails, Listen will say so
	}
}
