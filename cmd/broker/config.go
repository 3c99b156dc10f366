package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/keybroker/keybroker/internal/awskms"
	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/pacer"
)

// Config is the configuration file of serve --config: JSON, in which an unknown
// field is an error. It holds no secrets.
type Config struct {
	// Listen is where the API is served: a loopback host:port, or unix:PATH.
	// Default 127.0.0.1:8443.
	Listen string `json:"listen"`
	// Admin is where metrics, health and profiles are served: a loopback
	// host:port, or "off". Default 127.0.0.1:8445.
	Admin string `json:"admin"`
	// Database is an SQLite file, on a local disk, for one process. Either this or
	// DatabaseURLFile is required.
	Database string `json:"database"`
	// DatabaseURLFile is a file that holds the URL of a PostgreSQL database, with
	// its password: postgres://…, one line. broker migrate makes its schema.
	DatabaseURLFile string `json:"database_url_file"`
	// Roles are what this process does: "api" answers calls, "worker" works on
	// jobs and sweeps. Default: both.
	Roles []string `json:"roles"`
	// LogLevel is debug, info, warn or error. Default info.
	LogLevel string `json:"log_level"`

	// Deployment is this installation's name, 1 to 32 of [a-z0-9-]. It stands in
	// each KMS grant's Name: two deployments never share one. Required.
	Deployment string `json:"deployment"`
	// RegistrarRole and WorkerRole are the broker's two IAM roles, as ARNs. They
	// are assumed with the credentials that the AWS SDK finds. Required.
	RegistrarRole string `json:"registrar_role"`
	WorkerRole    string `json:"worker_role"`
	// AWSProfile is the profile in the SDK's files to assume the roles with.
	// Default: what the SDK finds by itself.
	AWSProfile string `json:"aws_profile"`
	// AWSRegion is the Region whose STS is asked for the roles. Required.
	AWSRegion string `json:"aws_region"`
	// Regions are the Regions whose KMS may be called. Default: any.
	Regions []string `json:"regions"`
	// KMSEndpoint is the URL of every Region's KMS. Default: AWS's own.
	KMSEndpoint string `json:"kms_endpoint"`
	// FIPS chooses AWS's FIPS endpoints, of KMS and of STS. Not every Region has
	// one of STS: AWSRegion must.
	FIPS bool `json:"fips"`
	// KMSBudget is how much of KMS's request quota the broker may use.
	KMSBudget KMSBudget `json:"kms_budget"`

	// Reencryption is how much of the machine and of KMS a process puts to work for
	// key changes.
	Reencryption Reencryption `json:"reencryption"`

	// Restored says that the database comes from a backup: the sweep of orphans
	// stays off, since such a database knows nothing of the grants made since.
	// Remove it once kms:ListGrants on the keys has been compared.
	Restored bool `json:"restored"`

	// GranteeAccounts are the accounts whose roles may be grantees.
	GranteeAccounts []string `json:"grantee_accounts"`
	// OneAccountMayBeBroad lets a key of the broker's own account have a policy
	// that is broader than ours.
	OneAccountMayBeBroad bool `json:"one_account_may_be_broad"`
	// ReservedKey is the key of the reserved pair, ReservedValue the template of its
	// value: {uid} and {region} are replaced. Neither may change once there is a
	// domain. Default keybroker:domain and {uid}.
	ReservedKey   string `json:"reserved_key"`
	ReservedValue string `json:"reserved_value"`
	// Windows are the announced waits of a key change.
	Windows Windows `json:"windows"`
}

// KMSBudget says what KMS allows the broker's account, and how much of it the
// broker may use. All replicas of a deployment have the same.
type KMSBudget struct {
	// RequestsPerSecond is the quota of symmetric cryptographic operations, by
	// Region (Service Quotas, L-6E3AF000). Default: what AWS gives every account.
	RequestsPerSecond map[string]float64 `json:"requests_per_second"`
	// Share is the part of any quota beyond which re-encryption waits, so that
	// something is left to others in the account; above 0, at most 1. Calls that
	// somebody waits for never wait. Default 0.9.
	Share *float64 `json:"share"`
	// Floor is the calls a second that re-encryption gets although other calls
	// use the share up. Default 5.
	Floor *float64 `json:"floor"`
}

// Reencryption sizes the engine of one process. What it may ask of KMS a second is
// KMSBudget's.
type Reencryption struct {
	// Workers is how many shards, of all jobs, this process works on at a time, 1 to
	// 64. Default 4.
	Workers *int `json:"workers"`
	// CallsPerWorker is how many rows of a shard are at KMS at a time, 1 to 256.
	// Default 16. Workers times this is bounded by 4,096; a crash repeats at most two
	// batches of each worker.
	CallsPerWorker *int `json:"calls_per_worker"`
	// Shards is how many ranges a large job is cut into, 1 to 1,024, and so how many
	// workers of all processes may work on one job. Default 16.
	Shards *int `json:"shards"`
}

// Windows are the announced waits; see broker.Windows. Absent ones take their
// defaults: 5m, 1h, 15m and 0s.
type Windows struct {
	GrantVisibility *Duration `json:"grant_visibility"`
	MaxStoreDelay   *Duration `json:"max_store_delay"`
	MaxReadDelay    *Duration `json:"max_read_delay"`
	BackupRetention *Duration `json:"backup_retention"`
}

// Duration is written as in "90s" or "1h30m".
type Duration time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	if err != nil || parsed < 0 {
		return fmt.Errorf("%q is no duration such as 90s or 1h30m", text)
	}
	*d = Duration(parsed)
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// The defaults of addresses, also under --dev.
const (
	defaultListen    = "127.0.0.1:8443"
	defaultKMSListen = "127.0.0.1:8444"
	defaultAdmin     = "127.0.0.1:8445"
	adminOff         = "off"
)

// readConfig reads a file, puts in what the command line says otherwise, and fills
// in defaults. It reports every fault.
func readConfig(path string, overrides ...func(*Config)) (Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return Config{}, err
	}
	defer f.Close() //nolint:errcheck // it was only read
	var c Config
	decoder := json.NewDecoder(f)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&c); err != nil {
		return Config{}, fmt.Errorf("%s: %w", path, err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return Config{}, fmt.Errorf("%s: something follows the configuration", path)
	}
	for _, override := range overrides {
		override(&c)
	}
	c.setDefaults()
	if err := c.Validate(); err != nil {
		return Config{}, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

func (c *Config) setDefaults() {
	text := func(field *string, value string) {
		if *field == "" {
			*field = value
		}
	}
	text(&c.Listen, defaultListen)
	text(&c.Admin, defaultAdmin)
	text(&c.LogLevel, "info")
	if c.Roles == nil {
		c.Roles = []string{roleAPI, roleWorker}
	}
	text(&c.ReservedKey, broker.DefaultReservedKey)
	text(&c.ReservedValue, broker.DefaultReservedValue)
	setDefault(&c.KMSBudget.Share, 0.9)
	setDefault(&c.KMSBudget.Floor, 5)
	setDefault(&c.Reencryption.Workers, 4)
	setDefault(&c.Reencryption.CallsPerWorker, 16)
	setDefault(&c.Reencryption.Shards, 16)
	standard := broker.DefaultWindows()
	setDefault(&c.Windows.GrantVisibility, Duration(standard.GrantVisibility))
	setDefault(&c.Windows.MaxStoreDelay, Duration(standard.MaxStoreDelay))
	setDefault(&c.Windows.MaxReadDelay, Duration(standard.MaxReadDelay))
	setDefault(&c.Windows.BackupRetention, Duration(standard.BackupRetention))
}

// setDefault fills in a field that is absent, which is not the same as zero.
func setDefault[T any](field **T, value T) {
	if *field == nil {
		*field = &value
	}
}

var regionPattern = regexp.MustCompile(`^[a-z]{2,4}(-[a-z]{2,12}){1,3}-[0-9]{1,2}$`)

// Validate reports every fault of a configuration that has its defaults.
func (c Config) Validate() error {
	var faults []error
	refuse := func(bad bool, format string, args ...any) {
		if bad {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	}
	faults = append(faults, checkAddress("listen", c.Listen, true))
	if c.Admin != adminOff {
		faults = append(faults, checkAddress("admin", c.Admin, false))
	}
	refuse(c.Database == "" && c.DatabaseURLFile == "", "database: must name an SQLite file, or database_url_file a file with the URL of a PostgreSQL database")
	refuse(c.Database != "" && c.DatabaseURLFile != "", "database: does not go with database_url_file: there is one database")
	refuse(isURL(c.Database), "database: must be the path of an SQLite file: put the URL of a PostgreSQL database into a file, and name that in database_url_file")
	refuse(isURL(c.DatabaseURLFile), "database_url_file: must be the path of a file that holds the URL: the URL itself has a password")
	r, err := parseRoles(c.Roles)
	if err == nil {
		err = r.check(c.database(), c.Admin)
	}
	faults = append(faults, err)
	_, err = c.level()
	refuse(err != nil, "log_level: must be debug, info, warn or error")
	refuse(!regionPattern.MatchString(c.AWSRegion), "aws_region: must be a Region such as us-east-1")
	for _, r := range c.Regions {
		refuse(!regionPattern.MatchString(r), "regions: %q is no Region", r)
	}
	if c.KMSEndpoint != "" {
		u, err := url.Parse(c.KMSEndpoint)
		refuse(err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http"), "kms_endpoint: must be an http or https URL")
		refuse(err == nil && u.User != nil, "kms_endpoint: must not hold a password")
		refuse(err == nil && u.Scheme == "http" && checkAddress("", hostPort(u), false) != nil, "kms_endpoint: must be https beyond loopback")
		refuse(c.FIPS, "fips: does not go with kms_endpoint")
	}
	for region, quota := range c.KMSBudget.RequestsPerSecond {
		refuse(!regionPattern.MatchString(region), "kms_budget.requests_per_second: %q is no Region", region)
		refuse(!(quota >= 1), "kms_budget.requests_per_second: %s must be at least 1", region)
	}
	refuse(!(*c.KMSBudget.Share > 0 && *c.KMSBudget.Share <= 1), "kms_budget.share: must be above 0 and at most 1")
	refuse(!(*c.KMSBudget.Floor > 0 && *c.KMSBudget.Floor <= 1000), "kms_budget.floor: must be above 0 and at most 1000")
	re := c.Reencryption
	refuse(*re.Workers < 1 || *re.Workers > 64, "reencryption.workers: must be from 1 to 64")
	refuse(*re.CallsPerWorker < 1 || *re.CallsPerWorker > 256, "reencryption.calls_per_worker: must be from 1 to 256")
	refuse(*re.Workers**re.CallsPerWorker > 4096, "reencryption: workers times calls_per_worker must be at most 4096")
	refuse(*re.Shards < 1 || *re.Shards > 1024, "reencryption.shards: must be from 1 to 1024")
	// The rest is the broker's own part; only the ids are not configuration.
	b := c.broker()
	b.NewID, b.NewUID = func() string { return "" }, func() string { return "" }
	faults = append(faults, b.Validate())
	return errors.Join(faults...)
}

// isURL tells a URL that was put where a path belongs.
func isURL(text string) bool { return strings.Contains(text, "://") }

func (c Config) database() database { return database{path: c.Database, urlFile: c.DatabaseURLFile} }

func hostPort(u *url.URL) string {
	if u.Port() == "" {
		return u.Host + ":80"
	}
	return u.Host
}

func (c Config) level() (level slog.Level, err error) {
	err = level.UnmarshalText([]byte(c.LogLevel))
	return level, err
}

// broker is the part of the configuration that the use cases have rules for.
func (c Config) broker() broker.Config {
	return broker.Config{
		Deployment: c.Deployment, RegistrarRole: c.RegistrarRole, WorkerRole: c.WorkerRole,
		ReservedKey: c.ReservedKey, ReservedValue: c.ReservedValue, GranteeAccounts: c.GranteeAccounts,
		KMSCallTimeout: kmsCallTimeout, SweepOrphans: !c.Restored,
		Windows: broker.Windows{
			GrantVisibility: time.Duration(*c.Windows.GrantVisibility), MaxStoreDelay: time.Duration(*c.Windows.MaxStoreDelay),
			MaxReadDelay: time.Duration(*c.Windows.MaxReadDelay), BackupRetention: time.Duration(*c.Windows.BackupRetention),
		},
	}
}

// pace is the pacer's part of the configuration.
func (c Config) pace() pacer.Config {
	return pacer.Config{
		InFlight: c.callsAtATime(),
		Ceiling:  *c.KMSBudget.Share, Floor: *c.KMSBudget.Floor,
		Quota: func(b pacer.Budget) float64 {
			if quota, set := c.KMSBudget.RequestsPerSecond[b.Region]; set && b.Quota == awskms.Symmetric {
				return quota
			}
			return awskms.DefaultQuota(b)
		},
	}
}

// callsAtATime is how many calls of key changes may be at KMS, and so how many
// connections are kept; at least the 256 that callers may need.
func (c Config) callsAtATime() int {
	return max(256, *c.Reencryption.Workers**c.Reencryption.CallsPerWorker)
}

// assumeRoles is the part of the configuration that says who the broker is.
func (c Config) assumeRoles() awskms.AssumeRoles {
	return awskms.AssumeRoles{
		RegistrarRole: c.RegistrarRole, WorkerRole: c.WorkerRole, SessionName: "keybroker-" + c.Deployment,
		Region: c.AWSRegion, FIPS: c.FIPS, Profile: c.AWSProfile,
	}
}

// checkConfig is broker check-config.
func (c command) checkConfig() error {
	set := c.flags("check-config")
	path := set.String("config", "", "the configuration `file` to check")
	if err := c.parse(set); err != nil {
		return err
	}
	if *path == "" {
		return usagef("--config: name the configuration file to check")
	}
	config, err := readConfig(*path)
	if err != nil {
		return fmt.Errorf("--config: %w", err)
	}
	// There is nothing to redact: Config holds no secrets, and Validate keeps
	// passwords out of its URL.
	encoder := json.NewEncoder(c.stdout)
	encoder.SetIndent("", "  ")
	return encoder.Encode(config)
}
