package harness

import (
	"context"
	"crypto/rand"
	"log/slog"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/grpcapi"
)

// CallerHeader is the header by which a client of Door says who calls; without
// it, Caller does.
const CallerHeader = "x-test-caller"

// Door serves the API of the bench's broker and engine, under the bench's clock,
// and gives a connection to it that leaves the process nowhere. Calls on it must
// have no deadline: that would be one of the wall clock. Close ends both.
func (b *Bench) Door() (*grpc.ClientConn, error) {
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return nil, err
	}
	door, err := grpcapi.New(grpcapi.Config{Logger: slog.New(slog.DiscardHandler), Now: b.Clock.Now, NewID: b.ids.next,
		PageTokenKey: key, CallerFunc: caller}, b.Broker, b.Engine)
	if err != nil {
		return nil, err
	}
	listener := bufconn.Listen(1 << 20)
	served := make(chan error, 1)
	go func() { served <- door.Serve(listener) }()
	conn, err := grpc.NewClient("passthrough:///door", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		return nil, err
	}
	b.close = append(b.close, func() error {
		if err := conn.Close(); err != nil {
			return err
		}
		if err := door.Shutdown(context.Background()); err != nil {
			return err
		}
		return <-served
	})
	return conn, nil
}

func caller(ctx context.Context) broker.Caller {
	if subject := metadata.ValueFromIncomingContext(ctx, CallerHeader); len(subject) == 1 {
		return broker.Caller{Subject: subject[0]}
	}
	return Caller
}
