package scenarios_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"pgregory.net/rapid"

	"github.com/keybroker/keybroker/client"
	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
	"github.com/keybroker/keybroker/test/harness"
)

// A cutter breaks a connection after so many bytes in either direction, then the
// one that is made next, and so on. What is on its way then is lost.
type cutter struct {
	mu      sync.Mutex
	budgets []int
	left    int // of the present connection; negative: it lasts
	cuts    int
}

// plan gives the connection that there is the first budget.
func (c *cutter) plan(budgets []int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.budgets = budgets
	c.next()
}

func (c *cutter) next() {
	c.left = -1
	if len(c.budgets) > 0 {
		c.left, c.budgets = c.budgets[0], c.budgets[1:]
	}
}

// pass says how many of n bytes get through, and whether the connection is cut.
func (c *cutter) pass(n int) (through int, cut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left < 0 || n < c.left {
		if c.left > 0 {
			c.left -= n
		}
		return n, false
	}
	through = c.left
	c.cuts++
	c.next()
	return through, true
}

func (c *cutter) wrap(conn net.Conn) net.Conn { return &brittle{Conn: conn, cutter: c} }

// A brittle connection is one that the cutter breaks.
type brittle struct {
	net.Conn
	cutter *cutter
}

func (b *brittle) Read(p []byte) (int, error) {
	n, err := b.Conn.Read(p)
	if through, cut := b.cutter.pass(n); cut {
		return through, errors.Join(err, b.Close())
	}
	return n, err
}

func (b *brittle) Write(p []byte) (int, error) {
	through, cut := b.cutter.pass(len(p))
	if !cut {
		return b.Conn.Write(p)
	}
	n, err := b.Conn.Write(p[:through])
	return n, errors.Join(err, b.Close(), net.ErrClosed)
}

// TestMain sets how many passes rapid draws: each moves up to 250 keys through a
// connection that is made anew, on two engines. A flag on the command line counts
// more.
func TestMain(m *testing.M) {
	if err := flag.Set("rapid.checks", "20"); err != nil {
		panic(err)
	}
	m.Run()
}

// Whenever the connection breaks: each wrapped key has exactly one receipt in the
// client's view, opens under the new key to what it was, and counts once in the
// attestation.
func TestPassesSurviveCuts(t *testing.T) {
	ctx := t.Context()
	b := newBench(t, harness.Config{})
	k := newKeeper(t, b, "acme", 0)
	old := k.domain.KMSKey
	job, next := k.change()
	workUntil(t, b, job, waitsForServices)
	cuts := &cutter{}
	conn, _, err := b.Serve(cuts.wrap)
	if err != nil {
		t.Fatal(err)
	}
	k.api = keybrokerv1.NewDataKeyServiceClient(conn)
	rapid.Check(t, func(r *rapid.T) {
		k.keys, k.plain, k.final = map[string]client.WrappedKey{}, map[string][]byte{}, map[string]int{}
		n := rapid.IntRange(1, 250).Draw(r, "keys")
		for i := range n {
			k.found(fmt.Sprintf("key-%04d", i), old)
		}
		cuts.plan(rapid.SliceOfN(rapid.IntRange(1, 90_000), 0, 6).Draw(r, "cuts after bytes"))
		result, err := client.Reencrypt(ctx, k.pass(true))
		if err != nil || !result.Attested || result.Moved != int64(n) {
			r.Fatalf("%+v, %v", result, err)
		}
		for id := range k.keys {
			if k.final[id] != 1 {
				r.Fatalf("%s has %d receipts", id, k.final[id])
			}
		}
		k.opens(next)
		report := must[rotation.Report](t)(b.Engine.RetirementReport(ctx, harness.Caller, "acme", job.ID))
		if word := report.Keys[0].Inventories[0].Settled; word == nil || word.Items != int64(n) {
			r.Fatalf("attested for %d keys: %s", n, report.Canonical)
		}
	})
	t.Logf("%d connections were cut", cuts.cuts)
	if cuts.cuts == 0 {
		t.Error("no connection was ever cut: the test shows nothing")
	}
}

// found has the owner of the key make a wrapped key that the service then has, as
// if it had always been there: the service itself may not wrap under an old key.
func (k *keeper) found(id string, under broker.KeyARN) {
	k.t.Helper()
	pairs := map[string]string{"record": id, k.domain.Reserved.Key: k.domain.Reserved.Value}
	out, err := k.b.Customer.GenerateDataKey(context.Background(), &kms.GenerateDataKeyInput{KeyId: aws.String(string(under)),
		KeySpec: types.DataKeySpecAes256, EncryptionContext: pairs})
	if err != nil {
		k.t.Fatal(err)
	}
	k.keys[id] = client.WrappedKey{ID: id, CiphertextBlob: out.CiphertextBlob, EncryptionContext: pairs, KMSKey: aws.ToString(out.KeyId)}
	k.plain[id] = out.Plaintext
}
