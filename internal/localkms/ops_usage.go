package localkms

import (
	"crypto/sha256"
	"time"
)

// usageLag is how old the last use of a key may be that is on disk. AWS: "up to one
// hour" (AWS KMS Developer Guide, "Determine past usage of a KMS key").
const usageLag = time.Hour

// use is a successful cryptographic operation with a key. It is never altered
// once it stands in one.
type use struct {
	Operation string    `json:"operation"` // the request's, so ReEncrypt for either key
	Time      time.Time `json:"time"`
	RequestID string    `json:"requestId"`

	noted time.Time // the Time of the newest use that the journal knows of
}

// used notes that a request has used keys. That is the only change of a key that no
// event makes: the journal is told at most once in usageLag, and by whoever asks
// for the last use, since a write for each use would cost more than the use.
func (k *KMS) used(r *request, keys ...resolved) {
	for _, key := range keys {
		u := &use{Operation: r.call.Operation, Time: r.stamp(), RequestID: r.call.RequestID}
		if last := key.lastUse.Load(); last != nil {
			if u.noted = last.noted; u.Time.Before(last.Time) {
				continue
			}
		}
		if u.Time.Sub(u.noted) < usageLag {
			key.lastUse.Store(u)
			continue
		}
		// A failure is the journal's, which tells it to the next change.
		_ = k.noteUsage(key.ref, u)
	}
}

// noteUsage tells the journal of the last use of a key.
func (k *KMS) noteUsage(ref keyRef, u *use) error {
	return k.change(func(s *state) (*event, error) {
		if _, err := s.get(ref); err != nil {
			return nil, err
		}
		return &event{Used: &usedEvent{ref, *u}}, nil
	})
}

type getKeyLastUsageOutput struct {
	KeyCreationDate   epoch
	KeyID             string `json:"KeyId"`
	KeyLastUsage      keyLastUsage
	TrackingStartDate epoch
}

// keyLastUsage is empty for a key that was not used.
type keyLastUsage struct {
	CloudTrailEventID string `json:"CloudTrailEventId,omitempty"`
	KmsRequestID      string `json:"KmsRequestId,omitempty"`
	Operation         string `json:",omitempty"`
	Timestamp         *epoch `json:",omitempty"`
}

// getKeyLastUsage tells of the last use that this program knows of, and sees to it
// that a crash does not make it forget what it told.
func (k *KMS) getKeyLastUsage(r *request, in *keyStateInput) (*getKeyLastUsageOutput, error) {
	key, err := k.owned(r, *in.KeyID, "GetKeyLastUsage")
	if err != nil {
		return nil, err
	}
	out := &getKeyLastUsageOutput{
		KeyCreationDate:   epoch(key.created),
		KeyID:             key.ref.ID,
		TrackingStartDate: epoch(later(key.created, k.state.tracking)),
	}
	last := key.lastUse.Load()
	if last == nil {
		return out, k.settle()
	}
	at := epoch(last.Time)
	out.KeyLastUsage = keyLastUsage{eventID(last.RequestID), last.RequestID, last.Operation, &at}
	if last.noted.Equal(last.Time) {
		return out, k.settle()
	}
	return out, k.noteUsage(key.ref, last)
}

// unusedDays is the value of kms:TrailingDaysWithoutKeyUsage (AWS KMS Developer
// Guide, "AWS KMS condition keys").
func (k *key) unusedDays(now, tracking time.Time) int {
	since := later(k.created, tracking)
	if last := k.lastUse.Load(); last != nil {
		since = last.Time
	}
	return int(now.Sub(since) / (24 * time.Hour))
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// eventID returns the id of the event that a trail would have of a request: always
// the same for one request, and another than the request's own.
func eventID(requestID string) string {
	sum := sha256.Sum256([]byte("event of " + requestID))
	return formatUUID([16]byte(sum[:16]))
}
