package sqlstore

import (
	"net"
	"syscall"
	"testing"
	"time"
)

// TestUnackedData: Linux gives a connection up whose peer's machine has not
// acknowledged what was sent. (What TCP does then cannot be seen on loopback, where
// this machine acknowledges for the peer.)
func TestUnackedData(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	config, err := postgresConfig("postgres://127.0.0.1/keybroker")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := config.ConnConfig.DialFunc(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	socket, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	const option = 18 // TCP_USER_TIMEOUT, in milliseconds (tcp(7), linux/tcp.h)
	var got int
	var asked error
	if err := socket.Control(func(fd uintptr) { got, asked = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, option) }); err != nil || asked != nil {
		t.Fatal(err, asked)
	}
	if want := int(unackedTime / time.Millisecond); got != want {
		t.Errorf("TCP_USER_TIMEOUT is %d, want %d", got, want)
	}
}
