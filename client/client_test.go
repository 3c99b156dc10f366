package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keybroker/keybroker/client"
)

func newClient(t *testing.T, w *fakeWorld, change ...func(*client.Config)) *client.Client {
	t.Helper()
	config := client.Config{Broker: w, KMS: w}
	for _, c := range change {
		c(&config)
	}
	c, err := client.New(config)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func seal(t *testing.T, c *client.Client, plaintext, associatedData string) []byte {
	t.Helper()
	envelope, err := c.Seal(t.Context(), keyName, []byte(plaintext), []byte(associatedData))
	if err != nil {
		t.Fatalf("seal: %v", err)
	}
	return envelope
}

// wantOpen opens an envelope and compares the calls that this took.
func wantOpen(t *testing.T, w *fakeWorld, c *client.Client, envelope []byte, want, wantCalls string) {
	t.Helper()
	w.calls()
	got, err := c.Open(t.Context(), envelope, nil)
	if err != nil || string(got) != want {
		t.Errorf("open: %q, %v; want %q", got, err, want)
	}
	if calls := w.calls(); calls != wantCalls {
		t.Errorf("open took %s, want %s", calls, wantCalls)
	}
}

// wantFail opens an envelope that must not open.
func wantFail(t *testing.T, c *client.Client, envelope []byte, want error) {
	t.Helper()
	if got, err := c.Open(t.Context(), envelope, nil); !errors.Is(err, want) || got != nil {
		t.Errorf("open: %q, %v; want %v", got, err, want)
	}
}

func TestSealThenOpen(t *testing.T) {
	w := newFakeWorld()
	c := newClient(t, w)
	for _, test := range []struct{ plaintext, associatedData string }{
		{"", ""},
		{"x", ""},
		{"", "row 7"},
		{"hello", "row 7"},
		{strings.Repeat("long ", 10_000), strings.Repeat("row ", 10_000)},
	} {
		envelope := seal(t, c, test.plaintext, test.associatedData)
		got, err := c.Open(t.Context(), envelope, []byte(test.associatedData))
		if err != nil || string(got) != test.plaintext {
			t.Errorf("open %d bytes: %d bytes, %v", len(test.plaintext), len(got), err)
		}
		if _, err := c.Open(t.Context(), envelope, []byte(test.associatedData+"!")); !errors.Is(err, client.ErrNotAuthentic) {
			t.Errorf("open with other associated data: %v", err)
		}
		header, err := client.Inspect(envelope)
		if diff := cmp.Diff(client.Header{DataKey: keyName, UID: "uid1"}, header); diff != "" || err != nil {
			t.Errorf("inspect: %v\n%s", err, diff)
		}
		if bytes.Contains(envelope, []byte(oldKey)) {
			t.Error("the envelope holds the wrapped key")
		}
	}
	if calls := w.calls(); calls != "broker 1, KMS 1" {
		t.Errorf("it took %s, want one call each", calls)
	}
}

func TestEnvelopesOfOneTextDiffer(t *testing.T) {
	c := newClient(t, newFakeWorld())
	if bytes.Equal(seal(t, c, "same", ""), seal(t, c, "same", "")) {
		t.Error("two envelopes are equal")
	}
}

// A change of any byte is noticed, in the header too.
func TestEveryByteIsAuthenticated(t *testing.T) {
	w := newFakeWorld()
	// Names and uids that a changed byte may lead to exist, under the same data
	// key, so that it is the cipher that notices.
	c := newClient(t, w)
	envelope := seal(t, c, "hello", "")
	for i := range envelope {
		for bit := range 8 {
			changed := bytes.Clone(envelope)
			changed[i] ^= 1 << bit
			if header, err := client.Inspect(changed); err == nil {
				w.wrap(header.DataKey, header.UID, oldKey)
				w.set(func() { w.rows[header.DataKey].CiphertextBlob = append([]byte(oldKey+"|"), plain("uid1")...) })
			}
			fresh := newClient(t, w)
			if got, err := fresh.Open(t.Context(), changed, nil); err == nil {
				t.Fatalf("byte %d, bit %d: opened to %q", i, bit, got)
			} else if !errors.Is(err, client.ErrMalformed) && !errors.Is(err, client.ErrNotAuthentic) {
				t.Fatalf("byte %d, bit %d: %v", i, bit, err)
			}
			w.wrap(keyName, "uid1", oldKey)
		}
	}
	for n := range len(envelope) {
		if _, err := c.Open(t.Context(), envelope[:n], nil); err == nil {
			t.Fatalf("opened when cut to %d bytes", n)
		}
	}
}

func TestWhatSealRefuses(t *testing.T) {
	w := newFakeWorld()
	c := newClient(t, w)
	for name, want := range map[string]error{
		"domains/acme/dataKeys/none": client.ErrKeyNotFound,
		"":                           client.ErrNameInvalid,
		"domains/-/dataKeys/a":       client.ErrNameInvalid,
		"domains/Acme/dataKeys/a":    client.ErrNameInvalid,
		"domains/acme-/dataKeys/a":   client.ErrNameInvalid,
		"domains/acme/dataKeys/":     client.ErrNameInvalid,
		"domains/acme/dataKeys/a/b":  client.ErrNameInvalid,
		"domains/acme/dataKeys/" + strings.Repeat("a", 129):       client.ErrNameInvalid,
		"domains/" + strings.Repeat("a", 64) + "/dataKeys/" + "a": client.ErrNameInvalid,
	} {
		if _, err := c.Seal(t.Context(), name, nil, nil); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", name, err, want)
		}
	}
	if _, err := c.Seal(t.Context(), keyName, make([]byte, client.MaxPlaintext+1), nil); !errors.Is(err, client.ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
}

// The service goes on through a key change, also when it learns of it only by
// KMS's refusal, and without a refusal when the old key stays long enough.
func TestKeyChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newFakeWorld()
		c := newClient(t, w)
		defer c.Close()
		envelope := seal(t, c, "hello", "")

		w.wrap(keyName, "uid1", newKey)
		time.Sleep(4 * time.Minute)
		wantOpen(t, w, c, envelope, "hello", "broker 0, KMS 0")
		time.Sleep(2 * time.Minute) // the unwrapped key is gone, the old wrapping at hand
		wantOpen(t, w, c, envelope, "hello", "broker 0, KMS 1")
		time.Sleep(6 * time.Minute) // over half of MaxReadDelay: asked again
		wantOpen(t, w, c, envelope, "hello", "broker 1, KMS 1")

		w.wrap(keyName, "uid1", "arn:third")
		w.set(func() { w.disabled[newKey] = true })
		time.Sleep(6 * time.Minute) // refused, asked again, tried again
		wantOpen(t, w, c, envelope, "hello", "broker 1, KMS 2")
	})
}

func TestBrokerDoesNotAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newFakeWorld()
		c := newClient(t, w)
		defer c.Close()
		w.set(func() { w.brokerErr = errOffline })
		if _, err := c.Seal(t.Context(), keyName, nil, nil); !errors.Is(err, client.ErrBroker) || status.Code(err) != codes.Unavailable {
			t.Errorf("nothing at hand: %v, want ErrBroker with the status", err)
		}
		w.set(func() { w.brokerErr = nil })
		envelope := seal(t, c, "hello", "")

		w.set(func() { w.brokerErr = errOffline })
		time.Sleep(24 * time.Hour)
		wantOpen(t, w, c, envelope, "hello", "broker 1, KMS 1")

		// A broker that hangs is one that does not answer.
		hold := make(chan struct{})
		w.set(func() { w.brokerErr = nil; w.hold = hold })
		time.Sleep(24 * time.Hour)
		start := time.Now()
		go func() { time.Sleep(6 * time.Second); close(hold) }() // after the broker's deadline, before KMS's
		wantOpen(t, w, c, envelope, "hello", "broker 0, KMS 1")
		if took := time.Since(start); took != 6*time.Second {
			t.Errorf("it took %v, want the 5 s that the broker has and 1 s for KMS", took)
		}

		// Any other word of the broker counts.
		w.set(func() { w.brokerErr = status.Error(codes.PermissionDenied, "not you") })
		time.Sleep(24 * time.Hour)
		wantFail(t, c, envelope, client.ErrBroker)
	})
}

func TestKMSRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newFakeWorld()
		c := newClient(t, w)
		defer c.Close()
		envelope := seal(t, c, "hello", "")
		w.set(func() { w.disabled[oldKey] = true })
		time.Sleep(6 * time.Minute)
		w.calls()
		wantFail(t, c, envelope, client.ErrUnwrap)
		wantFail(t, c, envelope, errDenied)
		// The broker has no newer wrapping, so there is nothing to try again; and
		// it is not asked twice within a second.
		if calls := w.calls(); calls != "broker 1, KMS 2" {
			t.Errorf("it took %s", calls)
		}
		// A broker that is away leaves KMS's refusal as the answer.
		w.set(func() { w.brokerErr = errOffline })
		time.Sleep(time.Minute)
		if _, err := c.Open(t.Context(), envelope, nil); !errors.Is(err, errDenied) || errors.Is(err, client.ErrBroker) {
			t.Errorf("open: %v, want KMS's refusal alone", err)
		}
		// Once KMS accepts it again, so does the client.
		w.set(func() { w.disabled[oldKey] = false })
		wantOpen(t, w, c, envelope, "hello", "broker 0, KMS 1")
	})
}

func TestDataKeyIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newFakeWorld()
		c := newClient(t, w)
		defer c.Close()
		envelope := seal(t, c, "hello", "")
		w.set(func() { delete(w.rows, keyName) })
		time.Sleep(10 * time.Minute)
		wantFail(t, c, envelope, client.ErrKeyNotFound)
		// The wrapped key is forgotten, not only doubted.
		w.set(func() { w.brokerErr = errOffline })
		wantFail(t, c, envelope, client.ErrBroker)
	})
}

func TestDataKeyIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newFakeWorld()
		c := newClient(t, w)
		defer c.Close()
		first := seal(t, c, "first", "")
		w.wrap(keyName, "uid2", oldKey)
		other := newClient(t, w)
		defer other.Close()
		second := seal(t, other, "second", "")

		// Just loaded: the client does not ask again for every odd envelope.
		w.calls()
		wantFail(t, c, second, client.ErrKeyReplaced)
		if calls := w.calls(); calls != "broker 0, KMS 0" {
			t.Errorf("it took %s", calls)
		}
		time.Sleep(2 * time.Second)
		wantOpen(t, w, c, second, "second", "broker 1, KMS 1")
		wantFail(t, c, first, client.ErrKeyReplaced)
	})
}

// However many ask, a key is loaded once; who gives up does not disturb the rest.
func TestLoadedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newFakeWorld()
		c := newClient(t, w)
		defer c.Close()
		hold := make(chan struct{})
		w.hold = hold

		impatient, giveUp := context.WithCancel(t.Context())
		var all sync.WaitGroup
		all.Go(func() {
			if _, err := c.Seal(impatient, keyName, nil, nil); !errors.Is(err, context.Canceled) {
				t.Errorf("the impatient one: %v", err)
			}
		})
		synctest.Wait()
		for range 100 {
			all.Go(func() {
				if _, err := c.Seal(t.Context(), keyName, nil, nil); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		giveUp()
		synctest.Wait()
		close(hold)
		all.Wait()
		if calls := w.calls(); calls != "broker 1, KMS 1" {
			t.Errorf("it took %s, want one call each", calls)
		}
	})
}

// Unwrapped keys are overwritten when their time is over, when others need the
// room, and at the end.
func TestKeysAreOverwritten(t *testing.T) {
	const otherName = "domains/acme/dataKeys/other"
	for name, end := range map[string]func(t *testing.T, c *client.Client){
		"time":  func(*testing.T, *client.Client) { time.Sleep(5*time.Minute + 1) },
		"close": func(_ *testing.T, c *client.Client) { c.Close() },
		"room": func(t *testing.T, c *client.Client) {
			if _, err := c.Seal(t.Context(), otherName, nil, nil); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newFakeWorld()
				w.wrap(otherName, "uid2", oldKey)
				c := newClient(t, w, func(config *client.Config) { config.MaxKeys = 1 })
				defer c.Close()
				seal(t, c, "hello", "")
				given := w.given
				if !bytes.Equal(given, plain("uid1")) {
					t.Fatal("the key was overwritten while it was in use")
				}
				end(t, c)
				synctest.Wait()
				if !bytes.Equal(given, make([]byte, 32)) {
					t.Error("the key is still in memory")
				}
			})
		})
	}
}

// A cache that is far too small is slow, but right: no key is overwritten while
// somebody uses it.
func TestTooManyKeys(t *testing.T) {
	w := newFakeWorld()
	c := newClient(t, w, func(config *client.Config) { config.MaxKeys = 2 })
	defer c.Close()
	var all sync.WaitGroup
	for g := range 8 {
		name := fmt.Sprintf("domains/acme/dataKeys/k%d", g)
		w.wrap(name, fmt.Sprintf("uid%d", g), oldKey)
		all.Go(func() {
			for range 100 {
				envelope, err := c.Seal(t.Context(), name, []byte(name), nil)
				if err != nil {
					t.Error(err)
					return
				}
				if got, err := c.Open(t.Context(), envelope, nil); err != nil || string(got) != name {
					t.Errorf("open: %q, %v", got, err)
				}
			}
		})
	}
	all.Wait()
}

// Wrapped keys take no more room than unwrapped ones.
func TestWrappedKeysAreBounded(t *testing.T) {
	w := newFakeWorld()
	c := newClient(t, w, func(config *client.Config) { config.MaxKeys = 1 })
	envelope := seal(t, c, "hello", "")
	const otherName = "domains/acme/dataKeys/other"
	w.wrap(otherName, "uid2", oldKey)
	if _, err := c.Seal(t.Context(), otherName, nil, nil); err != nil {
		t.Fatal(err)
	}
	w.set(func() { w.brokerErr = errOffline })
	wantFail(t, c, envelope, client.ErrBroker)
}

func TestClosed(t *testing.T) {
	c := newClient(t, newFakeWorld())
	envelope := seal(t, c, "hello", "")
	c.Close()
	c.Close()
	wantFail(t, c, envelope, client.ErrClosed)
}

func TestGrantTokensReachKMS(t *testing.T) {
	w := newFakeWorld()
	c := newClient(t, w, func(config *client.Config) {
		config.GrantTokens = func(name string) []string { return []string{"token for " + name} }
	})
	seal(t, c, "hello", "")
	if diff := cmp.Diff([]string{"token for " + keyName}, w.tokens); diff != "" {
		t.Error(diff)
	}
}

// What the broker or KMS answer is not believed blindly.
func TestOddAnswers(t *testing.T) {
	for name, test := range map[string]struct {
		change func(w *fakeWorld)
		want   error
	}{
		"another key's row":  {func(w *fakeWorld) { w.rows[keyName].Name = "domains/acme/dataKeys/x" }, client.ErrBroker},
		"no uid":             {func(w *fakeWorld) { w.rows[keyName].Uid = "" }, client.ErrBroker},
		"no wrapped key":     {func(w *fakeWorld) { w.rows[keyName].CiphertextBlob = nil }, client.ErrBroker},
		"unknown key spec":   {func(w *fakeWorld) { w.rows[keyName].KeySpec = "RSA_2048" }, client.ErrBroker},
		"key of other size":  {func(w *fakeWorld) { w.rows[keyName].KeySpec = "AES_128" }, client.ErrUnwrap},
		"altered context":    {func(w *fakeWorld) { w.rows[keyName].EncryptionContext = nil }, client.ErrUnwrap},
		"altered KMS key":    {func(w *fakeWorld) { w.rows[keyName].KmsKey = newKey }, client.ErrUnwrap},
		"broker's own fault": {func(w *fakeWorld) { w.brokerErr = status.Error(codes.Internal, "oops") }, client.ErrBroker},
	} {
		t.Run(name, func(t *testing.T) {
			w := newFakeWorld()
			test.change(w)
			if _, err := newClient(t, w).Seal(t.Context(), keyName, nil, nil); !errors.Is(err, test.want) {
				t.Errorf("%v, want %v", err, test.want)
			}
		})
	}
}

func TestNewNeedsBothEnds(t *testing.T) {
	for _, config := range []client.Config{{}, {Broker: newFakeWorld()}, {KMS: newFakeWorld()}, {Broker: newFakeWorld(), KMS: newFakeWorld(), MaxKeys: -1}} {
		if _, err := client.New(config); err == nil {
			t.Errorf("New(%+v) accepted it", config)
		}
	}
}
