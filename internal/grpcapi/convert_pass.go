package grpcapi

import (
	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

var settlementKinds = map[rotation.SettlementKind]keybrokerv1.SelfInventory_State{
	rotation.Attested:   keybrokerv1.SelfInventory_STATE_ATTESTED,
	rotation.Overridden: keybrokerv1.SelfInventory_STATE_OVERRIDDEN,
}

// inventoryMessage converts what is known of a self-kept inventory.
func inventoryMessage(s rotation.SelfInventory) *keybrokerv1.SelfInventory {
	m := &keybrokerv1.SelfInventory{
		Grant:            broker.GrantName(s.Domain, s.Grant.ID),
		GranteePrincipal: s.Grant.Grantee,
		State:            keybrokerv1.SelfInventory_STATE_PENDING,
	}
	if w := s.Settled; w != nil {
		m.State, m.KmsKey, m.Caller, m.Reason = settlementKinds[w.Kind], string(s.KMSKey), w.Caller, w.Reason
		m.SettleTime, m.Items, m.GivenUpItems = timestamp(w.Time), w.Items, w.GivenUp
	}
	return m
}

func inventoryMessages(all []rotation.SelfInventory) []*keybrokerv1.SelfInventory {
	var messages []*keybrokerv1.SelfInventory
	for _, s := range all {
		messages = append(messages, inventoryMessage(s))
	}
	return messages
}

// openedMessage answers a pass's header.
func openedMessage(p rotation.PassView, token string) *keybrokerv1.ReencryptStreamResponse {
	opened := &keybrokerv1.ReencryptStreamResponse_Opened{KmsKey: string(p.KMSKey), AttestAfter: timestamp(p.AttestAfter), ResumeToken: token}
	for _, k := range p.Older {
		opened.OlderKmsKeys = append(opened.OlderKmsKeys, string(k))
	}
	return &keybrokerv1.ReencryptStreamResponse{Message: &keybrokerv1.ReencryptStreamResponse_Opened_{Opened: opened}}
}

func heartbeatMessage() *keybrokerv1.ReencryptStreamResponse {
	return &keybrokerv1.ReencryptStreamResponse{Message: &keybrokerv1.ReencryptStreamResponse_Heartbeat{Heartbeat: true}}
}

func attestedMessage(all []rotation.SelfInventory) *keybrokerv1.ReencryptStreamResponse {
	return &keybrokerv1.ReencryptStreamResponse{Message: &keybrokerv1.ReencryptStreamResponse_Attested_{
		Attested: &keybrokerv1.ReencryptStreamResponse_Attested{SelfInventories: inventoryMessages(all)}}}
}
