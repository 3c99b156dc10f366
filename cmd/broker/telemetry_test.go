package main

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"
)

func TestLogCarriesTheTrace(t *testing.T) {
	var out bytes.Buffer
	log := newLogger(&out, slog.LevelInfo, false)
	span := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}})
	ctx := trace.ContextWithSpanContext(t.Context(), span)
	for _, test := range []struct {
		name string
		log  func()
		want any
	}{
		{"a span", func() { log.InfoContext(ctx, "x") }, span.TraceID().String()},
		{"a span, derived", func() { log.With("a", 1).InfoContext(ctx, "x") }, span.TraceID().String()},
		{"there already", func() { log.InfoContext(ctx, "x", "trace_id", "own") }, "own"},
		{"no span", func() { log.InfoContext(t.Context(), "x") }, nil},
	} {
		out.Reset()
		test.log()
		var record map[string]any
		if err := json.Unmarshal(out.Bytes(), &record); err != nil {
			t.Fatal(err)
		}
		if record["trace_id"] != test.want {
			t.Errorf("%s: trace_id %v, want %v", test.name, record["trace_id"], test.want)
		}
		if n := bytes.Count(out.Bytes(), []byte("trace_id")); n > 1 {
			t.Errorf("%s: %d trace ids in %s", test.name, n, out.Bytes())
		}
	}
}

func TestTracesGoOutOnlyWhereTheEnvironmentSaysWhere(t *testing.T) {
	t.Setenv(otlpEndpoint, "http://127.0.0.1:1") // nobody there: the exporter connects later
	for name, test := range map[string]struct {
		getenv  func(string) string
		records bool
	}{
		"unset": {environment(), false},
		"set":   {environment(otlpEndpoint, "http://127.0.0.1:1"), true},
	} {
		tel, err := newTelemetry(t.Context(), test.getenv, true)
		if err != nil {
			t.Fatal(err)
		}
		_, span := tel.tracers.Tracer(scope).Start(t.Context(), "x")
		if !span.SpanContext().IsValid() || span.IsRecording() != test.records {
			t.Errorf("%s: recording %v, context %v", name, span.IsRecording(), span.SpanContext())
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		_ = tel.shutdown(ctx) // nothing was ended: nothing to send
		cancel()
	}
}
