package grpcapi

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
)

// tokenKeySize is that of AES-256, in bytes.
const tokenKeySize = 32

// A sealer makes opaque tokens of what the broker wants to hear again and not to
// keep: the base64url of an AES-256-GCM sealed text, with what it is bound to as
// additional data. Its key is the same on every replica.
type sealer struct{ aead cipher.AEAD }

func newSealer(key []byte) (*sealer, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("token key: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("token key: %w", err)
	}
	return &sealer{aead}, nil
}

func tokenEncoding() *base64.Encoding { return base64.RawURLEncoding.Strict() }

func (s *sealer) seal(plain, bound []byte) string {
	return tokenEncoding().EncodeToString(s.aead.Seal(nil, nil, plain, bound))
}

func (s *sealer) open(token string, bound []byte) ([]byte, error) {
	sealed, err := tokenEncoding().DecodeString(token)
	if err != nil {
		return nil, err
	}
	// The decoder skips line ends; one token has one spelling.
	if len(sealed) < s.aead.Overhead() || tokenEncoding().EncodeToString(sealed) != token {
		return nil, errors.New("not a token of ours")
	}
	return s.aead.Open(nil, nil, sealed, bound)
}

// joined puts parts into one text that no other parts make: lengths keep them
// apart.
func joined(parts ...string) []byte {
	var b []byte
	for _, part := range parts {
		b = binary.BigEndian.AppendUint32(b, uint32(len(part)))
		b = append(b, part...)
	}
	return b
}
