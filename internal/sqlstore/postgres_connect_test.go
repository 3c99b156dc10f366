package sqlstore

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// TestConnectTimeout: no connection takes for ever to be made, and the URL has the
// last word.
func TestConnectTimeout(t *testing.T) {
	for parameters, want := range map[string]time.Duration{
		"": connectTime, "?connect_timeout=0": connectTime, "?connect_timeout=2": 2 * time.Second,
	} {
		config, err := postgresConfig("postgres://db.example,other.example/keybroker" + parameters)
		if err != nil {
			t.Fatal(err)
		}
		if got := config.ConnConfig.ConnectTimeout; got != want {
			t.Errorf("%q: %v, want %v", parameters, got, want)
		}
	}
}

// TestDocumentedLimits: operators size a server and read its silences by what
// docs/deploy.md says.
func TestDocumentedLimits(t *testing.T) {
	page, err := os.ReadFile("../../docs/deploy.md")
	if err != nil {
		t.Fatal(err)
	}
	keepalive := keepaliveIdle + keepaliveInterval*keepaliveCount
	for _, want := range []string{
		fmt.Sprintf("at most %d connections", connections),
		fmt.Sprintf("`max_connections` of %d × (replicas + 1) + 10", connections),
		fmt.Sprintf("without it that is %.0f", connectTime.Seconds()),
		fmt.Sprintf("after %.0f s by whoever begins a transaction", beginTime.Seconds()),
		fmt.Sprintf("after %.0f s by TCP where data that was sent is not acknowledged", unackedTime.Seconds()),
		// tcp(7), TCP_USER_TIMEOUT: it overrides keepalive's own count, so the first
		// probe without an answer is the last.
		fmt.Sprintf("after %.0f s by keepalive", (keepaliveIdle + keepaliveInterval).Seconds()),
		fmt.Sprintf("(%.0f s where there is no `TCP_USER_TIMEOUT`)", keepalive.Seconds()),
		fmt.Sprintf("after %.0f s in any case", answerTime.Seconds()),
	} {
		if !strings.Contains(string(page), want) {
			t.Errorf("docs/deploy.md does not say %q", want)
		}
	}
}
