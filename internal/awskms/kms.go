package awskms

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/pacer"
)

// KMS is both of broker's ports, in any number of Regions. It is safe for
// concurrent use.
type KMS struct {
	cfg       Config
	class     pacer.Class
	guard     guard
	transport http.RoundTripper
	// The broker's two roles.
	registrar, worker *role

	regions atomic.Pointer[map[string]*region] // copied on write
	mu      sync.Mutex                         // held to write regions
}

var (
	_ broker.Registrar = (*KMS)(nil)
	_ broker.Worker    = (*KMS)(nil)
)

// A region is one Region's KMS in our two roles.
type region struct {
	name              string // in budgets
	registrar, worker *kms.Client
}

// maxRegions bounds what is kept for Regions; AWS has about 40. A key ARN may
// name a Region that does not exist.
const maxRegions = 64

// New makes the adapter for calls of one class and starts nothing. It fails with
// every fault of the configuration.
func New(cfg Config, class pacer.Class) (*KMS, error) {
	cfg = cfg.withDefaults(class)
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("configure KMS: %w", err)
	}
	k := &KMS{
		cfg:       cfg,
		class:     class,
		guard:     newGuard(cfg.ReservedKey, cfg.ReservedValue),
		transport: cfg.Transport,
		registrar: &role{name: "registrar", from: cfg.Registrar, log: cfg.Logger},
		worker:    &role{name: "worker", from: cfg.Worker, log: cfg.Logger},
	}
	if k.transport == nil {
		k.transport = newTransport(cfg.MaxConnections, cfg.CallTimeout/time.Duration(cfg.MaxAttempts))
	}
	k.regions.Store(&map[string]*region{})
	return k, nil
}

// Close gives up the connections that are idle.
func (k *KMS) Close() {
	if t, ok := k.transport.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
}

// regionOf gives the Region that a key identifier leads to, made when first
// asked for; ok is false for one that may not be called.
func (k *KMS) regionOf(key string) (*region, bool) {
	name := k.cfg.Region
	if strings.HasPrefix(key, "arn:") {
		name = parseARN(key).region
	}
	if r, known := (*k.regions.Load())[name]; known {
		return r, true
	}
	if !isRegion(name) || (len(k.cfg.Regions) > 0 && !slices.Contains(k.cfg.Regions, name)) {
		return nil, false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	known := *k.regions.Load()
	if r, made := known[name]; made {
		return r, true
	}
	r := &region{
		name:      otherRegions,
		registrar: newClient(&k.cfg, name, k.registrar, k.transport),
		worker:    newClient(&k.cfg, name, k.worker, k.transport),
	}
	if len(known) < maxRegions {
		grown := maps.Clone(known)
		r.name = name
		grown[name] = r
		k.regions.Store(&grown)
	}
	return r, true
}

// arn is what routing and spans need of an ARN: arn:partition:kms:region:account:…
type arn struct {
	region, account string
}

// parseARN reads an ARN without checking it: that was done where it came in.
func parseARN(s string) arn {
	var parts [5]string
	for i := range parts {
		part, rest, found := strings.Cut(s, ":")
		if !found {
			return arn{}
		}
		parts[i], s = part, rest
	}
	return arn{region: parts[3], account: parts[4]}
}

// isRegion keeps anything out of a host name that is not one DNS label in the
// form of a Region's name (T19).
func isRegion(s string) bool {
	if len(s) < 3 || len(s) > 32 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}
