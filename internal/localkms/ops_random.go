package localkms

import (
	"crypto/rand"
	"encoding/json"
)

type generateRandomInput struct {
	NumberOfBytes    *int
	CustomKeyStoreID *string `json:"CustomKeyStoreId"`
	Recipient        json.RawMessage
}

func (in *generateRandomInput) validate(v *validation) {
	v.number(in.NumberOfBytes, "numberOfBytes", 1, maxDataKey)
	v.rule(in.NumberOfBytes != nil, "NumberOfBytes is required.")
}

type generateRandomOutput struct{ Plaintext []byte }

// generateRandom uses no key.
func (k *KMS) generateRandom(r *request, in *generateRandomInput) (*generateRandomOutput, error) {
	if in.CustomKeyStoreID != nil {
		return nil, faultf(codeUnsupportedOperation, "localkms does not support CustomKeyStoreId %s.", *in.CustomKeyStoreID)
	}
	if err := checkRecipient(in.Recipient); err != nil {
		return nil, err
	}
	if err := k.authorizeAccount(r, "GenerateRandom", "*"); err != nil {
		return nil, err
	}
	plaintext := make([]byte, *in.NumberOfBytes)
	_, _ = rand.Read(plaintext) // never fails: see crypto/rand.Read
	return &generateRandomOutput{plaintext}, nil
}
