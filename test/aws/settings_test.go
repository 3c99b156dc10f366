// Package aws_test runs the KMS adapter's contract suite, the claims of
// docs/localkms.md and broker demo on two keys that exist already: on AWS by
// `make test-aws`, see docs/aws.md, and on localkms by TestTargetOnLocalKMS, which
// starts the very same test as a process of its own.
package aws_test

import (
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
)

// The variables that say what to run on.
const (
	variable           = "KEYBROKER_TEST_AWS"
	oldKeyVariable     = variable + "_OLD_KEY"
	newKeyVariable     = variable + "_NEW_KEY"
	registrarVariable  = variable + "_REGISTRAR_ROLE"
	workerVariable     = variable + "_WORKER_ROLE"
	serviceVariable    = variable + "_SERVICE_ROLE"
	visibilityVariable = variable + "_GRANT_VISIBILITY"
	// binaryVariable saves TestTargetOnLocalKMS a second build.
	binaryVariable = variable + "_BROKER"
)

// settings are the variables' values.
type settings struct {
	oldKey, newKey             string
	registrar, worker, service string
	visibility                 time.Duration
}

// region is that of both keys.
func (s settings) region() string {
	parts := strings.Split(s.oldKey, ":")
	if len(parts) < 6 {
		return ""
	}
	return parts[3]
}

// readSettings ends the test with what is missing.
func readSettings(t *testing.T) settings {
	t.Helper()
	s := settings{visibility: broker.DefaultWindows().GrantVisibility}
	var missing []string
	for name, value := range map[string]*string{
		oldKeyVariable: &s.oldKey, newKeyVariable: &s.newKey,
		registrarVariable: &s.registrar, workerVariable: &s.worker, serviceVariable: &s.service,
	} {
		if *value = os.Getenv(name); *value == "" {
			missing = append(missing, name)
		}
	}
	if missing != nil {
		t.Fatalf("set %s: docs/aws.md says what they are", strings.Join(missing, ", "))
	}
	if s.region() == "" || s.oldKey == s.newKey {
		t.Fatalf("%s and %s: must be the ARNs of two KMS keys: docs/aws.md", oldKeyVariable, newKeyVariable)
	}
	if text := os.Getenv(visibilityVariable); text != "" {
		var err error
		if s.visibility, err = time.ParseDuration(text); err != nil {
			t.Fatalf("%s: %v", visibilityVariable, err)
		}
	}
	return s
}

// onAWS says whether an endpoint is AWS's, or somebody's for whom this is a test
// of the test.
func onAWS(endpoint string) bool {
	u, err := url.Parse(endpoint)
	return endpoint == "" || (err == nil && strings.HasSuffix(u.Hostname(), ".amazonaws.com"))
}
