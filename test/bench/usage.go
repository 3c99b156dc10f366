package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"
)

// cpuTime is the processor time, user and system, that this process has used: a
// figure that a busy machine leaves mostly alone.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err) // RUSAGE_SELF is always allowed
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// peakMemory is the most memory that this process ever had resident, in KiB, 0
// where only Linux would tell. It never falls: a process that shall tell it of
// one piece of work does no other.
func peakMemory() (kib int64) {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			if _, err := fmt.Sscanf(rest, "%d kB", &kib); err != nil {
				return 0
			}
		}
	}
	return kib
}
