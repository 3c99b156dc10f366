//go:build unix

package localkms

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// lockFile opens a file and takes the exclusive lock on it, which lasts until
// the file is closed or the process ends, however it ends.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("directory is in use by another KMS: %w", err), f.Close())
	}
	return f, nil
}
