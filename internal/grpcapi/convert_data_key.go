package grpcapi

import (
	"github.com/keybroker/keybroker/internal/broker"
	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

// dataKeyMessage converts a data key.
func dataKeyMessage(k broker.DataKeyView) *keybrokerv1.DataKey {
	return &keybrokerv1.DataKey{
		Name:              broker.DataKeyName(k.DomainID, k.ID),
		Uid:               string(k.UID),
		CiphertextBlob:    []byte(k.Ciphertext),
		KmsKey:            string(k.KMSKey),
		KeyMaterialId:     k.KeyMaterialID,
		KeySpec:           k.KeySpec,
		Context:           k.Context,
		EncryptionContext: k.EncryptionContext,
		Etag:              k.Etag(),
		CreateTime:        timestamp(k.CreateTime),
		UpdateTime:        timestamp(k.UpdateTime),
	}
}
