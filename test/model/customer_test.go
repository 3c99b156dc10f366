package model_test

import (
	"maps"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"pgregory.net/rapid"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/localkms"
)

// What the keys' owners do at KMS, and what KMS does by itself.

const (
	disabledKey = "disabled"
	pendingKey  = "pending deletion"
)

func (m *machine) makeUnusable(t *rapid.T) {
	key := rapid.SampledFrom(m.keys).Draw(t, "key")
	if m.unusable[key] != "" {
		panic(nothing("it is unusable already"))
	}
	how := rapid.SampledFrom([]string{disabledKey, pendingKey}).Draw(t, "how")
	fatal(t, m.setUnusable(key, how))
	m.unusable[key] = how
}

func (m *machine) setUnusable(key broker.KeyARN, how string) error {
	id := aws.String(string(key))
	if how == disabledKey {
		_, err := m.bench.Customer.DisableKey(m.ctx, &kms.DisableKeyInput{KeyId: id})
		return err
	}
	_, err := m.bench.Customer.ScheduleKeyDeletion(m.ctx, &kms.ScheduleKeyDeletionInput{KeyId: id})
	return err
}

func (m *machine) makeUsable(t *rapid.T) {
	if len(m.unusable) == 0 {
		panic(nothing("all are usable"))
	}
	key := rapid.SampledFrom(slices.Sorted(maps.Keys(m.unusable))).Draw(t, "key")
	m.mend(t, key)
}

func (m *machine) mend(t *rapid.T, key broker.KeyARN) {
	fatal(t, m.setUsable(key))
	delete(m.unusable, key)
	m.mended[key] = m.now()
}

func (m *machine) setUsable(key broker.KeyARN) error {
	id := aws.String(string(key))
	if m.unusable[key] == pendingKey { // which leaves it disabled
		if _, err := m.bench.Customer.CancelKeyDeletion(m.ctx, &kms.CancelKeyDeletionInput{KeyId: id}); err != nil {
			return err
		}
	}
	_, err := m.bench.Customer.EnableKey(m.ctx, &kms.EnableKeyInput{KeyId: id})
	return err
}

// wasUnusable says whether any of the keys was at some time since.
func (m *machine) wasUnusable(since time.Time, keys []broker.KeyARN) bool {
	return slices.ContainsFunc(keys, func(key broker.KeyARN) bool {
		mended, ever := m.mended[key]
		return m.unusable[key] != "" || ever && !mended.Before(since)
	})
}

// asOwner lets the owner use a key for a moment, whatever state it is in.
func (m *machine) asOwner(t *rapid.T, key broker.KeyARN, use func() error) {
	t.Helper()
	if how := m.unusable[key]; how != "" {
		fatal(t, m.setUsable(key))
		defer func() { fatal(t, m.setUnusable(key, how)) }()
	}
	fatal(t, use())
}

// rotate gives a key new material; what is under older material stays readable.
func (m *machine) rotate(t *rapid.T) {
	key := rapid.SampledFrom(m.keys).Draw(t, "key")
	const most = 20 // KMS allows 25 (API Reference, RotateKeyOnDemand)
	if m.unusable[key] != "" || len(m.materials[key]) == most {
		panic(nothing("it cannot be rotated"))
	}
	_, err := m.bench.Customer.RotateKeyOnDemand(m.ctx, &kms.RotateKeyOnDemandInput{KeyId: aws.String(string(key))})
	fatal(t, err)
	m.noteMaterial(t, key)
}

func (m *machine) noteMaterial(t *rapid.T, key broker.KeyARN) {
	out, err := m.bench.Customer.DescribeKey(m.ctx, &kms.DescribeKeyInput{KeyId: aws.String(string(key))})
	fatal(t, err)
	m.materials[key] = append(m.materials[key], aws.ToString(out.KeyMetadata.CurrentKeyMaterialId))
}

// hideGrants has KMS take longer, or shorter, to show grants and to forget them;
// always less than the deployment allows it.
func (m *machine) hideGrants(t *rapid.T) {
	delays := []time.Duration{0, time.Second, visibility - time.Second}
	f := localkms.Faults{GrantDelay: rapid.SampledFrom(delays).Draw(t, "grants appear after"),
		RetireDelay: rapid.SampledFrom(delays).Draw(t, "grants go after")}
	fatal(t, m.bench.KMS.SetFaults(f))
	m.lingers = max(m.lingers, f.RetireDelay)
}
