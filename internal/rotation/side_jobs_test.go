package rotation_test

import (
	"crypto/sha256"
	"testing"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/test/harness"
)

// I8: a repeat is answered from what is stored; neither KMS nor a scan of the
// domain's rows stands in its way.
func TestRepeatedCreateJobAsksNobody(t *testing.T) {
	ctx := t.Context()
	b := newBench(t)
	if _, _, err := b.Onboard(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	in := rotation.NewJob{Domain: "acme", Kind: rotation.KindKeyMaterial,
		Request: broker.Request{Method: "CreateReencryptionJob", ID: "r1", Hash: sha256.Sum256([]byte("body"))}}
	first, err := b.Engine.CreateJob(ctx, harness.Caller, in)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Finish(ctx, "acme", first.ID); err != nil {
		t.Fatal(err)
	}
	b.Calls()
	again, err := b.Engine.CreateJob(ctx, harness.Caller, in)
	if err != nil || again.ID != first.ID || again.State != rotation.Succeeded {
		t.Errorf("the repeat answers job %s, %s, %v, want %s as it is now", again.ID, again.State, err, first.ID)
	}
	in.Request.Hash = sha256.Sum256([]byte("another body"))
	if _, err := b.Engine.CreateJob(ctx, harness.Caller, in); broker.ReasonOf(err) != broker.ReasonRequestIDReused {
		t.Errorf("another body: %v, want %s", err, broker.ReasonRequestIDReused)
	}
	for _, c := range b.Calls() {
		t.Errorf("KMS was asked to %s", c.Operation)
	}
}
