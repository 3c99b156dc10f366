package client

import (
	"fmt"
	"strings"
)

const (
	magic       = "kb"
	version     = 1
	saltSize    = 32
	nonceSize   = 12 // GCM's, NIST SP 800-38D section 8.2
	tagSize     = 16
	maxDomainID = 63
	maxKeyID    = 128
	maxUID      = 64
	maxName     = len("domains/") + maxDomainID + len("/dataKeys/") + maxKeyID
)

// MaxPlaintext is how many bytes one envelope may hold: it is sealed in memory.
const MaxPlaintext = 64 << 20

// Header is what an envelope says without being opened. Nothing in it is proven
// until Open has succeeded.
type Header struct {
	// DataKey is the data key's name, "domains/{domain}/dataKeys/{data_key}".
	DataKey string
	// UID is the data key's uid, which no other data key ever has.
	UID string
}

// Inspect reads an envelope's header, for instance to find what a data key is
// still needed for. Its error is ErrMalformed.
func Inspect(envelope []byte) (Header, error) {
	e, err := parse(envelope)
	if err != nil {
		return Header{}, err
	}
	return Header{DataKey: e.name, UID: e.uid}, nil
}

// An envelope is its parts. Slices of a parsed one are those of the input.
type envelope struct {
	name string
	uid  string
	salt []byte
	// The nonce, the ciphertext and the tag. Header and this make the envelope.
	sealed []byte
}

// header encodes what is authenticated but not encrypted, with room for more.
func (e envelope) header(room int) []byte {
	b := make([]byte, 0, len(magic)+3+len(e.name)+len(e.uid)+len(e.salt)+room)
	b = append(b, magic...)
	b = append(b, version, byte(len(e.name)))
	b = append(b, e.name...)
	b = append(b, byte(len(e.uid)))
	b = append(b, e.uid...)
	return append(b, e.salt...)
}

// parse takes an envelope apart. What it accepts encodes to the same bytes, so
// that an envelope has one form only.
func parse(b []byte) (envelope, error) {
	malformed := func(what string) (envelope, error) { return envelope{}, fmt.Errorf("%w: %s", ErrMalformed, what) }

	rest, ok := cutPrefix(b, magic)
	if !ok || len(rest) == 0 {
		return malformed("it does not begin like one")
	}
	if rest[0] != version {
		return malformed(fmt.Sprintf("version %d is not known here", rest[0]))
	}
	name, rest, ok := cutField(rest[1:])
	if !ok || checkName(name) != nil {
		return malformed("name of the data key")
	}
	uid, rest, ok := cutField(rest)
	if !ok || !isUID(uid) {
		return malformed("uid of the data key")
	}
	if len(rest) < saltSize+nonceSize+tagSize {
		return malformed("it is cut short")
	}
	if len(rest) > saltSize+nonceSize+MaxPlaintext+tagSize {
		return malformed("it is too long")
	}
	return envelope{name: name, uid: uid, salt: rest[:saltSize], sealed: rest[saltSize:]}, nil
}

func cutPrefix(b []byte, prefix string) (rest []byte, ok bool) {
	if len(b) < len(prefix) || string(b[:len(prefix)]) != prefix {
		return nil, false
	}
	return b[len(prefix):], true
}

// cutField takes a byte of length and so many bytes.
func cutField(b []byte) (field string, rest []byte, ok bool) {
	if len(b) == 0 || len(b)-1 < int(b[0]) {
		return "", nil, false
	}
	end := 1 + int(b[0])
	return string(b[1:end]), b[end:], true
}

// checkName accepts "domains/{domain}/dataKeys/{data_key}" with ids as the API
// documents them.
func checkName(name string) error {
	parts := strings.Split(name, "/")
	if len(parts) != 4 || parts[0] != "domains" || parts[2] != "dataKeys" || !isDomainID(parts[1]) || !isKeyID(parts[3]) {
		return fmt.Errorf("%w: want domains/{domain}/dataKeys/{data_key}", ErrNameInvalid)
	}
	return nil
}

func isDomainID(id string) bool {
	if id == "" || len(id) > maxDomainID || !isLower(id[0]) || id[len(id)-1] == '-' {
		return false
	}
	return all(id, func(c byte) bool { return isLower(c) || isDigit(c) || c == '-' })
}

func isKeyID(id string) bool {
	if id == "" || len(id) > maxKeyID || !isAlphanumeric(id[0]) {
		return false
	}
	return all(id, func(c byte) bool { return isAlphanumeric(c) || c == '.' || c == '_' || c == '-' })
}

func isUID(uid string) bool {
	return uid != "" && len(uid) <= maxUID && all(uid, isAlphanumeric)
}

func all(s string, accept func(byte) bool) bool {
	for i := range len(s) {
		if !accept(s[i]) {
			return false
		}
	}
	return true
}

func isLower(c byte) bool        { return 'a' <= c && c <= 'z' }
func isDigit(c byte) bool        { return '0' <= c && c <= '9' }
func isAlphanumeric(c byte) bool { return isLower(c) || isDigit(c) || 'A' <= c && c <= 'Z' }
