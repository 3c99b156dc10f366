package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// admin serves metrics, health and profiles, on loopback only: a profile shows
// memory (T8).
type admin struct {
	server *http.Server
	done   chan error
}

func startAdmin(l net.Listener, t *telemetry, ping func(context.Context) error) *admin {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(t.registry, promhttp.HandlerOpts{}))
	// Alive is who answers: no restart mends a database or a customer's key.
	mux.HandleFunc("GET "+livePath, func(w http.ResponseWriter, _ *http.Request) { answerOK(w) })
	// Ready is who reaches the database, too. A customer's key or KMS says nothing
	// about this process.
	mux.HandleFunc("GET "+readyPath, func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), time.Second)
		defer cancel()
		if err := ping(ctx); err != nil {
			http.Error(w, "the database does not answer", http.StatusServiceUnavailable)
			return
		}
		answerOK(w)
	})
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	a := &admin{server: &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}, done: make(chan error, 1)}
	go func() { a.done <- a.server.Serve(l) }()
	return a
}

// The probes of the admin listener, named as Kubernetes names them.
const (
	livePath  = "/livez"
	readyPath = "/readyz"
)

func answerOK(w http.ResponseWriter) {
	_, _ = w.Write([]byte("ok\n")) // the client went away: nobody to tell
}

func (a *admin) stop() error {
	err := a.server.Close() // a profile at work may take half a minute
	if served := <-a.done; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}
