package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

func main() {
	// The first signal asks for an orderly end; the second one has its usual effect.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Getenv, os.Stdin, os.Stdout, os.Stderr))
}

// The exit codes. An interrupted demo ends like a shell's interrupted command.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitInterrupted = 130
)

// command is a call of the program, so that tests can make one.
type command struct {
	args   []string // after the subcommand
	getenv func(string) string
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
}

const usage = `keybroker: a key broker between services and their customers' KMS keys.

  broker demo          change a tenant's key while writes go on, here and now
  broker serve --dev   a broker and a KMS on loopback, to try out by hand
  broker serve --config FILE
                       a broker on AWS KMS
  broker migrate --database-url-file FILE
                       bring the schema of a PostgreSQL database up to date
  broker check-config --config FILE
                       say what is wrong with a configuration, or print it
  broker health        ask a broker on this machine whether it is ready
  broker localkms      the embedded KMS alone
  broker version       what was built
  broker help          this text

broker COMMAND -h lists the flags of a command.
`

// run is the program without its process: it returns the exit code.
func run(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) int {
	name := "help"
	if len(args) > 0 {
		name, args = args[0], args[1:]
	}
	c := command{args: args, getenv: getenv, stdin: stdin, stdout: stdout, stderr: stderr}
	var err error
	switch name {
	case "serve":
		err = c.serve(ctx)
	case "demo":
		err = c.demo(ctx)
	case "localkms":
		err = c.localkms(ctx)
	case "migrate":
		err = c.migrate(ctx)
	case "check-config":
		err = c.checkConfig()
	case "health":
		err = c.health(ctx)
	case "version":
		_, err = fmt.Fprintln(stdout, versionLine())
	case "help", "-h", "--help":
		_, err = io.WriteString(stdout, usage)
	default:
		err = usagef("%q is no command: broker help lists them", name)
	}
	return c.exit(name, err)
}

// exit turns an error into one line on stderr, and a code.
func (c command) exit(name string, err error) int {
	var wrong usageError
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return exitOK
	case errors.Is(err, errInterrupted):
		return exitInterrupted
	case errors.As(err, &wrong):
		c.complain(name, err)
		return exitUsage
	}
	c.complain(name, err)
	return exitFailed
}

func (c command) complain(name string, err error) {
	line := strings.ReplaceAll(err.Error(), "\n", "; ")
	_, _ = fmt.Fprintf(c.stderr, "broker %s: %s\n", name, line) // there is nobody else to tell
}

// A usageError is what the caller can mend by calling otherwise.
type usageError struct{ text string }

func (e usageError) Error() string { return e.text }

func usagef(format string, args ...any) error { return usageError{fmt.Sprintf(format, args...)} }

// errInterrupted ends a command that a signal stopped before its time.
var errInterrupted = errors.New("interrupted")

// flags makes the flag set of a subcommand.
func (c command) flags(name string) *flag.FlagSet {
	set := flag.NewFlagSet(name, flag.ContinueOnError)
	set.SetOutput(io.Discard) // faults are told in one line, see parse
	return set
}

// parse reads the flags. What is left over is a mistake: no command takes more.
func (c command) parse(set *flag.FlagSet) error {
	err := set.Parse(c.args)
	if errors.Is(err, flag.ErrHelp) {
		set.SetOutput(c.stdout)
		_, _ = fmt.Fprintf(c.stdout, "broker %s takes these flags:\n", set.Name())
		set.PrintDefaults()
		return err
	}
	if err != nil {
		return usagef("%v: broker %s -h lists the flags", err, set.Name())
	}
	if set.NArg() > 0 {
		return usagef("%q is no flag: broker %s -h lists them", set.Arg(0), set.Name())
	}
	return nil
}

// given tells which flags were set by the caller.
func given(set *flag.FlagSet) map[string]bool {
	names := map[string]bool{}
	set.Visit(func(f *flag.Flag) { names[f.Name] = true })
	return names
}
