package rotation

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/pacer"
)

// Config is the engine's own part of the rules. The zero value of a field takes
// its default.
type Config struct {
	// Owner names this replica in leases; unique among replicas.
	Owner string
	// RegistrarRole and WorkerRole are the broker's, for the ownership probe.
	RegistrarRole, WorkerRole string
	// MayBeBroad lets a key of the broker's own account pass the ownership probe
	// with a warning although its policy is broader than ours.
	MayBeBroad bool
	// LeaseTTL is how long a replica keeps a job or shard without renewing it.
	// Default 10 s: a crash delays its work by that.
	LeaseTTL time.Duration
	// Poll is how often an idle engine looks for work. Default 1 s.
	Poll time.Duration
	// Probe is how often a blocked job looks whether it may go on, and whether KMS
	// lets the broker use a domain's key again. Default 1 min.
	Probe time.Duration
	// Shards is how many ranges a large job is cut into. Default 16.
	Shards int
	// RowsPerShard is how many rows make another shard worth its overhead.
	// Default 1000.
	RowsPerShard int
	// Workers is how many shards this replica works on at a time. Default 4.
	Workers int
	// BatchRows and BatchTime end a batch. Defaults 250 rows and 2 s (ADR 10): what a
	// crash may cost in repeated KMS calls, and what a pause may take.
	BatchRows int
	BatchTime time.Duration
	// CallsPerShard is how many of a shard's rows, or of a pass's items, are at
	// KMS at a time; the pacer bounds them all together. Default 16.
	CallsPerShard int
	// Pacer is where the calls of this replica are paced: Heartbeat shares its
	// budgets with the other replicas. Nil shares nothing.
	Pacer *pacer.Pacer
	// RowBudget gives the budget that a Region's rows are charged to; set with
	// Pacer.
	RowBudget func(region string) pacer.Budget
	// Sweep is how often the periodic tasks run. Default 10 s.
	Sweep time.Duration
	// Sleep waits between attempts; it returns early with the context's error.
	// Default: a timer.
	Sleep func(ctx context.Context, d time.Duration) error
	// Rand gives a number in [0,1) for the verifier's sample.
	Rand func() float64
	// NewID mints 26 characters, time-ordered. NewProbe mints the random
	// uid of a domain that does not exist, for the ownership probe.
	NewID, NewProbe func() string
	// At, if set, is called between an act at KMS and its commit, or before and
	// after one, with the point's name. Tests of crashes end the process there.
	At      func(point string)
	Logger  *slog.Logger
	Observe Observer
}

// An Observer is told what the engine does; the metrics hang on it. Nil methods
// are not possible: use NoObserver for none.
type Observer interface {
	// Batch is called after each committed batch.
	Batch(rows BatchRows, took time.Duration)
	// JobState is called when a job enters a phase or state.
	JobState(p Phase, s State)
	// LeaseLost is called when a renewal found that the lease of a job, shard or
	// periodic task is another replica's, which happens where this one was stopped or
	// cut off for long, or that it was given back a moment ago.
	LeaseLost()
	// Periodic is called after each run of a periodic task by this replica. An err
	// that is broker.Refused is of a run that was done, but for what keys' owners
	// refused.
	Periodic(task string, err error)
}

// BatchRows says what became of a batch's rows; each row is counted once.
type BatchRows struct {
	Moved      int // by KMS
	Relabelled int // under the target's own key already: no call
	Verified   int // of a VERIFY job: KMS can read them
	Failed     int // KMS cannot read them
	Conflicts  int // changed by somebody else meanwhile: seen again
}

// NoObserver observes nothing.
type NoObserver struct{}

// Batch implements Observer.
func (NoObserver) Batch(BatchRows, time.Duration) {}

// JobState implements Observer.
func (NoObserver) JobState(Phase, State) {}

// LeaseLost implements Observer.
func (NoObserver) LeaseLost() {}

// Periodic implements Observer.
func (NoObserver) Periodic(string, error) {}

// Engine changes keys. It is safe for concurrent use; Run does the work, every
// other method answers callers.
type Engine struct {
	cfg       Config
	store     Store
	broker    *broker.Broker
	registrar broker.Registrar
	worker    broker.Worker
	changed   notifier // something that a watcher may show
	work      notifier // something for the loops of Run
}

// New wires the engine and starts nothing.
func New(cfg Config, store Store, b *broker.Broker, registrar broker.Registrar, worker broker.Worker) (*Engine, error) {
	if cfg.Owner == "" || cfg.NewID == nil || cfg.NewProbe == nil || cfg.Rand == nil || cfg.Logger == nil {
		return nil, errors.New("rotation: Owner, NewID, NewProbe, Rand and Logger must be set")
	}
	if (cfg.Pacer == nil) != (cfg.RowBudget == nil) {
		return nil, errors.New("rotation: Pacer and RowBudget go together")
	}
	setDefault(&cfg.LeaseTTL, 10*time.Second)
	setDefault(&cfg.Poll, time.Second)
	setDefault(&cfg.Probe, time.Minute)
	setDefault(&cfg.Shards, 16)
	setDefault(&cfg.RowsPerShard, 1000)
	setDefault(&cfg.Workers, 4)
	setDefault(&cfg.BatchRows, 250)
	setDefault(&cfg.BatchTime, 2*time.Second)
	setDefault(&cfg.CallsPerShard, 16)
	setDefault(&cfg.Sweep, 10*time.Second)
	if cfg.Sleep == nil {
		cfg.Sleep = sleep
	}
	if cfg.At == nil {
		cfg.At = func(string) {}
	}
	if cfg.Observe == nil {
		cfg.Observe = NoObserver{}
	}
	return &Engine{cfg: cfg, store: store, broker: b, registrar: registrar, worker: worker,
		changed: newNotifier(), work: newNotifier()}, nil
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// A notifier wakes everybody who waits when anything changed in this process.
type notifier struct {
	mu *sync.Mutex
	ch *chan struct{}
}

func newNotifier() notifier {
	ch := make(chan struct{})
	return notifier{mu: &sync.Mutex{}, ch: &ch}
}

// wait gives a channel that is closed at the next notify.
func (n notifier) wait() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return *n.ch
}

func (n notifier) notify() {
	n.mu.Lock()
	defer n.mu.Unlock()
	close(*n.ch)
	*n.ch = make(chan struct{})
}
