package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/sdk/trace"
	"google.golang.org/grpc"
)

// scope is the instrumentation scope of our own spans and instruments.
const scope = "github.com/keybroker/keybroker"

// telemetry is the set-up of OpenTelemetry and Prometheus. Nothing of it is
// global.
type telemetry struct {
	registry *prometheus.Registry
	tracers  *trace.TracerProvider
	meters   *metric.MeterProvider
	metrics  *metrics
}

// newTelemetry exports traces if the environment says where to. Otherwise spans
// are not recorded: they only carry the ids that the log shows.
func newTelemetry(ctx context.Context, getenv func(string) string, dev bool) (*telemetry, error) {
	b := readBuild()
	about := resource.NewSchemaless(
		attribute.String("service.name", "keybroker"),
		attribute.String("service.version", b.version),
	)
	options := []trace.TracerProviderOption{trace.WithResource(about)}
	if getenv(otlpEndpoint) == "" {
		options = append(options, trace.WithSampler(trace.NeverSample()))
	} else {
		exporter, err := otlptracegrpc.New(ctx)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", otlpEndpoint, err)
		}
		options = append(options, trace.WithBatcher(exporter))
	}
	registry := prometheus.NewRegistry()
	exporter, err := otelprometheus.New(otelprometheus.WithRegisterer(registry))
	if err != nil {
		return nil, fmt.Errorf("export metrics: %w", err)
	}
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return &telemetry{
		registry: registry,
		tracers:  trace.NewTracerProvider(options...),
		meters:   metric.NewMeterProvider(metric.WithResource(about), metric.WithReader(exporter)),
		metrics:  newMetrics(registry, b, dev),
	}, nil
}

// serverOption makes a span and measurements of each call.
func (t *telemetry) serverOption() grpc.ServerOption {
	return grpc.StatsHandler(otelgrpc.NewServerHandler(
		otelgrpc.WithTracerProvider(t.tracers),
		otelgrpc.WithMeterProvider(t.meters),
		otelgrpc.WithPropagators(propagation.TraceContext{}),
	))
}

// shutdown sends what is not sent yet.
func (t *telemetry) shutdown(ctx context.Context) error {
	return errors.Join(t.tracers.Shutdown(ctx), t.meters.Shutdown(ctx))
}
