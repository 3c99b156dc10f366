package localkms

import (
	"strconv"
	"time"
)

// The waiting period of a deletion (AWS KMS API Reference, ScheduleKeyDeletion,
// PendingWindowInDays).
const (
	minPendingDays     = 7
	maxPendingDays     = 30
	defaultPendingDays = 30
	modelPendingDays   = 365 // what the service model lets through
)

type scheduleKeyDeletionInput struct {
	KeyID               *string `json:"KeyId"`
	PendingWindowInDays *int
}

func (in *scheduleKeyDeletionInput) validate(v *validation) {
	v.requiredText(in.KeyID, "keyId", maxKeyID)
	v.number(in.PendingWindowInDays, "pendingWindowInDays", 1, modelPendingDays)
	days := in.days()
	v.rule(minPendingDays <= days && days <= maxPendingDays, "PendingWindowInDays must be between 7 and 30.")
}

func (in *scheduleKeyDeletionInput) days() int {
	if in.PendingWindowInDays == nil {
		return defaultPendingDays
	}
	return *in.PendingWindowInDays
}

type scheduleKeyDeletionOutput struct {
	DeletionDate        epoch
	KeyID               string `json:"KeyId"`
	KeyState            string
	PendingWindowInDays int
}

func (k *KMS) scheduleKeyDeletion(r *request, in *scheduleKeyDeletionInput) (*scheduleKeyDeletionOutput, error) {
	key, err := k.owned(r, *in.KeyID, "ScheduleKeyDeletion",
		attributeOf("kms:ScheduleKeyDeletionPendingWindowInDays", strconv.Itoa(in.days())))
	if err != nil {
		return nil, err
	}
	date := r.stamp().Add(time.Duration(in.days()) * 24 * time.Hour)
	err = k.change(func(s *state) (*event, error) {
		now, err := s.get(key.ref)
		if err == nil {
			err = now.notPending()
		}
		return &event{Deletion: &deletionEvent{key.ref, date}}, err
	})
	if err != nil {
		return nil, err
	}
	return &scheduleKeyDeletionOutput{epoch(date), key.arn, statePending, in.days()}, nil
}

// keyARNOutput is the answer of operations that name the key and say no more.
type keyARNOutput struct {
	KeyID string `json:"KeyId"`
}

// cancelKeyDeletion leaves the key disabled.
func (k *KMS) cancelKeyDeletion(r *request, in *keyStateInput) (*keyARNOutput, error) {
	key, err := k.owned(r, *in.KeyID, "CancelKeyDeletion")
	if err != nil {
		return nil, err
	}
	err = k.change(func(s *state) (*event, error) {
		now, err := s.get(key.ref)
		if err == nil && !now.pending() {
			err = faultf(codeInvalidState, "%s is not pending deletion.", key.arn)
		}
		return &event{Deletion: &deletionEvent{Key: key.ref}}, err
	})
	if err != nil {
		return nil, err
	}
	return &keyARNOutput{key.arn}, nil
}
