//go:build !unix

package localkms

import (
	"errors"
	"os"
)

// lockFile refuses: without flock, a lock would outlive a killed process.
func lockFile(string) (*os.File, error) {
	return nil, errors.New("keeping keys in a directory needs a Unix system")
}
