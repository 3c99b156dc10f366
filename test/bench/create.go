package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/grpcapi"
	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

// creators is how many CreateDataKey calls are under way at a time.
const creators = 8

// createDataKey sets the processor time of CreateDataKey beside that of the one
// KMS call in it, in turns: as the use case, and as a whole RPC whose client is
// another process.
func (b *bench) createDataKey(ctx context.Context, engine string) (err error) {
	at, err := b.newPlace(ctx, engine, "create")
	if err != nil {
		return err
	}
	w, err := openWorld(ctx, at, b.kms.Fast, setting{pool: pool{workers: 1, calls: creators}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	if err := w.onboard(ctx); err != nil {
		return err
	}
	address, stop, err := w.serveAPI()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()

	kinds := []func(context.Context, int) error{w.bareGenerate, w.create, func(ctx context.Context, n int) error {
		return rpcsFromAfar(ctx, address, n)
	}}
	names := []string{"create-sdk", "create", "create-rpc"}
	cpu := make([][]float64, len(kinds))
	rate := make([][]float64, len(kinds))
	for round := range b.size.createRound + 1 {
		for i, call := range kinds {
			var f figure
			err := b.profiled(fmt.Sprintf("%s-%s-%d", engine, names[i], round), func() (err error) {
				f, err = measure(b.size.creates, func() error { return call(ctx, b.size.creates) })
				return err
			})
			if err != nil {
				return err
			}
			if round > 0 { // the first warms up
				cpu[i], rate[i] = append(cpu[i], f.CPU), append(rate[i], f.rate())
			}
		}
	}
	b.say("CreateDataKey, %s: SDK call %.0f µs, use case %.0f µs, RPC %.0f µs", engine, median(cpu[0]), median(cpu[1]), median(cpu[2]))
	b.report.add(metric{Name: "CPU of CreateDataKey, the use case ÷ the SDK call", Engine: engine, Value: median(ratios(cpu[1], cpu[0])), Target: atMost(1.5),
		Unit: "ratio", Raw: raw{"CreateDataKey, µs": cpu[1], "SDK call, µs": cpu[0]}})
	b.report.add(metric{Name: "CPU of CreateDataKey, the whole RPC ÷ the SDK call", Engine: engine, Value: median(ratios(cpu[2], cpu[0])), Target: atMost(1.5),
		Unit: "ratio", Raw: raw{"RPC, µs": cpu[2], "SDK call, µs": cpu[0]}})
	b.report.add(metric{Name: fmt.Sprintf("CreateDataKey, %d callers", creators), Engine: engine, Value: median(rate[1]), Unit: "calls/s",
		Raw: raw{"use case, calls/s": rate[1], "SDK call, calls/s": rate[0]}})
	return nil
}

// bareGenerate makes the KMS call of CreateDataKey n times.
func (w *world) bareGenerate(ctx context.Context, n int) error {
	d, _, err := w.broker.GetDomain(ctx, caller(), tenant)
	if err != nil {
		return err
	}
	return inParallel(creators, n, func(i int) error {
		_, err := w.bare.GenerateDataKeyWithoutPlaintext(ctx, &kms.GenerateDataKeyWithoutPlaintextInput{
			KeyId: aws.String(string(d.KMSKey)), KeySpec: types.DataKeySpecAes256,
			EncryptionContext: broker.Context{"object": strconv.Itoa(i)}.With(d.Reserved)})
		return err
	})
}

// create runs the use case n times.
func (w *world) create(ctx context.Context, n int) error {
	return inParallel(creators, n, func(i int) error {
		_, err := w.broker.CreateDataKey(ctx, caller(), broker.NewDataKey{Domain: tenant, Context: broker.Context{"object": strconv.Itoa(i)}})
		return err
	})
}

// serveAPI serves the API on loopback, one log line per call as in production,
// without the OpenTelemetry handler.
func (w *world) serveAPI() (address string, stop func() error, err error) {
	server, err := grpcapi.New(grpcapi.Config{Logger: slog.New(slog.NewJSONHandler(io.Discard, nil)), Now: time.Now,
		NewID: w.newID, PageTokenKey: make([]byte, 32)}, w.broker, w.engine)
	if err != nil {
		return "", nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	return l.Addr().String(), func() error {
		limited, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		return errors.Join(server.Shutdown(limited), <-served)
	}, nil
}

const partRPC = "rpc"

func rpcsFromAfar(ctx context.Context, address string, n int) error {
	command, err := startSelf(ctx, partRPC, address, strconv.Itoa(n))
	if err != nil {
		return err
	}
	return command.Run()
}

// callRPCs is the process that calls CreateDataKey n times.
func callRPCs(ctx context.Context, args []string, _ io.Writer) error {
	if len(args) != 2 {
		return errors.New("want an address and a number")
	}
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient(args[0], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	client := keybrokerv1.NewDataKeyServiceClient(conn)
	return inParallel(creators, n, func(i int) error {
		_, err := client.CreateDataKey(ctx, &keybrokerv1.CreateDataKeyRequest{Parent: tenant.Name(),
			DataKey: &keybrokerv1.DataKey{Context: map[string]string{"object": strconv.Itoa(i)}}})
		return err
	})
}
