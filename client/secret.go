package client

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"
	"log/slog"
)

// purpose separates the keys derived here from all others that anybody may
// derive from the same data key.
const purpose = "keybroker/client/v1/aes-256-gcm"

const redacted = "[redacted]"

// A secret holds an unwrapped data key. However it is printed, logged or
// encoded, it does not show. The function is part of that: fmt ignores the
// methods of unexported fields and would print bytes in them, or follow a
// pointer to them, but of a function it prints the address.
type secret struct {
	key func() []byte
}

func newSecret(key []byte) secret {
	return secret{key: func() []byte { return key }}
}

// aead gives the cipher of the one envelope that has this salt. It draws its
// nonces itself and takes none from outside.
func (s secret) aead(salt []byte) (cipher.AEAD, error) {
	derived, err := hkdf.Key(sha256.New, s.key(), salt, purpose, 32)
	if err != nil {
		return nil, fmt.Errorf("derive the envelope's key: %w", err)
	}
	defer clear(derived)
	block, err := aes.NewCipher(derived)
	if err != nil {
		return nil, fmt.Errorf("make the envelope's cipher: %w", err)
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// wipe overwrites the key; the secret must not be used any more. It is best
// effort: Go may have copied the bytes while they were being used.
func (s secret) wipe() { clear(s.key()) }

func (s secret) String() string               { return redacted }
func (s secret) GoString() string             { return redacted }
func (s secret) Format(f fmt.State, _ rune)   { fmt.Fprint(f, redacted) }
func (s secret) LogValue() slog.Value         { return slog.StringValue(redacted) }
func (s secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
func (s secret) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }
