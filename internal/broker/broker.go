package broker

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Config is the deployment's own part of the rules.
type Config struct {
	// Deployment is this installation's name: 1 to 32 characters of [a-z0-9-].
	// It stands in each KMS grant Name; two deployments never share one.
	Deployment string
	// RegistrarRole and WorkerRole are the broker's IAM roles, as ARNs.
	RegistrarRole, WorkerRole string
	// ReservedKey is the key of the reserved pair, ReservedValue the template of its
	// value: {uid} and {region} are replaced. The value must contain {uid}. Neither
	// may change once there is a domain.
	ReservedKey, ReservedValue string
	// GranteeAccounts are the accounts whose roles may be grantees.
	GranteeAccounts []string
	// Windows are the announced waits of a key change.
	Windows Windows
	// KMSCallTimeout bounds one KMS call with its retries; an intent younger
	// than that may still be in flight.
	KMSCallTimeout time.Duration
	// SweepOrphans lets the broker retire what KMS holds under this deployment's
	// Names and the database does not know, and take what KMS shows no more for
	// revoked by the key's owner. Set it, except while the database is one that was
	// restored from a backup: then first make sure that no live grant was made, and
	// none retired, since. Without it Sweep still ends what the database knows.
	SweepOrphans bool
	// NewID mints 26 characters, time-ordered; NewUID mints 26 random ones.
	NewID, NewUID func() string
	// At, if set, is called between an act at KMS and its commit, or before and
	// after one, with the point's name. Tests of crashes end the process there.
	At func(point string)
}

// Windows are the waits that a key change must keep, because KMS is eventually
// consistent and services hold what they read for a while.
type Windows struct {
	// GrantVisibility is how long KMS may take to show a new grant, or to forget
	// a retired one, everywhere ("usually less than five minutes", KMS Developer
	// Guide, Grants). Default 5 min.
	GrantVisibility time.Duration
	// MaxStoreDelay is how long a service may hold a data key that it generated
	// at KMS before it imports it here. Default 1 h.
	MaxStoreDelay time.Duration
	// MaxReadDelay is how long a service may use a wrapped key that it read here.
	// Default 15 min.
	MaxReadDelay time.Duration
	// BackupRetention is how long a backup of the broker's database may come
	// back: the old key must stay enabled as long. Default 0.
	BackupRetention time.Duration
}

// DefaultWindows are the waits for production.
func DefaultWindows() Windows {
	return Windows{GrantVisibility: 5 * time.Minute, MaxStoreDelay: time.Hour, MaxReadDelay: 15 * time.Minute}
}

// DefaultReservedKey and DefaultReservedValue are key and template of the reserved
// pair where the deployment names none.
const (
	DefaultReservedKey   = "keybroker:domain"
	DefaultReservedValue = "{uid}"
)

// Validate reports every fault of the configuration.
func (c Config) Validate() error {
	var errs []error
	if !deploymentPattern.MatchString(c.Deployment) {
		errs = append(errs, errors.New("deployment: must be 1 to 32 characters of a-z 0-9 -"))
	}
	for name, arn := range map[string]string{"registrar_role": c.RegistrarRole, "worker_role": c.WorkerRole} {
		if !roleARNPattern.MatchString(arn) {
			errs = append(errs, fmt.Errorf("%s: must be the ARN of an IAM role", name))
		}
	}
	if c.RegistrarRole == c.WorkerRole {
		errs = append(errs, errors.New("worker_role: must differ from registrar_role"))
	}
	if !contextKeyPattern.MatchString(c.ReservedKey) {
		errs = append(errs, errors.New("reserved_key: must be a legal encryption context key"))
	}
	if !strings.Contains(c.ReservedValue, "{uid}") {
		errs = append(errs, errors.New("reserved_value: must contain {uid}"))
	}
	for _, a := range c.GranteeAccounts {
		if !accountPattern.MatchString(a) {
			errs = append(errs, fmt.Errorf("grantee_accounts: %q is not an account id of 12 digits", a))
		}
	}
	if c.NewID == nil || c.NewUID == nil {
		errs = append(errs, errors.New("NewID and NewUID: must be set"))
	}
	return errors.Join(errs...)
}

// Broker holds the use cases. It is safe for concurrent use and keeps no state
// of its own: the store is the truth.
type Broker struct {
	cfg       Config
	store     Store
	registrar Registrar
	worker    Worker
}

// New wires the use cases to their ports and starts nothing.
func New(cfg Config, store Store, registrar Registrar, worker Worker) (*Broker, error) {
	if cfg.ReservedKey == "" {
		cfg.ReservedKey = DefaultReservedKey
	}
	if cfg.ReservedValue == "" {
		cfg.ReservedValue = DefaultReservedValue
	}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.At == nil {
		cfg.At = func(string) {}
	}
	return &Broker{cfg: cfg, store: store, registrar: registrar, worker: worker}, nil
}

// Windows gives the announced waits.
func (b *Broker) Windows() Windows { return b.cfg.Windows }
