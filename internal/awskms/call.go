package awskms

import (
	"context"
	"errors"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/pacer"
)

// invocation is one operation of the SDK's client, as a method expression.
type invocation[In, Out any] func(*kms.Client, context.Context, *In, ...func(*kms.Options)) (*Out, error)

// An operation is what call needs to know beside the request itself.
type operation struct {
	name   string
	key    string // decides the Region
	other  broker.KeyARN
	worker bool // in the worker's role, else in the registrar's
	dryRun bool
}

// call sends one request, again while that may help, and gives KMS's answer.
// The answer to a dry run that was allowed is nil. Failures are *broker.KMSError.
func call[In, Out any](ctx context.Context, k *KMS, op operation, in *In, send invocation[In, Out]) (*Out, error) {
	r, ok := k.regionOf(op.key)
	if !ok {
		return nil, k.refuse(op.name, codeNoRegion, errRegion)
	}
	bounded, span := k.startSpan(ctx, op)
	if k.class == pacer.Foreground {
		var cancel context.CancelFunc
		bounded, cancel = context.WithTimeout(bounded, k.cfg.CallTimeout)
		defer cancel()
	}

	var out *Out
	var failure *broker.KMSError
	for attempt := 1; ; attempt++ {
		out, failure = try(ctx, bounded, k, r, op, in, send)
		if failure == nil || attempt == k.cfg.MaxAttempts || !failure.Class.Transient() || bounded.Err() != nil {
			break
		}
		if err := k.cfg.Sleep(bounded, k.backoff(attempt)); err != nil {
			if ctx.Err() != nil {
				failure = &broker.KMSError{Class: broker.KMSUnavailable, Operation: op.name, Err: ctx.Err()}
			}
			break
		}
	}
	if span != nil {
		endSpan(span, failure)
	}
	if failure != nil {
		return nil, failure
	}
	return out, nil
}

var errRegion = errors.New("the key names no Region that may be called")

// try is one attempt, admitted by the pacer.
func try[In, Out any](
	caller, ctx context.Context, k *KMS, r *region, op operation, in *In, send invocation[In, Out],
) (*Out, *broker.KMSError) {
	ticket, err := k.cfg.Pacer.Acquire(ctx, k.budget(r, op), k.classOf(ctx))
	if err != nil {
		return nil, &broker.KMSError{Class: broker.KMSUnavailable, Operation: op.name, Err: err}
	}
	outcome := pacer.Lost // also when send panics
	defer func() { ticket.Release(outcome) }()
	if k.class == pacer.Background {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, k.cfg.CallTimeout)
		defer cancel()
	}

	var start time.Time
	if k.cfg.Observe != nil {
		start = k.cfg.Now()
	}
	client := r.registrar
	if op.worker {
		client = r.worker
	}
	out, err := send(client, ctx, in)
	failure := verdict(caller, op, err)
	if failure != nil || op.dryRun {
		out = nil
	}
	class := broker.KMSClass("")
	if failure != nil {
		class = failure.Class
	}
	switch class {
	case broker.KMSThrottled:
		outcome = pacer.Throttled
	case broker.KMSUnavailable:
	default:
		outcome = pacer.Done
	}
	if k.cfg.Observe != nil {
		k.cfg.Observe(op.name, class, k.cfg.Now().Sub(start))
	}
	return out, failure
}

// classOf: what is made for a job is bulk work, whichever adapter makes it.
func (k *KMS) classOf(ctx context.Context) pacer.Class {
	if pacer.FlowOf(ctx) != nil {
		return pacer.Background
	}
	return k.class
}

// verdict reads the error of an attempt. KMS answers an allowed dry run with an
// error of its own; a dry run that succeeds was carried out, which no KMS does
// that could be trusted with the question.
func verdict(caller context.Context, op operation, err error) *broker.KMSError {
	if err == nil {
		if op.dryRun {
			return &broker.KMSError{Class: broker.KMSInvalidRequest, Code: codeDryRunIgnored, Operation: op.name, Err: errDryRun}
		}
		return nil
	}
	failure := translate(caller, op.name, err)
	if op.dryRun && failure.Code == codeDryRun {
		return nil
	}
	return failure
}

var errDryRun = errors.New("the endpoint carried out a dry run")

// The waits between attempts: a random part of 50 ms, 100 ms, … up to 2 s ("full
// jitter", AWS Architecture Blog, Exponential Backoff And Jitter).
const (
	firstWait   = 50 * time.Millisecond
	longestWait = 2 * time.Second
)

func (k *KMS) backoff(attempt int) time.Duration {
	wait := longestWait
	if attempt < 6 {
		wait = min(longestWait, firstWait<<(attempt-1))
	}
	return time.Duration(k.cfg.Jitter() * float64(wait))
}

// startSpan gives a nil span where nobody records it.
func (k *KMS) startSpan(ctx context.Context, op operation) (context.Context, trace.Span) {
	if k.cfg.Tracer == nil {
		return ctx, nil
	}
	ctx, span := k.cfg.Tracer.Start(ctx, "kms."+op.name, trace.WithSpanKind(trace.SpanKindClient))
	if span.IsRecording() {
		key := parseARN(op.key)
		span.SetAttributes(
			attribute.String("cloud.region", key.region),
			attribute.String("kms.key.account", key.account),
			attribute.String("kms.class", k.classOf(ctx).String()),
			attribute.Bool("kms.dry_run", op.dryRun),
		)
		if op.other != "" {
			span.SetAttributes(attribute.String("kms.source_key.account", parseARN(string(op.other)).account))
		}
	}
	return ctx, span
}

func endSpan(span trace.Span, failure *broker.KMSError) {
	if failure != nil && span.IsRecording() {
		span.SetStatus(codes.Error, string(failure.Class))
		span.SetAttributes(
			attribute.String("error.type", string(failure.Class)),
			attribute.String("kms.code", failure.Code),
			attribute.String("aws.request_id", failure.RequestID),
		)
	}
	span.End()
}
