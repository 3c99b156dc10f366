//go:build unix

package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/keybroker/keybroker/internal/localkms"
	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

// A strike is one kind of harm to a cluster at work.
type strike struct {
	name string
	// act returns when things should go on, and what is to be mended once they do.
	// since is when the harm was done, or over where nothing can go on before.
	act func(s *siege, ctx context.Context) (since time.Time, mend mending, err error)
}

type mending func(context.Context) error

func nothing(context.Context) error { return nil }

const failOver = "fail-over"

func strikes() []strike {
	return []strike{
		{"kill -9", (*siege).killReplica},
		{"SIGSTOP beyond the lease", (*siege).stopReplica},
		{"clock an hour off", (*siege).shiftClock},
		{"pg_ctl restart -m immediate", (*siege).restartDatabase},
		{failOver, (*siege).failOver},
		{"pg_terminate_backend", (*siege).terminateBackends},
		{"lost KMS answers", func(s *siege, ctx context.Context) (time.Time, mending, error) {
			return s.suffer(ctx, localkms.Faults{Seed: s.rng.Uint64(), LostAnswers: map[string]float64{localkms.AnyOperation: 0.3}})
		}},
		{"throttled at 90 %", func(s *siege, ctx context.Context) (time.Time, mending, error) {
			return s.suffer(ctx, localkms.Faults{Seed: s.rng.Uint64(),
				Errors: []localkms.ErrorFault{{Operation: localkms.AnyOperation, Code: "ThrottlingException", Rate: 0.9}}})
		}},
		{"key disabled and enabled", (*siege).disableKey},
		{"grant revoked by the customer", (*siege).revokeAtKMS},
	}
}

// draw gives n strikes: each kind before any comes again, and a fail-over in any case.
func draw(rng *rand.Rand, n int) []strike {
	var drawn []strike
	for len(drawn) < n {
		all := strikes()
		rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		if at := slices.IndexFunc(all, func(s strike) bool { return s.name == failOver }); at >= n {
			to := rng.IntN(n)
			all[at], all[to] = all[to], all[at]
		}
		drawn = append(drawn, all...)
	}
	return drawn[:n]
}

func (s *siege) killReplica(ctx context.Context) (time.Time, mending, error) {
	return s.replace(0)
}

// shiftClock replaces a replica by one whose clock is an hour off, this way or
// that, until it is killed again.
func (s *siege) shiftClock(ctx context.Context) (time.Time, mending, error) {
	return s.replace([]time.Duration{time.Hour, -time.Hour}[s.rng.IntN(2)])
}

func (s *siege) replace(clock time.Duration) (time.Time, mending, error) {
	i := s.rng.IntN(replicas)
	since := time.Now()
	return since, func(ctx context.Context) error { return s.c.startReplica(ctx, i, clock) }, s.c.kill(i)
}

// stopReplica stops a replica for longer than its leases last: others take its
// work, and it goes on as if nothing had been.
func (s *siege) stopReplica(context.Context) (time.Time, mending, error) {
	r := s.c.member(s.rng.IntN(replicas))
	since := time.Now()
	until := since.Add(between(s.rng, memberLease+500*time.Millisecond, 2*memberLease))
	return since, func(ctx context.Context) error {
		if err := wait(ctx, time.Until(until)); err != nil {
			return err
		}
		return r.Signal(syscall.SIGCONT)
	}, r.Signal(syscall.SIGSTOP)
}

func (s *siege) restartDatabase(ctx context.Context) (time.Time, mending, error) {
	since := time.Now()
	return since, nothing, s.c.pair.Restart(ctx)
}

func (s *siege) failOver(ctx context.Context) (time.Time, mending, error) {
	since := time.Now()
	return since, s.c.pair.Rejoin, s.c.pair.FailOver(ctx)
}

func (s *siege) terminateBackends(ctx context.Context) (time.Time, mending, error) {
	since := time.Now()
	return since, nothing, s.c.pair.TerminateBackends(ctx)
}

// suffer has a KMS on a bad day for a while.
func (s *siege) suffer(ctx context.Context, faults localkms.Faults) (time.Time, mending, error) {
	if err := s.c.setFaults(ctx, faults); err != nil {
		return time.Time{}, nil, err
	}
	if err := wait(ctx, between(s.rng, 2*time.Second, 4*time.Second)); err != nil {
		return time.Time{}, nil, err
	}
	err := s.c.setFaults(ctx, localkms.Faults{})
	return time.Now(), nothing, err
}

// disableKey has the customer disable a key, and think better of it: either of
// them after the switch; before it the new one, since a change whose old key
// cannot be read then fails, as it should.
func (s *siege) disableKey(ctx context.Context) (time.Time, mending, error) {
	preparing := false
	if err := watch(ctx, s.c, s.job, func(_ *running, j *keybrokerv1.ReencryptionJob) bool {
		preparing = !s.see(j) && j.GetPhase() == keybrokerv1.ReencryptionJob_PHASE_PREPARING
		return true
	}); err != nil {
		return time.Time{}, nil, err
	}
	key := s.check.keys[s.rng.IntN(2)]
	if preparing {
		key = s.target()
	}
	if _, err := s.customer.DisableKey(ctx, &kms.DisableKeyInput{KeyId: &key}); err != nil {
		return time.Time{}, nil, err
	}
	if err := wait(ctx, between(s.rng, time.Second, 3*time.Second)); err != nil {
		return time.Time{}, nil, err
	}
	_, err := s.customer.EnableKey(ctx, &kms.EnableKeyInput{KeyId: &key})
	return time.Now(), nothing, err
}

// revokeAtKMS has the customer take a service's grant away, on all keys, after
// the job's switch, so that only the next change could bring it back. It is over
// once the broker has noticed.
func (s *siege) revokeAtKMS(ctx context.Context) (time.Time, mending, error) {
	op := s.work.op("victim")
	var grant *keybrokerv1.Grant
	if _, err := s.c.do(ctx, func(ctx context.Context, r *running) (err error) {
		grant, err = r.grants.CreateGrant(ctx, &keybrokerv1.CreateGrantRequest{Parent: domainName, RequestId: op, Grant: &keybrokerv1.Grant{
			GranteePrincipal: s.work.service, Operations: []string{"Decrypt"}, Ttl: durationpb.New(time.Hour),
			Constraints: &keybrokerv1.Grant_Constraints{EncryptionContextSubset: map[string]string{opKey: op}}}})
		return err
	}); err != nil {
		return time.Time{}, nil, fmt.Errorf("CreateGrant %s: %w", op, err)
	}
	if err := watch(ctx, s.c, s.job, func(_ *running, j *keybrokerv1.ReencryptionJob) bool {
		return s.see(j) || j.GetPhase() != keybrokerv1.ReencryptionJob_PHASE_PREPARING
	}); err != nil {
		return time.Time{}, nil, err
	}
	if err := wait(ctx, 5*grantDelay); err != nil { // KMS does not list it before
		return time.Time{}, nil, err
	}
	found, err := s.grantsOf(ctx, op)
	if err != nil {
		return time.Time{}, nil, err
	}
	if len(found) == 0 {
		return time.Time{}, nil, fmt.Errorf("KMS lists no grant of %s", op)
	}
	for id, key := range found {
		_, err := s.customer.RevokeGrant(ctx, &kms.RevokeGrantInput{KeyId: &key, GrantId: &id})
		var gone *types.NotFoundException // the job has retired it since
		if err != nil && !errors.As(err, &gone) {
			return time.Time{}, nil, err
		}
	}
	s.victims = append(s.victims, op)
	return time.Now(), func(ctx context.Context) error { return s.noticed(ctx, grant.GetName()) }, nil
}

// noticeBound is far above what the broker takes: two listings, a second apart.
const noticeBound = time.Minute

// noticed waits until the broker takes a grant for revoked by the customer.
func (s *siege) noticed(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, noticeBound, fmt.Errorf("%s is not taken for revoked within %v", name, noticeBound))
	defer cancel()
	for {
		var grant *keybrokerv1.Grant
		if _, err := s.c.do(ctx, func(ctx context.Context, r *running) (err error) {
			grant, err = r.grants.GetGrant(ctx, &keybrokerv1.GetGrantRequest{Name: name})
			return err
		}); err != nil {
			return err
		}
		switch grant.GetState() {
		case keybrokerv1.Grant_STATE_REVOKED_BY_CUSTOMER:
			return nil
		case keybrokerv1.Grant_STATE_ACTIVE:
		default:
			return fmt.Errorf("%s, which the customer revoked, is %s", name, grant.GetState())
		}
		if err := wait(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
}

// grantsOf gives the KMS grants of one request, by id, with their keys.
func (s *siege) grantsOf(ctx context.Context, op string) (map[string]string, error) {
	found := map[string]string{}
	for _, key := range s.check.keys {
		pages := kms.NewListGrantsPaginator(s.customer, &kms.ListGrantsInput{KeyId: &key})
		for pages.HasMorePages() {
			page, err := pages.NextPage(ctx)
			if err != nil {
				return nil, err
			}
			for _, g := range page.Grants {
				if g.Constraints != nil && g.Constraints.EncryptionContextSubset[opKey] == op {
					found[aws.ToString(g.GrantId)] = key
				}
			}
		}
	}
	return found, nil
}
