package localkms

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
)

// A grant token is base64 of a JSON claim and its HMAC-SHA256 under a secret
// that lives as long as the state. So each CreateGrant can mint another token of
// the same grant, none is stored, and all stay good after a restart.

const tokenSecretSize = 32 // bytes

// grantClaim is what a token says.
type grantClaim struct {
	Key     keyRef `json:"key"`
	GrantID string `json:"grant"`
	Nonce   string `json:"nonce"` // makes each token unique
}

func newTokenSecret() []byte {
	secret := make([]byte, tokenSecretSize)
	_, _ = rand.Read(secret) // never fails: see crypto/rand.Read
	return secret
}

func (s *state) mintToken(key keyRef, grantID string) (string, error) {
	claim, err := json.Marshal(grantClaim{key, grantID, randomHex(16)})
	if err != nil {
		return "", err
	}
	return base64.StdEncoding.EncodeToString(s.sign(claim)), nil
}

// sign appends the HMAC of claim to it.
func (s *state) sign(claim []byte) []byte {
	mac := hmac.New(sha256.New, s.tokenSecret)
	mac.Write(claim)
	return mac.Sum(claim)
}

// readToken returns what a token says, and an error for one that this KMS did
// not mint. Whether the grant still lives is another question.
func (s *state) readToken(token string) (grantClaim, error) {
	signed, err := base64.StdEncoding.DecodeString(token)
	split := len(signed) - sha256.Size
	if err != nil || split <= 0 || !hmac.Equal(s.sign(signed[:split:split]), signed) {
		return grantClaim{}, errInvalidGrantToken()
	}
	var claim grantClaim
	if err := json.Unmarshal(signed[:split], &claim); err != nil {
		return grantClaim{}, errInvalidGrantToken()
	}
	return claim, nil
}

func errInvalidGrantToken() error {
	return fault(codeInvalidGrantToken, "The request was rejected because the specified grant token is not valid.")
}
