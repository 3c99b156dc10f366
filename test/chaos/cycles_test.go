//go:build unix

package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"

	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

func createKMSKey(ctx context.Context, r *running, policy string) (string, error) {
	out, err := r.customer.CreateKey(ctx, &kms.CreateKeyInput{Policy: &policy})
	if err != nil {
		return "", err
	}
	return *out.KeyMetadata.Arn, nil
}

// changeKey asks for the key that the domain does not have.
func (s *story) changeKey(ctx context.Context) error {
	target := s.keys[s.target%2]
	s.target++
	s.result.KeyChanges++
	request := &keybrokerv1.ChangeKeyRequest{Name: domainName, KmsKey: target, Reason: "chaos",
		RequestId: fmt.Sprintf("change-%d", s.result.KeyChanges)}
	_, err := s.sys.do(ctx, func(ctx context.Context, r *running) error {
		if request.Etag == "" { // a repeat is the same request, with the same etag
			d, err := r.domains.GetDomain(ctx, &keybrokerv1.GetDomainRequest{Name: domainName})
			if err != nil {
				return err
			}
			request.Etag = d.GetEtag()
		}
		j, err := r.domains.ChangeKey(ctx, request)
		s.job = j.GetName()
		return err
	})
	s.jobEnded = false
	return err
}

// awaitJob waits for the job's end, which has to be success.
func (s *story) awaitJob(ctx context.Context) error {
	return watch(ctx, s.sys, s.job, func(_ *running, j *keybrokerv1.ReencryptionJob) bool { return s.see(j) })
}

// see looks at a job as it is shown. It reports whether the job has ended.
func (s *story) see(j *keybrokerv1.ReencryptionJob) bool {
	switch j.GetState() {
	case keybrokerv1.ReencryptionJob_STATE_SUCCEEDED:
		s.jobEnded = true
	case keybrokerv1.ReencryptionJob_STATE_RUNNING:
	default:
		if j.GetState() == keybrokerv1.ReencryptionJob_STATE_CANCELLED && j.GetName() == s.cancelled {
			s.jobEnded = true
			break
		}
		// No key was touched, so that nothing may fail or block.
		s.fail(fmt.Errorf("%s is %s: %s %s", j.GetName(), j.GetState(), j.GetBlock().GetMessage(), j.GetError().GetMessage()))
	}
	return s.jobEnded
}

// cycles strikes, looks at what is left, and starts again.
func (s *story) cycles(ctx context.Context) error {
	moments := schedule(s.planned)
	for i := range s.planned {
		begun := time.Now()
		if s.harm == nil || s.points != nil && i%2 == 1 {
			if err := s.pointCycle(ctx); err != nil {
				return fmt.Errorf("cycle %d, a point: %w", i+1, err)
			}
		} else {
			m := moments[0]
			moments = moments[1:]
			if err := s.cycle(ctx, m); err != nil {
				return fmt.Errorf("cycle %d, %s: %w", i+1, m.phase, err)
			}
		}
		s.result.Cycles++
		s.t.Logf("cycle %d took %v", s.result.Cycles, time.Since(begun).Round(time.Millisecond))
	}
	return nil
}

func (s *story) cycle(ctx context.Context, m moment) error {
	r, until, err := s.reach(ctx, m)
	if err != nil {
		return err
	}
	if err := wait(ctx, m.delay(s.rng, time.Until(until))); err != nil {
		return err
	}
	s.work.burst(ctx, s.failed)
	// A grant takes some 20 ms to make: two transactions and KMS between them.
	if err := wait(ctx, between(s.rng, 0, 40*time.Millisecond)); err != nil {
		return err
	}
	gone, err := s.harm.strike(ctx, r)
	if err != nil {
		return err
	}
	if !gone {
		s.result.Struck[m.phase]++
		return nil
	}
	if m.phase == starting {
		if err := s.strikeStart(ctx); err != nil {
			return err
		}
	}
	if err := r.buried(); err != nil {
		return err
	}
	looked := time.Now()
	left, err := s.lookAfterCrash(ctx)
	if err != nil {
		return err
	}
	lookTook := time.Since(looked)
	found := left.found()
	if m.phase == starting {
		found = starting
	}
	s.result.Struck[found]++
	s.t.Logf("struck in %s (aimed at %s), with %d rows to move; looked at %d rows in %v",
		found, m.phase, left.pending, len(s.check.rows), lookTook.Round(time.Millisecond))
	if r, err = s.start(ctx); err != nil {
		return err
	}
	return s.recovered(ctx, r)
}

// lookAfterCrash looks at what a dead process left.
func (s *story) lookAfterCrash(ctx context.Context) (jobRow, error) {
	left, err := s.check.look(ctx, s.sys.data, s.tmp, false, "")
	if err == nil && s.check.findings.problems != nil {
		err = errors.New("what the crash left is wrong: the next start would hide it")
	}
	return left, err
}

// reach waits until the job is in the moment's phase or past it, and tells until
// when the job waits there. A job that has ended is followed by the next one.
func (s *story) reach(ctx context.Context, m moment) (_ *running, until time.Time, err error) {
	if s.jobEnded || m.phase == "PREPARING" {
		if err := s.awaitJob(ctx); err != nil {
			return nil, until, err
		}
		if err := s.changeKey(ctx); err != nil {
			return nil, until, err
		}
	}
	if m.phase != starting {
		want := keybrokerv1.ReencryptionJob_Phase(keybrokerv1.ReencryptionJob_Phase_value["PHASE_"+m.phase])
		err := watch(ctx, s.sys, s.job, func(_ *running, j *keybrokerv1.ReencryptionJob) bool {
			if j.GetPhase() == want && j.GetWaiting().GetUntil() != nil {
				until = j.GetWaiting().GetUntil().AsTime()
			}
			return s.see(j) || j.GetPhase() >= want
		})
		if err != nil {
			return nil, until, err
		}
	}
	r, err := s.sys.up(ctx)
	return r, until, err
}

// strikeStart kills a process somewhere between exec and serving.
func (s *story) strikeStart(ctx context.Context) error {
	server, err := s.sys.spawn()
	if err != nil {
		return err
	}
	if err := wait(ctx, between(s.rng, 0, s.lastStart)); err != nil {
		return err
	}
	return server.Kill()
}

// recovered waits until work goes on, and notes how long after the start of the
// process that was: until the job has moved, by a batch or a step or, where it
// waits for a date, until a write was acknowledged.
func (s *story) recovered(ctx context.Context, r *running) error {
	shown := 0
	waits := false
	err := watch(ctx, s.sys, s.job, func(_ *running, j *keybrokerv1.ReencryptionJob) bool {
		shown++
		ended := s.see(j)
		waits = ended || j.GetWaiting().GetUntil() != nil
		return waits || shown > 1
	})
	if err != nil {
		return err
	}
	at := time.Now()
	if waits {
		select {
		case <-r.wrote:
			at = r.wroteAt
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	s.recoveries = append(s.recoveries, at.Sub(r.Started).Seconds())
	return nil
}
