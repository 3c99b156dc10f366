//go:build unix

package chaos_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"

	"github.com/keybroker/keybroker/internal/brokertest"
	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

var (
	siegeCyclesFlag = flag.Int("chaos.pgcycles", 4, "how often to strike the replicas on PostgreSQL")
	siegeRowsFlag   = flag.Int("chaos.pgrows", 1500, "how many data keys they have before the first strike")
)

// Three replicas on PostgreSQL lose nothing either, whatever befalls them, the
// database or KMS.
func TestReplicasSurviveTheNemesis(t *testing.T) {
	t.Parallel()
	seed := opening(t)
	dir := t.TempDir()
	bin, err := buildReplica(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	limit := 6*time.Minute + time.Duration(*siegeCyclesFlag)*30*time.Second
	ctx, fail := within(t, limit)
	c, err := startCluster(ctx, dir, bin, fail)
	if errors.Is(err, brokertest.ErrNoPostgres) && os.Getenv("CI") != "true" {
		t.Skipf("!!! NOT TESTED ON POSTGRESQL: %v", err)
	}
	if err != nil {
		logTail(t, c.log)
		t.Fatal(err)
	}
	atEnd(t, c.close, c.log)
	s := &siege{t: t, c: c, work: newWorkload(c, serviceARN, *siegeRowsFlag+500), rng: rand.New(rand.NewPCG(seed, 0)), fail: fail,
		result: siegeResult{Replicas: replicas, Struck: map[string]int{}, Phases: map[string]int{},
			result: result{Engine: "postgres", Nemesis: "strikes", Seed: seed}}}
	s.work.refusals = []string{"GRANT_ENDED"}
	if err := s.tell(ctx, *siegeCyclesFlag, *siegeRowsFlag); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		t.Error(err)
	}
	line, err := json.Marshal(s.report())
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println(string(line))
}

// A siegeResult is what the test says at its end, in one line.
type siegeResult struct {
	result
	Replicas int            `json:"replicas"`
	Struck   map[string]int `json:"struck"` // by the kind of harm
	Phases   map[string]int `json:"phases"` // strikes, by the phase of the job
	// Moving is how many strikes met rows that were still to move.
	Moving int `json:"moving"`
}

// A siege is one run of the test.
type siege struct {
	t        *testing.T
	c        *cluster
	work     *workload
	check    checker
	db       *sql.DB
	customer *kms.Client
	rng      *rand.Rand
	fail     context.CancelCauseFunc
	result   siegeResult

	job        string // the last key change
	ended      bool
	dead       bool     // all replicas
	victims    []string // request_ids of the grants that the customer has revoked
	recoveries []float64
}

func (s *siege) tell(ctx context.Context, cycles, rows int) (err error) {
	if s.db, err = sql.Open("pgx", s.c.pair.URL()); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.db.Close()) }()
	s.db.SetMaxIdleConns(-1) // none outlives a server
	if err := s.onboard(ctx); err != nil {
		return err
	}
	if err := s.work.fill(ctx, rows); err != nil {
		return err
	}
	quiet, trafficDone := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(trafficDone)
		s.work.traffic(ctx, quiet, s.fail)
	}()
	s.work.start(func() error { return s.work.linear(ctx, quiet, s.result.Seed) }, s.fail)
	for i, next := range draw(s.rng, cycles) {
		begun := time.Now()
		if err = s.cycle(ctx, next); err != nil {
			err = fmt.Errorf("cycle %d, %s: %w", i+1, next.name, err)
			break
		}
		s.result.Cycles++
		s.result.Struck[next.name]++
		s.t.Logf("cycle %d, %s: recovered after %.3f s; took %v", i+1, next.name,
			s.recoveries[len(s.recoveries)-1], time.Since(begun).Round(time.Millisecond))
	}
	if err == nil {
		err = s.awaitJob(ctx)
	}
	close(quiet)
	<-trafficDone
	if err != nil {
		s.fail(err)
	}
	if err := errors.Join(err, s.work.calls.Wait()); err != nil {
		return err
	}
	return s.end(ctx)
}

// end kills everybody, and looks at what is left.
func (s *siege) end(ctx context.Context) error {
	s.dead = true
	for i := range replicas {
		if err := s.c.kill(i); err != nil {
			return err
		}
	}
	if err := wait(ctx, 5*grantDelay); err != nil { // KMS does not list the last grants before
		return err
	}
	if err := s.look(ctx, &s.check, true, ""); err != nil {
		return err
	}
	for _, op := range s.victims {
		found, err := s.grantsOf(ctx, op)
		if err != nil {
			return err
		}
		if len(found) > 0 {
			s.check.findings.add("the customer revoked the grants of %s, and KMS holds %v", op, found)
		}
	}
	for _, p := range s.check.findings.problems {
		s.t.Error(p)
	}
	v := s.work.history.check()
	s.result.LinearRows, s.result.LinearCalls, s.result.LinearOpen = v.rows, v.calls, v.open
	for _, w := range v.wrong {
		s.t.Error(w)
	}
	if s.result.Cycles >= 20 && s.result.Moving == 0 {
		s.t.Errorf("no strike met rows that move: %v", s.result.Phases)
	}
	if !s.t.Failed() {
		checkTheChecker(s.t, s.work.history, func(final bool, tamper string) (findings, error) {
			c := s.check
			c.findings = findings{}
			err := s.look(ctx, &c, final, tamper)
			return c.findings, err
		})
	}
	return nil
}

func (s *siege) report() siegeResult {
	r, f := s.result, s.check.findings
	r.Rows, r.Grants = len(s.check.rows), len(s.work.grants)
	r.UnknownKeys, r.UnknownGrants = s.work.unknownKeys.Load(), s.work.unknownGrants.Load()
	r.Lost, r.Undecryptable, r.StaleWrites, r.LiveOldGrants = f.lost, f.undecryptable, f.stale, f.liveOld
	r.RecoveryP50, r.RecoveryP99 = percentile(s.recoveries, 50), percentile(s.recoveries, 99)
	return r
}

func (s *siege) onboard(ctx context.Context) error {
	s.check = checker{work: s.work, rows: map[string]row{}, unwraps: map[[32]byte]digest{}}
	var err error
	if s.check.customer, err = awsProfile(ctx, s.c.profiles, "customer"); err != nil {
		return err
	}
	s.check.service = s.c.service
	s.customer = patient(s.check.customer)
	r := s.c.member(0)
	keys, err := makeDomain(ctx, r, s.check.customer.Region)
	if err != nil {
		return err
	}
	s.check.keys = keys[:]
	if err := s.changeKey(ctx); err != nil {
		return err
	}
	if err := s.awaitJob(ctx); err != nil {
		return err
	}
	return firstGrants(ctx, s.work, r)
}

// changeKey asks for the key that the domain does not have. What a strike does
// to a key changes the domain as well: then its etag is read anew.
func (s *siege) changeKey(ctx context.Context) error {
	s.result.KeyChanges++
	for {
		var d *keybrokerv1.Domain
		if _, err := s.c.do(ctx, func(ctx context.Context, r *running) (err error) {
			d, err = r.domains.GetDomain(ctx, &keybrokerv1.GetDomainRequest{Name: domainName})
			return err
		}); err != nil {
			return err
		}
		op := s.work.op("change")
		_, err := s.c.do(ctx, func(ctx context.Context, r *running) error {
			j, err := r.domains.ChangeKey(ctx, &keybrokerv1.ChangeKeyRequest{Name: domainName, KmsKey: s.target(), Etag: d.GetEtag(),
				Reason: "chaos", RequestId: op})
			s.job = j.GetName()
			return err
		})
		if reasonOf(err) == "ETAG_MISMATCH" {
			continue
		}
		s.ended = false
		return err
	}
}

// target is the key that the last change goes to.
func (s *siege) target() string { return s.check.keys[s.result.KeyChanges%2] }

func (s *siege) awaitJob(ctx context.Context) error {
	return watch(ctx, s.c, s.job, func(_ *running, j *keybrokerv1.ReencryptionJob) bool { return s.see(j) })
}

// see looks at a job as it is shown. It reports whether the job has ended, which
// has to be success. It may be held up: the customer's keys are struck too.
func (s *siege) see(j *keybrokerv1.ReencryptionJob) bool {
	if !final(j) {
		return false
	}
	s.ended = true
	if j.GetState() != keybrokerv1.ReencryptionJob_STATE_SUCCEEDED {
		s.fail(fmt.Errorf("%s is %s: %s", j.GetName(), j.GetState(), j.GetError().GetMessage()))
	}
	return true
}

// aim waits for the moment to strike: any, or one in which rows move, if some have
// to yet.
func (s *siege) aim(ctx context.Context) error {
	if s.rng.IntN(2) == 0 {
		return wait(ctx, between(s.rng, 0, 4*time.Second))
	}
	for {
		j, err := s.lastJob(ctx)
		if err != nil {
			return err
		}
		if j.phase != "PREPARING" {
			return wait(ctx, between(s.rng, 0, 2*time.Second))
		}
		if err := wait(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

// lastJob reads the last key change as it is in the database.
func (s *siege) lastJob(ctx context.Context) (j jobRow, err error) {
	err = s.db.QueryRowContext(ctx, `
		select phase, state, (
			select count(*)
			from data_key
			join domain using (domain_uid)
			where domain_uid = job.domain_uid and data_key.key_epoch < domain.key_epoch)
		from job
		order by create_time desc
		limit 1`).Scan(&j.phase, &j.state, &j.pending)
	return j, err
}

// cycle strikes at a random moment of a key change, waits until things go on,
// mends what was broken, and looks at what is there.
func (s *siege) cycle(ctx context.Context, next strike) error {
	if s.ended {
		if err := s.changeKey(ctx); err != nil {
			return err
		}
	}
	if err := s.aim(ctx); err != nil {
		return err
	}
	s.work.burst(ctx, s.fail)
	if err := wait(ctx, between(s.rng, 0, 40*time.Millisecond)); err != nil {
		return err
	}
	at, err := s.lastJob(ctx)
	if err != nil {
		return err
	}
	s.result.Phases[at.found()]++
	if at.pending > 0 {
		s.result.Moving++
	}
	since, mend, err := next.act(s, ctx)
	if err != nil {
		return err
	}
	if err := s.recovered(ctx, since); err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	if err := mend(ctx); err != nil {
		return fmt.Errorf("mend: %w", err)
	}
	if err := s.look(ctx, &s.check, false, ""); err != nil {
		return fmt.Errorf("look: %w", err)
	}
	if len(s.check.findings.problems) > 0 {
		return errors.New("what is left is wrong: more strikes would hide it")
	}
	return nil
}

// recovered waits until work goes on, and notes how long after the strike that
// was: until the job has moved or, where it waits for a date or has ended, until
// a write that was begun then is acknowledged.
func (s *siege) recovered(ctx context.Context, since time.Time) error {
	at, waits := "", false
	err := watch(ctx, s.c, s.job, func(_ *running, j *keybrokerv1.ReencryptionJob) bool {
		p := j.GetProgress()
		now := fmt.Sprint(j.GetPhase(), j.GetState(), p.GetDoneRows(), p.GetRelabelledRows(), j.GetWaiting().GetMessage())
		if at == "" {
			at = now
		}
		waits = s.see(j) || j.GetWaiting().GetUntil() != nil
		return waits || now != at
	})
	if err == nil && waits {
		err = s.work.createKey(ctx)
	}
	s.recoveries = append(s.recoveries, time.Since(since).Seconds())
	return err
}

// patient gives clients that repeat a call: a checker is not struck.
func patient(profile aws.Config) *kms.Client {
	return kms.NewFromConfig(profile, func(o *kms.Options) { o.Retryer = retry.NewStandard() })
}

// look reads one snapshot of the database, and asks KMS. At the end nobody is
// alive. tamper, if set, is SQL that spoils what is read, and nothing else.
func (s *siege) look(ctx context.Context, c *checker, final bool, tamper string) (err error) {
	l := &look{checker: c, db: s.db, alive: !s.dead, final: final, anew: final && tamper == "",
		client: patient, customer: s.customer}
	if l.listed, err = l.listGrants(ctx); err != nil {
		return err
	}
	l.acked = s.work.acknowledged()
	tx, err := s.db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: tamper == ""})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tx.Rollback()) }()
	if tamper != "" {
		if _, err := tx.ExecContext(ctx, tamper); err != nil {
			return err
		}
	}
	l.db = tx
	_, err = l.check(ctx)
	return err
}
