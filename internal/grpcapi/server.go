package grpcapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"buf.build/go/protovalidate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

// Domains is what DomainService needs of the broker.
type Domains interface {
	CreateDomain(ctx context.Context, caller broker.Caller, in broker.NewDomain) (broker.Domain, []broker.DomainKey, error)
	GetDomain(ctx context.Context, caller broker.Caller, id broker.DomainID) (broker.Domain, []broker.DomainKey, error)
	ListDomains(ctx context.Context, caller broker.Caller, after broker.DomainID, limit int) ([]broker.Domain, [][]broker.DomainKey, error)
	UpdateDomain(ctx context.Context, caller broker.Caller, in broker.DomainUpdate) (broker.Domain, []broker.DomainKey, error)
	GenerateKeyPolicy(ctx context.Context, caller broker.Caller, in broker.KeyPolicyRequest) (broker.KeyPolicy, error)
}

// Grants is what GrantService needs of the broker.
type Grants interface {
	CreateGrant(ctx context.Context, caller broker.Caller, in broker.NewGrant) (broker.GrantView, error)
	GetGrant(ctx context.Context, caller broker.Caller, id broker.DomainID, grant broker.GrantID) (broker.GrantView, error)
	// ListGrants gives up to limit grants of a domain, or of all for "-".
	ListGrants(ctx context.Context, caller broker.Caller, id broker.DomainID, after broker.GrantCursor, limit int) ([]broker.GrantView, error)
	RenewGrant(ctx context.Context, caller broker.Caller, in broker.RenewGrant) (broker.GrantView, error)
	RevokeGrant(ctx context.Context, caller broker.Caller, in broker.RevokeGrant) (broker.GrantView, error)
}

// DataKeys is what DataKeyService needs of the broker.
type DataKeys interface {
	CreateDataKey(ctx context.Context, caller broker.Caller, in broker.NewDataKey) (broker.DataKeyView, error)
	GetDataKey(ctx context.Context, caller broker.Caller, id broker.DomainID, key broker.DataKeyID) (broker.DataKeyView, error)
	BatchGetDataKeys(ctx context.Context, caller broker.Caller, id broker.DomainID, keys []broker.DataKeyID) ([]broker.DataKeyView, error)
	ListDataKeys(ctx context.Context, caller broker.Caller, id broker.DomainID, after broker.DataKeyCursor, limit int) ([]broker.DataKeyView, error)
	DeleteDataKey(ctx context.Context, caller broker.Caller, r broker.Request, id broker.DomainID, key broker.DataKeyID, etag string) error
	ImportDataKeys(ctx context.Context, caller broker.Caller, in broker.ImportDataKeys) ([]broker.ImportResult, error)
}

// Broker is every use case that is not about jobs; *broker.Broker has them.
type Broker interface {
	Domains
	Grants
	DataKeys
}

// Jobs is what the door needs of the engine that changes keys; *rotation.Engine
// has it.
type Jobs interface {
	DeleteDomain(ctx context.Context, caller broker.Caller, in rotation.DeleteDomain) error
	PlanKeyChange(ctx context.Context, caller broker.Caller, d broker.DomainID, kmsKey string) (rotation.KeyChangePlan, error)
	ChangeKey(ctx context.Context, caller broker.Caller, in rotation.ChangeKey) (rotation.JobView, error)
	CreateJob(ctx context.Context, caller broker.Caller, in rotation.NewJob) (rotation.JobView, error)
	PauseJob(ctx context.Context, caller broker.Caller, in rotation.JobAct) (rotation.JobView, error)
	ResumeJob(ctx context.Context, caller broker.Caller, in rotation.JobAct) (rotation.JobView, error)
	CancelJob(ctx context.Context, caller broker.Caller, in rotation.JobAct) (rotation.JobView, error)
	ListFailures(ctx context.Context, caller broker.Caller, d broker.DomainID, job broker.JobID, after broker.DataKeyID, limit int) ([]rotation.Failure, error)
	AcknowledgeFailures(ctx context.Context, caller broker.Caller, in rotation.Acknowledge) (int, error)
	GetJob(ctx context.Context, caller broker.Caller, d broker.DomainID, id broker.JobID) (rotation.JobView, error)
	ListJobs(ctx context.Context, caller broker.Caller, d broker.DomainID, after rotation.JobCursor, limit int) ([]rotation.JobView, error)
	WatchJob(ctx context.Context, caller broker.Caller, d broker.DomainID, id broker.JobID, send func(v rotation.JobView, heartbeat bool) error) error
	// OpenJob gives the domain's newest key change that is not final, nor being taken
	// back; "" if there is none.
	OpenJob(ctx context.Context, d broker.DomainUID) (broker.JobID, error)
	RetirementReport(ctx context.Context, caller broker.Caller, d broker.DomainID, id broker.JobID) (rotation.Report, error)
	OverrideSelfInventory(ctx context.Context, caller broker.Caller, in rotation.OverrideInventory) (rotation.SelfInventory, error)
	Passes
}

// Passes is what ReencryptStream needs of the engine.
type Passes interface {
	OpenPass(ctx context.Context, caller broker.Caller, in rotation.OpenPass) (rotation.PassView, error)
	// ReencryptItems gives one receipt per item, in order.
	ReencryptItems(ctx context.Context, caller broker.Caller, pass rotation.Pass, items []rotation.PassItem) ([]rotation.Receipt, error)
	Attest(ctx context.Context, caller broker.Caller, pass rotation.Pass, givenUp int64) ([]rotation.SelfInventory, error)
}

var (
	_ Broker = (*broker.Broker)(nil)
	_ Jobs   = (*rotation.Engine)(nil)
)

// Config is the door's own part of the rules.
type Config struct {
	// Logger gets one line per call. Required.
	Logger *slog.Logger
	// Now is the process clock: durations, deadlines, the age of page tokens.
	// Required.
	Now func() time.Time
	// NewID mints the id that finds a call in the log. Required.
	NewID func() string
	// PageTokenKey seals page and resume tokens, and the proofs of receipts are
	// made with it: 32 bytes, the same on every replica. Required.
	PageTokenKey []byte
	// CallerFunc says who calls. Default: PeerCaller.
	CallerFunc func(ctx context.Context) broker.Caller
	// ServerOptions go to the gRPC server after the door's own: credentials, and
	// the stats handler of OpenTelemetry.
	ServerOptions []grpc.ServerOption
}

func (c Config) validate() error {
	var errs []error
	if c.Logger == nil || c.Now == nil || c.NewID == nil {
		errs = append(errs, errors.New("grpcapi: Logger, Now and NewID must be set"))
	}
	if len(c.PageTokenKey) != tokenKeySize {
		errs = append(errs, fmt.Errorf("grpcapi: PageTokenKey must have %d bytes", tokenKeySize))
	}
	return errors.Join(errs...)
}

// What one peer may ask for before any call of it is looked at (T13).
const (
	maxStreams        = 100
	maxHeaderBytes    = 16 << 10
	connectionTimeout = 10 * time.Second
	minPing           = 30 * time.Second
	// A connection takes no new calls after maxAge, so that clients spread over new
	// replicas. It is closed when those it has are over, ageGrace later at the
	// latest: by then each of its streams has been told to call again (the API's
	// promise), since none lasts longer than maxStream.
	maxAge    = 30 * time.Minute
	maxStream = 30 * time.Minute
	ageGrace  = maxStream + time.Minute
)

// Server serves the API. It is safe for concurrent use.
type Server struct {
	cfg       Config
	validator protovalidate.Validator
	grpc      *grpc.Server
	health    *health.Server
	drain     chan struct{}
	drainOnce sync.Once
}

// New wires the door to the use cases and starts nothing.
func New(cfg Config, b Broker, jobs Jobs) (*Server, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if cfg.CallerFunc == nil {
		cfg.CallerFunc = PeerCaller
	}
	validator, err := protovalidate.New()
	if err != nil {
		return nil, fmt.Errorf("grpcapi: %w", err)
	}
	tokens, err := newSealer(cfg.PageTokenKey)
	if err != nil {
		return nil, fmt.Errorf("grpcapi: %w", err)
	}
	passes, err := newPassTokens(tokens, cfg.PageTokenKey)
	if err != nil {
		return nil, fmt.Errorf("grpcapi: %w", err)
	}
	pages := &pager{tokens: tokens, now: cfg.Now}
	s := &Server{cfg: cfg, validator: validator, health: health.NewServer(), drain: make(chan struct{})}
	s.grpc = grpc.NewServer(append([]grpc.ServerOption{
		grpc.ChainUnaryInterceptor(s.logUnary, mapUnary, s.recoverUnary, s.limitTime, s.admitUnary),
		grpc.ChainStreamInterceptor(s.logStream, mapStream, s.recoverStream, s.endInTime, s.admitStream),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.MaxRecvMsgSize(maxImportBytes),
		grpc.ConnectionTimeout(connectionTimeout),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minPing, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: maxAge, MaxConnectionAgeGrace: ageGrace}),
	}, cfg.ServerOptions...)...)

	keybrokerv1.RegisterDomainServiceServer(s.grpc, &domainService{domains: b, jobs: jobs, pages: pages, caller: cfg.CallerFunc})
	keybrokerv1.RegisterGrantServiceServer(s.grpc, &grantService{grants: b, pages: pages, caller: cfg.CallerFunc})
	keybrokerv1.RegisterDataKeyServiceServer(s.grpc, &dataKeyService{keys: b, passes: jobs, tokens: passes, pages: pages, caller: cfg.CallerFunc, log: cfg.Logger, panicked: s.panicked})
	keybrokerv1.RegisterReencryptionServiceServer(s.grpc, &reencryptionService{jobs: jobs, pages: pages, caller: cfg.CallerFunc})
	healthpb.RegisterHealthServer(s.grpc, s.health)
	reflection.RegisterV1(s.grpc)
	s.SetServing(true)
	return s, nil
}

// SetServing says by the health service, for the server as a whole ("") and for
// each service by name, whether calls are welcome. After Drain it does nothing.
func (s *Server) SetServing(ok bool) {
	status := healthpb.HealthCheckResponse_NOT_SERVING
	if ok {
		status = healthpb.HealthCheckResponse_SERVING
	}
	s.health.SetServingStatus("", status)
	for name := range s.grpc.GetServiceInfo() {
		s.health.SetServingStatus(name, status)
	}
}

// Serve accepts connections on lis until Shutdown, and then returns nil.
func (s *Server) Serve(lis net.Listener) error {
	return s.grpc.Serve(lis)
}

// Drain reports NOT_SERVING from now on and ends every open stream with
// SHUTTING_DOWN; unary calls go on.
func (s *Server) Drain() {
	s.drainOnce.Do(func() {
		s.health.Shutdown()
		close(s.drain)
	})
}

// Shutdown drains, lets the calls at work finish until ctx ends, and then cuts
// off what is left. It returns ctx's error if it had to.
func (s *Server) Shutdown(ctx context.Context) error {
	s.Drain()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.grpc.GracefulStop()
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		s.grpc.Stop()
		<-done
		return fmt.Errorf("calls were cut off: %w", ctx.Err())
	}
}
