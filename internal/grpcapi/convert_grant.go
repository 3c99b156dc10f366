package grpcapi

import (
	"github.com/keybroker/keybroker/internal/broker"
	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

var grantStates = map[broker.GrantState]keybrokerv1.Grant_State{
	broker.GrantCreating:          keybrokerv1.Grant_STATE_CREATING,
	broker.GrantActive:            keybrokerv1.Grant_STATE_ACTIVE,
	broker.GrantExpired:           keybrokerv1.Grant_STATE_EXPIRED,
	broker.GrantRevoked:           keybrokerv1.Grant_STATE_REVOKED,
	broker.GrantFailed:            keybrokerv1.Grant_STATE_FAILED,
	broker.GrantRevokedByCustomer: keybrokerv1.Grant_STATE_REVOKED_BY_CUSTOMER,
}

var inventories = map[broker.Inventory]keybrokerv1.Grant_Inventory{
	broker.InventoryBroker: keybrokerv1.Grant_INVENTORY_BROKER,
	broker.InventorySelf:   keybrokerv1.Grant_INVENTORY_SELF,
}

// inventoryOf reads who keeps the wrapped keys; "" leaves it to the broker's
// default.
func inventoryOf(i keybrokerv1.Grant_Inventory) broker.Inventory {
	for inventory, m := range inventories {
		if m == i {
			return inventory
		}
	}
	return ""
}

// grantMessage converts a grant. This is the one place where tokens leave their
// Secret: the answer that mints them.
func grantMessage(g broker.GrantView) *keybrokerv1.Grant {
	m := &keybrokerv1.Grant{
		Name:             broker.GrantName(g.DomainID, g.ID),
		Uid:              string(g.UID),
		GranteePrincipal: g.Grantee,
		Operations:       g.Operations,
		Inventory:        inventories[g.Inventory],
		ExpireTime:       timestamp(g.ExpireTime),
		State:            grantStates[g.State],
		Etag:             g.Etag(),
		CreateTime:       timestamp(g.CreateTime),
		UpdateTime:       timestamp(g.UpdateTime),
	}
	if len(g.Constraint.Subset) > 0 || len(g.Constraint.Equals) > 0 {
		m.Constraints = &keybrokerv1.Grant_Constraints{
			EncryptionContextSubset: g.Constraint.Subset, EncryptionContextEquals: g.Constraint.Equals}
	}
	for _, t := range g.Tokens {
		m.GrantTokens = append(m.GrantTokens, string([]byte(t)))
	}
	for _, k := range g.KMSKeys {
		m.KmsKeys = append(m.KmsKeys, string(k))
	}
	return m
}
