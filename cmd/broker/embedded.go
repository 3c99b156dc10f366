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

// faultsPath is where the faults of the embedded KMS are seen (GET) and set
// (PUT), on its own listener: that is on loopback always.
const faultsPath = "/faults"

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
	e := &embedded{done: make(chan error, 1), url: "http://" + l.Addr().String()}
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
	e.server = &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, MaxHeaderBytes: 64 << 10}
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
