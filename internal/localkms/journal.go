package localkms

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

const (
	journalName = "journal"
	nextName    = "journal.next" // a snapshot on its way to becoming the journal
	lockName    = "lock"
)

// journal keeps events on disk. A line is the CRC-32C of a JSON array of events,
// as eight hexadecimal digits, a space, and the array. A line is written at once
// and synced before any of its events is acknowledged, so a crash can only damage
// the last one, and loses its events all together.
//
// A nil journal keeps nothing.
type journal struct {
	lock *os.File

	mu      sync.Mutex // guards the next two; KMS.mu may be held
	pending []*event
	err     error // the first failure: nothing is taken or written after it

	flush sync.Mutex // held while writing; taken before mu, never under KMS.mu
	file  *os.File
}

var errClosed = errors.New("KMS is closed")

// append takes an event; settle writes it.
func (j *journal) append(e *event) error {
	if j == nil {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err == nil {
		j.pending = append(j.pending, e)
	}
	return j.err
}

// settle returns when all events taken before the call are on disk. Whoever
// comes first writes for all that wait.
func (j *journal) settle() error {
	if j == nil {
		return nil
	}
	j.flush.Lock()
	defer j.flush.Unlock()
	batch, err := j.take()
	if err != nil || len(batch) == 0 {
		return err
	}
	if err := writeSynced(j.file, batch); err != nil {
		j.stop(err)
		return err
	}
	return nil
}

func (j *journal) take() ([]*event, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	batch := j.pending
	j.pending = nil
	return batch, j.err
}

// takeLast takes what is left and lets nothing more in.
func (j *journal) takeLast() ([]*event, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	batch, err := j.pending, j.err
	j.pending, j.err = nil, errClosed
	return batch, err
}

func (j *journal) stop(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.err = err
}

// close writes what is left and lets the directory go. It may be called twice.
func (j *journal) close() error {
	if j == nil {
		return nil
	}
	j.flush.Lock()
	defer j.flush.Unlock()
	batch, err := j.takeLast()
	if errors.Is(err, errClosed) {
		return nil
	}
	if err == nil && len(batch) > 0 {
		err = writeSynced(j.file, batch)
	}
	return errors.Join(err, j.file.Close(), j.lock.Close())
}

func writeSynced(f *os.File, batch []*event) error {
	var buf bytes.Buffer
	if err := writeLine(&buf, batch); err != nil {
		return err
	}
	if _, err := f.Write(buf.Bytes()); err != nil {
		return err
	}
	return f.Sync()
}

func writeLine(w io.Writer, batch []*event) error {
	text, err := json.Marshal(batch)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%08x %s\n", crc32.Checksum(text, castagnoli()), text)
	return err
}

// castagnoli is the polynomial of every checksum here; the table is made once,
// by the library.
func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// openJournal locks dir, reads its journal, and replaces it by the shortest one
// that leads to the same state. What remained of keys whose deletion date has
// come leaves the disk here, and what keys of an older program lack comes to it.
func openJournal(dir string, now time.Time) (*journal, *state, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, err
	}
	lock, err := lockFile(filepath.Join(dir, lockName))
	if err != nil {
		return nil, nil, err
	}
	s, err := readJournal(filepath.Join(dir, journalName))
	if err != nil {
		return nil, nil, errors.Join(err, lock.Close())
	}
	for _, e := range slices.Concat(s.due(now), s.incomplete()) {
		if err := s.apply(e); err != nil {
			return nil, nil, errors.Join(err, lock.Close())
		}
	}
	if s.tracking.IsZero() {
		s.tracking = stamp(now)
	}
	file, err := compact(dir, s)
	if err != nil {
		return nil, nil, errors.Join(err, lock.Close())
	}
	return &journal{lock: lock, file: file}, s, nil
}

// readJournal returns the state that a journal leads to, a new one when there is
// no journal.
func readJournal(path string) (*state, error) {
	s := newState(newTokenSecret())
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read
	if err := s.replay(f); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

var errChecksum = errors.New("checksum does not match")

// replay applies the lines of a journal. What a crash left of the last line is
// passed over: it lacks its newline, or its checksum is not that of the rest. A
// bad line before others is damage, and a whole line that says what this program
// does not know is a newer one's.
func (s *state) replay(r io.Reader) error {
	lines := bufio.NewReaderSize(r, 64<<10)
	for number := 1; ; number++ {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil // without its newline the line is torn, or empty
		}
		if err != nil {
			return err
		}
		batch, err := readLine(line)
		if errors.Is(err, errChecksum) {
			if _, last := lines.Peek(1); errors.Is(last, io.EOF) {
				return nil
			}
		}
		if err != nil {
			return fmt.Errorf("line %d: %w", number, err)
		}
		for _, e := range batch {
			if err := s.apply(e); err != nil {
				return fmt.Errorf("line %d: %w", number, err)
			}
		}
	}
}

func readLine(line []byte) ([]*event, error) {
	sum, text, found := bytes.Cut(bytes.TrimSuffix(line, []byte("\n")), []byte(" "))
	if !found || string(sum) != fmt.Sprintf("%08x", crc32.Checksum(text, castagnoli())) {
		return nil, errChecksum
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields() // a newer program knows more: its state is not ours to drop
	var batch []*event
	if err := d.Decode(&batch); err != nil {
		return nil, err
	}
	return batch, nil
}

// compact writes the state as a journal of its own and puts it in place of the
// old one in a single step. It returns the new journal, open for appending.
func compact(dir string, s *state) (*os.File, error) {
	next := filepath.Join(dir, nextName)
	f, err := os.OpenFile(next, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(writeState(f, s), f.Sync()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if err := errors.Join(os.Rename(next, filepath.Join(dir, journalName)), syncDir(dir)); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func writeState(f *os.File, s *state) error {
	w := bufio.NewWriterSize(f, 256<<10)
	var failed error
	s.events(func(e *event) bool {
		failed = writeLine(w, []*event{e})
		return failed == nil
	})
	return errors.Join(failed, w.Flush())
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
