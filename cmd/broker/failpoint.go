package main

import (
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
)

// failpointVariable lets serve --dev, and nothing else, die at a named moment:
// KEYBROKER_FAILPOINT=batch.committed:3 ends the process by SIGKILL at the third
// hit of batch.committed. The points are those that internal/broker and
// internal/rotation name between an act at KMS and its commit, where a crash
// leaves the most to repair and chance seldom strikes; test/chaos strikes there.
// A point that does not exist is never hit.
const failpointVariable = "KEYBROKER_FAILPOINT"

// A failpoint is a moment at which the process kills itself.
type failpoint struct {
	point string
	nth   int64

	hits atomic.Int64
	kill func()
	log  *slog.Logger
}

// readFailpoint gives the failpoint of the environment, nil if there is none.
func readFailpoint(getenv func(string) string, log *slog.Logger) (*failpoint, error) {
	given := getenv(failpointVariable)
	if given == "" {
		return nil, nil
	}
	point, n, _ := strings.Cut(given, ":")
	act, moment, _ := strings.Cut(point, ".")
	nth, err := strconv.ParseUint(n, 10, 31)
	if !lowercase(act) || !lowercase(moment) || err != nil || nth == 0 {
		return nil, usagef("%s: %q is not of the form point:n, as in batch.committed:3, with n from 1", failpointVariable, given)
	}
	return &failpoint{point: point, nth: int64(nth), kill: killSelf, log: log}, nil
}

func lowercase(s string) bool {
	return s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz") == ""
}

// refuseFailpoint keeps a server on AWS KMS from starting with a failpoint that
// somebody left in its environment.
func refuseFailpoint(getenv func(string) string) error {
	if getenv(failpointVariable) != "" {
		return usagef("%s is set: unset it, it goes with serve --dev only", failpointVariable)
	}
	return nil
}

// at is called at each point. It does not return from the hit that it waits for.
func (f *failpoint) at(point string) {
	if point == f.point && f.hits.Add(1) == f.nth {
		f.log.Warn("failpoint reached", "point", point, "hit", f.nth)
		f.kill()
	}
}

// killSelf is kill -9 of this process: no deferred call, no flush.
func killSelf() {
	self, err := os.FindProcess(os.Getpid())
	if err == nil {
		err = self.Kill()
	}
	if err != nil {
		panic("a process may kill itself: " + err.Error())
	}
	select {} // the signal is on its way: nothing happens after the point
}
