package grpcapi

import (
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/keybroker/keybroker/internal/broker"
	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

var domainStates = map[broker.DomainState]keybrokerv1.Domain_State{
	broker.DomainPendingKey:      keybrokerv1.Domain_STATE_PENDING_KEY,
	broker.DomainActive:          keybrokerv1.Domain_STATE_ACTIVE,
	broker.DomainKeyInaccessible: keybrokerv1.Domain_STATE_KEY_INACCESSIBLE,
}

var policyProfiles = map[keybrokerv1.GenerateKeyPolicyRequest_Profile]broker.PolicyProfile{
	keybrokerv1.GenerateKeyPolicyRequest_PROFILE_UNSPECIFIED:   broker.PolicyStandard,
	keybrokerv1.GenerateKeyPolicyRequest_PROFILE_STANDARD:      broker.PolicyStandard,
	keybrokerv1.GenerateKeyPolicyRequest_PROFILE_IMPORT_SOURCE: broker.PolicyImportSource,
}

// timestamp gives nil for the zero time: absent, not the year 1.
func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// domainMessage converts a domain, the keys that it had, by epoch ascending, and
// its open job, "" for none.
func domainMessage(d broker.Domain, keys []broker.DomainKey, job broker.JobID) *keybrokerv1.Domain {
	m := &keybrokerv1.Domain{
		Name:                d.ID.Name(),
		Uid:                 string(d.UID),
		DisplayName:         d.DisplayName,
		Region:              d.Region,
		KeySource:           keybrokerv1.Domain_KEY_SOURCE_CUSTOMER,
		KmsKey:              string(d.KMSKey),
		KmsKeyGiven:         d.KMSKeyGiven,
		State:               domainStates[d.State],
		KeyInaccessibleTime: timestamp(d.InaccessibleSince),
		EncryptionContext:   broker.Context(nil).With(d.Reserved),
		PreviousKeys:        previousKeys(keys),
		KeyAccounts:         d.KeyAccounts,
		ImportSourceKeys:    d.ImportSources,
		Labels:              d.Labels,
		Etag:                d.Etag(),
		CreateTime:          timestamp(d.CreateTime),
		UpdateTime:          timestamp(d.UpdateTime),
	}
	if job != "" {
		m.KeyChange = broker.JobName(d.ID, job)
	}
	return m
}

// previousKeys gives the keys that were in use once and are no more, newest
// first. Those whose change never came to the switch were not.
func previousKeys(keys []broker.DomainKey) []*keybrokerv1.Domain_PreviousKey {
	var previous []*keybrokerv1.Domain_PreviousKey
	for i := len(keys) - 1; i >= 0; i-- {
		k := keys[i]
		switch k.State {
		case broker.KeySuperseded, broker.KeyClosed, broker.KeyRetired:
			previous = append(previous, &keybrokerv1.Domain_PreviousKey{KmsKey: string(k.KMSKey),
				ActivateTime: timestamp(k.ActivateTime), ReplaceTime: timestamp(k.ReplaceTime), RetireTime: timestamp(k.RetireTime)})
		}
	}
	return previous
}
