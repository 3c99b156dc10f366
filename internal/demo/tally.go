package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"
)

// tallyFile keeps the sums apart from the state: they are written all the time,
// so that a kill loses a second of them at most.
const (
	tallyFile  = "tally.json"
	tallyEvery = time.Second
)

// sums are over all starts of a run.
type sums struct {
	Opened       int64   `json:"opened"`
	ReaderErrors int64   `json:"reader_errors"`
	KMSCalls     int64   `json:"kms_calls"`
	Seconds      float64 `json:"seconds"`
}

// tally adds this start's counts to those of earlier ones. It is safe for
// concurrent use.
type tally struct {
	path     string
	before   sums
	start    time.Time
	now      func() time.Time
	kmsCalls func() int64

	opened, readerErrors atomic.Int64
}

func newTally(cfg Config) (*tally, error) {
	t := &tally{path: filepath.Join(cfg.Data, tallyFile), start: cfg.Now(), now: cfg.Now, kmsCalls: cfg.KMSCalls}
	text, err := os.ReadFile(t.path)
	if errors.Is(err, fs.ErrNotExist) {
		return t, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &t.before)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", tallyFile, err)
	}
	return t, nil
}

func (t *tally) sums() sums {
	s := t.before
	s.Opened += t.opened.Load()
	s.ReaderErrors += t.readerErrors.Load()
	s.KMSCalls += t.kmsCalls()
	s.Seconds += t.now().Sub(t.start).Seconds()
	return s
}

func (t *tally) save() error {
	text, err := json.Marshal(t.sums())
	if err != nil {
		return err
	}
	return writeFile(t.path, text)
}

// keep saves until ctx ends, and once more then.
func (t *tally) keep(ctx context.Context) error {
	for pause(ctx, tallyEvery) == nil {
		if err := t.save(); err != nil {
			return err
		}
	}
	return t.save()
}
