package localkms_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/keybroker/keybroker/internal/localkms"
	"github.com/keybroker/keybroker/test/kmsmodel"
)

// judge holds every request and answer of this package's tests against botocore's
// model of KMS. It is nil where there is no botocore. Set once, by TestMain.
var judge *kmsmodel.Recorder

// TestMain fails the run if any exchange of any test was against the model.
func TestMain(m *testing.M) {
	model, err := kmsmodel.Load()
	switch {
	case err == nil:
		judge = kmsmodel.NewRecorder(model)
	case !errors.Is(err, kmsmodel.ErrNotInstalled) || os.Getenv("CI") == "true":
		fmt.Fprintln(os.Stderr, "!!! NOTHING WAS CHECKED AGAINST BOTOCORE'S MODEL:", err)
		os.Exit(1)
	}
	code := m.Run()
	if faults := judge.Faults(); len(faults) > 0 {
		fmt.Fprintf(os.Stderr, "--- FAIL: against botocore's model of KMS:\n    %s\n", strings.Join(faults, "\n    "))
		code = max(code, 1)
	}
	if testing.Verbose() {
		fmt.Println(judge.Summary())
	}
	os.Exit(code)
}

// TestModelIsThere says so where nothing is checked against the model.
func TestModelIsThere(t *testing.T) {
	if judge == nil {
		t.Skip(kmsmodel.ErrNotInstalled)
	}
}

// judged is a transport to a KMS whose exchanges are judged.
func judged(h http.Handler) http.RoundTripper {
	return judge.Transport(localkms.RoundTripper(h), func() bool {
		k, ok := h.(*localkms.KMS)
		return ok && len(k.Faults().Errors) > 0
	})
}
