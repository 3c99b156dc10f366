package localkms

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// A ciphertext blob, version 1:
//
//	 1 byte   version
//	12 bytes  account of the key, digits
//	16 bytes  key id
//	32 bytes  key material id
//	32 bytes  salt, random
//	 1 byte   length n of the region
//	 n bytes  region of the key
//	 4 bytes  CRC-32C of all the above, so that damage is told from a foreign key
//	12 bytes  GCM nonce, random
//	   ...    AES-256-GCM ciphertext, as long as the plaintext
//	16 bytes  GCM tag
//
// The message key is HKDF-SHA256 of the key material under the salt. The
// additional data is everything before the nonce, followed by the canonical
// encryption context.
const (
	blobVersion = 1

	offAccount  = 1
	offKeyID    = offAccount + 12
	offMaterial = offKeyID + 16
	offSalt     = offMaterial + 32
	offRegion   = offSalt + saltSize

	saltSize     = 32
	checksumSize = 4
	materialSize = 32 // bytes, of a symmetric key's material and of every material's id
	messageLabel = "localkms message key 1"
)

// material is one generation of a key's secret. Blobs name the generation they
// were made under, so a key can have several.
type material struct {
	id        string    // 64 hexadecimal digits
	raw       []byte    // as long as the kind of key says
	prk       []byte    // HKDF-Extract of raw, the same for all messages
	rotated   time.Time // when the key was rotated to it; zero for a key's first
	automatic bool      // the rotation was not asked for

	settled atomic.Bool // it is known to be on disk
}

func newMaterial(id string, raw []byte) (*material, error) {
	prk, err := hkdf.Extract(sha256.New, raw, []byte(id))
	if err != nil {
		return nil, err
	}
	return &material{id: id, raw: raw, prk: prk}, nil
}

// messageCipher derives the key of one message and readies AES-256-GCM with it.
func (m *material) messageCipher(salt []byte) (cipher.AEAD, error) {
	derived, err := hkdf.Expand(sha256.New, m.prk, messageLabel+string(salt), 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(derived)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// seal encrypts under the newest material of a key. That is on disk before anything
// under it leaves: else a crash could leave a blob that nothing opens.
func (k *KMS) seal(key resolved, plaintext []byte, context map[string]string) ([]byte, error) {
	if m := key.current(); !m.settled.Load() {
		if err := k.settle(); err != nil {
			return nil, err
		}
		m.settled.Store(true)
	}
	return key.seal(plaintext, context)
}

// seal encrypts plaintext under the newest material of a key.
func (k resolved) seal(plaintext []byte, context map[string]string) ([]byte, error) {
	m := k.current()
	head, err := newHeader(k.ref, m.id)
	if err != nil {
		return nil, err
	}
	aead, err := m.messageCipher(head[offSalt:offRegion])
	if err != nil {
		return nil, err
	}
	aad := appendContext(slices.Clone(head), context)
	blob := make([]byte, len(head), len(head)+len(plaintext)+aead.Overhead())
	copy(blob, head)
	return aead.Seal(blob, nil, plaintext, aad), nil
}

// open decrypts a blob that names this key. Whatever is wrong, the error is the
// same.
func (k resolved) open(b sealedBlob, context map[string]string) ([]byte, error) {
	m := k.material(b.materialID)
	if m == nil {
		return nil, errInvalidCiphertext()
	}
	aead, err := m.messageCipher(b.head[offSalt:offRegion])
	if err != nil {
		return nil, err
	}
	plaintext, err := aead.Open(nil, nil, b.body, appendContext(slices.Clone(b.head), context))
	if err != nil {
		return nil, errInvalidCiphertext()
	}
	return plaintext, nil
}

func newHeader(ref keyRef, materialID string) ([]byte, error) {
	head := make([]byte, offRegion, offRegion+1+len(ref.Region)+checksumSize)
	head[0] = blobVersion
	copy(head[offAccount:offKeyID], ref.Account)
	if _, err := hex.Decode(head[offKeyID:offMaterial], []byte(strings.ReplaceAll(ref.ID, "-", ""))); err != nil {
		return nil, err
	}
	if _, err := hex.Decode(head[offMaterial:offSalt], []byte(materialID)); err != nil {
		return nil, err
	}
	_, _ = rand.Read(head[offSalt:offRegion]) // never fails: see crypto/rand.Read
	head = append(head, byte(len(ref.Region)))
	head = append(head, ref.Region...)
	return binary.BigEndian.AppendUint32(head, checksum(head)), nil
}

// sealedBlob is a blob taken apart but not yet trusted.
type sealedBlob struct {
	ref        keyRef
	materialID string
	head       []byte
	body       []byte // nonce, ciphertext, tag
}

// parseBlob reads the header of a blob. It errs on anything that newHeader did
// not make.
func parseBlob(blob []byte) (sealedBlob, error) {
	if len(blob) <= offRegion || blob[0] != blobVersion {
		return sealedBlob{}, errInvalidCiphertext()
	}
	regionEnd := offRegion + 1 + int(blob[offRegion])
	headEnd := regionEnd + checksumSize
	if len(blob) < headEnd || binary.BigEndian.Uint32(blob[regionEnd:headEnd]) != checksum(blob[:regionEnd]) {
		return sealedBlob{}, errInvalidCiphertext()
	}
	return sealedBlob{
		ref: keyRef{
			Account: string(blob[offAccount:offKeyID]),
			Region:  string(blob[offRegion+1 : regionEnd]),
			ID:      formatUUID([16]byte(blob[offKeyID:offMaterial])),
		},
		materialID: hex.EncodeToString(blob[offMaterial:offSalt]),
		head:       blob[:headEnd:headEnd],
		body:       blob[headEnd:],
	}, nil
}

func checksum(b []byte) uint32 {
	return crc32.Checksum(b, castagnoli())
}

// appendContext appends the canonical form of an encryption context: the number
// of pairs, then each key and value behind its length, in order of the keys. The
// lengths make it injective: no two contexts have the same bytes. A nil context
// is an empty one.
func appendContext(b []byte, context map[string]string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(context)))
	for _, name := range slices.Sorted(maps.Keys(context)) {
		b = appendCounted(b, name)
		b = appendCounted(b, context[name])
	}
	return b
}

func appendCounted(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}

// randomHex returns n random bytes as hexadecimal digits.
func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails: see crypto/rand.Read
	return hex.EncodeToString(b)
}

// newUUID returns a random UUID (RFC 9562, version 4).
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: see crypto/rand.Read
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return formatUUID(b)
}

func formatUUID(b [16]byte) string {
	var s [36]byte
	hex.Encode(s[0:8], b[0:4])
	hex.Encode(s[9:13], b[4:6])
	hex.Encode(s[14:18], b[6:8])
	hex.Encode(s[19:23], b[8:10])
	hex.Encode(s[24:36], b[10:16])
	s[8], s[13], s[18], s[23] = '-', '-', '-', '-'
	return string(s[:])
}
