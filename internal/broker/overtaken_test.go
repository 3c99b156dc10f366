package broker_test

import (
	"context"
	"errors"
	"testing"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/test/harness"
)

// overtaken is a store in which somebody else is faster, between a transaction's
// read of a data key and its write: PostgreSQL's writers meet there.
type overtaken struct {
	*oneDomain
	writes []error // how they end, in turn
}

func (s *overtaken) Update(_ context.Context, fn func(broker.Tx) error) error { return fn(s) }
func (s *overtaken) DataKey(context.Context, broker.DomainUID, broker.DataKeyID) (broker.DataKey, error) {
	return broker.DataKey{ID: "k", UID: "uid", Epoch: 1, Version: 1}, nil
}
func (s *overtaken) DeleteDataKey(context.Context, broker.DataKey) error { return s.write() }
func (s *overtaken) ReplaceDataKey(context.Context, broker.DataKey, broker.Epoch) error {
	return s.write()
}

func (s *overtaken) write() error {
	if len(s.writes) == 0 {
		return errors.New("one write too many")
	}
	err := s.writes[0]
	s.writes = s.writes[1:]
	return err
}

// Who deletes whatever is there is not refused because a job moves it meanwhile;
// who names a version is.
func TestDeleteDataKeyIsOvertaken(t *testing.T) {
	for name, tc := range map[string]struct {
		etag   string
		writes []error
		kind   error
		reason broker.Reason
	}{
		"moved":                  {writes: []error{broker.ErrConflict, broker.ErrConflict, nil}},
		"moved, and by its etag": {etag: "1", writes: []error{broker.ErrConflict}, kind: broker.ErrConflict},
		"deleted":                {writes: []error{broker.ErrNotFound}, kind: broker.ErrNotFound, reason: broker.ReasonDataKeyNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			_, domain, kms := newHeard(t)
			store := &overtaken{oneDomain: domain, writes: tc.writes}
			err := brokerOver(t, store, kms).DeleteDataKey(t.Context(), harness.Caller, broker.Request{}, "acme", "k", tc.etag)
			if !errors.Is(err, tc.kind) || broker.ReasonOf(err) != tc.reason || len(store.writes) > 0 {
				t.Errorf("%v (%q), with %d writes left", err, broker.ReasonOf(err), len(store.writes))
			}
		})
	}
}

// A replacement of what is deleted meanwhile is refused, and the call's other
// items are not.
func TestImportIsOvertaken(t *testing.T) {
	_, domain, kms := newHeard(t)
	store := &overtaken{oneDomain: domain, writes: []error{broker.ErrNotFound, broker.ErrConflict}}
	item := func(id broker.DataKeyID, etag string) broker.ImportItem {
		return broker.ImportItem{ID: id, Etag: etag, Ciphertext: []byte("blob"), SourceKey: legacyKey, SourceContext: broker.Context{"tenant": "acme"}}
	}
	results, err := brokerOver(t, store, kms).ImportDataKeys(t.Context(), harness.Caller,
		broker.ImportDataKeys{Domain: "acme", Items: []broker.ImportItem{item("gone", "1"), item("moved", "1"), item("new", "")}})
	if err != nil {
		t.Fatal(err)
	}
	wantReason(t, results[0].Err, broker.ReasonDataKeyNotFound)
	wantReason(t, results[1].Err, broker.ReasonEtagMismatch)
	wantReason(t, results[2].Err, "")
	if len(store.stored) != 1 || store.stored[0].ID != "new" {
		t.Errorf("stored %v", store.stored)
	}
}
