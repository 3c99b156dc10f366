package kmsmodel

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Snapshots returns the bodies that the AWS SDK for Go records of its own wire
// form, by operation or error, from the module cache. The folder is
// request_snapshot or response_snapshot; what is in it has names that end with
// .request.snap, .response.snap or .error.snap. It fails when there are none.
// Operations without a body are left out.
func Snapshots(folder, suffix string) (map[string][]byte, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/aws/aws-sdk-go-v2/service/kms").Output()
	if err != nil {
		return nil, fmt.Errorf("find the SDK's module: %w", err)
	}
	files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(out)), folder, "*"+suffix))
	if err != nil {
		return nil, err
	}
	found := map[string][]byte{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		if _, body, ok := bytes.Cut(text, []byte("\n\n{")); ok {
			found[strings.TrimSuffix(filepath.Base(file), suffix)] = append([]byte("{"), body...)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("the SDK has no snapshots %s in %s", suffix, folder)
	}
	return found, nil
}
