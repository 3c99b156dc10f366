package harness

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/grpcapi"
)

// Serve starts the API over the bench and gives a connection to it, through
// memory. wrap, if not nil, is put around each transport connection, for faults.
// Close ends both.
func (b *Bench) Serve(wrap func(net.Conn) net.Conn) (*grpc.ClientConn, *grpcapi.Server, error) {
	return b.serve(time.Now, wrap)
}

// Door is Serve under the bench's clock. Calls on the connection must have no
// deadline: that would be one of the wall clock.
func (b *Bench) Door() (*grpc.ClientConn, error) {
	conn, _, err := b.serve(b.Clock.Now, nil)
	return conn, err
}

// CallerHeader is the header by which a client says who calls; without it, Caller
// does.
const CallerHeader = "x-test-caller"

func caller(ctx context.Context) broker.Caller {
	if subject := metadata.ValueFromIncomingContext(ctx, CallerHeader); len(subject) == 1 {
		return broker.Caller{Subject: subject[0]}
	}
	return Caller
}

func (b *Bench) serve(now func() time.Time, wrap func(net.Conn) net.Conn) (*grpc.ClientConn, *grpcapi.Server, error) {
	server, err := grpcapi.New(grpcapi.Config{
		Logger: slog.New(slog.DiscardHandler), Now: now, NewID: b.ids.next, PageTokenKey: bytes.Repeat([]byte{7}, 32),
		CallerFunc: caller,
	}, b.Broker, b.Engine)
	if err != nil {
		return nil, nil, err
	}
	lis := bufconn.Listen(1 << 20)
	served := make(chan error, 1)
	go func() { served <- server.Serve(lis) }()
	// A connection that breaks is made again at once: tests break many.
	eager := grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: time.Millisecond, Multiplier: 1, MaxDelay: time.Millisecond}, MinConnectTimeout: time.Second}
	conn, err := grpc.NewClient("passthrough:///bench", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithConnectParams(eager),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			c, err := lis.DialContext(ctx)
			if err == nil && wrap != nil {
				c = wrap(c)
			}
			return c, err
		}))
	if err != nil {
		return nil, nil, err
	}
	b.close = append(b.close, func() error {
		closed := conn.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		return errors.Join(closed, server.Shutdown(ctx), <-served)
	})
	return conn, server, nil
}
