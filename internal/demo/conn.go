package demo

import (
	"context"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// connect gives a connection to the broker that repeats a call which the broker
// asks to have repeated. That is safe where the call has a request id, or names
// the resource that it makes.
func connect(address string) (*grpc.ClientConn, error) {
	return grpc.NewClient(address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUnaryInterceptor(repeat))
}

// The waits between repetitions: patience is above the broker's memory of a
// request whose caller was killed.
const (
	firstWait   = 50 * time.Millisecond
	longestWait = time.Second
	patience    = time.Minute
)

func repeat(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, call grpc.UnaryInvoker, options ...grpc.CallOption) error {
	start, wait := time.Now(), firstWait
	for {
		err := call(ctx, method, request, reply, conn, options...)
		if !repeatable(err) || time.Since(start) > patience {
			return err
		}
		if pause(ctx, wait) != nil {
			return err
		}
		wait = min(2*wait, longestWait)
	}
}

// repeatable reads the code, and the reason where a code says too little.
func repeatable(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.ResourceExhausted, codes.DeadlineExceeded: // the last is the broker's own deadline
		return true
	case codes.Aborted:
		return reasonOf(err) != "ETAG_MISMATCH"
	}
	return false
}

// reasonOf gives the reason of the ErrorInfo in a status, or "".
func reasonOf(err error) string {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	return ""
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
