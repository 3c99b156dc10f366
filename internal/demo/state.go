package demo

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// What a run keeps in its data directory. The caller's part is what the broker
// and KMS store there.
const (
	stateFile  = "demo.json"
	legacyFile = "legacy.json"
	sealedDir  = "sealed"
)

// state is how far a run has come. It is written whole after each step; every
// step may be repeated.
type state struct {
	Stage Stage `json:"stage"`
	// Dir and Keys are those that the run began with.
	Dir  string  `json:"dir"`
	Keys int     `json:"keys"`
	Own  OwnKeys `json:"own,omitzero"`
	// Files are the paths below Dir that are sealed, chosen once.
	Files []string `json:"files,omitempty"`

	// LegacyPolicy is the legacy key's policy before the broker's statement.
	LegacyKey    string `json:"legacy_key,omitempty"`
	LegacyPolicy string `json:"legacy_policy,omitempty"`
	OldKey       string `json:"old_key,omitempty"`
	NewKey       string `json:"new_key,omitempty"`
	// ChangeEtag is what ChangeKey is called with; a repeat sends the same.
	ChangeEtag string `json:"change_etag,omitempty"`
	Job        string `json:"job,omitempty"`
	// Safe is the broker's verdict on the old key, Disabled what became of it.
	Safe     bool `json:"safe,omitempty"`
	Disabled bool `json:"disabled,omitempty"`
	// Pair is the domain's reserved pair, kept for when the domain is deleted.
	Pair map[string]string `json:"pair,omitempty"`
	// Result is what verify found.
	Result *Result `json:"result,omitempty"`
}

// Open makes the data directory of a run, or finds the one that was stopped. A
// run that was finished is removed first. It must come before anybody else
// writes to the directory, and it touches no directory that is not a demo's.
//
// The answer tells what a stopped run had begun with, which Run goes on with.
func Open(data, dir string, keys int, own OwnKeys) (Begun, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Begun{}, err
	}
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return Begun{}, fmt.Errorf("%s is not a directory whose files could be sealed", dir)
	}
	st, err := loadState(data)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := refuseForeign(data); err != nil {
			return Begun{}, err
		}
	case err != nil:
		return Begun{}, err
	case st.Stage == StageDone:
		if err := os.RemoveAll(data); err != nil {
			return Begun{}, fmt.Errorf("remove the finished run: %w", err)
		}
	default:
		return Begun{Resumed: true, Dir: st.Dir, Keys: st.Keys, Own: st.Own, Stage: st.Stage}, nil
	}
	if err := os.MkdirAll(data, 0o700); err != nil {
		return Begun{}, err
	}
	st = state{Stage: StageDomain, Dir: dir, Keys: keys, Own: own}
	if err := st.save(data); err != nil {
		return Begun{}, err
	}
	// Nothing of a run belongs in anybody's repository.
	if err := writeFile(filepath.Join(data, ".gitignore"), []byte("*\n")); err != nil {
		return Begun{}, err
	}
	return Begun{Dir: dir, Keys: keys, Own: own, Stage: StageDomain}, nil
}

// Begun is a run as Open found or made it.
type Begun struct {
	// Resumed says that an earlier call of Run was stopped.
	Resumed bool
	Dir     string
	Keys    int
	Own     OwnKeys
	Stage   Stage
}

// refuseForeign keeps the demo, which removes what it finished, away from
// directories that hold anything else.
func refuseForeign(data string) error {
	entries, err := os.ReadDir(data)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		// What a first start leaves that was killed before its state was written.
		if !strings.HasPrefix(e.Name(), stateFile) {
			return fmt.Errorf("%s holds something else than a demo (%s): name another directory, or an absent one", data, e.Name())
		}
	}
	return nil
}

func loadState(data string) (state, error) {
	var st state
	text, err := os.ReadFile(filepath.Join(data, stateFile))
	if err != nil {
		return state{}, err
	}
	if err := json.Unmarshal(text, &st); err != nil {
		return state{}, fmt.Errorf("%s is damaged (%w): remove %s to begin anew", stateFile, err, data)
	}
	return st, nil
}

func (s state) save(data string) error {
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(data, stateFile), text)
}

// writeFile replaces a file whole, so that a reader, and a run after a crash,
// finds the old content or the new.
func writeFile(path string, content []byte) error {
	next := path + ".next"
	f, err := os.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.Rename(next, path)
}
