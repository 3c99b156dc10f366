//go:build unix

package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/smithy-go"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
	"github.com/keybroker/keybroker/test/chaos/devserver"
)

// A system is one data directory and the processes that have it one after the
// other. Its clients outlive each of them.
type system struct {
	bin, data, log string
	fail           context.CancelCauseFunc // ends the test: nobody killed it, and it is dead

	mu      sync.Mutex
	last    *devserver.Server // the last that was started, ready or not
	now     *running          // the last that was ready
	changed chan struct{}     // closed when now is another one
}

// running is one process with clients for it.
type running struct {
	*devserver.Server
	conn  *grpc.ClientConn
	http  *http.Transport
	armed bool          // it will kill itself
	down  chan struct{} // closed before harm is done to it, or after it did: its errors mean nothing any more
	harm  sync.Once     // closes down
	wrote chan struct{} // closed when it has acknowledged a write
	once  sync.Once
	// wroteAt is read after wrote.
	wroteAt time.Time

	domains  keybrokerv1.DomainServiceClient
	grants   keybrokerv1.GrantServiceClient
	dataKeys keybrokerv1.DataKeyServiceClient
	jobs     keybrokerv1.ReencryptionServiceClient
	customer *kms.Client
	service  *kms.Client
}

func newSystem(bin, dir string, fail context.CancelCauseFunc) *system {
	return &system{bin: bin, data: filepath.Join(dir, "data"), log: filepath.Join(dir, "broker.log"),
		fail: fail, changed: make(chan struct{})}
}

func (s *system) spawn(env ...string) (*devserver.Server, error) {
	server, err := devserver.Spawn(s.bin, s.data, s.log, env...)
	if err == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.last = server
	}
	return server, err
}

// start brings the system up, and tells everybody who waits for that. With an
// environment the process is one that kills itself, perhaps before it serves.
func (s *system) start(ctx context.Context, env ...string) (*running, error) {
	server, err := s.spawn(env...)
	if err != nil {
		return nil, err
	}
	r := &running{Server: server, armed: len(env) > 0, down: make(chan struct{}), wrote: make(chan struct{}), http: &http.Transport{}}
	if err := server.Ready(ctx); err != nil {
		if r.armed && ctx.Err() == nil && server.Killed() {
			r.expectHarm()
			return r, nil
		}
		return nil, err
	}
	if err := r.connect(ctx, server.AWSConfig); err != nil {
		return nil, err
	}
	go func() {
		<-server.Done()
		if r.armed && server.Killed() {
			r.expectHarm()
		}
		select {
		case <-r.down:
		default:
			s.fail(fmt.Errorf("the broker ended by itself: %w", server.Err()))
		}
	}()
	s.mu.Lock()
	s.now = r
	close(s.changed)
	s.changed = make(chan struct{})
	s.mu.Unlock()
	return r, nil
}

// connect makes the clients of a process that serves.
func (r *running) connect(ctx context.Context, profiles string) (err error) {
	if r.conn, err = grpc.NewClient(r.API, grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		return err
	}
	r.domains, r.grants = keybrokerv1.NewDomainServiceClient(r.conn), keybrokerv1.NewGrantServiceClient(r.conn)
	r.dataKeys, r.jobs = keybrokerv1.NewDataKeyServiceClient(r.conn), keybrokerv1.NewReencryptionServiceClient(r.conn)
	customer, err := awsProfile(ctx, profiles, "customer")
	if err != nil {
		return err
	}
	service, err := awsProfile(ctx, profiles, "service")
	r.customer, r.service = r.kmsClient(customer), r.kmsClient(service)
	return err
}

// kmsClient gives a client whose connections end with the process.
func (r *running) kmsClient(profile aws.Config) *kms.Client {
	return kms.NewFromConfig(profile, func(o *kms.Options) { o.HTTPClient = &http.Client{Transport: r.http} })
}

// awsProfile reads a profile of the file that the server writes for the aws CLI.
func awsProfile(ctx context.Context, file, profile string) (aws.Config, error) {
	return config.LoadDefaultConfig(ctx, config.WithSharedConfigFiles([]string{file}), config.WithSharedCredentialsFiles(nil),
		config.WithSharedConfigProfile(profile), config.WithRetryer(func() aws.Retryer { return aws.NopRetryer{} }))
}

// up waits for a process that is not known to be down.
func (s *system) up(ctx context.Context) (*running, error) {
	for {
		s.mu.Lock()
		r, changed := s.now, s.changed
		s.mu.Unlock()
		if r != nil && !r.isDown() {
			return r, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (r *running) isDown() bool {
	select {
	case <-r.down:
		return true
	default:
		return false
	}
}

// expectHarm says that whatever happens to the process from now on is our doing.
func (r *running) expectHarm() { r.harm.Do(func() { close(r.down) }) }

// endedItself reports, after an error, whether the process has killed itself:
// its clients may notice before we do.
func (r *running) endedItself(ctx context.Context) bool {
	if !r.armed {
		return false
	}
	t := time.NewTimer(2 * time.Second)
	defer t.Stop()
	select {
	case <-r.down:
	case <-t.C:
	case <-ctx.Done():
	}
	return r.isDown()
}

// buried closes what this test has of a process that has ended.
func (r *running) buried() error {
	r.http.CloseIdleConnections()
	if r.conn == nil { // it never served
		return nil
	}
	return r.conn.Close()
}

// acknowledgedWrite notes the first one.
func (r *running) acknowledgedWrite() {
	r.once.Do(func() {
		r.wroteAt = time.Now()
		close(r.wrote)
	})
}

// A caller reaches a system over all that is done to it.
type caller interface {
	// do repeats a call until its outcome is known. The call must be one that is
	// safe to repeat: it has a request_id, or changes nothing. It gives how many
	// attempts were left without an answer.
	do(ctx context.Context, call func(context.Context, *running) error) (unknown int, err error)
	// try makes a call once. Its error is errNoAnswer if the outcome is not known.
	try(ctx context.Context, call func(context.Context, *running) error) error
}

// errNoAnswer says that a call may have had its effect, or may have it still.
var errNoAnswer = errors.New("the call was left without an answer")

// try takes for no answer also what the broker itself asks to repeat.
func (s *system) try(ctx context.Context, call func(context.Context, *running) error) error {
	r, err := s.up(ctx)
	if err != nil {
		return err
	}
	err = call(ctx, r)
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if _, again := repeatAfter(err); again || r.isDown() || r.endedItself(ctx) {
		return errNoAnswer
	}
	return err
}

// do repeats a call until its outcome is known: on the next process if this one
// is harmed during the call, and where the broker asks for it.
func (s *system) do(ctx context.Context, call func(context.Context, *running) error) (unknown int, err error) {
	for {
		r, err := s.up(ctx)
		if err != nil {
			return unknown, err
		}
		err = call(ctx, r)
		switch {
		case err == nil:
			return unknown, nil
		case ctx.Err() != nil:
			return unknown, context.Cause(ctx)
		case r.isDown():
			unknown++
			continue
		}
		after, again := repeatAfter(err)
		if !again {
			if r.endedItself(ctx) {
				unknown++
				continue
			}
			return unknown, err
		}
		t := time.NewTimer(after)
		select {
		case <-t.C:
		case <-r.down:
			if unanswered(err) { // the call has noticed that before us
				unknown++
			}
		case <-ctx.Done():
		}
		t.Stop()
	}
}

// unanswered reports whether an error came of the connection: the broker's own
// have details.
func unanswered(err error) bool {
	answer, ok := status.FromError(err)
	return ok && answer.Code() == codes.Unavailable && len(answer.Details()) == 0
}

// repeatAfter reads from an answer whether and when to repeat the call, as any
// client of this API has to.
func repeatAfter(err error) (time.Duration, bool) {
	after := 100 * time.Millisecond
	var refusal smithy.APIError
	if errors.As(err, new(*smithy.OperationError)) && !errors.As(err, &refusal) {
		return after, true // of KMS: the connection was closed while it was idle
	}
	answer, ok := status.FromError(err)
	if !ok {
		return 0, false
	}
	reason := ""
	for _, detail := range answer.Details() {
		switch d := detail.(type) {
		case *errdetails.RetryInfo:
			after = d.GetRetryDelay().AsDuration()
		case *errdetails.ErrorInfo:
			reason = d.GetReason()
		}
	}
	switch answer.Code() {
	case codes.Unavailable, codes.ResourceExhausted:
		return after, true
	case codes.Aborted:
		return after, reason != "ETAG_MISMATCH"
	}
	return 0, false
}

// watch shows a job, as it is and after each change, until see is satisfied or
// the job has ended. It goes on over crashes.
func watch(ctx context.Context, sys caller, job string, see func(*running, *keybrokerv1.ReencryptionJob) bool) error {
	_, err := sys.do(ctx, func(ctx context.Context, r *running) error {
		ctx, cancel := context.WithCancel(ctx) // ends the stream on any way out
		defer cancel()
		stream, err := r.jobs.WatchReencryptionJob(ctx, &keybrokerv1.WatchReencryptionJobRequest{Name: job})
		if err != nil {
			return err
		}
		for {
			answer, err := stream.Recv()
			if err != nil {
				return err
			}
			j := answer.GetJob()
			if j != nil && (see(r, j) || final(j)) {
				return nil
			}
		}
	})
	return err
}

func final(j *keybrokerv1.ReencryptionJob) bool {
	switch j.GetState() {
	case keybrokerv1.ReencryptionJob_STATE_SUCCEEDED, keybrokerv1.ReencryptionJob_STATE_FAILED,
		keybrokerv1.ReencryptionJob_STATE_CANCELLED, keybrokerv1.ReencryptionJob_STATE_SUPERSEDED:
		return true
	}
	return false
}

// close ends what is still there, however the test went.
func (s *system) close() error {
	s.mu.Lock()
	last, now := s.last, s.now
	s.mu.Unlock()
	var errs []error
	if now != nil && !now.isDown() {
		now.expectHarm()
	}
	if last != nil {
		errs = append(errs, last.Kill())
	}
	if now != nil {
		errs = append(errs, now.buried())
	}
	return errors.Join(errs...)
}
