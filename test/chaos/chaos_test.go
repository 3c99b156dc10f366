//go:build unix

// Package chaos_test kills a real `broker serve --dev`, again and again, while
// keys change, and then asks KMS and the database whether anything is missing. It
// does the same, and worse, to three replicas on PostgreSQL, and to both in the
// middle of a pass of a service that keeps its own wrapped keys.
//
//	go test ./test/chaos -timeout=0 -v -run TestKeyChanges -chaos.cycles=500 -chaos.nemesis=mix -chaos.seed=7
//	go test ./test/chaos -timeout=0 -v -run TestReplicas -chaos.pgcycles=100 -chaos.seed=7
//	go test ./test/chaos -timeout=0 -v -run TestPasses -chaos.passrounds=10 -chaos.seed=7
package chaos_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/durationpb"

	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
	"github.com/keybroker/keybroker/test/chaos/devserver"
)

var (
	seedFlag    = flag.Uint64("chaos.seed", 0, "seed of the moments; 0 takes one from the clock")
	cyclesFlag  = flag.Int("chaos.cycles", 10, "how often to strike")
	rowsFlag    = flag.Int("chaos.rows", 5000, "how many data keys there are before the first strike")
	nemesisFlag = flag.String("chaos.nemesis", "", "what is done to the process: kill, term, pause, point (it kills itself at named points)\n"+
		"or mix (kill and point in turn); empty is kill, then each point of a plain key change once")
)

func TestMain(m *testing.M) {
	// What leads the AWS SDK elsewhere must not reach the clients of this test.
	for _, name := range []string{"AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_KMS", "AWS_ACCESS_KEY_ID",
		"AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION"} {
		if err := os.Unsetenv(name); err != nil {
			panic(err)
		}
	}
	if err := flag.Set("test.parallel", "5"); err != nil { // they wait, whatever there is of processors
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

// A result is what the test says at its end, in one line.
type result struct {
	Engine        string         `json:"engine"`
	Cycles        int            `json:"cycles"`
	Rows          int            `json:"rows"`
	Lost          int            `json:"lost"`
	Undecryptable int            `json:"undecryptable"`
	StaleWrites   int            `json:"stale_writes"`
	LiveOldGrants int            `json:"live_old_grants"`
	RecoveryP50   float64        `json:"recovery_p50_s"`
	RecoveryP99   float64        `json:"recovery_p99_s"`
	Nemesis       string         `json:"nemesis"`
	Seed          uint64         `json:"seed"`
	Struck        map[string]int `json:"struck"` // by the phase in which the database was found
	KeyChanges    int            `json:"key_changes"`
	Grants        int            `json:"grants"`
	// Of the rows that clients share: their number, all calls, and those that were
	// given up without an answer.
	LinearRows  int `json:"linear_rows"`
	LinearCalls int `json:"linear_calls"`
	LinearOpen  int `json:"linear_open"`
	// Calls cut off by a strike, all of them resolved afterwards.
	UnknownKeys   int64 `json:"unknown_data_keys"`
	UnknownGrants int64 `json:"unknown_grants"`
	// Points by name: how often the process ended there, and how often not in time.
	Points     map[string]int `json:"points,omitempty"`
	NotReached map[string]int `json:"points_not_reached,omitempty"`
}

// opening draws the run's seed, or takes it from the flag, and says it.
func opening(t *testing.T) (seed uint64) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	seed = *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("-chaos.seed=%d", seed)
	return seed
}

// TestKeyChangesSurviveTheNemesis plays both stories at once, beside the siege:
// each waits nearly all the time, and has processes and directories of its own.
func TestKeyChangesSurviveTheNemesis(t *testing.T) {
	t.Parallel()
	seed := opening(t)
	begun := time.Now()
	bin, err := devserver.Build(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("built in %v", time.Since(begun).Round(time.Millisecond))
	if *nemesisFlag != "" {
		play(t, bin, *nemesisFlag, *cyclesFlag, *rowsFlag, points(), seed)
		return
	}
	t.Run("kill", func(t *testing.T) {
		t.Parallel()
		play(t, bin, "kill", *cyclesFlag, *rowsFlag, nil, seed)
	})
	t.Run("point", func(t *testing.T) {
		t.Parallel()
		play(t, bin, "point", len(plainPoints()), min(*rowsFlag, 3000), plainPoints(), seed)
	})
}

// play runs one story with a nemesis and prints its result.
func play(t *testing.T, bin, nemesis string, cycles, rows int, at []point, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 0))
	harm, at, err := newNemesis(nemesis, rng, at)
	if err != nil {
		t.Fatal(err)
	}
	// Long enough for any machine; what hangs is to end before go test's timeout,
	// which knows nothing of our process.
	each := 45 * time.Second
	if at != nil {
		each += pointBound
	}
	limit := 2*time.Minute + time.Duration(cycles)*each
	ctx, fail := within(t, limit)
	dir := t.TempDir()
	sys := newSystem(bin, dir, fail)
	atEnd(t, sys.close, sys.log)
	s := &story{t: t, sys: sys, work: newWorkload(sys, serviceARN, rows+500), rng: rng, harm: harm, points: at,
		planned: cycles, fillRows: rows, tmp: dir, fail: fail,
		result: result{Engine: "sqlite", Nemesis: nemesis, Seed: seed, Struck: map[string]int{},
			Points: map[string]int{}, NotReached: map[string]int{}}}
	if err := s.tell(ctx); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		t.Error(err)
	}
	for _, p := range s.check.findings.problems {
		t.Error(p)
	}
	s.judge()
	line, err := json.Marshal(s.report())
	if err != nil {
		t.Fatal(err)
	}
	if !t.Failed() {
		checkTheChecker(t, s.work.history, func(final bool, tamper string) (findings, error) {
			c := s.check
			c.findings = findings{}
			_, err := c.look(ctx, s.sys.data, s.tmp, final, tamper)
			return c.findings, err
		})
	}
	fmt.Println(string(line))
}

// judge looks for an order of events in each row that clients shared.
func (s *story) judge() {
	v := s.work.history.check()
	s.result.LinearRows, s.result.LinearCalls, s.result.LinearOpen = v.rows, v.calls, v.open
	for _, w := range v.wrong {
		s.t.Error(w)
	}
}

// checkTheChecker spoils copies of what the run left and expects each to be
// noticed. A run that finds nothing means something only after that.
func checkTheChecker(t *testing.T, h *history, look func(final bool, tamper string) (findings, error)) {
	histories := h.spoiled()
	if len(histories) != spoilings {
		t.Errorf("of the rows that clients shared, too few lived to be spoiled: %d ways of %d", len(histories), spoilings)
	}
	for what, spoiled := range histories {
		if v := spoiled.check(); len(v.wrong) != 1 {
			t.Errorf("no history of a row is right with %s", what)
		}
	}
	const some = `(select data_key_id from data_key where context like '%key-%' order by data_key_id limit 1)`
	for what, tamper := range map[string]struct {
		sql string
		hit func(findings) bool
	}{
		"a lost row": {`delete from data_key where data_key_id = ` + some, func(f findings) bool { return f.lost == 1 }},
		"swapped rows": {`update data_key set ciphertext = (select ciphertext from data_key order by data_key_id desc limit 1) where data_key_id = ` + some,
			func(f findings) bool { return f.undecryptable == 1 }},
		"a row under another key than it says": {`update data_key set key_epoch = (
			select max(o.key_epoch) from domain_key o join domain_key n on n.domain_uid = o.domain_uid
			where n.domain_uid = data_key.domain_uid and n.key_epoch = data_key.key_epoch and o.key_epoch < n.key_epoch and o.kms_key <> n.kms_key)
			where data_key_id = ` + some,
			func(f findings) bool { return f.undecryptable == 1 && f.stale == 1 }},
		"a grant that nobody knows of": {`delete from kms_grant where state = 'LIVE'`, func(f findings) bool { return len(f.problems) > 0 }},
		"a grant of an older epoch":    {`update domain set key_epoch = key_epoch + 1 where domain_id = 'chaos'`, func(f findings) bool { return f.liveOld > 0 }},
		"an effect that came twice": {`insert into audit_event (event_time, caller, action, domain_uid, resource, outcome, request_id, kms_request_id, detail)
			select event_time, caller, action, domain_uid, resource, outcome, request_id, kms_request_id, detail
			from audit_event where action = 'grants.renew' limit 1`, func(f findings) bool { return len(f.problems) > 0 }},
	} {
		found, err := look(what == "a grant of an older epoch", tamper.sql)
		if err != nil || !tamper.hit(found) {
			t.Errorf("the checker does not see %s: %v, %+v", what, err, found)
		}
	}
}

// logTail shows the end of the broker's log, less the calls that went well.
func logTail(t *testing.T, path string) {
	text, err := os.ReadFile(path)
	if err != nil {
		t.Log(err)
	}
	lines := slices.DeleteFunc(strings.Split(string(text), "\n"), func(l string) bool { return strings.Contains(l, " code=OK ") })
	t.Logf("the broker's log ends with:\n%s", strings.Join(lines[max(0, len(lines)-60):], "\n"))
}

// A story is one run of the test.
type story struct {
	t                 *testing.T
	sys               *system
	work              *workload
	check             checker
	rng               *rand.Rand
	harm              nemesis // nil: points alone
	points            []point // nil: harm alone
	planned, fillRows int     // cycles to come, and data keys before the first
	tmp               string
	fail              context.CancelCauseFunc
	result            result

	keys        [2]string // of the customer; the domain goes from one to the other
	job         string    // the last key change
	jobEnded    bool
	target      int    // of keys, modulo their number: the next change's
	cancelled   string // the job that was cancelled last
	pointCycles int
	recoveries  []float64
	lastStart   time.Duration // from exec to the first call served
}

func (s *story) report() result {
	r, f := s.result, s.check.findings
	r.Rows, r.Grants = len(s.check.rows), len(s.work.grants)
	r.UnknownKeys, r.UnknownGrants = s.work.unknownKeys.Load(), s.work.unknownGrants.Load()
	r.Lost, r.Undecryptable, r.StaleWrites, r.LiveOldGrants = f.lost, f.undecryptable, f.stale, f.liveOld
	r.RecoveryP50, r.RecoveryP99 = percentile(s.recoveries, 50), percentile(s.recoveries, 99)
	return r
}

// percentile is the nearest rank, in milliseconds' precision.
func percentile(of []float64, p float64) float64 {
	if len(of) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(of))
	rank := int(math.Ceil(p/100*float64(len(sorted)))) - 1
	return math.Round(sorted[max(rank, 0)]*1000) / 1000
}

func (s *story) tell(ctx context.Context) error {
	if err := s.onboard(ctx); err != nil {
		return err
	}
	s.t.Logf("onboarded; the server starts in %v", s.lastStart.Round(time.Millisecond))
	filled := time.Now()
	if err := s.work.fill(ctx, s.fillRows); err != nil {
		return err
	}
	s.t.Logf("%d data keys made and unwrapped by their owner in %v", s.fillRows, time.Since(filled).Round(time.Millisecond))
	quiet := make(chan struct{})
	trafficDone := make(chan struct{})
	go func() {
		defer close(trafficDone)
		s.work.traffic(ctx, quiet, s.failed)
	}()
	s.work.start(func() error { return s.work.linear(ctx, quiet, s.result.Seed) }, s.failed)
	err := s.cycles(ctx)
	if err == nil {
		err = s.awaitJob(ctx)
	}
	close(quiet)
	<-trafficDone
	if err != nil {
		s.fail(err) // ends the calls that wait for a process
	}
	// What a strike left unknown is resolved here at the latest.
	if err := errors.Join(err, s.work.calls.Wait()); err != nil {
		return err
	}
	// The end is a crash as well: the last look finds what it leaves.
	r, err := s.sys.up(ctx)
	if err != nil {
		return err
	}
	if _, err := (killer{}).strike(ctx, r); err != nil {
		return err
	}
	_, err = s.check.look(ctx, s.sys.data, s.tmp, true, "")
	return err
}

func (s *story) failed(err error) { s.fail(err) }

// onboard starts the system and makes a domain with its first key, and the one
// grant of its service.
func (s *story) onboard(ctx context.Context) error {
	r, err := s.start(ctx)
	if err != nil {
		return err
	}
	s.check = checker{work: s.work, rows: map[string]row{}, unwraps: map[[32]byte]digest{}}
	if s.check.customer, err = awsProfile(ctx, r.AWSConfig, "customer"); err != nil {
		return err
	}
	if s.check.service, err = awsProfile(ctx, r.AWSConfig, "service"); err != nil {
		return err
	}
	if s.keys, err = makeDomain(ctx, r, s.check.customer.Region); err != nil {
		return err
	}
	s.check.keys = s.keys[:]
	if err := s.changeKey(ctx); err != nil {
		return err
	}
	if err := s.awaitJob(ctx); err != nil {
		return err
	}
	return firstGrants(ctx, s.work, r)
}

// makeDomain makes the domain, without a key, and two keys for it.
func makeDomain(ctx context.Context, r *running, region string) (keys [2]string, err error) {
	if _, err := r.domains.CreateDomain(ctx, &keybrokerv1.CreateDomainRequest{
		DomainId: "chaos", Domain: &keybrokerv1.Domain{DisplayName: "chaos", Region: region}}); err != nil {
		return keys, err
	}
	policy, err := r.domains.GenerateKeyPolicy(ctx, &keybrokerv1.GenerateKeyPolicyRequest{
		Name: domainName, Base: &keybrokerv1.GenerateKeyPolicyRequest_KeyAccount{KeyAccount: "111122223333"}})
	if err != nil {
		return keys, err
	}
	for i := range keys {
		if keys[i], err = createKMSKey(ctx, r, policy.GetPolicyDocument()); err != nil {
			return keys, err
		}
	}
	return keys, nil
}

// firstGrants makes a grant to renew, and the one of the domain's service.
func firstGrants(ctx context.Context, w *workload, r *running) error {
	if err := w.createGrant(ctx, "Decrypt"); err != nil {
		return err
	}
	_, err := r.grants.CreateGrant(ctx, &keybrokerv1.CreateGrantRequest{Parent: domainName, GrantId: "service",
		Grant: &keybrokerv1.Grant{GranteePrincipal: serviceARN, Operations: []string{"Decrypt"}, Ttl: durationpb.New(24 * time.Hour)}})
	return err
}

func (s *story) start(ctx context.Context) (*running, error) {
	begun := time.Now()
	r, err := s.sys.start(ctx)
	s.lastStart = time.Since(begun)
	return r, err
}
