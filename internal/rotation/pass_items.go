package rotation

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/pacer"
)

const (
	// maxBlob is KMS's limit of a CiphertextBlob, in bytes (KMS API Reference,
	// ReEncrypt).
	maxBlob = 6144
	// itemAttempts is how often KMS is asked about one item, or one row of
	// VERIFYING's sample, while it throttles or
	// is silent: with waits of 50 ms, 100 ms … 2 s, about half a minute; ours.
	itemAttempts = 20
	itemWait     = 50 * time.Millisecond
	itemWaitMost = 2 * time.Second
	// passAttempts is how often items follow a domain from key to key; a domain
	// changes keys rarely.
	passAttempts = 5
)

// A PassItem is a wrapped key that a service keeps. ID is its own name for it.
type PassItem struct {
	ID         string
	Ciphertext broker.Secret
	// Context is what it was made with; the domain's reserved pair may be left out.
	Context broker.Context
	// KMSKey is the key that it is under, "" if the client does not know.
	KMSKey broker.KeyARN
	// Proven says that the broker itself once answered so.
	Proven bool
}

// A Receipt is what became of an item: exactly one of Err and the rest.
type Receipt struct {
	Item          string
	Ciphertext    broker.Secret
	KMSKey        broker.KeyARN
	KeyMaterialID string // "" if KMS did not say, or was not asked
	// Unchanged: the item was under KMSKey already, and Ciphertext is its own.
	Unchanged bool
	Err       error

	// under is the older key that it was moved from or, with Err, the keys that it
	// may be under: that of which its owner says so, if KMS does not deny it, or all
	// that KMS lets nobody ask about, where it denies every other. None otherwise.
	under []broker.KeyARN
}

// errKeyMoved tells ReencryptItems' loop that the domain has another key now.
var errKeyMoved = errors.New("the domain's key changed meanwhile")

// ReencryptItems moves wrapped keys of a pass to the domain's present key, and
// gives one receipt for each, in their order. What is wrong with an item is in
// its receipt; an error is the whole call's, and then nothing was told of any.
//
// Nothing is stored but the audit event, which is committed before the receipts
// are given. What KMS made under a key that a switch has replaced meanwhile is
// dropped and made again, as with every store: else a receipt that lay about for
// long could name a key that is about to be retired. Safe for concurrent use by
// one pass.
func (e *Engine) ReencryptItems(ctx context.Context, caller broker.Caller, pass Pass, items []PassItem) ([]Receipt, error) {
	ctx = pacer.WithFlow(ctx, flowOf(Job{Domain: pass.Domain}))
	for range passAttempts {
		p, err := e.readKeys(ctx, pass)
		if err != nil {
			return nil, err
		}
		receipts, err := e.moveItems(ctx, p, items)
		if err != nil {
			return nil, err
		}
		e.cfg.At("items.reencrypted")
		err = e.commitItems(ctx, caller, pass, p.domain, receipts)
		if errors.Is(err, errKeyMoved) {
			continue
		}
		e.cfg.At("items.committed")
		return receipts, err
	}
	return nil, &broker.Error{Kind: broker.ErrConflict, Reason: broker.ReasonKeyChangeInProgress,
		Detail: "the domain's key changed again and again during the call: resume the pass"}
}

// readKeys reads what the items of a pass need to know: the domain and its keys.
func (e *Engine) readKeys(ctx context.Context, pass Pass) (plan, error) {
	var p plan
	err := e.store.View(ctx, func(tx Tx) (err error) {
		if p.domain, err = pass.domain(ctx, tx); err != nil {
			return err
		}
		p.keys, err = tx.DomainKeys(ctx, pass.Domain)
		return err
	})
	return p, err
}

// moveItems gives the items to KMS, several at a time. It fails only if ctx ends.
func (e *Engine) moveItems(ctx context.Context, p plan, items []PassItem) ([]Receipt, error) {
	receipts := make([]Receipt, len(items))
	e.severalAtATime(len(items), func(i int) {
		if ctx.Err() == nil {
			receipts[i] = e.moveItem(ctx, p, items[i])
		}
	})
	return receipts, ctx.Err()
}

// severalAtATime does n things that ask KMS, CallsPerShard of them at a time.
func (e *Engine) severalAtATime(n int, do func(i int)) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(e.cfg.CallsPerShard, n) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				do(i)
			}
		})
	}
	wg.Wait()
}

func (e *Engine) moveItem(ctx context.Context, p plan, item PassItem) Receipt {
	present := p.domain.KMSKey
	if item.Proven && item.KMSKey == present {
		return Receipt{Item: item.ID, Ciphertext: item.Ciphertext, KMSKey: present, Unchanged: true}
	}
	full, sources, err := e.checkItem(p, item)
	if broker.ReasonOf(err) == broker.ReasonCiphertextWrongKey {
		return Receipt{Item: item.ID, Err: err, under: []broker.KeyARN{item.KMSKey}}
	}
	if err != nil {
		return Receipt{Item: item.ID, Err: err}
	}
	made, unasked, err := e.moveFrom(ctx, sources, broker.ReEncrypt{Ciphertext: item.Ciphertext, SourceContext: full,
		DestinationKey: present, DestinationContext: full})
	switch {
	case broker.ClassOf(err) == broker.KMSIncorrectKey:
		return Receipt{Item: item.ID, Err: wrongKey(p.domain, "the blob is not under %s", sources)}
	case err != nil:
		if slices.Contains(unasked, present) {
			unasked = nil
		}
		return Receipt{Item: item.ID, Err: broker.RefusedByKMS(err, p.domain.ID.Name()), under: unasked}
	case made.SourceKey == present:
		return Receipt{Item: item.ID, Ciphertext: item.Ciphertext, KMSKey: present, KeyMaterialID: made.SourceKeyMaterialID, Unchanged: true}
	}
	return Receipt{Item: item.ID, Ciphertext: made.Ciphertext, KMSKey: present, KeyMaterialID: made.DestinationKeyMaterialID, under: []broker.KeyARN{made.SourceKey}}
}

// checkItem gives the context for both sides of an item's call, and the keys
// that it may be under. The reserved pair is on the source side too: a blob that
// was not made through a grant of this domain does not open with it.
func (e *Engine) checkItem(p plan, item PassItem) (full broker.Context, sources []broker.KeyARN, err error) {
	if len(item.Ciphertext) == 0 || len(item.Ciphertext) > maxBlob {
		return nil, nil, fieldInvalid("ciphertext_blob", fmt.Sprintf("must have 1 to %d bytes", maxBlob))
	}
	own, err := e.broker.OwnContext("context", item.Context, p.domain)
	if err != nil {
		return nil, nil, err
	}
	for _, k := range slices.Backward(replacedUnretired(p.keys, p.domain.Epoch)) {
		if k.KMSKey != p.domain.KMSKey && !slices.Contains(sources, k.KMSKey) {
			sources = append(sources, k.KMSKey)
		}
	}
	sources = append(sources, p.domain.KMSKey)
	if item.KMSKey == "" {
		return own.With(p.domain.Reserved), sources, nil
	}
	if !slices.Contains(sources, item.KMSKey) {
		return nil, nil, wrongKey(p.domain, "kms_key is not among the domain's keys that are not retired, %s: leave it out to have them tried", sources)
	}
	return own.With(p.domain.Reserved), []broker.KeyARN{item.KMSKey}, nil
}

func wrongKey(d broker.Domain, format string, keys []broker.KeyARN) error {
	list := make([]string, len(keys))
	for i, k := range keys {
		list[i] = string(k)
	}
	return &broker.Error{Kind: broker.ErrInvalid, Reason: broker.ReasonCiphertextWrongKey, Resource: d.ID.Name(),
		Detail: fmt.Sprintf(format, strings.Join(list, ", "))}
}

// moveFrom tries one source after the other until the blob is under it. A source
// that cannot be asked may be the right one: if no other is, the first such refusal
// counts, and unasked are all of these sources.
func (e *Engine) moveFrom(ctx context.Context, sources []broker.KeyARN, call broker.ReEncrypt) (made broker.ReEncrypted, unasked []broker.KeyARN, err error) {
	var lost error
	for _, source := range sources {
		call.SourceKey = source
		made, err = e.askPatiently(ctx, call)
		switch class := broker.ClassOf(err); {
		case class.LostAccess():
			lost, unasked = cmp.Or(lost, err), append(unasked, source)
		case class != broker.KMSIncorrectKey:
			return made, nil, err
		}
	}
	return made, unasked, cmp.Or(lost, err)
}

// askPatiently asks KMS again while it throttles or is silent, for a while.
func (e *Engine) askPatiently(ctx context.Context, call broker.ReEncrypt) (made broker.ReEncrypted, err error) {
	wait := itemWait
	for range itemAttempts {
		made, err = e.worker.ReEncrypt(ctx, call)
		if !broker.ClassOf(err).Transient() {
			return made, err
		}
		if e.cfg.Sleep(ctx, time.Duration(float64(wait)*(0.5+e.cfg.Rand()/2))) != nil {
			return made, err
		}
		wait = min(2*wait, itemWaitMost)
	}
	return made, err
}

// commitItems writes the audit event of what KMS moved, if the domain's key is
// still the one that it was moved to. A service that still finds items under an
// older key has attested too early, if it has: its word is taken back. The older
// keys are read here once more, since a job may have closed one meanwhile.
func (e *Engine) commitItems(ctx context.Context, caller broker.Caller, pass Pass, opened broker.Domain, receipts []Receipt) error {
	var leaves [][sha256.Size]byte
	older := false
	for _, r := range receipts {
		older = older || len(r.under) > 0
		if r.Err == nil && !r.Unchanged {
			leaves = append(leaves, broker.LeafHash(broker.DataKey{ID: broker.DataKeyID(r.Item), Ciphertext: r.Ciphertext, KeyMaterialID: r.KeyMaterialID, Version: 1, Epoch: opened.Epoch}))
		}
	}
	if !older {
		return nil
	}
	takenBack, closed := false, false
	err := e.store.Update(ctx, func(tx Tx) error {
		takenBack, closed = false, false
		d, err := pass.lockDomain(ctx, tx)
		if err != nil {
			return err
		}
		if d.Epoch != opened.Epoch {
			return errKeyMoved
		}
		keys, err := tx.DomainKeys(ctx, d.UID)
		if err != nil {
			return err
		}
		if oldest := oldestFound(receipts, replaced(keys, d.Epoch)); oldest != 0 {
			if takenBack, err = takeBackAttestations(ctx, tx, caller, pass, d, keys, oldest); err != nil {
				return err
			}
			closed = slices.ContainsFunc(keys, func(k broker.DomainKey) bool { return k.State == broker.KeyClosed })
		}
		if len(leaves) == 0 {
			return nil
		}
		root := broker.MerkleRoot(leaves)
		return tx.Audit(ctx, broker.AuditEvent{Caller: caller.Subject, Action: "selfInventories.reencrypt", Domain: d.UID,
			Resource: pass.Owner.resource(d), Outcome: broker.AuditDone, Detail: map[string]string{"pass": pass.ID,
				"items": strconv.Itoa(len(leaves)), "merkle_root": hex.EncodeToString(root[:]), "kms_key": string(d.KMSKey)}})
	})
	if err != nil {
		return err
	}
	// Also where the word was taken back before: a crash may have come in between.
	if closed {
		if err := e.reopenAtOnce(ctx, pass.Domain); err != nil {
			e.logFailure(ctx, "older keys not opened again for a word that was taken back; the job's next step does it", err)
		}
	}
	if takenBack {
		if err := e.wakeForWords(ctx, pass.Domain); err != nil {
			e.logFailure(ctx, "job not told that a word was taken back; its next step sees it", err)
		}
	}
	return nil
}

// oldestFound gives the oldest epoch, of those that were replaced, under which
// items were found, 0 if none. What KMS has moved was there. What it has not is
// believed to be where it may be only if the broker can ask no more, since every
// epoch with those keys is closed: before, what is given up is no reason to take a
// word back, and the pass that gives it up says so by its word.
func oldestFound(receipts []Receipt, replaced []broker.DomainKey) (oldest broker.Epoch) {
	for _, r := range receipts {
		var first broker.Epoch
		found := true
		for _, k := range replaced { // the oldest first
			if !slices.Contains(r.under, k.KMSKey) {
				continue
			}
			found = found && (r.Err == nil || k.State != broker.KeySuperseded)
			first = cmp.Or(first, k.Epoch)
		}
		if found && first != 0 && (oldest == 0 || first < oldest) {
			oldest = first
		}
	}
	return oldest
}

// resource names what a pass is about.
func (o PassOwner) resource(d broker.Domain) string {
	if o.Grant != "" {
		return broker.GrantName(d.ID, o.Grant)
	}
	return d.ID.Name()
}
