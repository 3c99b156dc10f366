package scenarios_test

import (
	"strings"
	"testing"
	"time"

	"github.com/keybroker/keybroker/client"
	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/localkms"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/test/harness"
)

// forgetful is a service that attests although it has forgotten its last key, and
// the change that believed it, at work until the job looks as wanted.
func forgetful(t *testing.T, b *harness.Bench, until func(rotation.JobView) bool) (k *keeper, forgotten client.WrappedKey, job rotation.JobView, next broker.KeyARN) {
	t.Helper()
	k = newKeeper(t, b, "acme", 2)
	forgotten = k.keys["key-0001"]
	delete(k.keys, "key-0001")
	job, next = k.change()
	workUntil(t, b, job, waitsForServices)
	if r, err := client.Reencrypt(t.Context(), k.pass(true)); err != nil || !r.Attested {
		t.Fatalf("the pass that forgets: %+v, %v", r, err)
	}
	workUntil(t, b, job, until)
	return k, forgotten, job, next
}

// waitsForForgetting is a job that has retired what the older keys had, and waits
// for KMS to forget it.
func waitsForForgetting(v rotation.JobView) bool {
	return !v.CloseTime.IsZero() && strings.Contains(v.WaitMessage, "forget")
}

func reportOf(t *testing.T, b *harness.Bench, job rotation.JobView) rotation.KeyRetirement {
	t.Helper()
	return must[rotation.Report](t)(b.Engine.RetirementReport(t.Context(), harness.Caller, "acme", job.ID)).Keys[0]
}

// succeeds lets a job go on to its end.
func succeeds(t *testing.T, b *harness.Bench, job rotation.JobView) {
	t.Helper()
	if v := must[rotation.JobView](t)(b.Finish(t.Context(), "acme", job.ID)); v.State != rotation.Succeeded {
		t.Fatalf("%s: %s", v.State, v.FailMessage)
	}
}

// findsIt makes a pass with a key that nobody can move now.
func (k *keeper) findsIt() {
	k.t.Helper()
	if r, err := client.Reencrypt(k.t.Context(), k.pass(false)); err != nil || r.Failed != 1 {
		k.t.Fatalf("the pass that finds it: %+v, %v", r, err)
	}
}

// movesItAfterAll asks for the grants on the older keys again, moves the key that
// was found, and gives the word with which the job ends.
func (k *keeper) movesItAfterAll(job rotation.JobView, next broker.KeyARN) {
	k.t.Helper()
	must[rotation.JobView](k.t)(k.b.Engine.ResumeJob(k.t.Context(), harness.Caller, rotation.JobAct{Domain: "acme", Job: job.ID, Reason: "a key was found"}))
	k.b.Clock.Advance(windows().GrantVisibility)
	if r, err := client.Reencrypt(k.t.Context(), k.pass(true)); err != nil || r.Moved != 1 || !r.Attested {
		k.t.Fatalf("the pass that moves it: %+v, %v", r, err)
	}
	succeeds(k.t, k.b, job)
	k.opens(next)
}

func selfBlockers(r rotation.KeyRetirement) (n int64) {
	for _, b := range r.Blockers {
		if b.Kind == rotation.BlockSelfInventory {
			n += b.Count
		}
	}
	return n
}

// A service finds a key to move after the job has closed the older keys: they are
// opened again, and the job waits for its word once more.
func TestWordTakenBackAfterTheKeysAreClosed(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	k, forgotten, job, next := forgetful(t, b, func(v rotation.JobView) bool { return !v.CloseTime.IsZero() })
	k.keys["key-0001"] = forgotten
	if r, err := client.Reencrypt(ctx, k.pass(false)); err != nil || r.Moved != 1 {
		t.Fatalf("the pass that finds it: %+v, %v", r, err)
	}
	if r := reportOf(t, b, job); selfBlockers(r) != 1 || r.Inventories[0].Settled != nil {
		t.Errorf("the report before the job has looked: %+v", r)
	}
	workUntil(t, b, job, waitsForServices)
	for range 10 {
		b.Clock.Advance(time.Hour)
		must[bool](t)(b.Step(ctx))
	}
	if v := must[rotation.JobView](t)(b.Engine.GetJob(ctx, harness.Caller, "acme", job.ID)); !waitsForServices(v) {
		t.Fatalf("time alone let the job go on: %s", v.State)
	}
	k.opens(next)
	if r, err := client.Reencrypt(ctx, k.pass(true)); err != nil || !r.Attested {
		t.Fatalf("%+v, %v", r, err)
	}
	succeeds(t, b, job)
	if r := reportOf(t, b, job); !r.Safe {
		t.Errorf("the report at the end: %+v", r.Blockers)
	}
}

// The same after the grants on the older key were retired: nobody can read the key
// that was found, until people ask for the grants again; then it is moved. That the
// service does not say which key it is under changes nothing: KMS denies all others.
func TestWordTakenBackAfterTheGrantsAreRetired(t *testing.T) {
	for what, says := range map[string]bool{"with its key": true, "without": false} {
		t.Run(what, func(t *testing.T) {
			ctx := t.Context()
			b := newBench(t, harness.Config{})
			k, forgotten, job, next := forgetful(t, b, waitsForForgetting)
			if !says {
				forgotten.KMSKey = ""
			}
			k.keys["key-0001"] = forgotten
			if r, err := client.Reencrypt(ctx, k.pass(false)); err != nil || r.Moved != 0 || r.Failed != 1 {
				t.Fatalf("the pass that finds it: %+v, %v", r, err)
			}
			workUntil(t, b, job, waitsForServices)
			k.movesItAfterAll(job, next)
			if names := must[[]string](t)(b.GrantsAt(ctx, k.domain.KMSKey, k.domain)); len(names) != 0 {
				t.Errorf("grants left on the old key: %v", names)
			}
		})
	}
}

// After the job has succeeded nothing can be opened again, but the report says no,
// until the service gives its word once more, or an operator his.
func TestWordTakenBackAfterSuccess(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	k, forgotten, job, _ := forgetful(t, b, func(v rotation.JobView) bool { return v.State == rotation.Succeeded })
	if r := reportOf(t, b, job); !r.Safe {
		t.Fatalf("the report after the job: %+v", r.Blockers)
	}
	k.keys["key-0001"] = forgotten
	find := func() {
		t.Helper()
		k.findsIt()
		if r := reportOf(t, b, job); r.Safe || selfBlockers(r) != 1 || r.Inventories[0].Settled != nil {
			t.Fatalf("the report after a key was found: %+v", r)
		}
	}
	find()
	pass := k.pass(true)
	pass.GiveUp = func(client.KeyReceipt) bool { return true }
	if r, err := client.Reencrypt(ctx, pass); err != nil || !r.Attested {
		t.Fatalf("the pass that gives it up: %+v, %v", r, err)
	}
	if r := reportOf(t, b, job); !r.Safe || r.Inventories[0].Settled.GivenUp != 1 {
		t.Errorf("the report after the service's word: %+v", r)
	}
	find()
	in := rotation.OverrideInventory{Domain: "acme", Grant: k.grant.ID, Reason: "nobody needs it"}
	must[rotation.SelfInventory](t)(b.Engine.OverrideSelfInventory(ctx, harness.Caller, in))
	if r := reportOf(t, b, job); !r.Safe || r.Inventories[0].Settled.Kind != rotation.Overridden {
		t.Errorf("the report after the operator's word: %+v", r)
	}
	// The next change asks about the key that it replaces, not about this one again.
	job, _ = k.change()
	workUntil(t, b, job, switched)
	old := must[rotation.Report](t)(b.Engine.RetirementReport(ctx, harness.Caller, "acme", job.ID))
	if old.Keys[0].Key == k.domain.KMSKey {
		t.Errorf("the report of the next change: %s", old.Canonical)
	}
}

// A job closes the older keys, and even ends, while a message of a pass is at KMS:
// what the message moved there is seen all the same.
func TestKeysCloseWhileItemsAreAtKMS(t *testing.T) {
	for what, until := range map[string]func(rotation.JobView) bool{
		"closed":    func(v rotation.JobView) bool { return !v.CloseTime.IsZero() },
		"succeeded": func(v rotation.JobView) bool { return v.State == rotation.Succeeded },
	} {
		t.Run(what, func(t *testing.T) {
			ctx := t.Context()
			var meanwhile func()
			b := newBench(t, harness.Config{Observe: func(c localkms.Call) {
				if c.Operation == "ReEncrypt" && meanwhile != nil {
					run := meanwhile
					meanwhile = nil
					run()
				}
			}})
			// Not closed yet: readers have max_read_delay.
			k, forgotten, job, _ := forgetful(t, b, func(v rotation.JobView) bool { return v.State == rotation.Running })
			pass := must[rotation.PassView](t)(b.Engine.OpenPass(ctx, harness.Caller, rotation.OpenPass{Domain: "acme", Owner: rotation.PassOwner{Grant: k.grant.ID}}))
			meanwhile = func() { workUntil(t, b, job, until) }
			_, err := b.Engine.ReencryptItems(ctx, harness.Caller, pass.Pass, []rotation.PassItem{{ID: "key-0001",
				Ciphertext: forgotten.CiphertextBlob, Context: forgotten.EncryptionContext, KMSKey: broker.KeyARN(forgotten.KMSKey)}})
			if err != nil {
				t.Fatal(err)
			}
			if r := reportOf(t, b, job); r.Safe || selfBlockers(r) != 1 {
				t.Errorf("the report after the commit: %+v", r.Blockers)
			}
			if what == "closed" {
				workUntil(t, b, job, waitsForServices)
			}
		})
	}
}

// What a service says of a key that is still open takes no word back unless KMS
// has moved it: what cannot be read now is given up by the pass that attests.
func TestRefusedItemsTakeNoWordBack(t *testing.T) {
	b := newBench(t, harness.Config{})
	k, forgotten, job, _ := forgetful(t, b, func(v rotation.JobView) bool { return v.State == rotation.Running })
	forgotten.CiphertextBlob[len(forgotten.CiphertextBlob)-1] ^= 1
	k.keys["key-0001"] = forgotten
	k.findsIt()
	succeeds(t, b, job)
}

// While the present key cannot be asked, an item of which nobody says where it is may
// be under that, where it should be.
func TestDisabledPresentKeyTakesNoWordBack(t *testing.T) {
	b := newBench(t, harness.Config{})
	k, _, job, next := forgetful(t, b, waitsForForgetting)
	moved := k.keys["key-0000"]
	moved.KMSKey = ""
	k.keys["key-0000"] = moved
	disable(t, b, next)
	k.findsIt()
	enable(t, b, next)
	succeeds(t, b, job)
}

// The same where another change has superseded the one that closed the older keys:
// it opens them again, and only once a word about them is taken back.
func TestWordTakenBackAfterTheNextChange(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	k, forgotten, closer, _ := forgetful(t, b, waitsForForgetting)
	must[rotation.JobView](t)(b.Engine.PauseJob(ctx, harness.Caller, rotation.JobAct{Domain: "acme", Job: closer.ID, Reason: "a test"}))
	first := func() broker.DomainKey { return keysOf(t, b, k.domain)[0] }
	job, next := k.change()
	workUntil(t, b, job, waitsForServices)
	if state := first().State; state != broker.KeyClosed {
		t.Errorf("no word about the first key was taken back, and it is %s", state)
	}
	k.keys["key-0001"] = forgotten
	if r, err := client.Reencrypt(ctx, k.pass(false)); err != nil || r.Moved != 1 || r.Failed != 1 {
		t.Fatalf("the pass that finds it: %+v, %v", r, err)
	}
	workUntil(t, b, job, func(rotation.JobView) bool { return first().State == broker.KeySuperseded })
	workUntil(t, b, job, waitsForServices)
	k.movesItAfterAll(job, next)
}

func keysOf(t *testing.T, b *harness.Bench, d broker.Domain) (keys []broker.DomainKey) {
	t.Helper()
	view2(t, b, func(tx rotation.Tx) (err error) {
		keys, err = tx.DomainKeys(t.Context(), d.UID)
		return err
	})
	return keys
}

// Whatever holds the next change up, a word that is taken back opens the key that
// the one before has closed: it is healthy, and what is under it can be read and
// moved once people ask for the grants again.
func TestWordTakenBackWhileTheNextChangeIsHeldUp(t *testing.T) {
	heldUp := map[string]struct {
		by    func(t *testing.T, b *harness.Bench, job rotation.JobView)
		state rotation.State
		phase rotation.Phase
	}{
		"blocked": {func(t *testing.T, b *harness.Bench, job rotation.JobView) {
			disable(t, b, job.SourceKey)
			workUntil(t, b, job, func(v rotation.JobView) bool { return v.State == rotation.Blocked })
		}, rotation.Blocked, rotation.Reencrypting},
		"paused": {func(t *testing.T, b *harness.Bench, job rotation.JobView) {
			must[rotation.JobView](t)(b.Engine.PauseJob(t.Context(), harness.Caller, rotation.JobAct{Domain: "acme", Job: job.ID}))
		}, rotation.Paused, rotation.Reencrypting},
		"draining": {func(t *testing.T, b *harness.Bench, job rotation.JobView) {
			workUntil(t, b, job, func(v rotation.JobView) bool { return v.WaitUntil.After(b.Clock.Now()) })
		}, rotation.Running, rotation.Draining},
		"failed": {func(t *testing.T, b *harness.Bench, job rotation.JobView) {
			workUntil(t, b, job, func(v rotation.JobView) bool { return v.State == rotation.Failed })
		}, rotation.Failed, rotation.Verifying},
	}
	for what, held := range heldUp {
		t.Run(what, func(t *testing.T) {
			ctx := t.Context()
			b := newBench(t, harness.Config{})
			k, forgotten, closer, _ := forgetful(t, b, waitsForForgetting)
			must[rotation.JobView](t)(b.Engine.PauseJob(ctx, harness.Caller, rotation.JobAct{Domain: "acme", Job: closer.ID}))
			createKeys(t, b, "acme", 20)
			if held.state == rotation.Failed {
				spoil(t, b, k.domain, "k0019")
			}
			job, _ := k.change()
			workUntil(t, b, job, switched)
			held.by(t, b, job)
			job = must[rotation.JobView](t)(b.Engine.GetJob(ctx, harness.Caller, "acme", job.ID))
			if job.State != held.state || job.Phase != held.phase {
				t.Fatalf("the job is %s in %s, want %s in %s", job.State, job.Phase, held.state, held.phase)
			}
			k.keys = map[string]client.WrappedKey{"key-0001": forgotten}
			k.findsIt()
			if key := keysOf(t, b, k.domain)[0]; key.State != broker.KeySuperseded {
				t.Fatalf("the first key is %s", key.State)
			}
			now := must[rotation.JobView](t)(b.Engine.GetJob(ctx, harness.Caller, "acme", job.ID))
			if now.State != job.State || now.Phase != job.Phase || now.Block != job.Block {
				t.Errorf("the job was %s in %s, and is %s in %s, block %+v", job.State, job.Phase, now.State, now.Phase, now.Block)
			}

			renewed := must[broker.GrantView](t)(b.Broker.RenewGrant(ctx, harness.Caller, broker.RenewGrant{Domain: "acme", ID: k.grant.ID, TTL: 24 * time.Hour}))
			for _, token := range renewed.Tokens {
				k.tokens = append(k.tokens, string(token))
			}
			k.opens(k.domain.KMSKey)
			// A key that cannot be used is told of, and keeps no other from it.
			_, err := b.Engine.ResumeJob(ctx, harness.Caller, rotation.JobAct{Domain: "acme", Job: job.ID, Reason: "a key was found"})
			if broker.ReasonOf(err) == broker.ReasonKeyDisabled && what == "blocked" {
				err = nil
			}
			if err != nil {
				t.Fatal(err)
			}
			b.Clock.Advance(windows().GrantVisibility)
			if r, err := client.Reencrypt(ctx, k.pass(false)); err != nil || r.Moved != 1 {
				t.Fatalf("the pass that moves it: %+v, %v", r, err)
			}
		})
	}
}

// The process ends between the taking back of a word and the opening of the key: the
// job's next step opens it, and so does the next item that is found there.
func TestWordTakenBackBeforeACrash(t *testing.T) {
	for _, how := range []string{"step", "item"} {
		t.Run(how, func(t *testing.T) {
			ctx := t.Context()
			b := newBench(t, harness.Config{})
			k, forgotten, closer, _ := forgetful(t, b, waitsForForgetting)
			must[rotation.JobView](t)(b.Engine.PauseJob(ctx, harness.Caller, rotation.JobAct{Domain: "acme", Job: closer.ID}))
			createKeys(t, b, "acme", 20)
			job, _ := k.change()
			workUntil(t, b, job, switched)
			err := b.Store.Rotation().Update(ctx, func(tx rotation.Tx) error {
				words, err := tx.Settlements(ctx, k.domain.UID, k.domain.Epoch)
				if err != nil || len(words) != 1 {
					t.Fatalf("%d words, %v", len(words), err)
				}
				_, err = tx.DeleteSettlement(ctx, words[0])
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			if how == "step" {
				must[bool](t)(b.Engine.StepJob(ctx, job.Ref()))
			} else {
				k.keys = map[string]client.WrappedKey{"key-0001": forgotten}
				k.findsIt()
			}
			if key := keysOf(t, b, k.domain)[0]; key.State != broker.KeySuperseded {
				t.Errorf("the first key is %s", key.State)
			}
		})
	}
}
