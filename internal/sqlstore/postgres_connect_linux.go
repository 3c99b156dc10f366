package sqlstore

import (
	"strings"
	"syscall"
	"time"
)

// tcpUserTimeout is the number of TCP_USER_TIMEOUT (linux/tcp.h), which the
// package syscall does not have.
const tcpUserTimeout = 18

// boundUnacked has TCP give a connection up whose peer has not acknowledged what
// was sent to it for so long.
func boundUnacked(network string, socket syscall.RawConn, d time.Duration) error {
	if !strings.HasPrefix(network, "tcp") {
		return nil
	}
	var refused error
	err := socket.Control(func(fd uintptr) {
		refused = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(d.Milliseconds()))
	})
	if err != nil {
		return err
	}
	return refused
}
