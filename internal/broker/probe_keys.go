package broker

import "context"

// probeBatch bounds the domains that ProbeKeys reads at a time, and probeAtATime
// the dry runs that are at KMS at a time; ours.
const probeBatch, probeAtATime = 100, 4

// ProbeKeys tries the key of each domain that is KEY_INACCESSIBLE, by a dry run of
// what CreateDataKey asks of KMS, and makes the domain ACTIVE where KMS would do
// it. A key that is refused still is no failure. It is called periodically.
func (b *Broker) ProbeKeys(ctx context.Context) error {
	var failed failures
	for after := DomainUID(""); ctx.Err() == nil; {
		var lost []Domain
		err := b.store.View(ctx, func(tx Tx) (err error) {
			lost, err = tx.InaccessibleDomains(ctx, after, probeBatch)
			return err
		})
		failed.add(err)
		if err != nil || len(lost) == 0 {
			break
		}
		failed.add(atATime(probeAtATime, lost, func(d Domain) error { return b.probeKey(ctx, d) }))
		after = lost[len(lost)-1].UID
	}
	return failed.err()
}

func (b *Broker) probeKey(ctx context.Context, d Domain) error {
	_, err := b.worker.GenerateDataKeyWithoutPlaintext(ctx, GenerateDataKey{
		Key: d.KMSKey, KeySpec: DefaultKeySpec, Context: Context{}.With(d.Reserved), DryRun: true})
	if ClassOf(err).LostAccess() {
		return nil
	}
	if err != nil {
		return err
	}
	return b.store.Update(ctx, func(tx Tx) error {
		now, err := tx.DomainByUID(ctx, d.UID)
		if err != nil || now.Epoch != d.Epoch {
			return err // KMS has spoken of another key
		}
		return markAccessible(ctx, tx, now)
	})
}
