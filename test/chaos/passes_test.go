//go:build unix

package chaos_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/keybroker/keybroker/client"
	"github.com/keybroker/keybroker/internal/brokertest"
	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
	"github.com/keybroker/keybroker/test/chaos/devserver"
)

var (
	passRoundsFlag = flag.Int("chaos.passrounds", 1, "how many key changes a service that keeps its own wrapped keys lives through")
	passKeysFlag   = flag.Int("chaos.passkeys", 1200, "how many wrapped keys it has")
)

// A service that keeps its own wrapped keys loses none of them, whatever it is cut
// off from in the middle of a pass: a broker that is killed or, on PostgreSQL, one
// of several, or its connection.
func TestPassesSurviveTheNemesis(t *testing.T) {
	t.Parallel()
	seed := opening(t)
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		bin, err := devserver.Build(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		ctx, fail := within(t, passesBound())
		sys := newSystem(bin, dir, fail)
		atEnd(t, sys.close, sys.log)
		if _, err := sys.start(ctx); err != nil {
			t.Fatal(err)
		}
		newPassStory(t, alone{sys, dir}, "sqlite", seed).play(ctx)
	})
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		bin, err := buildReplica(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		ctx, fail := within(t, passesBound())
		c, err := startCluster(ctx, dir, bin, fail)
		if errors.Is(err, brokertest.ErrNoPostgres) && os.Getenv("CI") != "true" {
			t.Skipf("!!! NOT TESTED ON POSTGRESQL: %v", err)
		}
		if err != nil {
			logTail(t, c.log)
			t.Fatal(err)
		}
		atEnd(t, c.close, c.log)
		db, err := sql.Open("pgx", c.pair.URL())
		if err != nil {
			t.Fatal(err)
		}
		atEnd(t, db.Close, c.log)
		newPassStory(t, crowd{c, db}, "postgres", seed).play(ctx)
	})
}

// passesBound is how long the test of passes may take on each engine.
func passesBound() time.Duration { return 6*time.Minute + time.Duration(*passRoundsFlag)*2*time.Minute }

// within gives a context that ends with the test, after limit, or with fail's cause.
func within(t *testing.T, limit time.Duration) (ctx context.Context, fail context.CancelCauseFunc) {
	bounded, stop := context.WithTimeoutCause(t.Context(), limit, fmt.Errorf("not done after %v", limit))
	ctx, fail = context.WithCancelCause(bounded)
	t.Cleanup(func() {
		fail(nil)
		stop()
	})
	return ctx, fail
}

// atEnd ends something, and shows the log of a test that failed.
func atEnd(t *testing.T, end func() error, log string) {
	t.Cleanup(func() {
		if err := end(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			logTail(t, log)
		}
	})
}

// A passResult is what the test says at its end, in one line.
type passResult struct {
	Engine        string         `json:"engine"`
	Nemesis       string         `json:"nemesis"`
	Seed          uint64         `json:"seed"`
	KeyChanges    int            `json:"key_changes"`
	WrappedKeys   int            `json:"wrapped_keys"`
	Lost          int            `json:"lost"`
	Undecryptable int            `json:"undecryptable"`
	Struck        map[string]int `json:"struck"`
	NotReached    map[string]int `json:"points_not_reached"`
	Passes        int            `json:"passes"`
	TooEarly      int            `json:"refused_as_too_early"`
	TooLate       int            `json:"too_late_to_be_early,omitempty"` // on a slow machine
	Moved         int            `json:"moved"`
	// Streams of the passes; those of them that went on with a pass, and at another
	// process; and items that were sent again.
	Streams int `json:"streams"`
	Resumed int `json:"resumed"`
	MovedOn int `json:"moved_on"`
	Resent  int `json:"sent_again"`
}

// A passStory is one run of the test.
type passStory struct {
	t      *testing.T
	at     site
	k      *keeper
	rng    *rand.Rand
	keys   [2]string
	job    string
	turn   int       // of the points, modulo their number
	facts  passFacts // as they were read last
	result passResult
}

func newPassStory(t *testing.T, at site, engine string, seed uint64) *passStory {
	return &passStory{t: t, at: at, k: newKeeper(at), rng: rand.New(rand.NewPCG(seed, 0)),
		result: passResult{Engine: engine, Nemesis: "passes", Seed: seed, Struck: map[string]int{}, NotReached: map[string]int{}}}
}

func (s *passStory) play(ctx context.Context) {
	err := s.tell(ctx)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	if err := errors.Join(err, s.k.hangUp(true)); err != nil {
		s.t.Error(err)
	}
	line, err := json.Marshal(s.result)
	if err != nil {
		s.t.Fatal(err)
	}
	fmt.Println(string(line))
}

func (s *passStory) tell(ctx context.Context) error {
	r, err := s.at.up(ctx)
	if err != nil {
		return err
	}
	if s.keys, err = makeDomain(ctx, r, "us-east-1"); err != nil {
		return err
	}
	if err := s.changeKey(ctx); err != nil {
		return err
	}
	if err := s.awaitJob(ctx); err != nil {
		return err
	}
	if err := s.k.onboard(ctx, *passKeysFlag); err != nil {
		return err
	}
	s.result.WrappedKeys = *passKeysFlag
	for i := range *passRoundsFlag {
		begun := time.Now()
		if err := s.round(ctx); err != nil {
			return fmt.Errorf("key change %d: %w", i+1, err)
		}
		s.t.Logf("key change %d took %v, struck %v", i+1, time.Since(begun).Round(time.Millisecond), s.result.Struck)
	}
	if s.result.TooEarly == 0 && s.result.TooLate == 0 {
		s.t.Error("no attestation was ever refused as too early")
	}
	if s.result.TooLate > 0 {
		s.t.Logf("!!! %d times this machine was too slow to attest too early", s.result.TooLate)
	}
	if _, several := s.at.(crowd); s.result.Struck[kill] == 0 || s.result.Struck[cut] == 0 || several && s.result.MovedOn == 0 {
		s.t.Errorf("no pass was struck in its middle: the test shows nothing: %+v", s.result)
	}
	return s.checkTheChecker(ctx)
}

// round is one key change, in the life of a service.
func (s *passStory) round(ctx context.Context) error {
	if err := s.changeKey(ctx); err != nil {
		return err
	}
	if err := s.watch(ctx, func(j *keybrokerv1.ReencryptionJob) bool {
		return j.GetPhase() >= keybrokerv1.ReencryptionJob_PHASE_REENCRYPTING
	}); err != nil {
		return err
	}
	if err := s.attestTooEarly(ctx); err != nil {
		return fmt.Errorf("attest too early: %w", err)
	}
	third := *passKeysFlag / 3
	if _, err := s.pass(ctx, third, false, s.plan(third, false)); err != nil {
		return fmt.Errorf("move a third: %w", err)
	}
	if err := s.abandon(ctx); err != nil {
		return fmt.Errorf("abandon a pass: %w", err)
	}
	if err := s.watch(ctx, func(j *keybrokerv1.ReencryptionJob) bool {
		return j.GetState() == keybrokerv1.ReencryptionJob_STATE_BLOCKED
	}); err != nil {
		return err
	}
	before := s.result.Moved
	done, err := s.pass(ctx, *passKeysFlag, true, s.plan(*passKeysFlag, true))
	if err != nil {
		return fmt.Errorf("move all: %w", err)
	}
	if moved := int64(s.result.Moved - before); !done.Attested || done.Moved != moved || done.Moved+done.Unchanged != int64(*passKeysFlag) || done.Unchanged < int64(third) {
		return fmt.Errorf("the service has %d keys, and its pass says %+v", *passKeysFlag, done)
	}
	// What was attested is true after a kill as well.
	if r, err := s.at.up(ctx); err != nil {
		return err
	} else if err := s.strikeAfter(ctx, r); err != nil {
		return err
	}
	if err := s.awaitJob(ctx); err != nil {
		return err
	}
	for id, key := range s.k.all() {
		if key.KMSKey != s.target() {
			return fmt.Errorf("%s is recorded as under %s, the domain is under %s", id, key.KMSKey, s.target())
		}
	}
	return s.check(ctx, true)
}

// changeKey asks for the key that the domain does not have.
func (s *passStory) changeKey(ctx context.Context) error {
	s.result.KeyChanges++
	var d *keybrokerv1.Domain
	if _, err := s.at.do(ctx, func(ctx context.Context, r *running) (err error) {
		d, err = r.domains.GetDomain(ctx, &keybrokerv1.GetDomainRequest{Name: domainName})
		return err
	}); err != nil {
		return err
	}
	_, err := s.at.do(ctx, func(ctx context.Context, r *running) error {
		j, err := r.domains.ChangeKey(ctx, &keybrokerv1.ChangeKeyRequest{Name: domainName, KmsKey: s.target(), Etag: d.GetEtag(),
			Reason: "chaos", RequestId: fmt.Sprintf("change-%d", s.result.KeyChanges)})
		s.job = j.GetName()
		return err
	})
	return err
}

// target is the key that the last change goes to.
func (s *passStory) target() string { return s.keys[s.result.KeyChanges%2] }

func (s *passStory) awaitJob(ctx context.Context) error {
	return s.watch(ctx, func(j *keybrokerv1.ReencryptionJob) bool {
		return j.GetState() == keybrokerv1.ReencryptionJob_STATE_SUCCEEDED
	})
}

// watch waits until the job is as wanted. It may wait for the service's word, and
// for nothing else that somebody has to do.
func (s *passStory) watch(ctx context.Context, wanted func(*keybrokerv1.ReencryptionJob) bool) error {
	var last *keybrokerv1.ReencryptionJob
	err := watch(ctx, s.at, s.job, func(_ *running, j *keybrokerv1.ReencryptionJob) bool {
		last = j
		return wanted(j) || j.GetState() == keybrokerv1.ReencryptionJob_STATE_BLOCKED && j.GetBlock().GetReason() != "SELF_INVENTORY"
	})
	if err == nil && (!wanted(last) || last.GetBlock() != nil && last.GetBlock().GetReason() != "SELF_INVENTORY") {
		err = fmt.Errorf("%s is %s in %s: %s %s", last.GetName(), last.GetState(), last.GetPhase(), last.GetBlock().GetMessage(), last.GetError().GetMessage())
	}
	return err
}

// attestTooEarly gives the service's word while wrapped keys may still appear
// under the old key, right after the switch. That it is before the time is the
// broker's word, in opened, and the clock's.
func (s *passStory) attestTooEarly(ctx context.Context) error {
	_, err := s.at.do(ctx, func(ctx context.Context, r *running) error {
		line, err := grpc.NewClient(r.API, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return err
		}
		defer line.Close()
		stream, err := keybrokerv1.NewDataKeyServiceClient(line).ReencryptStream(ctx)
		if err != nil {
			return err
		}
		if err := stream.Send(&keybrokerv1.ReencryptStreamRequest{Message: &keybrokerv1.ReencryptStreamRequest_Header_{
			Header: &keybrokerv1.ReencryptStreamRequest_Header{Parent: domainName,
				Owner: &keybrokerv1.ReencryptStreamRequest_Header_GranteePrincipal{GranteePrincipal: serviceARN}}}}); err != nil {
			return err
		}
		opened, err := stream.Recv()
		if err != nil {
			return err
		}
		if !opened.GetOpened().GetAttestAfter().AsTime().After(time.Now()) {
			s.result.TooLate++
			return nil
		}
		if err := stream.Send(&keybrokerv1.ReencryptStreamRequest{Message: &keybrokerv1.ReencryptStreamRequest_Complete_{
			Complete: &keybrokerv1.ReencryptStreamRequest_Complete{}}}); err != nil {
			return err
		}
		answer, err := stream.Recv()
		if reasonOf(err) == "ATTESTATION_TOO_EARLY" {
			s.result.TooEarly++
			return nil
		}
		return errors.Join(err, fmt.Errorf("it is answered %v", answer))
	})
	return err
}

// abandon begins a pass over all keys, and lets it go in the middle, as a service
// does that is restarted.
func (s *passStory) abandon(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pass := s.k.begin(*passKeysFlag, true)
	store := pass.Store
	pass.Store = func(ctx context.Context, receipts []client.KeyReceipt) error {
		if s.k.log().answered == 2 {
			return errRestarted
		}
		return store(ctx, receipts)
	}
	result, err := client.Reencrypt(ctx, pass)
	if !errors.Is(err, errRestarted) || result.Attested {
		return fmt.Errorf("%+v, %w", result, err)
	}
	return s.count()
}

var errRestarted = errors.New("the service was restarted")

// pass makes a pass over the first n keys, which is struck as planned.
func (s *passStory) pass(ctx context.Context, n int, attest bool, plan []passStrike) (result client.PassResult, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pass, over := s.k.begin(n, attest), make(chan struct{})
	go func() {
		defer close(over)
		result, err = client.Reencrypt(ctx, pass)
	}()
	for _, next := range plan {
		select {
		case r := <-s.k.await(next.passMoment):
			if struck := s.strikePass(ctx, r, next, over); struck != nil {
				cancel()
				<-over
				return result, errors.Join(fmt.Errorf("%s: %w", next.what, struck), err)
			}
		case <-over:
			s.result.NotReached[next.what]++
		}
	}
	<-over
	if err != nil {
		return result, err
	}
	return result, s.count()
}

// count adds up what was seen of a pass that has ended. It must not have been
// begun anew: each stream but the first went on with it, and sent again no more
// than what was unanswered, four messages of at most a hundred items.
func (s *passStory) count() error {
	if err := s.k.hangUp(false); err != nil {
		return err
	}
	log := s.k.log()
	again := max(0, log.wire-log.keys)
	s.result.Passes++
	s.result.Moved += log.moved
	s.result.Streams += log.streams
	s.result.Resumed += log.resumed
	s.result.MovedOn += log.movedOn
	s.result.Resent += again
	if log.resumed != log.streams-1 || again > 400*log.resumed {
		return fmt.Errorf("a pass over %d keys took %d streams, %d of which went on with it, and %d items: it began anew",
			log.keys, log.streams, log.resumed, log.wire)
	}
	return nil
}

// check is the keeper's, and counts.
func (s *passStory) check(ctx context.Context, asService bool) error {
	found, err := s.k.check(ctx, s.k.all(), asService)
	s.result.Lost += found.lost
	s.result.Undecryptable += found.undecryptable
	for _, p := range found.problems {
		s.t.Error(p)
	}
	if err == nil && len(found.problems) > 0 {
		err = errors.New("what the service has is wrong")
	}
	return err
}

// checkTheChecker spoils what the service has, and expects that to be noticed.
func (s *passStory) checkTheChecker(ctx context.Context) error {
	keys := s.k.all()
	ids := slices.Sorted(maps.Keys(keys))
	delete(keys, ids[0])
	keys[ids[1]], keys[ids[2]] = keys[ids[2]], keys[ids[1]]
	other := keys[ids[3]]
	other.KMSKey = s.keys[(s.result.KeyChanges+1)%2]
	keys[ids[3]] = other
	found, err := s.k.check(ctx, keys, false)
	if err != nil {
		return err
	}
	if found.lost != 1 || found.undecryptable != 3 {
		s.t.Errorf("one key was lost, two were swapped, one is under another key than it says, and the checker sees %+v", found)
	}
	for what, spoil := range map[string]func(*passFacts){
		"an attestation that counts a key too many":  func(f *passFacts) { f.items++ },
		"a receipt without an audit event":           func(f *passFacts) { f.audited = int64(s.k.log().moved) - 1 },
		"an attestation that was lost":               func(f *passFacts) { f.attested = false },
		"an old key that was closed before its time": func(f *passFacts) { f.attested, f.old = false, "CLOSED" },
	} {
		facts := s.facts
		spoil(&facts)
		if log := s.k.log(); facts.judge(log, log) == nil {
			s.t.Errorf("the checker does not see %s", what)
		}
	}
	return nil
}
