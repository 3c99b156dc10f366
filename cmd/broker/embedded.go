package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
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

	// Connections that have carried no request yet. An SDK's transport opens such
	// ones when an older connection comes free before the new one is there.
	mu       sync.Mutex
	unused   map[net.Conn]bool
	stopping bool
}

// On its own listener, which is on loopback always, the embedded KMS shows its
// faults (GET), has them set (PUT), and explains its newest refusals (GET).
const (
	faultsPath  = "/faults"
	explainPath = "/explain"
)

// readFaults reads the value of --faults: JSON, or @ and the name of a file of it.
func readFaults(text string) (faults localkms.Faults, err error) {
	if text == "" {
		return faults, nil
	}
	raw := []byte(text)
	if name, isFile := strings.CutPrefix(text, "@"); isFile {
		if raw, err = os.ReadFile(name); err != nil {
			return faults, usagef("--faults: %v", err)
		}
	}
	if err := json.Unmarshal(raw, &faults); err != nil {
		return faults, usagef("--faults: %v; an example: {\"requests_per_second\":200}", err)
	}
	return faults, nil
}

// startEmbedded opens the KMS of a directory and serves it. The directory is the
// lock as well: only one process may have it.
func startEmbedded(l net.Listener, config localkms.Config) (*embedded, error) {
	e := &embedded{done: make(chan error, 1), url: "http://" + l.Addr().String(), unused: map[net.Conn]bool{}}
	config.Now = time.Now
	config.Observe = func(localkms.Call) { e.calls.Add(1) }
	kms, err := localkms.New(config)
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	e.kms = kms
	mux := http.NewServeMux()
	mux.Handle("/", kms)
	mux.Handle(faultsPath, kms.AdminHandler())
	mux.Handle(explainPath, kms.AdminHandler())
	e.server = &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, MaxHeaderBytes: 64 << 10, ConnState: e.connState}
	go func() { e.done <- e.server.Serve(l) }()
	return e, nil
}

// connState keeps the list of unused connections.
func (e *embedded) connState(conn net.Conn, state http.ConnState) {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case state != http.StateNew:
		delete(e.unused, conn)
	case e.stopping:
		_ = conn.Close() // nobody's
	default:
		e.unused[conn] = true
	}
}

// closeUnused ends the connections for which Shutdown would wait: five seconds
// from their opening (net/http, Server.Shutdown), as if they were at work.
func (e *embedded) closeUnused() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.stopping = true
	for conn := range e.unused {
		_ = conn.Close() // nobody's
	}
}

// stop lets requests at work finish, and makes the state durable.
func (e *embedded) stop(ctx context.Context) error {
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	e.closeUnused()
	err := e.server.Shutdown(limited)
	if served := <-e.done; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	if err := errors.Join(err, e.kms.Close()); err != nil {
		return fmt.Errorf("stop the embedded KMS: %w", err)
	}
	return nil
}
