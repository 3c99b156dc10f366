package rotation

import (
	"context"

	"github.com/keybroker/keybroker/internal/broker"
)

// probeOwnership asks whether the key is its registrant's to give (T2): the key
// policy must let the registrar make grants for this domain's reserved pair,
// and not for that of another domain, which nobody has; nor may it let the worker use the key
// without a grant. A policy that allows more would let any tenant register the
// key as its own. The real pair is never used for the negative half: the worker
// may hold grants for it already.
func (e *Engine) probeOwnership(ctx context.Context, d broker.Domain, j Job) error {
	own, other := broker.Context(nil).With(d.Reserved), e.foreignPair(d)
	if err := e.dryRunGrant(ctx, j.TargetKey, own); err != nil {
		if broker.ClassOf(err) == broker.KMSDenied {
			return failWith(broker.ReasonKeyPolicyMissing, "the key policy of %s does not let the broker make grants for this domain: put GenerateKeyPolicy's statements into it", j.TargetKey)
		}
		return blockOnKMS(To, j.TargetKey, err)
	}
	return e.mustDeny(ctx, d, j,
		func() error { return e.dryRunGrant(ctx, j.TargetKey, other) },
		func() error {
			_, err := e.worker.GenerateDataKeyWithoutPlaintext(ctx, broker.GenerateDataKey{Key: j.TargetKey,
				KeySpec: broker.DefaultKeySpec, Context: other, DryRun: true})
			return err
		},
		func() error { return e.dryRunMove(ctx, j.TargetKey, other, other, nil) })
}

// probeHalves asks the same of each half of a move alone, once a dry run has shown
// that the worker's grants allow both with the domain's pair: a policy that lets the
// worker move blobs of anybody away from the key, such as an import statement without
// a condition, does not let it move them to it.
func (e *Engine) probeHalves(ctx context.Context, d broker.Domain, j Job, tokens []broker.Secret) error {
	own, other := broker.Context(nil).With(d.Reserved), e.foreignPair(d)
	return e.mustDeny(ctx, d, j,
		func() error { return e.dryRunMove(ctx, j.TargetKey, other, own, tokens) },
		func() error { return e.dryRunMove(ctx, j.TargetKey, own, other, tokens) })
}

// foreignPair is the reserved pair of a domain that does not exist.
func (e *Engine) foreignPair(d broker.Domain) broker.Context {
	return broker.Context(nil).With(e.broker.ReservedPair(broker.DomainUID(e.cfg.NewProbe()), d.Region))
}

// mustDeny fails a change to a key of which KMS allows any of the probes.
func (e *Engine) mustDeny(ctx context.Context, d broker.Domain, j Job, probes ...func() error) error {
	for _, probe := range probes {
		err := probe()
		if broker.ClassOf(err) == broker.KMSDenied {
			continue
		}
		if err != nil {
			return blockOnKMS(To, j.TargetKey, err)
		}
		if e.cfg.MayBeBroad && j.TargetKey.Account() == broker.RoleAccount(e.cfg.RegistrarRole) {
			e.cfg.Logger.WarnContext(ctx, "key policy allows more than this domain", "job", j.ID, "kms_key", j.TargetKey)
			continue
		}
		return failWith(broker.ReasonKeyPolicyTooBroad, "the key policy of %s lets the broker use it for other domains too: pin %s as GenerateKeyPolicy does", j.TargetKey, d.Reserved.Key)
	}
	return nil
}

// dryRunMove asks whether the worker may re-encrypt from a key to itself.
func (e *Engine) dryRunMove(ctx context.Context, key broker.KeyARN, from, to broker.Context, tokens []broker.Secret) error {
	_, err := e.worker.ReEncrypt(ctx, broker.ReEncrypt{SourceKey: key, SourceContext: from,
		DestinationKey: key, DestinationContext: to, Tokens: tokens, DryRun: true})
	return err
}

func (e *Engine) dryRunGrant(ctx context.Context, key broker.KeyARN, reserved broker.Context) error {
	_, err := e.registrar.CreateGrant(ctx, broker.NewKMSGrant{Key: key, Name: "kb/probe", Grantee: e.cfg.WorkerRole,
		Retiring: e.cfg.RegistrarRole, Operations: []string{"ReEncryptFrom", "ReEncryptTo"},
		Constraint: broker.Constraint{Subset: reserved}, DryRun: true})
	return err
}
