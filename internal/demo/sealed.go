package demo

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A shelf keeps sealed files in a directory: two files for each, the envelope
// and, written after it, its label.
type shelf struct{ dir string }

// A label says what an envelope holds. Source is the path below the run's Dir,
// or empty for a file of the writer's.
type label struct {
	ID     string `json:"id"` // the data key's
	Source string `json:"source,omitempty"`
	// SHA256 is of the plaintext, in hex: the file on disk may change later, and
	// then this is what the opened envelope is held against.
	SHA256 string `json:"sha256"`
}

func newShelf(data string) (shelf, error) {
	s := shelf{dir: filepath.Join(data, sealedDir)}
	return s, os.MkdirAll(s.dir, 0o700)
}

func (s shelf) envelopePath(id string) string { return filepath.Join(s.dir, id+".sealed") }
func (s shelf) labelPath(id string) string    { return filepath.Join(s.dir, id+".json") }

// put stores a sealed file. It is not on the shelf until both parts are.
func (s shelf) put(l label, envelope []byte) error {
	text, err := json.Marshal(l)
	if err != nil {
		return err
	}
	if err := replace(s.envelopePath(l.ID), envelope); err != nil {
		return err
	}
	return replace(s.labelPath(l.ID), text)
}

// replace is writeFile without the wait for the disk: a file that a power cut
// takes is missing from the list, or does not open and is reported.
func replace(path string, content []byte) error {
	if err := os.WriteFile(path+".next", content, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".next", path)
}

// has tells whether a file is on the shelf.
func (s shelf) has(id string) bool {
	_, err := os.Stat(s.labelPath(id))
	return err == nil
}

// get gives a file's label and envelope.
func (s shelf) get(id string) (label, []byte, error) {
	var l label
	text, err := os.ReadFile(s.labelPath(id))
	if err != nil {
		return label{}, nil, err
	}
	if err := json.Unmarshal(text, &l); err != nil {
		return label{}, nil, fmt.Errorf("label of %s: %w", id, err)
	}
	envelope, err := os.ReadFile(s.envelopePath(id))
	return l, envelope, err
}

// list gives the ids of all files on the shelf, sorted.
func (s shelf) list() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), ".json"); ok {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids, nil
}

func digest(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}
