package sqlstore_test

import (
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/brokertest"
	"github.com/keybroker/keybroker/internal/rotation"
)

// TestPostgres runs the store's contract.
func TestPostgres(t *testing.T) {
	brokertest.RunStore(t, func(t *testing.T, now func() time.Time) (broker.Store, rotation.Store) {
		s := openPostgres(t, now)
		return s.Broker(), s.Rotation()
	})
}
