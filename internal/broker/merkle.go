package broker

import (
	"crypto/sha256"
	"encoding/binary"
)

// LeafHash commits to a row as it is stored: each field is prefixed by its
// length, so that no two rows share bytes. The 0x00 prefix keeps leaves apart
// from nodes (RFC 6962, section 2.1).
func LeafHash(k DataKey) [sha256.Size]byte {
	blob := sha256.Sum256(k.Ciphertext)
	b := []byte{0x00}
	for _, field := range [][]byte{[]byte(k.ID), []byte(k.UID), blob[:], []byte(k.KeyMaterialID)} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(field)))
		b = append(b, field...)
	}
	b = binary.BigEndian.AppendUint64(b, uint64(k.Version))
	b = binary.BigEndian.AppendUint64(b, uint64(k.Epoch))
	return sha256.Sum256(b)
}

// MerkleRoot is RFC 6962's Merkle tree hash over leaves that are hashed already.
func MerkleRoot(leaves [][sha256.Size]byte) [sha256.Size]byte {
	switch len(leaves) {
	case 0:
		return sha256.Sum256(nil)
	case 1:
		return leaves[0]
	}
	k := 1
	for k*2 < len(leaves) {
		k *= 2
	}
	left, right := MerkleRoot(leaves[:k]), MerkleRoot(leaves[k:])
	node := make([]byte, 0, 1+2*sha256.Size)
	node = append(node, 0x01)
	node = append(node, left[:]...)
	node = append(node, right[:]...)
	return sha256.Sum256(node)
}
