package grpcapi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/keybroker/keybroker/internal/broker"
	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

const (
	// defaultTime is imposed on a unary call without a deadline, maxTime on one
	// with a later one.
	defaultTime = 10 * time.Second
	maxTime     = 30 * time.Second
	// minTime is what a call must have left to be begun at all; answerTime of it
	// is kept back, so that the answer still arrives.
	minTime    = 100 * time.Millisecond
	answerTime = 20 * time.Millisecond
	// Limits of a request's encoding, in bytes.
	maxImportBytes  = 4 << 20
	maxRequestBytes = 256 << 10
	// maxLogged bounds a resource name in the log: it is not validated yet.
	maxLogged = 256
)

// apiPrefix begins the methods that are ours; health and reflection are not.
const apiPrefix = "/keybroker.v1."

// A call is what the interceptors share about one RPC. Only its id travels on.
type call struct {
	id       string
	resource string
}

type callKey struct{}

func callOf(ctx context.Context) *call {
	if c, ok := ctx.Value(callKey{}).(*call); ok {
		return c
	}
	return &call{}
}

// PeerCaller names the caller by where it comes from, without its port: the
// same client is the same caller on its next connection.
func PeerCaller(ctx context.Context) broker.Caller {
	p, ok := peer.FromContext(ctx)
	if !ok || p.Addr == nil {
		return broker.Caller{Subject: "peer:unknown"}
	}
	switch a := p.Addr.(type) {
	case *net.UnixAddr:
		return broker.Caller{Subject: "dev:unix"}
	case *net.TCPAddr:
		if a.IP.IsLoopback() {
			return broker.Caller{Subject: "dev:loopback"}
		}
		return broker.Caller{Subject: "peer:" + a.IP.String()}
	}
	return broker.Caller{Subject: "peer:" + p.Addr.Network()}
}

func (s *Server) logUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	c, start := &call{id: s.cfg.NewID()}, s.cfg.Now()
	ctx = context.WithValue(ctx, callKey{}, c)
	resp, err := next(ctx, req)
	s.logCall(ctx, info.FullMethod, c, start, err)
	return resp, err
}

func (s *Server) logStream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	c, start := &call{id: s.cfg.NewID()}, s.cfg.Now()
	ctx := context.WithValue(ss.Context(), callKey{}, c)
	err := next(srv, &stream{ServerStream: ss, ctx: ctx})
	s.logCall(ctx, info.FullMethod, c, start, err)
	return err
}

// logCall writes the one line of a call. Of the request it takes the resource
// name only.
func (s *Server) logCall(ctx context.Context, method string, c *call, start time.Time, err error) {
	level := slog.LevelInfo
	if !strings.HasPrefix(method, apiPrefix) {
		level = slog.LevelDebug // probes ask every few seconds
	}
	attrs := []slog.Attr{
		slog.String("method", method),
		slog.String("code", status.Code(err).String()),
		slog.Duration("duration", s.cfg.Now().Sub(start)),
		slog.String("caller", s.cfg.CallerFunc(ctx).Subject),
		slog.String("call_id", c.id),
	}
	if span := trace.SpanContextFromContext(ctx); span.IsValid() {
		attrs = append(attrs, slog.String("trace_id", span.TraceID().String()), slog.String("span_id", span.SpanID().String()))
	}
	resource := c.resource
	var f *failure
	if errors.As(err, &f) {
		if f.resource != "" {
			resource = f.resource
		}
		if f.reason != "" {
			attrs = append(attrs, slog.String("reason", string(f.reason)))
		}
		if !f.expected {
			attrs = append(attrs, slog.String("error", f.cause.Error()))
		}
		if f.status.Code() == codes.Internal {
			level = slog.LevelError
		}
	}
	if resource != "" {
		attrs = append(attrs, slog.String("resource", clip(resource, maxLogged)))
	}
	s.cfg.Logger.LogAttrs(ctx, level, "rpc", attrs...)
}

func mapUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	resp, err := next(ctx, req)
	if err != nil {
		return nil, mapError(ctx, info.FullMethod, err)
	}
	return resp, nil
}

func mapStream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	return mapError(ss.Context(), info.FullMethod, next(srv, ss))
}

// mapError applies the error map. Health and reflection speak gRPC themselves:
// their statuses pass as they are.
func mapError(ctx context.Context, method string, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok && !strings.HasPrefix(method, apiPrefix) {
		return err
	}
	f := failureOf(err)
	if f.status.Code() == codes.Internal {
		if s, err := f.status.WithDetails(&errdetails.RequestInfo{RequestId: callOf(ctx).id}); err == nil {
			f.status = s
		}
	}
	return f
}

func (s *Server) recoverUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
	defer func() {
		if p := recover(); p != nil {
			resp, err = nil, s.panicked(ctx, info.FullMethod, p)
		}
	}()
	return next(ctx, req)
}

func (s *Server) recoverStream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = s.panicked(ss.Context(), info.FullMethod, p)
		}
	}()
	return next(srv, ss)
}

// panicked logs where a handler panicked, and gives the error of its call. The
// panic's value may hold anything, so only those of Go's runtime are told.
func (s *Server) panicked(ctx context.Context, method string, p any) error {
	what := fmt.Sprintf("%T", p)
	if err, ok := p.(runtime.Error); ok {
		what += ": " + err.Error()
	}
	s.cfg.Logger.LogAttrs(ctx, slog.LevelError, "panic in a handler", slog.String("method", method),
		slog.String("call_id", callOf(ctx).id), slog.String("panic", what), slog.String("stack", string(debug.Stack())))
	return fmt.Errorf("panic in a handler: %s", what)
}

// limitTime gives every unary call an end, and refuses one that cannot be done
// in what is left of its time.
func (s *Server) limitTime(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	left := defaultTime
	if deadline, ok := ctx.Deadline(); ok {
		left = min(deadline.Sub(s.cfg.Now()), maxTime)
	}
	if left < minTime {
		return nil, fmt.Errorf("%s are left of the call's time: %w", left, context.DeadlineExceeded)
	}
	ctx, cancel := context.WithTimeout(ctx, left-answerTime)
	defer cancel()
	resp, err := next(ctx, req)
	return resp, withCause(ctx, err)
}

// endInTime ends a stream when the server drains, and after maxStream: before its
// connection is closed under it. Streams have no deadline of ours besides, since a
// watch may last as long as a job.
func (s *Server) endInTime(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	ctx, cancel := context.WithCancelCause(ss.Context())
	defer cancel(nil)
	age := time.NewTimer(maxStream)
	defer age.Stop()
	go func() {
		select {
		case <-s.drain:
			cancel(shuttingDown("this replica is going away: repeat the call at once, another one answers"))
		case <-age.C:
			cancel(shuttingDown(fmt.Sprintf("a stream lasts %s at most: repeat the call at once", maxStream)))
		case <-ctx.Done():
		}
	}()
	return withCause(ctx, next(srv, &stream{ServerStream: ss, ctx: ctx}))
}

func shuttingDown(detail string) error {
	return &broker.Error{Kind: broker.ErrUnavailable, Reason: broker.ReasonShuttingDown, Detail: detail}
}

// withCause adds why ctx ended to an error that came after it. Databases report
// an interrupted query in words of their own.
func withCause(ctx context.Context, err error) error {
	if err == nil || ctx.Err() == nil {
		return err
	}
	return errors.Join(context.Cause(ctx), err)
}

func (s *Server) admitUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if err := s.admit(ctx, info.FullMethod, req); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

func (s *Server) admitStream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	return next(srv, &stream{ServerStream: ss, ctx: ss.Context(), received: func(m any) error {
		return s.admit(ss.Context(), info.FullMethod, m)
	}})
}

// admit checks what every request must keep: its size, and the rules in the
// API's definition.
//
// gRPC knows one size limit per server, the imports' 4 MiB, and offers no hook
// that knows the method before it has decoded the message. So the smaller limit
// of all other methods is checked here: it bounds what the rooms below get,
// while a connection's memory is bounded by 4 MiB times its streams.
func (s *Server) admit(ctx context.Context, method string, req any) error {
	m, ok := req.(proto.Message)
	if !ok || !strings.HasPrefix(method, apiPrefix) {
		return nil
	}
	// Of a stream, the first message names it; a reader may be at work on a later
	// one when the call is logged.
	if c := callOf(ctx); c.resource == "" {
		c.resource = resourceOf(m)
	}
	if size := proto.Size(m); size > maxRequestBytes && method != keybrokerv1.DataKeyService_ImportDataKeys_FullMethodName {
		return &broker.Error{Kind: broker.ErrInvalid, Reason: broker.ReasonFieldInvalid,
			Detail: fmt.Sprintf("the request has %d bytes, and %d are allowed", size, maxRequestBytes)}
	}
	if err := invalid(s.validator.Validate(m)); err != nil {
		return err
	}
	return checkText(m.ProtoReflect())
}

// resourceOf is the name that a request is about.
func resourceOf(m proto.Message) string {
	switch r := m.(type) {
	case interface{ GetName() string }:
		return r.GetName()
	case interface{ GetParent() string }:
		return r.GetParent()
	case *keybrokerv1.ReencryptStreamRequest:
		return cmp.Or(r.GetHeader().GetGrant(), r.GetHeader().GetParent())
	case interface{ GetDomain() *keybrokerv1.Domain }: // an update; a creation has a domain_id too
		if name := r.GetDomain().GetName(); name != "" {
			return name
		}
	}
	if r, ok := m.(interface{ GetDomainId() string }); ok {
		return broker.DomainID(r.GetDomainId()).Name()
	}
	return ""
}

// A stream has another context than the connection's, and looks at what comes in.
type stream struct {
	grpc.ServerStream
	ctx      context.Context
	received func(m any) error
}

// Context implements grpc.ServerStream.
func (s *stream) Context() context.Context { return s.ctx }

// RecvMsg implements grpc.ServerStream.
func (s *stream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil || s.received == nil {
		return err
	}
	return s.received(m)
}
