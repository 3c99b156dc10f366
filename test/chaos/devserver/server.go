//go:build unix

package devserver

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// A Server is one process.
type Server struct {
	API       string // host:port of gRPC; set once Ready has returned nil
	AWSConfig string // path of the file with the profiles customer and service
	Started   time.Time

	line  *regexp.Regexp // said once it serves: API first, then AWSConfig
	cmd   *exec.Cmd
	ready chan struct{}
	done  chan struct{}
	err   error // of Wait; read after done
}

// The line that serve --dev prints last, to be pasted into a shell.
var exportLine = regexp.MustCompile(`^export A=(\S+) AWS_CONFIG_FILE=(\S+)$`)

// Spawn starts a process on a data directory, on ports that the kernel chooses.
// What the process logs is appended to logFile. env goes beside Environ.
func Spawn(bin, data, logFile string, env ...string) (*Server, error) {
	return Run(exec.Command(bin, "serve", "--dev", "--data", data,
		"--listen", "127.0.0.1:0", "--kms-listen", "127.0.0.1:0", "--admin", "off"), logFile, exportLine, env...)
}

// Run starts any command as Spawn does. It is ready when it says a line that
// matches: with the first group the address of what it serves.
func Run(cmd *exec.Cmd, logFile string, line *regexp.Regexp, env ...string) (*Server, error) {
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the process has its own descriptor
	// Made without a context: how and when it ends is the test's business.
	cmd.Env = append(Environ(), env...)
	cmd.Stderr = log
	cmd.SysProcAttr = OwnGroup()
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	s := &Server{line: line, cmd: cmd, ready: make(chan struct{}), done: make(chan struct{}), Started: time.Now()}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(s.done)
		s.read(out)
		s.err = cmd.Wait() // only after the pipe was read to its end
	}()
	return s, nil
}

// Environ is this process's environment without what would make the server, or
// the aws CLI, somebody at real AWS.
func Environ() []string {
	var env []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "AWS_") && !strings.HasPrefix(e, "KUBERNETES_") && !strings.HasPrefix(e, "OTEL_") {
			env = append(env, e)
		}
	}
	return env
}

func (s *Server) read(out io.Reader) {
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if m := s.line.FindStringSubmatch(lines.Text()); m != nil {
			s.API = m[1]
			if len(m) > 2 {
				s.AWSConfig = m[2]
			}
			close(s.ready)
			break
		}
	}
	_, _ = io.Copy(io.Discard, out) // until the process has ended
}

// Ready waits until the server has said that it serves.
func (s *Server) Ready(ctx context.Context) error {
	select {
	case <-s.ready:
		return nil
	case <-s.done:
		return fmt.Errorf("the broker ended before it served: %w", s.err)
	case <-ctx.Done():
		return fmt.Errorf("the broker does not serve: %w", context.Cause(ctx))
	}
}

// Done is closed when the process has ended and was reaped.
func (s *Server) Done() <-chan struct{} { return s.done }

// Killed says whether it was SIGKILL that ended a process, whoever sent it. It
// waits until the process is Done.
func (s *Server) Killed() bool {
	<-s.done
	status, ok := s.cmd.ProcessState.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}

// Signal sends a signal to the whole process group. A process that has ended
// is no error.
func (s *Server) Signal(sig syscall.Signal) error {
	select {
	case <-s.done:
		return nil // its number may be another's by now
	default:
	}
	err := syscall.Kill(-s.cmd.Process.Pid, sig)
	if errors.Is(err, syscall.ESRCH) {
		return nil
	}
	return err
}

// Kill ends the process at once, as kill -9 does, and reaps it.
func (s *Server) Kill() error {
	err := s.Signal(syscall.SIGKILL)
	if err == nil {
		<-s.done
	}
	return err
}

// Stop asks the process to end and gives its error, if its exit code was not 0.
func (s *Server) Stop(ctx context.Context) error {
	if err := s.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-s.done:
		return s.err
	case <-ctx.Done():
		return errors.Join(context.Cause(ctx), s.Kill())
	}
}

// Err says how a process that is Done has ended.
func (s *Server) Err() error {
	<-s.done
	return s.err
}
