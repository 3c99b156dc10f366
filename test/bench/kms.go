package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"time"

	"github.com/keybroker/keybroker/internal/localkms"
)

const partKMS = "localkms"

// kmsDelay is how long an answer takes on the slow address: about what AWS KMS
// takes within a Region.
const kmsDelay = 8 * time.Millisecond

// addresses are where the process with localkms in it serves: the same KMS, at
// once and after kmsDelay.
type addresses struct{ Fast, Slow string }

// kmsStats are what that process has done so far.
type kmsStats struct {
	Calls     map[string]int64 // by operation; dry runs apart
	CPUMicros float64
}

const dryRun = " (dry run)"

// serveKMS is the process with localkms in it. It keeps its keys in memory and
// ends when its standard input does, so it never outlives the bench.
//
// Its argument is the quota in requests a second, 0 for none.
func serveKMS(_ context.Context, args []string, out io.Writer) error {
	if len(args) != 1 {
		return errors.New("want a quota")
	}
	quota, err := strconv.ParseFloat(args[0], 64)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	calls := map[string]int64{}
	kms, err := localkms.New(localkms.Config{
		Principals: principals(), Now: time.Now, GrantsPerKey: 1 << 30, Faults: localkms.Faults{RequestsPerSecond: quota},
		Observe: func(c localkms.Call) {
			name := c.Operation
			if c.DryRun {
				name += dryRun
			}
			mu.Lock()
			calls[name]++
			mu.Unlock()
		},
	})
	if err != nil {
		return err
	}
	stats := func(w http.ResponseWriter) {
		mu.Lock()
		defer mu.Unlock()
		_ = json.NewEncoder(w).Encode(kmsStats{Calls: calls, CPUMicros: micros(cpuTime())}) // the reader went away
	}
	serve := func(delay time.Duration) (string, error) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", err
		}
		go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet {
				stats(w)
				return
			}
			time.Sleep(delay)
			kms.ServeHTTP(w, r)
		}))
		return "http://" + l.Addr().String(), nil
	}
	var at addresses
	if at.Fast, err = serve(0); err != nil {
		return err
	}
	if at.Slow, err = serve(kmsDelay); err != nil {
		return err
	}
	if err := json.NewEncoder(out).Encode(at); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return errors.Join(err, kms.Close())
}

// remoteKMS is that process, as the bench sees it.
type remoteKMS struct {
	addresses
	command *exec.Cmd
	stdin   io.Closer
}

// startSelf starts a part of this program in a process of its own.
func startSelf(ctx context.Context, args ...string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	command := exec.CommandContext(ctx, self, args...)
	command.Stderr = os.Stderr
	return command, nil
}

func startKMS(ctx context.Context, quota float64) (*remoteKMS, error) {
	command, err := startSelf(ctx, partKMS, strconv.FormatFloat(quota, 'g', -1, 64))
	if err != nil {
		return nil, err
	}
	stdin, err := command.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := command.Start(); err != nil {
		return nil, err
	}
	k := &remoteKMS{command: command, stdin: stdin}
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &k.addresses)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("localkms did not start: %w", err), k.stop())
	}
	return k, nil
}

func (k *remoteKMS) stop() error {
	return errors.Join(k.stdin.Close(), k.command.Wait())
}

func (k *remoteKMS) stats(ctx context.Context) (s kmsStats, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, k.Fast, nil)
	if err != nil {
		return s, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return s, err
	}
	defer response.Body.Close()
	return s, json.NewDecoder(response.Body).Decode(&s)
}

// since gives the calls made after an earlier reading.
func (s kmsStats) since(before kmsStats) map[string]int64 {
	made := map[string]int64{}
	for name, n := range s.Calls {
		if n -= before.Calls[name]; n > 0 {
			made[name] = n
		}
	}
	return made
}
