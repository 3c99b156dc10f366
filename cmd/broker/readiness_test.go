package main

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// The server's health is driven by its database.
func TestHealthWithoutADatabase(t *testing.T) {
	t.Parallel()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	end := newEnding(0)
	a, _, address, ended := startApp(ctx, t, nil, end)
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	watch, err := healthpb.NewHealthClient(conn).Watch(ctx, &healthpb.HealthCheckRequest{Service: "keybroker.v1.DataKeyService"})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []healthpb.HealthCheckResponse_ServingStatus{healthpb.HealthCheckResponse_SERVING, healthpb.HealthCheckResponse_NOT_SERVING} {
		got, err := watch.Recv()
		if err != nil || got.GetStatus() != want {
			t.Fatalf("health is %v, %v, want %v", got.GetStatus(), err, want)
		}
		if err := a.store.Close(); err != nil { // it answers no more
			t.Fatal(err)
		}
	}
	stop()
	<-ended
}

// Health by gRPC follows the database, as the readiness probe does: both ways, and
// not for one silence.
func TestHealthFollowsTheDatabase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		away := errors.New("away")
		answers := []error{nil, away, away, nil, away, away, away, away, nil, away, nil}
		ctx, stop := context.WithCancel(t.Context())
		var said []bool
		n := 0
		watchReadiness(ctx, func(context.Context) error {
			if n == len(answers) {
				stop()
				return away
			}
			n++
			return answers[n-1]
		}, func(ready bool) { said = append(said, ready) })
		if want := []bool{false, true}; !slices.Equal(said, want) {
			t.Errorf("health became %v, want %v", said, want)
		}
	})
}
