//go:build unix

package chaos_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/smithy-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keybroker/keybroker/internal/brokertest"
	"github.com/keybroker/keybroker/internal/localkms"
	"github.com/keybroker/keybroker/test/chaos/devserver"
)

const replicas = 3

// A cluster is a PostgreSQL with a standby, a KMS and some replicas of the
// broker, each a process of its own.
type cluster struct {
	dir, log string
	bin      string
	fail     context.CancelCauseFunc // ends the test: nobody killed a member, and it is dead
	pair     *brokertest.PostgresPair
	kms      *devserver.Server
	profiles string        // path of the file with the customer and the service's user
	service  aws.Config    // the service's role, which unwraps by grants
	turn     atomic.Uint64 // spreads the calls

	mu      sync.Mutex
	members [replicas]*running
}

func startCluster(ctx context.Context, dir, bin string, fail context.CancelCauseFunc) (*cluster, error) {
	c := &cluster{dir: dir, bin: bin, log: filepath.Join(dir, "broker.log"), fail: fail}
	err := c.start(ctx)
	if err != nil {
		err = errors.Join(err, c.close())
	}
	return c, err
}

func (c *cluster) start(ctx context.Context) (err error) {
	if c.pair, err = brokertest.StartPostgresPair(ctx); err != nil {
		return err
	}
	if err := os.WriteFile(c.urlFile(), []byte(c.pair.URL()+"\n"), 0o600); err != nil {
		return err
	}
	if err := c.startKMS(ctx); err != nil {
		return err
	}
	if err := writeJSON(c.configFile(), c.replicaConfig()); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, c.bin, "migrate", "--config", c.configFile()).CombinedOutput(); err != nil {
		return fmt.Errorf("broker migrate: %w\n%s", err, out)
	}
	for i := range c.members {
		if err := c.startReplica(ctx, i, 0); err != nil {
			return err
		}
	}
	return nil
}

func (c *cluster) urlFile() string    { return filepath.Join(c.dir, "database-url") }
func (c *cluster) configFile() string { return filepath.Join(c.dir, "keybroker.json") }

// startReplica starts one whose clock is off by some time.
func (c *cluster) startReplica(ctx context.Context, i int, clock time.Duration) error {
	server, err := c.spawn(clock)
	if err != nil {
		return err
	}
	r := &running{Server: server, down: make(chan struct{}), wrote: make(chan struct{}), http: &http.Transport{}}
	if err := server.Ready(ctx); err != nil {
		return errors.Join(err, server.Kill())
	}
	if err := r.connect(ctx, c.profiles); err != nil {
		return errors.Join(err, server.Kill())
	}
	r.service = r.kmsClient(c.service)
	go func() {
		<-server.Done()
		if !r.isDown() {
			c.fail(fmt.Errorf("a replica ended by itself: %w", server.Err()))
		}
	}()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.members[i] = r
	return nil
}

// member is a replica as it was started last, dead or alive.
func (c *cluster) member(i int) *running {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.members[i]
}

// kill ends a replica as kill -9 does.
func (c *cluster) kill(i int) error {
	r := c.member(i)
	r.expectHarm()
	return errors.Join(r.Kill(), r.buried())
}

// setFaults tells the KMS what to do worse than it could.
func (c *cluster) setFaults(ctx context.Context, faults localkms.Faults) error {
	text, err := json.Marshal(faults)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPut, c.kms.API+"/faults", strings.NewReader(string(text)))
	if err != nil {
		return err
	}
	transport := &http.Transport{DisableKeepAlives: true}
	answer, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("the KMS refuses the faults %s: %s", text, answer.Status)
	}
	return nil
}

// attemptTime is how long a client waits for one replica: one that is stopped
// never answers.
const attemptTime = 2 * time.Second

// up gives a replica that is not known to be dead, each in turn.
func (c *cluster) up(ctx context.Context) (*running, error) {
	for {
		if r := c.member(int(c.turn.Add(1) % replicas)); !r.isDown() {
			return r, nil
		}
		if err := wait(ctx, 5*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

// attempt makes a call to one of them.
func (c *cluster) attempt(ctx context.Context, call func(context.Context, *running) error) error {
	r, err := c.up(ctx)
	if err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, attemptTime)
	defer cancel()
	return call(limited, r)
}

// try makes a call once.
func (c *cluster) try(ctx context.Context, call func(context.Context, *running) error) error {
	err := c.attempt(ctx, call)
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if _, again := again(err); again {
		return errNoAnswer
	}
	return err
}

// do repeats a call until its outcome is known, each time on another replica.
func (c *cluster) do(ctx context.Context, call func(context.Context, *running) error) (unknown int, err error) {
	for {
		err := c.attempt(ctx, call)
		if err == nil {
			return unknown, nil
		}
		if ctx.Err() != nil {
			return unknown, context.Cause(ctx)
		}
		answered, repeat := again(err)
		if !repeat {
			return unknown, err
		}
		if !answered {
			unknown++
		}
		// Another replica is asked, and not hammered.
		if err := wait(ctx, 20*time.Millisecond); err != nil {
			return unknown, err
		}
	}
}

// again reads from an error whether to repeat the call on another replica, as a
// client of this API does, or a client of KMS on a bad day.
func again(err error) (answered, repeat bool) {
	var refusal smithy.APIError
	if errors.As(err, &refusal) {
		switch refusal.ErrorCode() {
		case "ThrottlingException", "DisabledException", "KMSInternalException":
			return true, true
		}
		return true, false
	}
	if errors.As(err, new(*smithy.OperationError)) {
		return false, true // KMS's answer was lost, or its time was up
	}
	answer, ok := status.FromError(err)
	if !ok {
		return false, errors.Is(err, context.DeadlineExceeded)
	}
	switch answer.Code() {
	case codes.Unavailable, codes.ResourceExhausted:
		return len(answer.Details()) > 0, true
	case codes.DeadlineExceeded, codes.Canceled: // ours: the caller's own context is looked at before
		return false, true
	case codes.Aborted:
		return true, reasonOf(err) != "ETAG_MISMATCH"
	case codes.FailedPrecondition:
		return true, reasonOf(err) == "KEY_DISABLED"
	}
	return true, false
}

// close ends what is there, however far it got.
func (c *cluster) close() error {
	var errs []error
	for i := range c.members {
		if r := c.member(i); r != nil && !r.isDown() {
			errs = append(errs, c.kill(i))
		}
	}
	if c.kms != nil {
		errs = append(errs, c.kms.Kill())
	}
	if c.pair != nil {
		errs = append(errs, c.pair.Stop())
	}
	return errors.Join(errs...)
}
