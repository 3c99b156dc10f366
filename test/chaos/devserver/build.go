//go:build unix

package devserver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Root gives the directory of the module that the test runs in.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		_, err := os.Stat(filepath.Join(dir, "go.mod"))
		if err == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if !errors.Is(err, fs.ErrNotExist) || up == dir {
			return "", fmt.Errorf("no go.mod above the working directory: %w", err)
		}
		dir = up
	}
}

// Build compiles the broker into dir and gives its path. The flags are of go build.
func Build(ctx context.Context, dir string, flags ...string) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	if err := noteSources(root); err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "broker")
	return bin, Go(ctx, root, append(append([]string{"build"}, flags...), "-o", bin, "./cmd/broker")...)
}

// Go runs the go command in a directory; its output is in the error.
func Go(ctx context.Context, dir string, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// noteSources looks into every folder that the program is made of. Go's test
// cache remembers which directories a test has read: without this, a test that
// only runs the program would pass from the cache after the program changed.
func noteSources(root string) error {
	for _, part := range []string{"cmd", "internal", "proto", "client"} {
		err := filepath.WalkDir(filepath.Join(root, part), func(string, fs.DirEntry, error) error { return nil })
		if err != nil {
			return err
		}
	}
	return nil
}
