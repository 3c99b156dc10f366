package localkms_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/keybroker/keybroker/internal/localkms"
)

// closeable notes that it was closed.
type closeable struct {
	io.Reader
	closed bool
}

func (c *closeable) Close() error {
	c.closed = true
	return nil
}

func TestRoundTripper(t *testing.T) {
	called := 0
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		called++
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Early", "yes")
		_, _ = w.Write([]byte(r.Method + " " + r.RequestURI + " " + r.Host + " " + string(body)))
		w.Header().Set("X-Late", "yes")
	})
	client := &http.Client{Transport: localkms.RoundTripper(h)}
	body := &closeable{Reader: strings.NewReader("hello")}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://kms.test/a?b=c", body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(resp.Body)
	if err != nil || string(got) != "PUT /a?b=c kms.test hello" || resp.StatusCode != http.StatusOK {
		t.Errorf("got %s %q, %v", resp.Status, got, err)
	}
	if resp.Header.Get("X-Early") != "yes" || resp.Header.Get("X-Late") != "" || !body.closed {
		t.Errorf("header %v, body closed %v", resp.Header, body.closed)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	req, err = http.NewRequestWithContext(ctx, http.MethodGet, "http://kms.test/", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Do(req); !errors.Is(err, context.Canceled) || called != 1 {
		t.Errorf("after cancel: %v, %d calls", err, called)
	}
}

// A handler that drops the connection is an error of the transport; any other
// panic is the handler's own.
func TestRoundTripperWithoutAnswer(t *testing.T) {
	var reason any
	client := &http.Client{Transport: localkms.RoundTripper(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("half an answer"))
		panic(reason)
	}))}
	ctx, cancel := context.WithCancel(t.Context())
	get := func() error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://kms.test/", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err == nil {
			_ = resp.Body.Close()
		}
		return err
	}
	reason = http.ErrAbortHandler
	if err := get(); !errors.Is(err, io.EOF) {
		t.Errorf("dropped: %v", err)
	}
	reason = "a fault of the handler"
	func() {
		defer func() {
			if got := recover(); got != reason {
				t.Errorf("recovered %v", got)
			}
		}()
		_ = get()
	}()
	cancel()
	if err := get(); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

// The whole service runs in a bubble, on the bubble's clock.
func TestInSynctestBubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newKMS(t, localkms.Config{Dir: t.TempDir(), GrantDelay: 5 * time.Minute, Now: time.Now})
		key := newKey(t, h, "")
		in := decryptGrant(key, worker)
		in.Operations = []types.GrantOperation{types.GrantOperationEncrypt}
		must[*kms.CreateGrantOutput](t)(as(h, admin).CreateGrant(t.Context(), in))
		wantCode(t, encryptWith(t, nil)(as(h, worker), key), "AccessDeniedException")
		time.Sleep(5 * time.Minute)
		wantCode(t, encryptWith(t, nil)(as(h, worker), key), "")
	})
}
