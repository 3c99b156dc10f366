package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/keybroker/keybroker/internal/awskms"
	"github.com/keybroker/keybroker/internal/demo"
	"github.com/keybroker/keybroker/internal/localkms"
)

// serve is broker serve.
func (c command) serve(ctx context.Context) error {
	set := c.flags("serve")
	dev := set.Bool("dev", false, "run an embedded KMS and authenticate nobody: to try things out on loopback")
	config := set.String("config", "", "the configuration `file` of a server on AWS KMS")
	var o devOptions
	set.StringVar(&o.urlFile, "database-url-file", "", "a `file` that holds the URL of a PostgreSQL database; with --dev one on loopback, in place of SQLite")
	set.StringVar(&o.roles, "roles", bothRoles, "what this process does: api answers calls, worker works on jobs; `names` with a comma between them")
	set.StringVar(&o.data, "data", ".keybroker-dev", "with --dev: the `directory` that keeps everything")
	set.StringVar(&o.listen, "listen", defaultListen, "with --dev: the API's loopback `address`")
	set.StringVar(&o.kmsListen, "kms-listen", defaultKMSListen, "with --dev: the embedded KMS's loopback `address`")
	set.StringVar(&o.admin, "admin", defaultAdmin, "with --dev: the loopback `address` of metrics, health and profiles, or off")
	set.StringVar(&o.kmsEndpoint, "kms-endpoint", "", "with --dev and a PostgreSQL database: the loopback `URL` of the KMS that several processes share, in place of one of its own")
	set.DurationVar(&o.grantDelay, "grant-delay", devGrantDelay, "with --dev: how long the embedded KMS hides a new grant")
	set.StringVar(&o.faults, "faults", "", "with --dev: faults of the embedded KMS as `JSON`, or @FILE; see and change them at its /faults")
	if err := c.parse(set); err != nil {
		return err
	}
	flags := given(set)
	delete(flags, "dev")
	switch {
	case *dev && *config != "":
		return usagef("--dev and --config exclude each other: --dev takes flags, a server takes its configuration file")
	case *dev:
		o.given = flags
		return c.serveDev(ctx, o)
	case *config == "":
		return usagef("--config: name a configuration file, or use --dev to try things out")
	}
	if err := refuseFailpoint(c.getenv); err != nil {
		return err
	}
	for name := range flags {
		switch name {
		case "config", "database-url-file", "roles":
		default:
			return usagef("--%s goes with --dev only: set it in the configuration file", name)
		}
	}
	return c.serveConfig(ctx, *config, func(config *Config) {
		if flags["database-url-file"] {
			config.DatabaseURLFile, config.Database = o.urlFile, ""
		}
		if flags["roles"] {
			config.Roles = strings.Split(o.roles, ",")
		}
	})
}

// devOptions are the flags of --dev.
type devOptions struct {
	data, listen, kmsListen, kmsEndpoint, admin, faults string
	urlFile, roles                                      string
	grantDelay                                          time.Duration
	given                                               map[string]bool
}

func (o devOptions) validate() error {
	for _, a := range []struct{ flag, address string }{
		{"--listen", o.listen}, {"--kms-listen", o.kmsListen}, {"--admin", o.admin},
	} {
		if a.flag == "--admin" && a.address == adminOff {
			continue
		}
		if err := checkAddress(a.flag, a.address, false); err != nil {
			return usageError{err.Error()}
		}
	}
	if o.data == "" {
		return usagef("--data: name a directory")
	}
	if isURL(o.urlFile) {
		return usagef("--database-url-file: must be the path of a file that holds the URL: the URL itself has a password")
	}
	if o.kmsEndpoint != "" {
		return o.validateKMS()
	}
	if visible := devWindows().GrantVisibility; o.grantDelay < 0 || o.grantDelay >= visible {
		return usagef("--grant-delay: %v is not below grant_visibility, %v: the broker would use grants that KMS does not show yet", o.grantDelay, visible)
	}
	return nil
}

// validateKMS checks what goes with a KMS that is not of this process.
func (o devOptions) validateKMS() error {
	for _, name := range []string{"kms-listen", "grant-delay", "faults"} {
		if o.given[name] {
			return usagef("--%s: is for the KMS of this process, and --kms-endpoint names another", name)
		}
	}
	if o.urlFile == "" {
		return usagef("--kms-endpoint: needs --database-url-file: processes that share a KMS share a database")
	}
	u, err := url.Parse(o.kmsEndpoint)
	if err != nil || u.Scheme != "http" || checkAddress("", hostPort(u), false) != nil {
		return usagef("--kms-endpoint: must be like http://127.0.0.1:8444")
	}
	return nil
}

// serveDev is serve --dev: everything in one directory and one process, or a
// database and a KMS on loopback shared with others. What it makes at its start
// it makes only if it is not there, so that it may be killed at any moment.
func (c command) serveDev(ctx context.Context, o devOptions) (err error) {
	does, err := o.check(c.getenv)
	if err != nil {
		return err
	}
	faults, err := readFaults(o.faults)
	if err != nil {
		return err
	}
	log := newLogger(c.stderr, 0, true)
	failpoint, err := readFailpoint(c.getenv, log)
	if err != nil {
		return err
	}
	shared := database{urlFile: o.urlFile}
	if err := shared.prepareForDev(ctx); err != nil {
		return err
	}
	kmsURL, stopKMS, err := o.startKMS(ctx, faults)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopKMS()) }()
	awsConfig, err := writeAWSConfig(o.data, kmsURL)
	if err != nil {
		return fmt.Errorf("--data: %w", err)
	}
	w := devWiring(o.data, kmsURL)
	w.log, w.does = log, does
	if shared.shared() {
		w.database = shared
		if w.owner, err = uniqueOwner(); err != nil {
			return err
		}
	}
	if failpoint != nil {
		log.Warn("this process will kill itself", failpointVariable, c.getenv(failpointVariable))
		w.at = failpoint.at
	}
	return c.serveApp(ctx, w, addresses{listenSetting: "--listen", listen: o.listen, adminSetting: "--admin", admin: o.admin}, true,
		func(ctx context.Context, address string) error {
			if o.kmsEndpoint != "" || !does.api { // the tour is of one process
				return readyLine(c.stdout, address)
			}
			tour := demo.Tour{Broker: address, KMSEndpoint: kmsURL, Region: devRegion, Customer: devCustomer().demo()}
			if err := tour.Prepare(ctx); err != nil {
				return err
			}
			return devBanner(c.stdout, address, kmsURL, awsConfig)
		})
}

// check refuses what does not go together, and where --dev must not run. It gives
// what the process is to do.
func (o devOptions) check(getenv func(string) string) (roles, error) {
	if err := o.validate(); err != nil {
		return roles{}, err
	}
	does, err := parseRoles(strings.Split(o.roles, ","))
	if err == nil {
		err = does.check(database{urlFile: o.urlFile}, o.admin)
	}
	if err != nil {
		return roles{}, usageError{"--" + err.Error()}
	}
	return does, refuseForDev(getenv, o.data)
}

// startKMS makes the data directory and, unless another KMS is named, starts the
// one of this process. It gives KMS's URL.
func (o devOptions) startKMS(ctx context.Context, faults localkms.Faults) (url string, stop func() error, err error) {
	if err := makeDataDir(o.data); err != nil {
		return "", nil, err
	}
	if o.kmsEndpoint != "" {
		return o.kmsEndpoint, func() error { return nil }, nil
	}
	l, err := listen(ctx, "--kms-listen", o.kmsListen)
	if err != nil {
		return "", nil, err
	}
	kms, err := startEmbedded(l, localkms.Config{
		Dir: filepath.Join(o.data, "kms"), Principals: devPrincipals(), GrantDelay: o.grantDelay, Faults: faults,
	})
	if err != nil {
		return "", nil, fmt.Errorf("--data: %w", err)
	}
	return kms.url, func() error { return kms.stop(ctx) }, nil
}

// devBanner says what one can do now; the line to paste comes last.
func devBanner(w io.Writer, address, kmsURL, awsConfig string) error {
	alias := func(name string) string {
		return "arn:aws:kms:" + devRegion + ":111122223333:" + name
	}
	_, err := fmt.Fprintf(w, `
  DEVELOPMENT MODE: nobody is authenticated, keys lie unencrypted on this disk.

  API  %s (gRPC, plaintext, with reflection)
  KMS  %s (profiles customer and service)

  %s waits for its first key, and these keys let the broker serve it:
    %s
    %s

export A=%s AWS_CONFIG_FILE=%s
`, address, kmsURL, demo.TourDomain, alias(demo.TourOldKey), alias(demo.TourNewKey), address, quote(awsConfig))
	return err
}

// quote makes a path safe to paste into a shell.
func quote(path string) string {
	if strings.Trim(path, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+@%") == "" {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}

// readyLine says that a process is at work; address is "" without the API.
func readyLine(w io.Writer, address string) error {
	line := "working\n"
	if address != "" {
		line = "serving on " + address + "\n"
	}
	_, err := io.WriteString(w, line)
	return err
}

// uniqueOwner names a process among all that share a database.
func uniqueOwner() (string, error) {
	host, err := os.Hostname()
	return host + "/" + newIDs(time.Now).next(), err
}

// serveConfig is serve --config, with what the command line says otherwise. It logs
// lines of JSON: that it serves on standard output, whatever the level, and
// everything else on standard error.
func (c command) serveConfig(ctx context.Context, path string, override func(*Config)) error {
	config, err := readConfig(path, override)
	if err != nil {
		return fmt.Errorf("--config: %w", err)
	}
	if err := refuseEndpoints(c.getenv); err != nil {
		return err
	}
	level, err := config.level()
	if err != nil {
		return err
	}
	roles, err := awskms.AssumedRoles(ctx, config.assumeRoles())
	if err != nil {
		return err
	}
	does, err := parseRoles(config.Roles)
	if err != nil {
		return err
	}
	owner, err := uniqueOwner()
	if err != nil {
		return err
	}
	log := newLogger(c.stderr, level, false)
	return c.serveApp(ctx, wiring{
		database: config.database(), does: does, broker: config.broker(), owner: owner,
		mayBeBroad: config.OneAccountMayBeBroad, roles: roles, regions: config.Regions, kmsEndpoint: config.KMSEndpoint, fips: config.FIPS,
		workers: *config.Reencryption.Workers, callsPerShard: *config.Reencryption.CallsPerWorker, shards: *config.Reencryption.Shards,
		pace: config.pace(), log: log,
	}, addresses{listenSetting: "listen", listen: config.Listen, adminSetting: "admin", admin: config.Admin}, false,
		func(ctx context.Context, address string) error {
			b := readBuild()
			newLogger(c.stdout, slog.LevelInfo, false).Info("serving", "address", address, "roles", config.Roles, "version", b.version, "revision", b.revision)
			context.AfterFunc(ctx, func() { log.Info("stopping") })
			return nil
		})
}

// addresses are where an app listens, and how the settings are called.
type addresses struct{ listenSetting, listen, adminSetting, admin string }

// serveApp runs an app between its telemetry and its listeners, until ctx ends.
// ready is called once the API is served, with its address.
func (c command) serveApp(ctx context.Context, w wiring, at addresses, dev bool, ready func(context.Context, string) error) (err error) {
	if w.telemetry, err = newTelemetry(ctx, c.getenv, dev); err != nil {
		return err
	}
	end := newEnding(w.stop)
	defer func() {
		limited, cancel := end.within(ctx, partAll)
		defer cancel()
		if err := w.telemetry.shutdown(limited); err != nil { // a collector that is away fails nobody
			w.log.Warn("telemetry was not sent", "error", err.Error())
		}
	}()
	a, err := newApp(ctx, w, end)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.close(ctx, end)) }()
	var l net.Listener
	if w.does.api {
		if l, err = listen(ctx, at.listenSetting, at.listen); err != nil {
			return err
		}
	}
	if at.admin != adminOff {
		adminListener, err := listen(ctx, at.adminSetting, at.admin)
		if err != nil {
			if l != nil {
				err = errors.Join(err, l.Close())
			}
			return err
		}
		w.log.Info("admin listener", "address", adminListener.Addr().String())
		admin := startAdmin(adminListener, w.telemetry, a.store.Ping)
		defer func() { err = errors.Join(err, admin.stop()) }()
	}
	return a.runWith(ctx, end, l, ready)
}

// runWith runs the app and, beside it, what is to happen once it serves. l is nil
// without the API; the address is "" then.
func (a *app) runWith(ctx context.Context, end *ending, l net.Listener, ready func(context.Context, string) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var address string
	if l != nil {
		address = l.Addr().String()
	}
	readyDone := make(chan struct{})
	go func() {
		defer close(readyDone)
		if err := ready(ctx, address); err != nil && ctx.Err() == nil {
			cancel(err)
		}
	}()
	err := a.run(ctx, end, l)
	cancel(nil)
	<-readyDone
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		err = errors.Join(cause, err)
	}
	return err
}
