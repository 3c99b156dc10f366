package sqlstore

import (
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
