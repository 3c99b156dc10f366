package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"google.golang.org/grpc"

	"github.com/keybroker/keybroker/client"
	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

// The names that the run uses at the broker. They are fixed, so that a repeated
// call finds what an earlier one made.
const (
	domainID   = "demo"
	domainName = "domains/" + domainID
	grantID    = "orders"
)

// atATime is how many calls a stage has under way.
const atATime = 16

// run is one call of Run.
type run struct {
	cfg   Config
	st    state
	tally *tally
	story *story
	shelf shelf
	pace  pace
	acts  atomic.Int64

	conn     *grpc.ClientConn
	domains  keybrokerv1.DomainServiceClient
	grants   keybrokerv1.GrantServiceClient
	dataKeys keybrokerv1.DataKeyServiceClient
	jobs     keybrokerv1.ReencryptionServiceClient

	customer, legacy, service *kms.Client // KMS, in three roles
	sealer                    *client.Client
	tokens                    atomic.Pointer[grantTokens]
}

// Run takes the run in cfg.Data from where it stands to its end, tells what
// happens on cfg.Out, and ends with one line of JSON: the result. The error says
// what stopped it; the run goes on with the next call. A run that came to its
// end but is not clean has a result and no error: see Result.Err.
func Run(ctx context.Context, cfg Config) (Result, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if err := cfg.validate(); err != nil {
		return Result{}, err
	}
	r, err := newRun(cfg)
	if err != nil {
		return Result{}, err
	}
	defer r.close()
	keeping, stop := context.WithCancel(context.WithoutCancel(ctx))
	kept := make(chan error, 1)
	go func() { kept <- r.tally.keep(keeping) }()
	result, err := r.stages(ctx)
	stop()
	return result, errors.Join(err, <-kept, r.save())
}

func newRun(cfg Config) (*run, error) {
	st, err := loadState(cfg.Data)
	if err != nil {
		return nil, fmt.Errorf("there is no run in %s: %w", cfg.Data, err)
	}
	r := &run{cfg: cfg, st: st, story: newStory(cfg.Out, cfg.Terminal, cfg.Now)}
	if r.shelf, err = newShelf(cfg.Data); err != nil {
		return nil, err
	}
	if r.tally, err = newTally(cfg); err != nil {
		return nil, err
	}
	if r.conn, err = connect(cfg.Broker); err != nil {
		return nil, err
	}
	r.domains = keybrokerv1.NewDomainServiceClient(r.conn)
	r.grants = keybrokerv1.NewGrantServiceClient(r.conn)
	r.dataKeys = keybrokerv1.NewDataKeyServiceClient(r.conn)
	r.jobs = keybrokerv1.NewReencryptionServiceClient(r.conn)

	transport := cfg.Transport
	if transport == nil {
		transport = &http.Transport{MaxIdleConnsPerHost: 2 * atATime}
	}
	r.customer = newKMS(cfg, cfg.Customer, transport)
	r.legacy = newKMS(cfg, cfg.Legacy, transport)
	r.service = newKMS(cfg, cfg.Service, transport)
	r.pace = livelyPace()
	if st.Own.given() {
		r.pace = gentlePace()
	}
	if r.sealer, err = r.newSealer(); err != nil {
		return nil, errors.Join(err, r.conn.Close())
	}
	return r, nil
}

func (r *run) close() {
	r.sealer.Close()
	_ = r.conn.Close() // it only says that it was closed before
}

// stages does what is left to do, in order.
func (r *run) stages(ctx context.Context) (Result, error) {
	steps := []struct {
		stage Stage
		do    func(context.Context) error
	}{
		{StageDomain, r.makeDomain},
		{StageKeys, r.makeKeys},
		{StageOnboard, r.onboard},
		{StageFiles, r.sealFiles},
		{StageImport, r.importLegacy},
		{StageFill, r.fill},
		{StageChange, r.changeKey},
		{StageDisable, r.disableOldKey},
		{StageVerify, r.verifyAll},
		{StageLeave, r.leave},
	}
	r.story.title(r.cfg, r.st)
	switch r.st.Stage {
	case StageDomain, StageKeys, StageOnboard, StageLeave: // there is no grant
	default:
		if err := r.renewGrant(ctx); err != nil {
			return Result{}, err
		}
	}
	done := true // until the stage that comes next is found
	for i, step := range steps {
		if step.stage == r.st.Stage {
			done = false
		}
		if done {
			continue
		}
		if err := r.stage(ctx, step.do); err != nil {
			return Result{}, fmt.Errorf("stage %s: %w", step.stage, err)
		}
		if i+1 == len(steps) {
			break
		}
		r.st.Stage = steps[i+1].stage
		if err := r.save(); err != nil {
			return Result{}, err
		}
	}
	r.st.Result.KMSCalls = r.tally.sums().KMSCalls // the stages after it had some
	line, err := json.Marshal(r.st.Result)
	if err != nil {
		return Result{}, err
	}
	if _, err := fmt.Fprintf(r.cfg.Out, "%s\n", line); err != nil {
		return Result{}, err
	}
	r.st.Stage = StageDone
	return *r.st.Result, nil
}

func (r *run) stage(ctx context.Context, do func(context.Context) error) error {
	r.acts.Store(-1)
	r.act()
	if err := ctx.Err(); err != nil {
		return err
	}
	return do(ctx)
}

// act counts one thing done in the present stage.
func (r *run) act() {
	n := r.acts.Add(1)
	if r.cfg.Reached != nil {
		r.cfg.Reached(r.st.Stage, n)
	}
}

// save stores how far the run has come.
func (r *run) save() error { return r.st.save(r.cfg.Data) }
