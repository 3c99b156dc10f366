package sqlstore_test

import (
	"strings"
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/internal/sqlstore"
)

// countingTexts gives the statements on data keys by which UsesOfKey looks at a key
// that one domain has in the given state.
func countingTexts(t *testing.T, store *sqlstore.Store, state broker.KeyState) []string {
	t.Helper()
	recorded, statements := store.Recorded()
	err := recorded.Rotation().Update(t.Context(), func(tx rotation.Tx) error {
		d := broker.Domain{UID: "D" + broker.DomainUID(state), ID: "d-" + broker.DomainID(state), Region: "us-east-1", State: broker.DomainActive, Version: 1}
		if err := tx.InsertDomain(t.Context(), d); err != nil {
			return err
		}
		key := broker.KeyARN("arn:" + state)
		if err := tx.InsertDomainKey(t.Context(), broker.DomainKey{Domain: d.UID, Epoch: 1, KMSKey: key, State: state}); err != nil {
			return err
		}
		_, err := tx.UsesOfKey(t.Context(), key, 1000)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var texts []string
	for text := range statements() {
		if strings.Contains(text, "from data_key\n") {
			texts = append(texts, text)
		}
	}
	return texts
}

// TestRetiredKeyIsNotCounted: what a report asks about a key that its domains have
// retired, or never came to, reads none of their rows, however many there are, but
// those that were given up, and these by an index that holds no others.
func TestRetiredKeyIsNotCounted(t *testing.T) {
	const index = "data_key_abandoned"
	path, url := dbPath(t), postgresURL(t)
	// The planner knows the table as production's: many rows, few abandoned.
	execPostgres(t, url, `
		insert into domain select 'BIG', 'big', '', '', 'ACTIVE', 0, '', '', '', '', 1, 1, '', '', 0, '[]', '[]', '{}', 1, 0, 0`)
	execPostgres(t, url, `
		insert into data_key select 'BIG', 'k' || n, 'k' || n, '\x01', '{}', '', 1, '', '', n % 1000 = 0, 1, 0, 0
		from generate_series(1, 5000) as n`)
	execPostgres(t, url, `analyze`)
	for _, engine := range []struct {
		name  string
		store *sqlstore.Store
		plan  func(text string) []string
	}{
		{"sqlite", open(t, path, time.Now), func(text string) []string { return planOnSQLite(t, path, text) }},
		{"postgres", reopenPostgres(t, url, nil), func(text string) []string { return planOnPostgres(t, url, text) }},
	} {
		for state, want := range map[broker.KeyState]int{
			broker.KeyPreparing: 0, broker.KeyCurrent: 1, broker.KeySuperseded: 1, broker.KeyClosed: 1, broker.KeyRetired: 0, broker.KeyAbandoned: 0,
		} {
			walks, byIndex := 0, 0
			for _, text := range countingTexts(t, engine.store, state) {
				if strings.Contains(strings.Join(engine.plan(text), "\n"), index) {
					byIndex++
				} else {
					walks++
				}
			}
			if walks != want || byIndex != 1 {
				t.Errorf("%s, %s: %d statements walk over the rows, %d use %s; want %d and 1", engine.name, state, walks, byIndex, index, want)
			}
		}
	}
}
