package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/keybroker/keybroker/internal/demo"
	"github.com/keybroker/keybroker/internal/localkms"
)

// demoOptions are the flags of broker demo.
type demoOptions struct {
	dir, data, kms string
	keys           int
	aws            awsDemo
	given          map[string]bool
}

// The values of --kms.
const (
	kmsLocal = "local"
	kmsAWS   = "aws"
)

// demo is broker demo: a broker on a loopback port of its own, and the customer
// and the services of internal/demo. The KMS is an embedded one: unlike serve
// --dev it does not mind AWS credentials in the environment, which nothing here
// reads. With --kms aws it is AWS's.
func (c command) demo(ctx context.Context) error {
	var o demoOptions
	set := c.flags("demo")
	set.StringVar(&o.dir, "dir", ".", "the `directory` whose files are sealed: at most 500, of up to 1 MiB")
	set.IntVar(&o.keys, "keys", 20_000, "how `many` more data keys there are; with --kms aws 100")
	set.StringVar(&o.data, "data", "", "the `directory` that keeps the run; by default .keybroker-demo, with --kms aws .keybroker-demo-aws")
	set.StringVar(&o.kms, "kms", kmsLocal, "`whose` KMS: local, an embedded one, or aws, with two keys of yours (docs/aws.md)")
	o.aws.flags(set)
	if err := c.parse(set); err != nil {
		return err
	}
	o.given = given(set)
	switch o.kms {
	case kmsAWS:
		return c.demoOnAWS(ctx, o)
	case kmsLocal:
		return c.demoLocally(ctx, o)
	}
	return usagef("--kms: must be local or aws")
}

func (c command) demoLocally(ctx context.Context, o demoOptions) error {
	for _, name := range awsDemoFlags() {
		if o.given[name] {
			return usagef("--%s: goes with --kms aws only", name)
		}
	}
	if o.keys < 0 || o.keys > 1_000_000 {
		return usagef("--keys: must be 0 to 1000000")
	}
	begun, err := o.open(".keybroker-demo")
	if err != nil {
		return err
	}
	result, err := c.runDemo(ctx, o.data, begun, nil)
	return c.endDemo(ctx, o.data, result, err)
}

// open begins a run, or finds the one that was stopped.
func (o *demoOptions) open(data string) (demo.Begun, error) {
	if !o.given["data"] {
		o.data = data
	}
	if o.data == "" {
		return demo.Begun{}, usagef("--data: name a directory")
	}
	begun, err := demo.Open(o.data, o.dir, o.keys, o.aws.keys)
	if err != nil || !begun.Resumed {
		return begun, err
	}
	if begun.Own != o.aws.keys {
		of := "keys of its own"
		if begun.Own != (demo.OwnKeys{}) {
			of = "--old " + begun.Own.Old + " --new " + begun.Own.New
		}
		return begun, usagef("--data: %s keeps a run with %s that was stopped: go on with those, or name another directory", o.data, of)
	}
	if (o.given["keys"] && o.keys != begun.Keys) || (o.given["dir"] && !sameFile(o.dir, begun.Dir)) {
		return begun, usagef("--data: %s keeps a run with --dir %s --keys %d that was stopped: go on with those, or remove %s", o.data, begun.Dir, begun.Keys, o.data)
	}
	return begun, nil
}

// endDemo turns what became of a run into the command's end.
func (c command) endDemo(ctx context.Context, data string, result demo.Result, err error) error {
	switch {
	case ctx.Err() != nil && err != nil:
		_, _ = fmt.Fprintf(c.stderr, "\nStopped. The next broker demo goes on from here.\n") // there is nobody else to tell
		return errInterrupted
	case err != nil:
		return fmt.Errorf("%w (the next broker demo goes on from here; the broker's log is %s)", err, demoLog(data))
	}
	return result.Err()
}

func demoLog(data string) string { return filepath.Join(data, "broker.log") }

// runDemo starts an embedded KMS and a broker, lets the demo happen, and stops
// them. reached is the demo's hook for tests.
func (c command) runDemo(ctx context.Context, data string, begun demo.Begun, reached func(demo.Stage, int64)) (result demo.Result, err error) {
	kmsListener, err := listen(ctx, "the demo's KMS", "127.0.0.1:0")
	if err != nil {
		return demo.Result{}, err
	}
	kms, err := startEmbedded(kmsListener, localkms.Config{
		Dir: filepath.Join(data, "kms"), Principals: devPrincipals(), GrantDelay: devGrantDelay,
	})
	if err != nil {
		return demo.Result{}, err
	}
	defer func() { err = errors.Join(err, kms.stop(ctx)) }()
	return c.playDemo(ctx, devWiring(data, kms.url), demo.Config{
		Dir: begun.Dir, Keys: begun.Keys, Data: data,
		KMSEndpoint: kms.url, Region: devRegion,
		Customer: devCustomer().demo(), Legacy: devLegacy().demo(), Service: devService().demo(),
		KMSCalls: kms.calls.Load, Reached: reached,
	})
}

// playDemo starts a broker, lets the demo happen beside it, and stops it. What
// both must agree on is taken from the wiring.
func (c command) playDemo(ctx context.Context, w wiring, d demo.Config) (result demo.Result, err error) {
	log, err := os.OpenFile(demoLog(d.Data), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return demo.Result{}, err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	w.log = newLogger(log, slog.LevelWarn, true)

	// The broker outlives the interrupt of the demo, which still has to tell how
	// far it came.
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	at := addresses{listenSetting: "the demo's broker", listen: "127.0.0.1:0", admin: adminOff}
	var runErr error
	served := c.serveApp(serving, w, at, true, func(_ context.Context, address string) error {
		defer stop()
		d.Out, d.Terminal, d.Broker = c.stdout, isTerminal(c.stdout), address
		d.MaxReadDelay, d.GrantVisibility = w.broker.Windows.MaxReadDelay, w.broker.Windows.GrantVisibility
		result, runErr = demo.Run(ctx, d)
		return nil // it is told below, also after stop
	})
	return result, errors.Join(runErr, served)
}

// isTerminal says whether somebody watches, rather than a file or a pipe.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
