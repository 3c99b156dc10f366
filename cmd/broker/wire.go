package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/keybroker/keybroker/internal/awskms"
	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/grpcapi"
	"github.com/keybroker/keybroker/internal/pacer"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/internal/sqlstore"
)

// The rooms that may not know each other's ports meet here.
var (
	_ broker.Registrar = (*awskms.KMS)(nil)
	_ broker.Worker    = (*awskms.KMS)(nil)
	_ grpcapi.Broker   = (*broker.Broker)(nil)
	_ grpcapi.Jobs     = (*rotation.Engine)(nil)
)

// wiring is what differs between production, --dev and the demo. Zero durations
// take the engine's defaults.
type wiring struct {
	database database
	does     roles
	broker   broker.Config
	// owner names this process in leases; see rotation.Config for the rest.
	owner                     string
	lease, probe, poll, sweep time.Duration
	// workers, callsPerShard and shards size the engine; see Reencryption. Zeros take
	// its defaults.
	workers, callsPerShard, shards int
	// stop is how long the process may take to end; 0 takes stopTime.
	stop time.Duration

	// at is called at the points where a crash counts, see failpoint.
	at func(point string)

	mayBeBroad  bool // see Config.OneAccountMayBeBroad
	roles       awskms.Roles
	region      string            // of key identifiers that name none; "" refuses those
	regions     []string          // that may be called; empty: any
	kmsEndpoint string            // "": AWS's own
	kmsWire     http.RoundTripper // nil: the adapter's own
	fips        bool
	// pace is the budgets; where no quota is known, they are found by trial.
	pace pacer.Config

	log       *slog.Logger
	telemetry *telemetry
}

// kmsCallTimeout bounds a call to KMS with its repetitions in production.
const kmsCallTimeout = 10 * time.Second

// app is a wired broker.
type app struct {
	log                    *slog.Logger
	does                   roles
	store                  *sqlstore.Store
	pacer                  *pacer.Pacer
	foreground, background *awskms.KMS
	engine                 *rotation.Engine
	server                 *grpcapi.Server // nil without the role
}

// newApp wires everything and starts nothing. Close it in any case.
func newApp(ctx context.Context, w wiring, end *ending) (_ *app, err error) {
	a := &app{log: w.log, does: w.does}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.close(ctx, end))
		}
	}()
	tracer := w.telemetry.tracers.Tracer(scope)
	if a.store, err = w.database.open(ctx, sqlstore.Config{
		Random: rand.Reader, Logger: w.log, Tracer: tracer, Meter: w.telemetry.meters.Meter(scope),
	}); err != nil {
		return nil, err
	}
	if err := a.wireKMS(w); err != nil {
		return nil, err
	}
	ids := newIDs(time.Now)
	w.broker.NewID, w.broker.NewUID, w.broker.At = ids.next, rand.Text, w.at
	b, err := broker.New(w.broker, a.store.Broker(), a.foreground, a.foreground)
	if err != nil {
		return nil, err
	}
	if a.engine, err = rotation.New(rotation.Config{
		Owner: w.owner, RegistrarRole: w.broker.RegistrarRole, WorkerRole: w.broker.WorkerRole,
		MayBeBroad: w.mayBeBroad, At: w.at,
		Workers: w.workers, CallsPerShard: w.callsPerShard, Shards: w.shards,
		LeaseTTL: w.lease, Probe: w.probe, Poll: w.poll, Sweep: w.sweep,
		Pacer: a.pacer, RowBudget: rowBudget(w.broker.WorkerRole),
		Rand: mathrand.Float64, NewID: ids.next, NewProbe: rand.Text, Logger: w.log, Observe: w.telemetry.metrics,
	}, a.store.Rotation(), b, a.background, a.background); err != nil {
		return nil, err
	}
	w.telemetry.metrics.watchStanding(a.engine.Standing)
	if !w.does.api {
		return a, nil
	}
	pageTokenKey, err := a.store.Secret(ctx, "page token key", 32)
	if err != nil {
		return nil, err
	}
	a.server, err = grpcapi.New(grpcapi.Config{
		Logger: w.log, Now: time.Now, NewID: ids.next, PageTokenKey: pageTokenKey,
		ServerOptions: []grpc.ServerOption{w.telemetry.serverOption()},
	}, b, a.engine)
	return a, err
}

// rowBudget is what a ReEncrypt in the worker's role is charged to.
func rowBudget(workerRole string) func(region string) pacer.Budget {
	account := broker.RoleAccount(workerRole)
	return func(region string) pacer.Budget {
		return pacer.Budget{Account: account, Region: region, Quota: awskms.Symmetric}
	}
}

// wireKMS makes both adapters: for callers who wait, and for jobs. They share
// one pacer.
func (a *app) wireKMS(w wiring) error {
	w.pace.Now = time.Now
	var err error
	if a.pacer, err = pacer.New(w.pace); err != nil {
		return err
	}
	w.telemetry.metrics.watchPacer(a.pacer)
	config := awskms.Config{
		Registrar: w.roles.Registrar, Worker: w.roles.Worker, ReservedKey: w.broker.ReservedKey, ReservedValue: w.broker.ReservedValue,
		RegistrarAccount: broker.RoleAccount(w.broker.RegistrarRole), WorkerAccount: broker.RoleAccount(w.broker.WorkerRole),
		BaseEndpoint: w.kmsEndpoint, Transport: w.kmsWire, FIPS: w.fips, Region: w.region, Regions: w.regions,
		MaxConnections: w.pace.InFlight, CallTimeout: w.broker.KMSCallTimeout, Jitter: mathrand.Float64, Pacer: a.pacer,
		Observe: w.telemetry.metrics.kms, Now: time.Now, Logger: w.log, Tracer: w.telemetry.tracers.Tracer(scope),
	}
	if a.foreground, err = awskms.New(config, pacer.Foreground); err != nil {
		return err
	}
	a.background, err = awskms.New(config, pacer.Background)
	return err
}

// run does what its roles say until ctx ends, and then stops: health says
// NOT_SERVING, no call is let in any more, calls at work finish, and the engine
// lets its leases go, all of that at the same time and before end is over. It
// fails if either part ends before it was asked to, or does not end when asked.
// l is nil without the API.
func (a *app) run(ctx context.Context, end *ending, l net.Listener) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return a.runEngine(ctx, end) })
	if a.server == nil {
		return group.Wait()
	}
	group.Go(func() error {
		watchReadiness(ctx, a.store.Ping, a.setReady)
		return nil
	})
	group.Go(func() error {
		err := a.server.Serve(l)
		if err == nil && ctx.Err() == nil {
			return errors.New("the listener stopped")
		}
		if errors.Is(err, grpc.ErrServerStopped) { // before it had begun
			return nil
		}
		return err
	})
	group.Go(func() error {
		<-ctx.Done()
		limited, cancel := end.within(ctx, partWork)
		defer cancel()
		return a.server.Shutdown(limited)
	})
	return group.Wait()
}

// runEngine works on jobs, or only keeps step with who does, until ctx ends.
func (a *app) runEngine(ctx context.Context, end *ending) error {
	work := func() error {
		a.engine.Heartbeat(ctx) // workers leave it what its callers take
		return nil
	}
	if a.does.worker {
		work = func() error {
			if err := a.engine.Run(ctx); ctx.Err() == nil {
				return fmt.Errorf("the engine stopped: %w", err)
			}
			return nil
		}
	}
	stopped := make(chan error, 1)
	go func() { stopped <- work() }()
	select {
	case err := <-stopped:
		return err
	case <-ctx.Done():
	}
	limited, cancel := end.within(ctx, partWork)
	defer cancel()
	select {
	case err := <-stopped:
		return err
	case <-limited.Done():
		return errors.New("the engine did not stop in time: its leases run out by themselves")
	}
}

// setReady says by gRPC health whether calls are welcome.
func (a *app) setReady(ready bool) {
	a.server.SetServing(ready)
	if ready {
		a.log.Info("the database answers again")
		return
	}
	a.log.Error("the database does not answer")
}

// close gives everything back, before end is over; after run, or instead of it.
func (a *app) close(ctx context.Context, end *ending) error {
	for _, k := range []*awskms.KMS{a.foreground, a.background} {
		if k != nil {
			k.Close()
		}
	}
	if a.store == nil {
		return nil
	}
	limited, cancel := end.within(ctx, partDatabase)
	defer cancel()
	if err := finish(limited, a.store.Close); err != nil {
		return fmt.Errorf("close the database: %w", err)
	}
	return nil
}
