package rotation

import (
	"context"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
)

// A roundStore has jobs that never get on: each step of one takes its time, and
// finds nothing to do.
type roundStore struct {
	Store
	jobs []Job // oldest first
	take func(n int) time.Duration
	high func(n int) bool // which jobs are of High priority; nil: none

	mu    sync.Mutex
	steps []step // by their beginning
	under int    // steps under way
	most  int    // of those, at any time
}

type step struct {
	job        int
	begin, end time.Time
}

func (s *roundStore) View(_ context.Context, fn func(Tx) error) error {
	return fn(roundTx{roundStore: s})
}
func (s *roundStore) Update(_ context.Context, fn func(Tx) error) error {
	return fn(roundTx{roundStore: s})
}

type roundTx struct {
	Tx
	*roundStore
}

func (roundTx) Now() time.Time { return time.Now() } // the bubble's

// DueJobs begins behind a job, whose version is its place.
func (t roundTx) DueJobs(_ context.Context, p Priority, _ string, after Job, limit int) ([]Job, error) {
	rest := slices.DeleteFunc(slices.Clone(t.jobs[after.Version:]), func(j Job) bool { return j.Priority != p })
	return rest[:min(limit, len(rest))], nil
}

// LeaseJob is the whole step: another replica has the job when it ends.
func (t roundTx) LeaseJob(_ context.Context, r JobRef, _ string, _ time.Duration) (Job, error) {
	job, err := strconv.Atoi(string(r.ID))
	if err != nil {
		return Job{}, err
	}
	t.mu.Lock()
	at := len(t.steps)
	t.steps = append(t.steps, step{job: job, begin: time.Now()})
	t.under++
	t.most = max(t.most, t.under)
	t.mu.Unlock()
	time.Sleep(t.take(job))
	t.mu.Lock()
	defer t.mu.Unlock()
	t.steps[at].end = time.Now()
	t.under--
	return Job{}, broker.ErrConflict
}

// run lets the loop step n jobs for a while.
func (s *roundStore) run(t *testing.T, n int, d time.Duration) {
	t.Helper()
	for i := range n {
		j := Job{ID: broker.JobID(strconv.Itoa(i)), Version: int64(i + 1), State: Running, Priority: Normal}
		if s.high != nil && s.high(i) {
			j.Priority = High
		}
		s.jobs = append(s.jobs, j)
	}
	synctest.Test(t, func(t *testing.T) {
		e := &Engine{store: s, work: newNotifier(), cfg: Config{Poll: time.Second, Logger: slog.New(slog.DiscardHandler)}}
		ctx, stop := context.WithTimeout(t.Context(), d)
		defer stop()
		e.runJobs(ctx)
	})
}

// check wants that no job is stepped three times while another is not under way
// for a moment: jobs begin side by side, so it may be twice.
func (s *roundStore) check(t *testing.T) {
	t.Helper()
	steps := make([][]step, len(s.jobs)) // each job's, so far
	for _, this := range s.steps {
		mine := append(steps[this.job], this)
		steps[this.job] = mine
		if len(mine) < 3 {
			continue
		}
		since := mine[len(mine)-3].begin
		for job, theirs := range steps {
			if len(theirs) == 0 || theirs[len(theirs)-1].end.Before(since) {
				t.Fatalf("from %v to %v job %d was stepped three times, and job %d was not", since, this.begin, this.job, job)
			}
		}
	}
	if s.most != jobsAtATime || len(steps[len(steps)-1]) < 3 {
		t.Errorf("%d jobs at a time, want %d; the youngest was stepped %d times", s.most, jobsAtATime, len(steps[len(steps)-1]))
	}
}

// TestNoJobStarves: however many jobs there are, and however long some of their
// steps take.
func TestNoJobStarves(t *testing.T) {
	all := func(d time.Duration) func(int) time.Duration { return func(int) time.Duration { return d } }
	for _, c := range []struct {
		name string
		jobs int
		take func(job int) time.Duration
	}{
		{"one more than places", jobsAtATime + 1, all(time.Millisecond)},
		{"slow steps", 2*jobsAtATime + 3, all(3 * time.Second)},
		{"more than a page, and than a round can do in a poll", 10*dueJobsPage + 1, func(job int) time.Duration { return time.Duration(job*7919%97) * time.Millisecond }},
		{"all places but one taken for good", 100, func(job int) time.Duration {
			if job < jobsAtATime-1 {
				return time.Hour
			}
			return time.Millisecond
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &roundStore{take: c.take}
			s.run(t, c.jobs, 5*time.Minute)
			s.check(t)
		})
	}
}

// TestNoPriorityWaitsForAnother: however many jobs of one priority take their time,
// a job of the other is stepped once in a poll.
func TestNoPriorityWaitsForAnother(t *testing.T) {
	const crowd, alone = 3 * jobsAtATime, 3*jobsAtATime - 1 // the youngest
	for name, high := range map[string]func(int) bool{
		"an urgent job behind others": func(job int) bool { return job == alone },
		"one behind urgent jobs":      func(job int) bool { return job != alone },
	} {
		t.Run(name, func(t *testing.T) {
			s := &roundStore{high: high, take: func(job int) time.Duration {
				if job == alone {
					return time.Millisecond
				}
				return time.Hour
			}}
			s.run(t, crowd, time.Minute)
			steps := 0
			for _, step := range s.steps {
				if step.job == alone {
					steps++
				}
			}
			if steps < 59 || s.most != jobsAtATime+1 {
				t.Errorf("stepped %d times in a minute of polls, beside %d others", steps, s.most-1)
			}
		})
	}
}
