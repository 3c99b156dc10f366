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
	own := broker.Context(nil).With(d.Reserved)
	other := broker.Context(nil).With(e.broker.ReservedPair(broker.DomainUID(e.cfg.NewProbe()), d.Region))
	if err := e.dryRunGrant(ctx, j.TargetKey, own); err != nil {
		if broker.ClassOf(err) == broker.KMSDenied {
			return failWith(broker.ReasonKeyPolicyMissing, "the key policy of %s does not let the broker make grants for this domain: put GenerateKeyPolicy's statements into it", j.TargetKey)
		}
		return blockOnKMS(To, j.TargetKey, err)
	}
	probes := []func() error{
		func() error { return e.dryRunGrant(ctx, j.TargetKey, other) },
		func() error {
			_, err := e.worker.GenerateDataKeyWithoutPlaintext(ctx, broker.GenerateDataKey{Key: j.TargetKey,
				KeySpec: broker.DefaultKeySpec, Context: other, DryRun: true})
			return err
		},
		func() error {
			_, err := e.worker.ReEncrypt(ctx, broker.ReEncrypt{SourceKey: j.TargetKey, SourceContext: other,
				DestinationKey: j.TargetKey, DestinationContext: other, DryRun: true})
			return err
		},
	}
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

func (e *Engine) dryRunGrant(ctx context.Context, key broker.KeyARN, reserved broker.Context) error {
	_, err := e.registrar.CreateGrant(ctx, broker.NewKMSGrant{Key: key, Name: "kb/probe", Grantee: e.cfg.WorkerRole,
		Retiring: e.cfg.RegistrarRole, Operations: []string{"ReEncryptFrom", "ReEncryptTo"},
		Constraint: broker.Constraint{Subset: reserved}, DryRun: true})
	return err
}
