package client

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"strings"
	"testing"
)

// The envelope's format, taken apart by hand with none of the code that made
// it: HKDF spelled out from HMAC, and GCM with the nonce given. Both are held
// against published vectors first.
func TestIndependentOpener(t *testing.T) {
	// RFC 5869, appendix A.1.
	okm := handHKDF(unhex(t, "0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b"), unhex(t, "000102030405060708090a0b0c"), unhex(t, "f0f1f2f3f4f5f6f7f8f9"), 42)
	if got, want := hex.EncodeToString(okm), "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"; got != want {
		t.Fatalf("the hand-made HKDF is wrong: %s", got)
	}
	// McGrew and Viega, "The Galois/Counter Mode of Operation", test case 14.
	sealed := handGCM(t, make([]byte, 32)).Seal(nil, make([]byte, 12), make([]byte, 16), nil)
	if got, want := hex.EncodeToString(sealed), "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"; got != want {
		t.Fatalf("GCM is wrong: %s", got)
	}

	// The file is never written anew: what was sealed once must open for ever.
	golden := readGolden(t)
	key, envelope := unhex(t, golden["key"]), unhex(t, golden["envelope"])
	nameEnd := 4 + int(envelope[3])
	uidEnd := nameEnd + 1 + int(envelope[nameEnd])
	headerEnd := uidEnd + 32
	derived := handHKDF(key, envelope[uidEnd:headerEnd], []byte("keybroker/client/v1/aes-256-gcm"), 32)
	additional := append(bytes.Clone(envelope[:headerEnd]), golden["associated_data"]...)
	got, err := handGCM(t, derived).Open(nil, envelope[headerEnd:headerEnd+12], envelope[headerEnd+12:], additional)
	if err != nil || string(got) != golden["plaintext"] {
		t.Errorf("by hand: %q, %v", got, err)
	}
	if name, uid := string(envelope[4:nameEnd]), string(envelope[nameEnd+1:uidEnd]); name != golden["name"] || uid != golden["uid"] {
		t.Errorf("by hand: name %q, uid %q", name, uid)
	}

	// And the package agrees.
	e, err := parse(envelope)
	if err != nil {
		t.Fatal(err)
	}
	aead, err := newSecret(key).aead(e.salt)
	if err != nil {
		t.Fatal(err)
	}
	got, err = aead.Open(nil, nil, e.sealed, append(e.header(0), golden["associated_data"]...))
	if err != nil || string(got) != golden["plaintext"] {
		t.Errorf("by the package: %q, %v", got, err)
	}
}

// handHKDF is RFC 5869, section 2.
func handHKDF(secret, salt, info []byte, size int) []byte {
	mac := func(key []byte, parts ...[]byte) []byte {
		h := hmac.New(sha256.New, key)
		for _, part := range parts {
			h.Write(part)
		}
		return h.Sum(nil)
	}
	prk := mac(salt, secret)
	var out, last []byte
	for i := byte(1); len(out) < size; i++ {
		last = mac(prk, last, info, []byte{i})
		out = append(out, last...)
	}
	return out[:size]
}

func handGCM(t *testing.T, key []byte) cipher.AEAD {
	t.Helper()
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	return aead
}

// readGolden reads "key: value" lines; # begins a comment.
func readGolden(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile("testdata/envelope-v1.txt")
	if err != nil {
		t.Fatal(err)
	}
	golden := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), ": "); ok && !strings.HasPrefix(line, "#") {
			golden[key] = value
		}
	}
	if len(golden) != 6 {
		t.Fatalf("golden envelope: %d fields, want 6", len(golden))
	}
	return golden
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
