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

// demo is broker demo: a broker and a KMS on loopback ports of their own, and
// the customer and the services of internal/demo. Unlike serve --dev it does not
// mind AWS credentials in the environment: nothing here reads them, and nothing
// of it is left when it ends.
func (c command) demo(ctx context.Context) error {
	set := c.flags("demo")
	dir := set.String("dir", ".", "the `directory` whose files are sealed: at most 500, of up to 1 MiB")
	keys := set.Int("keys", 20_000, "how `many` more data keys there are")
	data := set.String("data", ".keybroker-demo", "the `directory` that keeps the run")
	if err := c.parse(set); err != nil {
		return err
	}
	if *keys < 0 || *keys > 1_000_000 {
		return usagef("--keys: must be 0 to 1000000")
	}
	if *data == "" {
		return usagef("--data: name a directory")
	}
	begun, err := demo.Open(*data, *dir, *keys)
	if err != nil {
		return err
	}
	flags := given(set)
	if begun.Resumed && ((flags["keys"] && *keys != begun.Keys) || (flags["dir"] && !sameFile(*dir, begun.Dir))) {
		return usagef("--data: %s keeps a run with --dir %s --keys %d that was stopped: go on with those, or remove %s", *data, begun.Dir, begun.Keys, *data)
	}
	result, err := c.runDemo(ctx, *data, begun, nil)
	switch {
	case ctx.Err() != nil && err != nil:
		_, _ = fmt.Fprintf(c.stderr, "\nStopped. The next broker demo goes on from here.\n") // there is nobody else to tell
		return errInterrupted
	case err != nil:
		return fmt.Errorf("%w (the next broker demo goes on from here; the broker's log is %s)", err, demoLog(*data))
	}
	return result.Err()
}

func demoLog(data string) string { return filepath.Join(data, "broker.log") }

// runDemo starts broker and KMS, lets the demo happen, and stops them. reached
// is the demo's hook for tests.
func (c command) runDemo(ctx context.Context, data string, begun demo.Begun, reached func(demo.Stage, int64)) (result demo.Result, err error) {
	log, err := os.OpenFile(demoLog(data), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return demo.Result{}, err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
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
	w := devWiring(data, kms.url)
	w.log = newLogger(log, slog.LevelWarn, true)

	// The broker outlives the interrupt of the demo, which still has to tell how
	// far it came.
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	at := addresses{listenSetting: "the demo's broker", listen: "127.0.0.1:0", admin: adminOff}
	var runErr error
	served := c.serveApp(serving, w, at, true, func(_ context.Context, address string) error {
		defer stop()
		result, runErr = demo.Run(ctx, demo.Config{
			Dir: begun.Dir, Keys: begun.Keys, Data: data, Out: c.stdout, Terminal: isTerminal(c.stdout),
			Broker: address, MaxReadDelay: devWindows().MaxReadDelay,
			KMSEndpoint: kms.url, Region: devRegion,
			Customer: devCustomer().demo(), Legacy: devLegacy().demo(), Service: devService().demo(),
			KMSCalls: kms.calls.Load, Reached: reached,
		})
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
