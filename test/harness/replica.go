package harness

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/keybroker/keybroker/internal/awskms"
	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/localkms"
	"github.com/keybroker/keybroker/internal/pacer"
	"github.com/keybroker/keybroker/internal/rotation"
)

// A Replica is one process: a broker and its engine. All that it does to the
// world, its transactions and its KMS calls, passes its gate.
type Replica struct {
	Broker *broker.Broker
	Engine *rotation.Engine
	Owner  string // its name in leases

	mu     sync.Mutex
	dead   bool
	frozen chan struct{} // closed when it thaws; nil while it runs
}

// ErrDead is what a replica that was killed gets from database and KMS.
var ErrDead = errors.New("the process has ended")

// Kill ends the replica as kill -9 would: nothing that it still has under way
// reaches database or KMS, and no answer reaches it.
func (r *Replica) Kill() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dead = true
	r.thaw()
}

// Dead says whether the replica was killed.
func (r *Replica) Dead() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.dead
}

// Freeze stops the replica as SIGSTOP would: whatever it does next waits for Thaw.
func (r *Replica) Freeze() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.frozen == nil {
		r.frozen = make(chan struct{})
	}
}

// Thaw lets a frozen replica go on.
func (r *Replica) Thaw() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.thaw()
}

func (r *Replica) thaw() {
	if r.frozen != nil {
		close(r.frozen)
		r.frozen = nil
	}
}

// pass is the gate.
func (r *Replica) pass(ctx context.Context) error {
	r.mu.Lock()
	dead, frozen := r.dead, r.frozen
	r.mu.Unlock()
	switch {
	case dead:
		return ErrDead
	case frozen == nil:
		return nil
	}
	select {
	case <-frozen:
		return r.pass(ctx)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (b *Bench) newReplica(cfg Config, owner string) (*Replica, error) {
	r := &Replica{Owner: owner}
	at := func(point string) {
		if cfg.At != nil {
			cfg.At(r, point)
		}
	}
	// Where nothing is about pace, the budgets are larger than any use of them.
	quota := cfg.Quota
	if quota == 0 {
		quota = 1e9
	}
	pace, err := pacer.New(pacer.Config{Now: time.Now, Quota: func(pacer.Budget) float64 { return quota }})
	if err != nil {
		return nil, err
	}
	foreground, background, err := b.adapters(cfg, r, pace)
	if err != nil {
		return nil, err
	}
	b.close = append(b.close, func() error { foreground.Close(); background.Close(); return nil })
	r.Broker, err = broker.New(broker.Config{Deployment: Deployment, RegistrarRole: RegistrarRole, WorkerRole: WorkerRole,
		GranteeAccounts: []string{ServiceAccount}, Windows: cfg.Windows, KMSCallTimeout: CallTimeout,
		ReservedKey: cfg.ReservedKey, ReservedValue: cfg.ReservedValue, SweepOrphans: !cfg.KeepOrphans, At: at,
		NewID: b.ids.next, NewUID: b.ids.uid}, brokerStore{b.Store.Broker(), r}, foreground, foreground)
	if err != nil {
		return nil, err
	}
	engine := rotation.Config{Owner: owner, Poll: cfg.Poll, Sweep: 5 * time.Minute, Workers: 2, RegistrarRole: RegistrarRole, WorkerRole: WorkerRole,
		BatchRows: cfg.BatchRows, BatchTime: cfg.BatchTime, Shards: cfg.Shards, RowsPerShard: cfg.RowsPerShard, CallsPerShard: 4, Sleep: cfg.sleep(), Rand: b.ids.float,
		NewID: b.ids.next, NewProbe: b.ids.uid, At: at, Logger: slog.New(slog.DiscardHandler)}
	if engine.BatchRows == 0 {
		engine.BatchRows = 5
	}
	if engine.Poll == 0 {
		engine.Poll = 2 * time.Minute
	}
	if engine.Shards == 0 {
		engine.Shards = 3
	}
	if cfg.Quota > 0 {
		engine.Pacer = pace
		engine.RowBudget = func(region string) pacer.Budget { return pacer.Budget{Region: region, Quota: awskms.Symmetric} }
	}
	r.Engine, err = rotation.New(engine, rotationStore{b.Store.Rotation(), r}, r.Broker, background, background)
	return r, err
}

// CallTimeout bounds one KMS call.
const CallTimeout = 10 * time.Second

// StaticRoles are the broker's roles with access keys.
func StaticRoles() awskms.Roles {
	return awskms.StaticRoles(awskms.AccessKey{ID: "AKIAREGISTRAR", Secret: "registrar"}, awskms.AccessKey{ID: "AKIAWORKER", Secret: "worker"})
}

func (b *Bench) adapters(cfg Config, r *Replica, pace *pacer.Pacer) (foreground, background *awskms.KMS, err error) {
	road := http.RoundTripper(gatedRoad{localkms.RoundTripper(b.KMS), r})
	if cfg.Transport != nil {
		road = cfg.Transport(road)
	}
	roles := StaticRoles()
	if cfg.Roles != nil {
		roles = cfg.Roles(localkms.RoundTripper(b.KMS))
	}
	adapter := awskms.Config{
		Registrar: roles.Registrar, Worker: roles.Worker,
		ReservedKey: cfg.ReservedKey, ReservedValue: cfg.ReservedValue, BaseEndpoint: "http://kms.test", Region: Region, Transport: road,
		CallTimeout: CallTimeout, Jitter: b.ids.float, Sleep: cfg.sleep(), Pacer: pace,
	}
	if foreground, err = awskms.New(adapter, pacer.Foreground); err != nil {
		return nil, nil, err
	}
	background, err = awskms.New(adapter, pacer.Background)
	return foreground, background, err
}

// sleep is the wait between attempts: a real one in a bubble, where it costs
// nothing, else none.
func (c Config) sleep() func(context.Context, time.Duration) error {
	if c.Bubble {
		return nil // the default: a timer
	}
	return func(ctx context.Context, _ time.Duration) error { return ctx.Err() }
}

type gatedRoad struct {
	road    http.RoundTripper
	replica *Replica
}

func (g gatedRoad) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := g.replica.pass(req.Context()); err != nil {
		return nil, err
	}
	resp, err := g.road.RoundTrip(req)
	if g.replica.Dead() {
		return nil, ErrDead
	}
	return resp, err
}

type brokerStore struct {
	broker.Store
	replica *Replica
}

func (s brokerStore) Update(ctx context.Context, fn func(broker.Tx) error) error {
	if err := s.replica.pass(ctx); err != nil {
		return err
	}
	return s.Store.Update(ctx, fn)
}

func (s brokerStore) View(ctx context.Context, fn func(broker.Tx) error) error {
	if err := s.replica.pass(ctx); err != nil {
		return err
	}
	return s.Store.View(ctx, fn)
}

type rotationStore struct {
	rotation.Store
	replica *Replica
}

func (s rotationStore) Update(ctx context.Context, fn func(rotation.Tx) error) error {
	if err := s.replica.pass(ctx); err != nil {
		return err
	}
	return s.Store.Update(ctx, fn)
}

func (s rotationStore) View(ctx context.Context, fn func(rotation.Tx) error) error {
	if err := s.replica.pass(ctx); err != nil {
		return err
	}
	return s.Store.View(ctx, fn)
}
