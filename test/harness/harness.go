// Package harness wires a whole broker in one process for tests: localkms
// behind an http.RoundTripper (no socket), SQLite in a temporary file or a
// PostgreSQL of the tests' own, and the engine stepped by hand under a clock that
// only the test moves. Its checkers read KMS and the database, never the broker's
// word.
package harness

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/keybroker/keybroker/internal/awskms"
	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/localkms"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/internal/sqlstore"
)

// The actors, each in an account of its own.
const (
	Deployment      = "test"
	Region          = "us-east-1"
	CustomerAccount = "111122223333"
	ServiceAccount  = "222233334444"
	BrokerAccount   = "999999999999"
	CustomerRoot    = "arn:aws:iam::111122223333:root"
	ServiceRole     = "arn:aws:iam::222233334444:role/orders"
	ReportsRole     = "arn:aws:iam::222233334444:role/reports"
	RegistrarRole   = "arn:aws:iam::999999999999:role/keybroker-registrar"
	WorkerRole      = "arn:aws:iam::999999999999:role/keybroker-worker"
)

// Caller is who calls in tests.
var Caller = broker.Caller{Subject: "test"}

// A Clock is moved by the test alone or, in a bubble of testing/synctest, is the
// bubble's own. It is safe for concurrent use.
type Clock struct {
	bubble bool
	mu     sync.Mutex
	now    time.Time
}

// Now tells the time.
func (c *Clock) Now() time.Time {
	if c.bubble {
		return time.Now()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Advance moves the clock forward; in a bubble it sleeps, and every timer that is
// due meanwhile goes off.
func (c *Clock) Advance(d time.Duration) {
	if c.bubble {
		time.Sleep(d)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// Config says what differs from the defaults.
type Config struct {
	// Engine is SQLite or Postgres; "" is what the environment says.
	Engine string
	Dir    string // for SQLite's file; localkms stays in memory
	// Bubble says that the test runs in a bubble of testing/synctest. Then the
	// bubble's clock is everybody's, and every timer is real.
	Bubble     bool
	GrantDelay time.Duration
	Windows    broker.Windows
	// BatchRows and Shards of the engine; 0 takes small numbers, so that even
	// small domains are moved in many steps. RowsPerShard is the engine's.
	BatchRows, Shards, RowsPerShard int
	// BatchTime is the engine's, on the machine's clock: for rows that KMS does not
	// answer, which are asked for again until it is over.
	BatchTime time.Duration
	// Poll is the engine's. 0 takes two minutes: most tests take the steps
	// themselves, and in a bubble the minutes cost nothing.
	Poll time.Duration
	// ReservedKey and ReservedValue are the reserved pair's; "" takes the defaults.
	ReservedKey, ReservedValue string
	// Quota is the requests a second that KMS's quotas allow, for forecasts; 0 makes
	// none, and keeps nobody waiting.
	Quota float64
	// KeepOrphans turns the broker's orphan sweep off, as after a restore.
	KeepOrphans bool
	// At is called at the points of broker.Config and rotation.Config where a crash
	// is told from none, with the replica that has come there.
	At func(r *Replica, point string)
	// Observe is told of each KMS call, by anyone, before it is answered.
	Observe func(localkms.Call)
	// Transport wraps the road to KMS for the broker's calls, for faults.
	Transport func(http.RoundTripper) http.RoundTripper
	// Roles gives the broker's roles their credentials, perhaps by STS on the road to
	// KMS; Accounts then says what these roles are. Without Accounts they have access
	// keys, those of StaticRoles, and identity policies that allow everything.
	Roles    func(road http.RoundTripper) awskms.Roles
	Accounts []localkms.Account
}

// A Bench is a running system: two replicas on one database and one KMS.
type Bench struct {
	Clock *Clock
	KMS   *localkms.KMS
	Store *sqlstore.Store
	// Replicas are the two; Broker and Engine are the first one's.
	Replicas [2]*Replica
	Broker   *broker.Broker
	Engine   *rotation.Engine
	// Customer, Service and Reports are AWS clients in those roles.
	Customer, Service, Reports *kms.Client

	reader reader
	ids    ids
	mu     sync.Mutex
	calls  []localkms.Call
	close  []func() error
}

// New wires a Bench. Close it when done.
func New(ctx context.Context, cfg Config) (*Bench, error) {
	b := &Bench{ids: ids{random: rand.New(rand.NewPCG(1, 2))}, Clock: &Clock{bubble: cfg.Bubble, now: time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)}}
	if err := b.openKMS(cfg); err != nil {
		return nil, err
	}
	if err := b.openStore(ctx, cfg); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	if err := b.wire(cfg); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

func (b *Bench) openKMS(cfg Config) (err error) {
	principals := []localkms.Principal{
		{ARN: CustomerRoot, AccessKeyID: "AKIACUSTOMER", SecretAccessKey: "customer"},
		{ARN: ServiceRole, AccessKeyID: "AKIASERVICE", SecretAccessKey: "service"},
		{ARN: ReportsRole, AccessKeyID: "AKIAREPORTS", SecretAccessKey: "reports"},
	}
	if cfg.Accounts == nil {
		principals = append(principals,
			localkms.Principal{ARN: RegistrarRole, AccessKeyID: "AKIAREGISTRAR", SecretAccessKey: "registrar"},
			localkms.Principal{ARN: WorkerRole, AccessKeyID: "AKIAWORKER", SecretAccessKey: "worker"})
	}
	b.KMS, err = localkms.New(localkms.Config{
		Principals: principals, Accounts: cfg.Accounts,
		GrantDelay: cfg.GrantDelay, Now: b.Clock.Now, Observe: func(c localkms.Call) { b.observe(cfg, c) },
		ClockSkew: -1, // the SDK signs by the clock of the machine
	})
	if err != nil {
		return err
	}
	b.close = append(b.close, b.KMS.Close)
	b.Customer = b.client("AKIACUSTOMER", "customer")
	b.Service = b.client("AKIASERVICE", "service")
	b.Reports = b.client("AKIAREPORTS", "reports")
	return nil
}

func (b *Bench) client(id, secret string) *kms.Client {
	return kms.New(kms.Options{Region: Region, BaseEndpoint: aws.String("http://kms.test"), RetryMaxAttempts: 1,
		Credentials: credentials.NewStaticCredentialsProvider(id, secret, ""),
		HTTPClient:  &http.Client{Transport: localkms.RoundTripper(b.KMS)}})
}

func (b *Bench) wire(cfg Config) error {
	if cfg.ReservedKey == "" {
		cfg.ReservedKey, cfg.ReservedValue = broker.DefaultReservedKey, broker.DefaultReservedValue
	}
	for i := range b.Replicas {
		r, err := b.newReplica(cfg, "replica-"+b.ids.next())
		if err != nil {
			return err
		}
		b.Replicas[i] = r
	}
	b.Broker, b.Engine = b.Replicas[0].Broker, b.Replicas[0].Engine
	return nil
}

// Close ends everything, also after an error.
func (b *Bench) Close() error {
	var errs []error
	for _, end := range slices.Backward(b.close) {
		errs = append(errs, end())
	}
	return errors.Join(errs...)
}

func (b *Bench) observe(cfg Config, c localkms.Call) {
	if cfg.Observe != nil {
		cfg.Observe(c)
	}
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

// ids mints what is random in production. It is the same in every run.
type ids struct {
	mu     sync.Mutex
	n      int
	random *rand.Rand
}

// next gives 26 characters in the order of the calls.
func (i *ids) next() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.n++
	return fmt.Sprintf("%026d", i.n)
}

// uid gives 26 characters in no order.
func (i *ids) uid() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return fmt.Sprintf("%026X", i.random.Uint64())
}

// float gives a number in [0,1).
func (i *ids) float() float64 {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.random.Float64()
}

// Restart ends the replicas and wires new ones on the same database and KMS, as
// after a crash: nothing that was in memory is left, and what is still under way
// in the old ones does nothing any more.
func (b *Bench) Restart(cfg Config) error {
	for _, r := range b.Replicas {
		r.Kill()
	}
	return b.wire(cfg)
}
