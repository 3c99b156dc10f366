package scenarios_test

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/pacer"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/test/harness"
)

// beginChange starts a change of a domain's key and steps it past its switch.
func beginChange(t *testing.T, b *harness.Bench, id broker.DomainID, in rotation.ChangeKey) rotation.JobView {
	t.Helper()
	next := must[broker.KeyARN](t)(b.NewKey(t.Context(), id))
	d, _, err := b.Broker.GetDomain(t.Context(), harness.Caller, id)
	if err != nil {
		t.Fatal(err)
	}
	in.Domain, in.KMSKey, in.Etag = id, string(next), d.Etag()
	view := must[rotation.JobView](t)(b.Engine.ChangeKey(t.Context(), harness.Caller, in))
	for range 100 {
		if view.Phase != rotation.Preparing {
			return view
		}
		if _, err := b.Engine.StepJob(t.Context(), view.Ref()); err != nil {
			t.Fatal(err)
		}
		view = job(t, b, id, view.ID)
	}
	t.Fatal("the change does not get past its switch")
	return view
}

func job(t *testing.T, b *harness.Bench, id broker.DomainID, j broker.JobID) rotation.JobView {
	t.Helper()
	return must[rotation.JobView](t)(b.Engine.GetJob(t.Context(), harness.Caller, id, j))
}

func onboard(t *testing.T, b *harness.Bench, id broker.DomainID, keys int) {
	t.Helper()
	if _, _, err := b.Onboard(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	createKeys(t, b, id, keys)
}

// TestSmallJobBesideLarge: one worker, a job of many batches in many shards, and a
// small one that comes after it: they take turns, so the small one is through
// when the large one has moved about as much.
func TestSmallJobBesideLarge(t *testing.T) {
	b := newBench(t, harness.Config{Shards: 8})
	onboard(t, b, "large", 200)
	onboard(t, b, "small", 15)
	large := beginChange(t, b, "large", rotation.ChangeKey{})
	for range 4 {
		if _, err := b.Engine.StepShard(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	small := beginChange(t, b, "small", rotation.ChangeKey{})
	before := job(t, b, "large", large.ID).Progress.Done
	for range 100 {
		if job(t, b, "small", small.ID).Progress.Done == 15 {
			break
		}
		b.Clock.Advance(time.Millisecond)
		if _, err := b.Engine.StepShard(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	meanwhile := job(t, b, "large", large.ID).Progress.Done - before
	if done := job(t, b, "small", small.ID).Progress.Done; done != 15 || meanwhile > 2*15 || meanwhile < 5 {
		t.Errorf("the small job moved %d of 15 rows while the large one moved %d", done, meanwhile)
	}
}

// TestTurns: one worker, and two jobs whose batches take a second each. They take
// turns by their parts, whatever became of the rows in a batch.
func TestTurns(t *testing.T) {
	for _, c := range []struct {
		name       string
		begin      func(t *testing.T, b *harness.Bench, id broker.DomainID) rotation.JobView
		one, other int64 // rows of 20 batches
	}{
		{"a job of high priority", func(t *testing.T, b *harness.Bench, id broker.DomainID) rotation.JobView {
			if id == "one" {
				return beginChange(t, b, id, rotation.ChangeKey{Priority: rotation.High, Reason: "leaked"})
			}
			return beginChange(t, b, id, rotation.ChangeKey{})
		}, 80, 20},
		{"equal jobs that move nothing", func(t *testing.T, b *harness.Bench, id broker.DomainID) rotation.JobView {
			verify := must[rotation.JobView](t)(b.Engine.CreateJob(t.Context(), harness.Caller, rotation.NewJob{Domain: id, Kind: rotation.KindVerify}))
			must[bool](t)(b.Engine.StepJob(t.Context(), verify.Ref())) // shares its rows out
			return verify
		}, 50, 50},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, harness.Config{Shards: 4, BatchRows: 5})
			onboard(t, b, "one", 100)
			onboard(t, b, "other", 100)
			one, other := c.begin(t, b, "one"), c.begin(t, b, "other")
			for range 20 {
				if worked, err := b.Engine.StepShard(t.Context()); err != nil || !worked {
					t.Fatal(worked, err)
				}
				b.Clock.Advance(rotation.Turn)
			}
			// The first turns depend on how long each waited for its own beginning.
			const slack = 10
			if done := job(t, b, "one", one.ID).Progress.Done; done < c.one-slack || done > c.one+slack {
				t.Errorf("one moved %d rows, want about %d", done, c.one)
			}
			if done := job(t, b, "other", other.ID).Progress.Done; done < c.other-slack || done > c.other+slack {
				t.Errorf("the other moved %d rows, want about %d", done, c.other)
			}
		})
	}
}

// TestPriority: a job that goes before others says why, keeps its priority, and
// may get it later.
func TestPriority(t *testing.T) {
	b := newBench(t, harness.Config{})
	onboard(t, b, "acme", 5)
	next := must[broker.KeyARN](t)(b.NewKey(t.Context(), "acme"))
	d, _, err := b.Broker.GetDomain(t.Context(), harness.Caller, "acme")
	if err != nil {
		t.Fatal(err)
	}
	change := func(p rotation.Priority, reason string) (rotation.JobView, error) {
		return b.Engine.ChangeKey(t.Context(), harness.Caller, rotation.ChangeKey{Domain: "acme", KMSKey: string(next), Etag: d.Etag(), Priority: p, Reason: reason})
	}
	_, err = change(rotation.High, " ")
	var refused *broker.Error
	if !errors.As(err, &refused) || refused.Reason != broker.ReasonFieldInvalid || len(refused.Violations) != 1 || refused.Violations[0].Field != "reason" {
		t.Errorf("without a reason: %v", err)
	}
	if _, err := b.Engine.CreateJob(t.Context(), harness.Caller, rotation.NewJob{Domain: "acme", Kind: rotation.KindVerify, Priority: rotation.High}); !errors.As(err, &refused) ||
		refused.Violations[0].Field != "reencryption_job.reason" {
		t.Errorf("a job without a reason: %v", err)
	}
	view := must[rotation.JobView](t)(change("", ""))
	if view.Priority != rotation.Normal {
		t.Errorf("a new job has priority %q", view.Priority)
	}
	again := must[rotation.JobView](t)(change(rotation.High, "the key has leaked"))
	if again.ID != view.ID || again.Priority != rotation.High {
		t.Errorf("raised: job %s with priority %s, want %s with HIGH", again.ID, again.Priority, view.ID)
	}
	if same := must[rotation.JobView](t)(change("", "")); same.Priority != rotation.High || same.Version != again.Version {
		t.Errorf("a call that asks for none left %s, version %d", same.Priority, same.Version)
	}
	var audited []string
	for _, row := range must[[]string](t)(b.Rows(t.Context())) {
		if strings.Contains(row, "reencryptionJobs.prioritize") {
			audited = append(audited, row)
		}
	}
	if len(audited) != 1 || !strings.Contains(audited[0], "the key has leaked") || !strings.Contains(audited[0], "HIGH") {
		t.Errorf("audited: %q", audited)
	}
	if end := must[rotation.JobView](t)(b.Finish(t.Context(), "acme", view.ID)); end.State != rotation.Succeeded || end.Priority != rotation.High {
		t.Errorf("ended %s with priority %s", end.State, end.Priority)
	}
}

// TestPaceIsShown: a job that moves 5 rows each second says so, and how many of
// its calls were throttled.
func TestPaceIsShown(t *testing.T) {
	b := newBench(t, harness.Config{Shards: 1})
	onboard(t, b, "acme", 100)
	view := beginChange(t, b, "acme", rotation.ChangeKey{})
	if view.Pace.Rows != 0 || !view.FinishTime.IsZero() {
		t.Errorf("before it moves: %+v", view.Pace)
	}
	for range 10 {
		b.Clock.Advance(time.Second)
		if _, err := b.Engine.StepShard(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	view = job(t, b, "acme", view.ID)
	if view.Pace.Rows < 4.5 || view.Pace.Rows > 6 || view.Pace.Calls < 4.5 || view.Pace.Calls > 6 || view.Pace.Throttled != 0 {
		t.Errorf("the pace of 5 rows a second is %+v", view.Pace)
	}
	if left := view.FinishTime.Sub(b.Clock.Now()); left < 8*time.Second || left > 12*time.Second {
		t.Errorf("50 rows at 5 a second end in %v", left)
	}
	b.Clock.Advance(5 * time.Minute)
	if view = job(t, b, "acme", view.ID); view.Pace.Rows > 0.01 {
		t.Errorf("after five idle minutes: %+v", view.Pace)
	}
}

// TestForecast: rows over what the quota leaves beside another job, and the
// announced waits.
func TestForecast(t *testing.T) {
	b := newBench(t, harness.Config{Quota: 100})
	onboard(t, b, "acme", 50)
	onboard(t, b, "other", 5)
	next := must[broker.KeyARN](t)(b.NewKey(t.Context(), "acme"))
	plan := must[rotation.KeyChangePlan](t)(b.Engine.PlanKeyChange(t.Context(), harness.Caller, "acme", string(next)))
	w := windows()
	check := func(what string, calls float64, moving time.Duration) {
		t.Helper()
		f := plan.Forecast
		if f == nil || f.Rows != 50 || f.CallsPerSecond != calls || f.Moving != moving || f.Total != moving+w.MaxReadDelay+w.GrantVisibility {
			t.Errorf("%s: %+v", what, f)
		}
	}
	check("alone", 100, 500*time.Millisecond)
	beginChange(t, b, "other", rotation.ChangeKey{Priority: rotation.High, Reason: "leaked"})
	plan = must[rotation.KeyChangePlan](t)(b.Engine.PlanKeyChange(t.Context(), harness.Caller, "acme", string(next)))
	check("beside a job of HIGH priority", 20, 2500*time.Millisecond)
}

// A ticker lets Heartbeat beat when the test says so.
type ticker struct{ asleep, wake chan struct{} }

func newTicker() ticker { return ticker{make(chan struct{}), make(chan struct{})} }

func (k ticker) sleep(ctx context.Context, _ time.Duration) error {
	select {
	case k.asleep <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-k.wake:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// beat lets one beat happen, and returns when it is over.
func (k ticker) beat() {
	k.wake <- struct{}{}
	<-k.asleep
}

// TestReplicasShareTheBudget: each live replica takes an equal part, one that only
// serves callers takes what it uses, and the part of one that died is free when
// its lease has run out.
func TestReplicasShareTheBudget(t *testing.T) {
	b := newBench(t, harness.Config{})
	budget := pacer.Budget{Account: harness.BrokerAccount, Region: harness.Region, Quota: "cryptographic"}
	const lease = 10 * time.Second
	type replica struct {
		pacer *pacer.Pacer
		tick  ticker
		stop  func()
	}
	start := func(name string) replica {
		p, err := pacer.New(pacer.Config{Now: b.Clock.Now, Quota: func(pacer.Budget) float64 { return 3000 }})
		if err != nil {
			t.Fatal(err)
		}
		r := replica{pacer: p, tick: newTicker()}
		e, err := rotation.New(rotation.Config{Owner: name, LeaseTTL: lease, Sleep: r.tick.sleep, Pacer: p, RowBudget: func(string) pacer.Budget { return budget },
			Rand: func() float64 { return 0 }, NewID: rand.Text, NewProbe: rand.Text, Logger: slog.New(slog.DiscardHandler)}, b.Store.Rotation(), b.Broker, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { e.Heartbeat(ctx); close(ended) }()
		<-r.tick.asleep
		r.stop = func() { cancel(); <-ended }
		return r
	}
	call := func(r replica, class pacer.Class) {
		t.Helper()
		if class == pacer.Background {
			b.Clock.Advance(50 * time.Millisecond) // for a token
		}
		ticket, err := r.pacer.Acquire(t.Context(), budget, class)
		if err != nil {
			t.Fatal(err)
		}
		ticket.Release(pacer.Done)
	}
	ceiling := func(what string, r replica, want float64) {
		t.Helper()
		if got := r.pacer.Expect(budget).Ceiling; got != want {
			t.Errorf("%s: %v calls/s, want %v", what, got, want)
		}
	}
	one, two, three := start("one"), start("two"), start("three")
	if n := must[int](t)(b.Count(t.Context(), "replica")); n != 0 {
		t.Errorf("%d idle replicas are told of", n)
	}
	call(one, pacer.Background)
	one.tick.beat()
	ceiling("alone", one, 3000)
	call(two, pacer.Background)
	two.tick.beat()
	ceiling("the second of two", two, 1500)
	call(one, pacer.Background)
	one.tick.beat()
	ceiling("the first of two", one, 1500)

	// The third answers callers: 300 of them in this second.
	for range 300 {
		call(three, pacer.Foreground)
	}
	b.Clock.Advance(time.Second)
	three.tick.beat()
	call(one, pacer.Background)
	one.tick.beat()
	elsewhere := three.pacer.Expect(budget).ForegroundRate
	ceiling("beside foreground calls", one, (3000-elsewhere)/2)
	if elsewhere < 100 || elsewhere > 300 {
		t.Errorf("300 calls in a second are told as %v a second", elsewhere)
	}

	// The second says no more; its lease runs out.
	b.Clock.Advance(lease)
	call(one, pacer.Background)
	one.tick.beat()
	ceiling("the only one left", one, 3000)
	if n := must[int](t)(b.Count(t.Context(), "replica")); n != 1 {
		t.Errorf("%d replicas are told of, want the one that lives", n)
	}
	one.stop()
	if n := must[int](t)(b.Count(t.Context(), "replica")); n != 0 {
		t.Errorf("%d replicas are told of after the last has stopped", n)
	}
	two.stop()
	three.stop()
}
