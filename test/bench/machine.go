package main

import (
	"os"
	"strconv"
	"strings"
	"time"
)

// A machine is what this machine's processors have done since its start; zero where
// only Linux would tell.
type machine struct {
	idle, all float64 // ticks
	// queued is how long something that could have run waited for a processor
	// (docs.kernel.org/accounting/psi.html).
	queued time.Duration
	at     time.Time
}

func machineNow() machine {
	m := machine{queued: queuedTime(), at: time.Now()}
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return m
	}
	line, _, _ := strings.Cut(string(text), "\n")
	for i, field := range strings.Fields(line)[1:] {
		ticks, _ := strconv.ParseFloat(field, 64)
		if m.all += ticks; i == 3 || i == 4 { // idle, and waiting for the disk (proc(5))
			m.idle += ticks
		}
	}
	return m
}

func queuedTime() time.Duration {
	text, err := os.ReadFile("/proc/pressure/cpu")
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(text), "\n")
	_, total, _ := strings.Cut(line, "total=")
	us, _ := strconv.ParseInt(total, 10, 64)
	return time.Duration(us) * time.Microsecond
}

// busy is the share of the processors' time that was used since before.
func (m machine) busy(before machine) float64 {
	if m.all == before.all {
		return 0
	}
	return 1 - (m.idle-before.idle)/(m.all-before.all)
}

// queue is the share of the time since before in which something waited for a
// processor.
func (m machine) queue(before machine) float64 {
	return (m.queued - before.queued).Seconds() / m.at.Sub(before.at).Seconds()
}
