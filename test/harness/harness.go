// Package harness wires a whole broker in one process for tests: localkms
// behind an http.RoundTripper (no socket), SQLite in a temporary file or a
// PostgreSQL of the tests' own, and the engine stepped by hand under a clock that
// only the test moves. Its checkers read KMS and the database, never the broker's
// word.
package harness

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/keybroker/keybroker/internal/awskms"
	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/localkms"
	"github.com/keybroker/keybroker/internal/pacer"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/internal/sqlstore"
)

// The actors, each in an account of its own.
const (
	Region          = "us-east-1"
	CustomerAccount = "111122223333"
	ServiceAccount  = "222233334444"
	BrokerAccount   = "999999999999"
	CustomerRoot    = "arn:aws:iam::111122223333:root"
	ServiceRole     = "arn:aws:iam::222233334444:role/orders"
	RegistrarRole   = "arn:aws:iam::999999999999:role/keybroker-registrar"
	WorkerRole      = "arn:aws:iam::999999999999:role/keybroker-worker"
)

// Caller is who calls in tests.
var Caller = broker.Caller{Subject: "test"}

// A Clock is moved by the test alone. It is safe for concurrent use.
type Clock struct {
	mu  sync.Mutex
	now time.Time
}

// Now tells the time.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Advance moves the clock forward.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// Config says what differs from the defaults.
type Config struct {
	// Engine is SQLite or Postgres; "" is what the environment says.
	Engine     string
	Dir        string // for SQLite's file; localkms stays in memory
	GrantDelay time.Duration
	Windows    broker.Windows
	// BatchRows and Shards of the engine; 0 takes small numbers, so that even
	// small domains are moved in many steps.
	BatchRows, Shards int
	// ReservedKey and ReservedValue are the reserved pair's; "" takes the defaults.
	ReservedKey, ReservedValue string
	// KeepOrphans turns the broker's orphan sweep off, as after a restore.
	KeepOrphans bool
	// At is called at the points where a crash is told from none; see
	// rotation.Config.
	At func(point string)
	// Transport wraps the road to KMS for the broker's calls, for faults.
	Transport func(http.RoundTripper) http.RoundTripper
}

// A Bench is a running system.
type Bench struct {
	Clock  *Clock
	KMS    *localkms.KMS
	Store  *sqlstore.Store
	Broker *broker.Broker
	Engine *rotation.Engine
	// Other is a second replica's engine on the same database.
	Other *rotation.Engine
	// Customer and Service are AWS clients in those roles; WorkerKMS and
	// RegistrarKMS are the broker's own, for checkers.
	Customer, Service *kms.Client

	reader reader
	ids    ids
	mu     sync.Mutex
	calls  []localkms.Call
	close  []func() error
}

// New wires a Bench. Close it when done.
func New(ctx context.Context, cfg Config) (*Bench, error) {
	b := &Bench{Clock: &Clock{now: time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)}}
	if err := b.openKMS(cfg); err != nil {
		return nil, err
	}
	if err := b.openStore(ctx, cfg); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, b.wire(cfg)
}

func (b *Bench) openKMS(cfg Config) (err error) {
	b.KMS, err = localkms.New(localkms.Config{
		Principals: []localkms.Principal{
			{ARN: CustomerRoot, AccessKeyID: "AKIACUSTOMER", SecretAccessKey: "customer"},
			{ARN: ServiceRole, AccessKeyID: "AKIASERVICE", SecretAccessKey: "service"},
			{ARN: RegistrarRole, AccessKeyID: "AKIAREGISTRAR", SecretAccessKey: "registrar"},
			{ARN: WorkerRole, AccessKeyID: "AKIAWORKER", SecretAccessKey: "worker"},
		},
		GrantDelay: cfg.GrantDelay, Now: b.Clock.Now, Observe: b.observe,
		ClockSkew: -1, // the SDK signs by the clock of the machine
	})
	if err != nil {
		return err
	}
	b.close = append(b.close, b.KMS.Close)
	b.Customer = b.client("AKIACUSTOMER", "customer")
	b.Service = b.client("AKIASERVICE", "service")
	return nil
}

func (b *Bench) client(id, secret string) *kms.Client {
	return kms.New(kms.Options{Region: Region, BaseEndpoint: aws.String("http://kms.test"), RetryMaxAttempts: 1,
		Credentials: credentials.NewStaticCredentialsProvider(id, secret, ""),
		HTTPClient:  &http.Client{Transport: localkms.RoundTripper(b.KMS)}})
}

func (b *Bench) wire(cfg Config) error {
	// Nothing here is about pace: the budgets are larger than any use of them.
	pace, err := pacer.New(pacer.Config{Now: time.Now, Quota: func(pacer.Budget) float64 { return 1e9 }})
	if err != nil {
		return err
	}
	if cfg.ReservedKey == "" {
		cfg.ReservedKey, cfg.ReservedValue = broker.DefaultReservedKey, broker.DefaultReservedValue
	}
	transport := localkms.RoundTripper(b.KMS)
	if cfg.Transport != nil {
		transport = cfg.Transport(transport)
	}
	noWait := func(ctx context.Context, _ time.Duration) error { return ctx.Err() }
	adapter := awskms.Config{
		Registrar:   credentials.NewStaticCredentialsProvider("AKIAREGISTRAR", "registrar", ""),
		Worker:      credentials.NewStaticCredentialsProvider("AKIAWORKER", "worker", ""),
		ReservedKey: cfg.ReservedKey, ReservedValue: cfg.ReservedValue, BaseEndpoint: "http://kms.test", Region: Region, Transport: transport,
		Jitter: mathrand.Float64, Sleep: noWait, Pacer: pace,
	}
	foreground, err := awskms.New(adapter, pacer.Foreground)
	if err != nil {
		return err
	}
	background, err := awskms.New(adapter, pacer.Background)
	if err != nil {
		return err
	}
	b.close = append(b.close, func() error { foreground.Close(); background.Close(); return nil })
	b.Broker, err = broker.New(broker.Config{Deployment: "test", RegistrarRole: RegistrarRole, WorkerRole: WorkerRole,
		GranteeAccounts: []string{ServiceAccount}, Windows: cfg.Windows, KMSCallTimeout: 10 * time.Second,
		ReservedKey: cfg.ReservedKey, ReservedValue: cfg.ReservedValue, SweepOrphans: !cfg.KeepOrphans,
		NewID: b.ids.next, NewUID: rand.Text}, b.Store.Broker(), foreground, foreground)
	if err != nil {
		return err
	}
	engine := rotation.Config{Owner: "bench", RegistrarRole: RegistrarRole, WorkerRole: WorkerRole,
		BatchRows: cfg.BatchRows, Shards: cfg.Shards, CallsPerShard: 4, Sleep: noWait, Rand: mathrand.Float64,
		NewID: b.ids.next, NewProbe: rand.Text, At: cfg.At, Logger: slog.New(slog.DiscardHandler)}
	if engine.BatchRows == 0 {
		engine.BatchRows = 5
	}
	if engine.Shards == 0 {
		engine.Shards = 3
	}
	if b.Engine, err = rotation.New(engine, b.Store.Rotation(), b.Broker, background, background); err != nil {
		return err
	}
	engine.Owner = "other"
	b.Other, err = rotation.New(engine, b.Store.Rotation(), b.Broker, background, background)
	return err
}

// Close ends everything.
func (b *Bench) Close() error {
	for i := len(b.close) - 1; i >= 0; i-- {
		if err := b.close[i](); err != nil {
			return err
		}
	}
	return nil
}

func (b *Bench) observe(c localkms.Call) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls = append(b.calls, c)
}

// Calls gives the KMS calls since the last time it was asked.
func (b *Bench) Calls() []localkms.Call {
	b.mu.Lock()
	defer b.mu.Unlock()
	calls := b.calls
	b.calls = nil
	return calls
}

// ids mints 26 characters in the order of the calls.
type ids struct {
	mu sync.Mutex
	n  int
}

func (i *ids) next() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.n++
	return fmt.Sprintf("%026d", i.n)
}

// Restart wires a new broker and engine on the same database and KMS, as after
// a crash: nothing that was in memory is left.
func (b *Bench) Restart(cfg Config) error { return b.wire(cfg) }
