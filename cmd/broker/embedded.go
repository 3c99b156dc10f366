package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/keybroker/keybroker/internal/localkms"
)

// embedded is a KMS on a loopback listener.
type embedded struct {
	kms    *localkms.KMS
	server *http.Server
	done   chan error
	url    string
	calls  atomic.Int64
}

// startEmbedded opens the KMS of a directory and serves it. The directory is the
// lock as well: only one process may have it.
func startEmbedded(l net.Listener, config localkms.Config) (*embedded, error) {
	e := &embedded{done: make(chan error, 1), url: "http://" + l.Addr().String()}
	config.Now = time.Now
	config.Observe = func(localkms.Call) { e.calls.Add(1) }
	kms, err := localkms.New(config)
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	e.kms = kms
	e.server = &http.Server{Handler: kms, ReadHeaderTimeout: 5 * time.Second, MaxHeaderBytes: 64 << 10}
	go func() { e.done <- e.server.Serve(l) }()
	return e, nil
}

// stop lets requests at work finish, and makes the state durable.
func (e *embedded) stop(ctx context.Context) error {
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	err := e.server.Shutdown(limited)
	if served := <-e.done; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	if err := errors.Join(err, e.kms.Close()); err != nil {
		return fmt.Errorf("stop the embedded KMS: %w", err)
	}
	return nil
}
