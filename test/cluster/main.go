// Command cluster installs the chart in a real cluster and does there what
// operators do: calls, an upgrade that fails, a key change with a rolling restart
// and a lost pod in the middle, a rollback, an uninstall. It is what make
// cluster-test runs; docs/testing.md, "In a cluster", says what it takes. CI has no
// cluster and never runs it.
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
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "cluster-test:", err)
		os.Exit(1)
	}
}

// settings are what only the caller knows.
type settings struct {
	helm, kubectl, chart string // programs, and the chart's folder

	namespace, values string
	old, new          string // key ARNs; both or none
	putPolicy         string
	rows              int
	within            time.Duration
}

func run(ctx context.Context, args []string, out, progress io.Writer) error {
	var s settings
	set := flag.NewFlagSet("cluster-test", flag.ContinueOnError)
	set.SetOutput(progress)
	set.StringVar(&s.helm, "helm", "helm", "the `program`")
	set.StringVar(&s.kubectl, "kubectl", "kubectl", "the `program`; its current context is the cluster")
	set.StringVar(&s.chart, "chart", "deploy/helm/keybroker", "the chart's `folder`")
	set.StringVar(&s.namespace, "namespace", "", "a `namespace` that holds already what the values name: Secrets, ConfigMaps")
	set.StringVar(&s.values, "values", "", "the `file` of values that docs/deploy.md speaks of")
	set.StringVar(&s.old, "old", "", "the `ARN` of a KMS key to begin with; without it no key is changed")
	set.StringVar(&s.new, "new", "", "the `ARN` of the key to change to")
	set.StringVar(&s.putPolicy, "put-policy", "", "a `program` that is called with a key's ARN and gets the policy that GenerateKeyPolicy renders as its input")
	set.IntVar(&s.rows, "rows", 500, "data keys to make before the key change")
	set.DurationVar(&s.within, "within", 2*time.Hour, "how long a key change may take: with the default windows, half an hour and more")
	if err := set.Parse(args); err != nil {
		return err
	}
	if err := s.validate(); err != nil {
		return err
	}
	return play(ctx, s, out)
}

func (s settings) validate() error {
	switch {
	case s.namespace == "" || s.values == "":
		return errors.New("-namespace and -values: must both be set")
	case (s.old == "") != (s.new == "") || (s.old != "" && s.old == s.new):
		return errors.New("-old and -new: must be two keys, or neither set")
	case s.old != "" && len(strings.Split(s.old, ":")) != 6, s.new != "" && len(strings.Split(s.new, ":")) != 6:
		return errors.New("-old and -new: must be key ARNs, arn:aws:kms:REGION:ACCOUNT:key/ID")
	case s.rows < 1:
		return errors.New("-rows: must be positive")
	}
	return nil
}
