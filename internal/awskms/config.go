package awskms

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"go.opentelemetry.io/otel/trace"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/pacer"
)

// Config says where KMS is and how to call it. Registrar, Worker, ReservedKey,
// ReservedValue and Pacer are needed, and Jitter where calls are tried more than once.
type Config struct {
	// Registrar and Worker are the credentials of the broker's two roles. They are
	// asked for at each call, so they should remember, as aws.CredentialsCache does.
	Registrar, Worker aws.CredentialsProvider

	// RegistrarAccount and WorkerAccount are the accounts of the two roles, which
	// the Pacer charges their calls to. Empty where nobody tells accounts apart.
	RegistrarAccount, WorkerAccount string

	// ReservedKey and ReservedValue are the key and the value's template of the
	// deployment's reserved pair, as in broker.Config: {uid} stands for the uid of a
	// domain, {region} for the Region of the key.
	ReservedKey, ReservedValue string
	// PanicOnGuard makes a call that lacks the reserved pair panic, for tests.
	// Otherwise it is refused with the class INVALID_REQUEST.
	PanicOnGuard bool

	// BaseEndpoint is the URL of every Region's KMS, for localkms and the like.
	// Empty means AWS's own endpoint of the key's Region.
	BaseEndpoint string
	// FIPS chooses AWS's FIPS endpoints, where BaseEndpoint is empty.
	FIPS bool
	// Region is where a key identifier that names no Region is looked up: only
	// DescribeKey takes those. Empty refuses them.
	Region string
	// Regions are the Regions that may be called; empty allows any. A key of
	// another is refused with the class INVALID_REQUEST, and nothing is sent.
	Regions []string

	// Transport carries the requests. Nil means our own, which keeps up to
	// MaxConnections connections to each host, uses no proxy and follows no
	// redirect. Tests hand in localkms's handler, without a socket.
	Transport http.RoundTripper
	// MaxConnections should be the number of calls that may be under way at
	// once; 0 means 256, the Pacer's own default.
	MaxConnections int

	// CallTimeout bounds one call (of ListGrants: one page); 0 means 10 s. In the
	// Foreground class that is with its repetitions and its wait for the Pacer, and
	// it is broker.Config.KMSCallTimeout. In the Background class it is each
	// attempt, without its wait: bulk work waits as long as its budget asks for.
	CallTimeout time.Duration
	// MaxAttempts is how often a call is tried that KMS throttles or does not
	// answer; 0 means 3 in the Foreground class and 1 in the Background class.
	MaxAttempts int
	// Jitter gives a number in [0,1), for the waits between attempts. It is
	// called by several goroutines at once.
	Jitter func() float64
	// Sleep waits, or fails with the context's error when that ends first. Nil
	// means a timer.
	Sleep func(ctx context.Context, d time.Duration) error

	// Pacer admits every attempt and learns what became of it. Adapters of both
	// classes share one.
	Pacer *pacer.Pacer

	// Observe is told of every attempt and of every refusal by the guard, by
	// several goroutines at once. The class is empty where KMS said yes; d is
	// without the wait for the Pacer. Nil tells nobody; else Now must be set.
	Observe func(operation string, class broker.KMSClass, d time.Duration)
	// Now tells the time, for Observe only.
	Now func() time.Time

	// Logger is told when there are no credentials for a role, and when there are
	// again. Nil tells nobody.
	Logger *slog.Logger

	// Tracer makes one span per call, with the Region and account of its keys.
	// Nil makes none.
	Tracer trace.Tracer
}

const (
	defaultConnections = 256
	defaultTimeout     = 10 * time.Second
	// foregroundAttempts is the number that AWS's SDKs use (AWS SDKs and Tools
	// Reference Guide, Retry behavior, standard mode).
	foregroundAttempts = 3
)

func (c Config) withDefaults(class pacer.Class) Config {
	if c.MaxConnections == 0 {
		c.MaxConnections = defaultConnections
	}
	if c.CallTimeout == 0 {
		c.CallTimeout = defaultTimeout
	}
	if c.MaxAttempts == 0 {
		c.MaxAttempts = 1
		if class == pacer.Foreground {
			c.MaxAttempts = foregroundAttempts
		}
	}
	if c.Sleep == nil {
		c.Sleep = sleep
	}
	return c
}

// validate reports every fault.
func (c Config) validate() error {
	var errs []error
	refuse := func(bad bool, format string, args ...any) {
		if bad {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	refuse(c.Registrar == nil || c.Worker == nil, "Registrar and Worker: credentials must be set")
	refuse(c.ReservedKey == "", "ReservedKey: must be set")
	refuse(!strings.Contains(c.ReservedValue, uidPlaceholder), "ReservedValue: must contain %s", uidPlaceholder)
	refuse(c.Pacer == nil, "Pacer: must be set")
	refuse(c.MaxConnections < 0 || c.MaxAttempts < 0 || c.CallTimeout < 0, "MaxConnections, MaxAttempts, CallTimeout: must not be negative")
	refuse(c.MaxAttempts > 1 && c.Jitter == nil, "Jitter: must be set where calls are tried more than once")
	refuse(c.Observe != nil && c.Now == nil, "Now: must be set with Observe")
	refuse(c.Region != "" && !isRegion(c.Region), "Region: %q is no Region", c.Region)
	for _, r := range c.Regions {
		refuse(!isRegion(r), "Regions: %q is no Region", r)
	}
	if c.BaseEndpoint != "" {
		u, err := url.Parse(c.BaseEndpoint)
		refuse(err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https"),
			"BaseEndpoint: must be an http or https URL with a host")
	}
	return errors.Join(errs...)
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
