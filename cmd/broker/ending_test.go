package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/demo"
	"github.com/keybroker/keybroker/internal/localkms"
	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

// startApp runs a broker of --dev in this process until ctx ends, and gives its
// address and what run says in the end.
func startApp(ctx context.Context, t *testing.T, at func(point string), end *ending) (a *app, kms, address string, ended <-chan error) {
	t.Helper()
	data, err := os.MkdirTemp("", "ending")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(data) }) // what was left at work may still write
	listen := func() net.Listener {
		l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	embedded, err := startEmbedded(listen(), localkms.Config{Dir: filepath.Join(data, "kms"), Principals: devPrincipals(), GrantDelay: devGrantDelay})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := embedded.stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	w := devWiring(data, embedded.url)
	w.log, w.at = slog.New(slog.DiscardHandler), at
	if w.telemetry, err = newTelemetry(ctx, func(string) string { return "" }, true); err != nil {
		t.Fatal(err)
	}
	if a, err = newApp(ctx, w, end); err != nil {
		t.Fatal(err)
	}
	l, result := listen(), make(chan error, 1)
	go func() { result <- a.run(ctx, end, l) }()
	return a, embedded.url, l.Addr().String(), result
}

// hangEngine starts a broker whose engine hangs in the step of a job until it is
// released.
func hangEngine(ctx context.Context, t *testing.T, end *ending) (a *app, address string, ended <-chan error, release func()) {
	t.Helper()
	held, hangs := make(chan struct{}), make(chan struct{})
	var once sync.Once
	a, kms, address, ended := startApp(ctx, t, func(point string) {
		if point == "prepare.described" {
			once.Do(func() { close(hangs) })
			<-held
		}
	}, end)
	release = sync.OnceFunc(func() { close(held) })
	t.Cleanup(release)
	tour := demo.Tour{Broker: address, KMSEndpoint: kms, Region: devRegion, Customer: devCustomer().demo()}
	if err := tour.Prepare(ctx); err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := keybrokerv1.NewDomainServiceClient(conn).ChangeKey(ctx, &keybrokerv1.ChangeKeyRequest{
		Name: demo.TourDomain, KmsKey: "arn:aws:kms:" + devRegion + ":111122223333:" + demo.TourOldKey,
	}); err != nil {
		t.Fatal(err)
	}
	<-hangs
	return a, address, ended, release
}

// The API ends beside the engine: while that is not done yet, no call is let in
// any more.
func TestAPIEndsBesideTheEngine(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	end := &ending{allowed: time.Minute}
	a, address, ended, release := hangEngine(ctx, t, end)
	stop()
	for patience := time.Now().Add(20 * time.Second); ; {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			break
		}
		_ = conn.Close()
		if time.Now().After(patience) {
			t.Fatal("the API still listens: its end waits for the engine")
		}
	}
	select {
	case err := <-ended:
		t.Errorf("run is over before the engine: %v", err)
	default:
	}
	release()
	if err := errors.Join(<-ended, a.close(t.Context(), end)); err != nil {
		t.Error(err)
	}
}

// Neither an engine that hangs nor a transaction that does holds up the end of the
// process for longer than is allowed.
func TestEndingIsBounded(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	end := &ending{allowed: time.Second}
	a, _, ended, release := hangEngine(ctx, t, end)
	begun, over := make(chan struct{}), make(chan error, 1)
	held := make(chan struct{})
	go func() {
		over <- a.store.Broker().View(context.Background(), func(broker.Tx) error { close(begun); <-held; return nil })
	}()
	<-begun
	stop()
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "the engine did not stop") {
		t.Errorf("run: %v", err)
	}
	if err := a.close(t.Context(), end); err == nil || !strings.Contains(err.Error(), "close the database") {
		t.Errorf("close: %v", err)
	}
	close(held)
	release()
	<-over
}
