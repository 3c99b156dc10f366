package demo

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// The files that a run takes.
const (
	maxFiles    = 500
	maxFileSize = 1 << 20 // bytes
)

var errEnough = errors.New("enough files")

// chooseFiles gives up to limit regular files below dir, as slash-separated
// paths in lexical order. Repositories' insides, the run's own directory, and
// what cannot be read are left out.
func chooseFiles(ctx context.Context, dir, data string, limit int) ([]string, error) {
	data, err := filepath.Abs(data)
	if err != nil {
		return nil, err
	}
	var chosen []string
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			if path == dir {
				return err
			}
			return nil // of no concern to a demo: others have files, too
		}
		if e.IsDir() {
			if path != dir && (e.Name() == ".git" || strings.HasPrefix(e.Name(), ".keybroker") || path == data) {
				return filepath.SkipDir
			}
			return nil
		}
		if !e.Type().IsRegular() {
			return nil
		}
		if info, err := e.Info(); err != nil || info.Size() > maxFileSize {
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return nil
		}
		if err := f.Close(); err != nil {
			return err
		}
		relative, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		chosen = append(chosen, filepath.ToSlash(relative))
		if len(chosen) == limit {
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return chosen, err
}
